"""All figures of one predictor, from the logits of all samples."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_stat_scores

from timm_mix.metrics import (
    LabelMetrics,
    LabelScores,
    brier_score,
    calibration_bins,
    calibration_error,
    cross_fit_temperature,
    pair_diversity,
    risk_coverage,
)

__all__ = ["LABEL_PROTOCOL", "PROTOCOL", "Figures", "agreement", "confusion", "diversity", "score", "score_labels"]

# what a reader of results.json needs to recompute the figures
PROTOCOL = {
    "top1, top5": "per cent",
    "nll": "nats per image, mean",
    "ece": "15 bins (a, b] of equal width over the probability of the predicted class, 0..1",
    "ece_adaptive": "15 bins of equal size over the sorted probabilities, 0..1",
    "brier": "mean of sum_k (p_k - [k = y])^2, 0..2",
    "aurc": "mean over k of the share of errors among the k most confident images, 0..1",
    "temperatures": "T of softmax(z / T), least NLL on the first and on the second half of the images; halves: "
    "numpy.random.default_rng(seed).permutation(n), n // 2 first",
    "*_calibrated": "every image with the temperature of the half that it is not in, mean over all images",
    "ensemble_softmax": "mean probability; its logits, and what T divides, are the logarithm of that",
    "diversity": "disagreement: share of images with different predictions; ratio_error: images that one of the two "
    "gets wrong over images that both get wrong, null without any of these; kl: symmetrised, nats",
}

LABEL_PROTOCOL = {
    "map": "per cent, mean over the classes of the average precision, 0 for one without an image (timm's evaluator)",
    "micro_f1, macro_f1, sample_f1": "per cent, at probability 1/2: over all labels, mean over classes, over images",
    "bce": "nats, mean over images and classes",
}


@dataclass(frozen=True)
class Figures:
    """PROTOCOL says what they are.

    >>> figures = score(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
    >>> figures.top1, figures.count
    (75.0, 4)
    """

    top1: float
    top5: float
    nll: float
    nll_calibrated: float
    temperatures: tuple[float, float]
    ece: float
    ece_calibrated: float
    ece_adaptive: float
    ece_adaptive_calibrated: float
    brier: float
    brier_calibrated: float
    aurc: float
    count: int


def score(logits: Tensor, target: Tensor, *, seed: int = 0) -> Figures:
    """Shapes: logits [n, K]; target [n] int64.

    Raises:
        ValueError: fewer than two samples.

    >>> figures = score(torch.zeros(20, 10), torch.arange(20) % 10)  # knows nothing
    >>> round(figures.nll, 3), figures.top5  # ln 10
    (2.303, 50.0)
    """
    calibrated, temperatures = cross_fit_temperature(logits, target, seed=seed)
    before, after = (_probabilistic(z, target) for z in (logits, calibrated))
    probability, predicted = logits.softmax(-1).max(-1)
    _, risk = risk_coverage(probability, predicted == target)
    return Figures(
        top1=_hits(logits, target, 1),
        top5=_hits(logits, target, 5),
        **before,
        **{f"{name}_calibrated": value for name, value in after.items()},
        temperatures=temperatures,
        aurc=float(risk.mean()),
        count=len(target),
    )


def score_labels(logits: Tensor, target: Tensor) -> LabelScores:
    """Of images with any number of labels; LABEL_PROTOCOL says what the figures are.

    Shapes: logits [n, K]; target [n, K] of 0 and 1.

    >>> score_labels(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]), torch.eye(2)).map
    100.0
    """
    metrics = LabelMetrics(0)
    metrics.update(logits[:, None][:, :0], logits, target)
    return metrics.compute()["ensemble"]


def _hits(logits: Tensor, target: Tensor, k: int) -> float:
    """Top-k in per cent; torchmetrics counts exactly, its accuracy is rounded to float32."""
    classes = logits.shape[1]
    right = multiclass_stat_scores(logits, target, classes, average="micro", top_k=min(k, classes))[0]
    return 100 * int(right) / len(target)


def _probabilistic(logits: Tensor, target: Tensor) -> dict[str, float]:
    """torchmetrics has an ECE, too, but in float32 and with a bin of its own for a confidence of exactly 1."""
    confidence, predicted = logits.softmax(-1).max(-1)
    by_width, by_mass = (
        calibration_bins(confidence, predicted == target, equal_mass=equal_mass) for equal_mass in (False, True)
    )
    return {
        "nll": float(F.cross_entropy(logits, target)),
        "ece": calibration_error(by_width),
        "ece_adaptive": calibration_error(by_mass),
        "brier": brier_score(logits, target),
    }


def diversity(members: Tensor, target: Tensor) -> dict[str, Any] | None:
    """Every pair of members, and the mean over the pairs; None for fewer than two.

    Shapes: members [n, N, K]; target [n].

    >>> members = torch.eye(3)[torch.tensor([[0, 0], [1, 2], [2, 2], [0, 1]])]  # 4 images, 2 members, 3 classes
    >>> diversity(members, torch.tensor([0, 1, 2, 2]))["disagreement"]
    0.5
    """
    pairs = [asdict(pair) for pair in pair_diversity(members, target)]
    if not pairs:
        return None
    known = [pair["ratio_error"] for pair in pairs if pair["ratio_error"] is not None]
    return {
        "disagreement": statistics.fmean(pair["disagreement"] for pair in pairs),
        "ratio_error": statistics.fmean(known) if len(known) == len(pairs) else None,
        "kl": statistics.fmean(pair["kl"] for pair in pairs),
        "pairs": pairs,
    }


def confusion(logits: Tensor, target: Tensor) -> Tensor:
    """Shapes: [K, K], images of class r that are taken for class c.

    >>> confusion(torch.eye(2)[torch.tensor([0, 1, 1])], torch.tensor([0, 1, 0]))
    tensor([[1, 1],
            [0, 1]])
    """
    return multiclass_confusion_matrix(logits.argmax(-1), target, logits.shape[1])


def agreement(predictions: list[Tensor]) -> Tensor:
    """Share of samples on which two predictors name the same class.

    Shapes: P x [n] predicted classes; returns [P, P].

    >>> agreement([torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])])
    tensor([[1.0000, 0.7500],
            [0.7500, 1.0000]], dtype=torch.float64)
    """
    stacked = torch.stack(predictions)
    return (stacked[:, None] == stacked[None]).double().mean(-1)
