"""Figures under attack and under corruption: a few numbers per sample, reduced exactly."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.metrics import calibration_bins, calibration_error
from timm_mix.train.evaluate.outputs import Network

__all__ = ["fgsm", "fgsm_scores", "figures_of", "sample_scores"]


def fgsm(network: Network, pixels: Tensor, label: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    """One step of size eps per pixel value up the gradient of the model's own NLL, clipped to [0, 1].

    White-box: the gradient of the whole model (the ensemble), in float32, in units of pixels before normalisation.
    The attacked images are not rounded to 256 levels.

    Shapes: pixels [B, C, H, W] in [0, 1]; label [B]; returns one tensor like pixels per eps.
    Reference: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(network.model(network.normalised(pixels)).float(), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return [(pixels.detach() + epsilon * gradient.sign()).clamp(0, 1) for epsilon in epsilons]


def fgsm_scores(network: Network, pixels: Tensor, label: Tensor, epsilons: Sequence[float]) -> Tensor:
    """Shapes: [B, len(epsilons), Q, 3], Q the predictors of the network; see `sample_scores`."""
    attacked = fgsm(network, pixels, label, epsilons)
    return torch.stack([sample_scores(network, images, label) for images in attacked], dim=1)


def sample_scores(network: Network, pixels: Tensor, label: Tensor) -> Tensor:
    """Right or wrong, NLL and confidence of every predictor.

    Shapes: returns [B, Q, 3] float64, on the CPU.
    """
    outputs, label = network.outputs(pixels).cpu(), label.cpu()
    rows = []
    for name in network.names:
        log_p = network.predictor(outputs, name).log_softmax(-1)
        confidence, predicted = log_p.max(-1)
        nll = -log_p.gather(1, label[:, None])[:, 0]
        rows.append(torch.stack([(predicted == label).double(), nll, confidence.exp()], dim=-1))
    return torch.stack(rows, dim=1)


def figures_of(scores: Tensor, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Top-1 in per cent, NLL in nats and ECE of every predictor.

    Shapes: scores [n, Q, 3], Q names.
    """
    figures = {}
    for q, name in enumerate(names):
        hit, nll, confidence = scores[:, q].unbind(-1)
        ece = calibration_error(calibration_bins(confidence, hit))
        figures[name] = {"top1": 100 * int(hit.sum()) / len(hit), "nll": float(nll.mean()), "ece": ece}
    return figures
