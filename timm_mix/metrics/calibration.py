"""Calibration, temperature, Brier score, risk under rejection: of the logits of all samples, computed in float64."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_mix.metrics._checks import check_samples

__all__ = [
    "Bins",
    "brier_score",
    "calibration_bins",
    "calibration_error",
    "cross_fit_temperature",
    "fit_temperature",
    "risk_coverage",
]

# Where no finite temperature is best (every sample right, or the labels unrelated to the logits) it ends here.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class Bins:
    """Samples grouped by confidence, the groups without a sample left out.

    Shapes: all [b] float64: mean confidence, share of right predictions, number of samples.

    >>> bins = calibration_bins(torch.tensor([0.9, 0.8, 0.3]), torch.tensor([1, 0, 0]), bins=2)
    >>> bins.count, bins.accuracy
    (tensor([1., 2.], dtype=torch.float64), tensor([0.0000, 0.5000], dtype=torch.float64))
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def calibration_bins(confidence: Tensor, correct: Tensor, bins: int = 15, *, equal_mass: bool = False) -> Bins:
    """Group samples by the probability of their predicted class.

    Args:
        bins: number of groups, of equal width (0, 1/bins], (1/bins, 2/bins], ... as Guo et al. have them.
        equal_mass: groups of equal size along the sorted confidences (sizes differ by one at the most) instead.
    Shapes: confidence, correct [n].
    Raises:
        ValueError: bins < 1, or no sample.
    Reference: Guo et al., ICML 2017, arXiv:1706.04599; equal mass: Nguyen and O'Connor, EMNLP 2015, arXiv:1508.05154.

    >>> bins = calibration_bins(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([0, 1, 1]), bins=2)
    >>> bins.confidence, bins.accuracy
    (tensor([0.2500, 0.8750], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    check_samples(len(confidence), 1, "a calibration error")
    confidence, correct = confidence.double().contiguous(), correct.double()
    if equal_mass:
        confidence, order = confidence.sort(stable=True)
        correct = correct[order]
        group = torch.arange(len(confidence)) * bins // len(confidence)
    else:
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        group = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.float64)
    sums.index_add_(1, group, torch.stack([confidence, correct, torch.ones_like(confidence)]))
    sums = sums[:, sums[2] > 0]
    return Bins(confidence=sums[0] / sums[2], accuracy=sums[1] / sums[2], count=sums[2])


def calibration_error(bins: Bins) -> float:
    """ECE: the mean distance of accuracy and confidence over the bins, weighted by their samples; in [0, 1].

    >>> sure, right = torch.full((4,), 0.75), torch.tensor([1, 1, 0, 0])
    >>> calibration_error(calibration_bins(sure, right))
    0.25
    """
    return float(((bins.accuracy - bins.confidence).abs() * bins.count).sum() / bins.count.sum())


def brier_score(logits: Tensor, target: Tensor) -> float:
    """Mean over the samples of sum_k (p_k - [k = y])^2; in [0, 2] (Brier, 1950).

    Shapes: logits [n, K]; target [n] int64.

    >>> brier_score(torch.zeros(1, 2), torch.tensor([0]))  # (1/2 - 1)^2 + (1/2)^2
    0.5
    """
    gap = logits.double().softmax(-1)
    gap[torch.arange(len(target)), target] -= 1
    return float(gap.square().sum(-1).mean())


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The T that minimises the mean NLL of softmax(logits / T), between 0.01 and 100.

    The NLL is convex in 1 / T: Newton's steps on its derivative, E_p[z] - z_y, within a shrinking bracket.

    Shapes: logits [n, K]; target [n] int64.
    Raises:
        ValueError: no sample, logits and targets of different lengths, logits that are not finite, another class.

    >>> logits = torch.tensor([[2.0, 0.0]] * 4)  # right three times in four, which takes logits of ln 3
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # 2 / ln 3
    1.82
    """
    check_samples(len(logits), 1, "a temperature")
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(f"wanted logits [n, K] and target [n], got {list(logits.shape)} and {list(target.shape)}")
    if not logits.isfinite().all():
        raise ValueError("a temperature needs finite logits, got NaN or infinity")
    lowest, highest = int(target.min()), int(target.max())
    if lowest < 0 or highest >= logits.shape[1]:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"a target must be a class in 0 .. {logits.shape[1] - 1}, got {wrong}")
    z = logits.double()
    z = z - z.amax(-1, keepdim=True)
    labelled = z.gather(1, target[:, None]).mean()

    def derivatives(beta: float) -> tuple[float, float]:
        p = (beta * z).softmax(-1)
        mean = (p * z).sum(-1)
        return float(mean.mean() - labelled), float(((p * z.square()).sum(-1) - mean.square()).mean())

    low, high, beta = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    if derivatives(low)[0] >= 0:
        return MAX_TEMPERATURE
    if derivatives(high)[0] <= 0:
        return MIN_TEMPERATURE
    for _ in range(100):
        slope, curvature = derivatives(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else low
        before, beta = beta, step if low < step < high else (low * high) ** 0.5
        if abs(beta - before) <= 1e-12 * before:
            break
    return 1 / beta


def cross_fit_temperature(logits: Tensor, target: Tensor, *, seed: int = 0) -> tuple[Tensor, tuple[float, float]]:
    """Divide each half of the samples by the temperature that was fitted on the other half.

    The halves are those of `np.random.default_rng(seed).permutation(n)`, n // 2 samples first, so they do not depend
    on the logits, nor do sorted classes fall into one half. A mean over the result uses every sample once and never
    a temperature that has seen it: the mean NLL is the NLL_c of the MixMo paper.

    Shapes: logits [n, K]; target [n] int64; returns [n, K] float64 and T fitted on the first and on the second half.
    Raises:
        ValueError: fewer than two samples.
    Reference: Ashukha et al., ICLR 2020, arXiv:2002.06470.

    >>> logits, target = torch.tensor([[2.0, 0.0]] * 8), torch.tensor([0, 0, 0, 1] * 2)
    >>> scaled, (on_first, on_second) = cross_fit_temperature(logits, target)
    >>> scaled.shape, scaled.dtype
    (torch.Size([8, 2]), torch.float64)
    """
    check_samples(len(logits), 2, "a temperature on one half and figures on the other")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(logits)))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    on_first = fit_temperature(logits[first], target[first])
    on_second = fit_temperature(logits[second], target[second])
    scaled = logits.double()  # a copy unless it is float64 already
    scaled = scaled.clone() if scaled is logits else scaled
    scaled[first] /= on_second
    scaled[second] /= on_first
    return scaled, (on_first, on_second)


def risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Share of wrong predictions among the k most confident samples, k = 1 .. n; its mean is the AURC.

    Samples of equal confidence count as drawn in random order: their errors are spread evenly.

    Shapes: confidence, correct [n]; returns coverage k / n and risk, [n] float64.
    Raises:
        ValueError: no sample.
    Reference: Geifman, Uziel and El-Yaniv, ICLR 2019, arXiv:1805.08206.

    >>> coverage, risk = risk_coverage(torch.tensor([0.9, 0.5, 0.7, 0.6]), torch.tensor([1, 0, 1, 1]))
    >>> coverage.tolist(), risk.tolist()  # the least confident one is the one that is wrong
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.25])
    """
    check_samples(len(confidence), 1, "a risk")
    _, group, count = (-confidence.double()).unique(return_inverse=True, return_counts=True)
    wrong = torch.zeros(len(count), dtype=torch.float64).index_add_(0, group, 1 - correct.double())
    errors = (wrong / count).repeat_interleave(count).cumsum(0)
    rank = torch.arange(1, len(confidence) + 1, dtype=torch.float64)
    return rank / len(confidence), errors / rank
