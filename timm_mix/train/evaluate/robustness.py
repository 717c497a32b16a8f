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

    >>> from timm_mix.train.evaluate.outputs import create_accelerator
    >>> plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    >>> network = Network(torch.nn.Flatten(), plain, create_accelerator(False, "bfloat16", cpu=True))
    >>> (attacked,) = fgsm(network, torch.full((1, 3, 1, 1), 0.5), torch.tensor([2]), [0.25])
    >>> attacked.flatten()  # a pixel is a logit here: the label's own falls
    tensor([0.7500, 0.7500, 0.2500])
    """
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(network.model(network.normalised(pixels)).float(), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return [(pixels.detach() + epsilon * gradient.sign()).clamp(0, 1) for epsilon in epsilons]


def fgsm_scores(network: Network, pixels: Tensor, label: Tensor, epsilons: Sequence[float]) -> Tensor:
    """Shapes: [B, len(epsilons), Q, 3], Q the predictors of the network; see `sample_scores`.

    >>> from timm_mix.train.evaluate.outputs import create_accelerator
    >>> plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    >>> network = Network(torch.nn.Flatten(), plain, create_accelerator(False, "bfloat16", cpu=True))
    >>> scores = fgsm_scores(network, torch.eye(3)[..., None, None], torch.arange(3), [0.25, 0.75])
    >>> scores.shape, scores[:, :, 0, 0].mean(0)  # right with the small step, wrong with the large one
    (torch.Size([3, 2, 1, 3]), tensor([1., 0.], dtype=torch.float64))
    """
    attacked = fgsm(network, pixels, label, epsilons)
    return torch.stack([sample_scores(network, images, label) for images in attacked], dim=1)


def sample_scores(network: Network, pixels: Tensor, label: Tensor) -> Tensor:
    """Right or wrong, NLL and confidence of every predictor.

    Shapes: returns [B, Q, 3] float64, on the CPU.

    >>> from timm_mix.train.evaluate.outputs import create_accelerator
    >>> plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    >>> network = Network(torch.nn.Flatten(), plain, create_accelerator(False, "bfloat16", cpu=True))
    >>> sample_scores(network, torch.eye(3)[..., None, None], torch.tensor([0, 1, 0]))[:, 0, 0]  # right or wrong
    tensor([1., 1., 0.], dtype=torch.float64)
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

    >>> scores = torch.tensor([[[1.0, 0.5, 0.75]], [[0.0, 1.5, 0.75]]])  # of two images and one predictor
    >>> figures_of(scores, ["model"])
    {'model': {'top1': 50.0, 'nll': 1.0, 'ece': 0.25}}
    """
    figures = {}
    for q, name in enumerate(names):
        hit, nll, confidence = scores[:, q].unbind(-1)
        ece = calibration_error(calibration_bins(confidence, hit))
        figures[name] = {"top1": 100 * int(hit.sum()) / len(hit), "nll": float(nll.mean()), "ece": ece}
    return figures
