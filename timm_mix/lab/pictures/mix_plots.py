"""Pictures of the mixing that learns or remembers: AutoMix's masks, RecursiveMix's chain; and the images they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_mix.lab.pictures.plots import show
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.canvas import open_pyplot, save_figure
from timm_mix.train.loop.build import Data

__all__ = ["ChainStep", "draw_images", "plot_automix_masks", "plot_recursive_chain"]

Box = tuple[float, float, float, float]  # top, bottom, left, right


@dataclass(frozen=True)
class ChainStep:
    """One step of RecursiveMix for a few places of the batch.

    fresh, mixed: [B, 3, H, W] in [0, 1].   box, lam: of the plan.
    shares: [n], the weight in the label of what came in at each of the n steps.
    """

    fresh: Tensor
    mixed: Tensor
    box: tuple[int, int, int, int]
    lam: float
    shares: Tensor


def draw_images(data: Data, style: str, data_config: dict[str, Any], count: int, rng: np.random.Generator) -> Tensor:
    """`count` validation images, no two of one place, in the evaluation transform of the style: [count, C, H, W].

    Raises:
        UsageError: a stream, or fewer images than that.
    """
    images: Any = data.validation
    size = len(images) if hasattr(images, "__getitem__") else 0
    if size < count:
        raise UsageError(f"the picture needs {count} validation images that can be picked, got {size}; ask for fewer")
    images.transform = create_transform(style, data_config, training=False)
    return torch.stack([images[int(i)][0] for i in rng.choice(size, count, replace=False)])


def plot_automix_masks(
    path: Path, images: Tensor, partners: Tensor, masks: dict[float, Tensor], mixed: dict[float, Tensor], title: str
) -> None:
    """One row per pair: the image, its partner, and for every lam the mask (white: the image's) and the mix.

    Shapes: images, partners and mixed[lam] [R, C, H, W] in [0, 1]; masks[lam] [R, 1, H, W], of the image itself.
    """
    plt = open_pyplot()
    rows, columns = len(images), 2 + 2 * len(masks)
    size = (1.25 * columns, 1.42 * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for r in range(rows):
        show(axes[r, 0], _colour(images[r]), "image" if r == 0 else "")
        show(axes[r, 1], _colour(partners[r]), "partner" if r == 0 else "")
        for n, lam in enumerate(masks):
            area = f"keeps {masks[lam][r].mean():.2f}"
            show(axes[r, 2 + 2 * n], _colour(masks[lam][r]), f"λ = {lam:g}\n{area}" if r == 0 else area)
            show(axes[r, 3 + 2 * n], _colour(mixed[lam][r]), "mixed" if r == 0 else "")
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def plot_recursive_chain(path: Path, steps: Sequence[ChainStep], title: str) -> None:
    """One column per step; for every place of the batch the new image, the mixed input and its label's shares.

    Each step has a colour: it frames what came in at that step, and fills that step's share of the label.
    """
    plt = open_pyplot()
    places, columns = len(steps[0].fresh), len(steps)
    heights = [1, 1, 0.22] * places
    size = (1.6 * columns + 0.6, 1.7 * sum(heights) + 0.9)
    grid = {"height_ratios": heights}
    figure, axes = plt.subplots(
        3 * places, columns, figsize=size, squeeze=False, layout="constrained", gridspec_kw=grid
    )
    for b in range(places):
        for t, step in enumerate(steps):
            top, middle, bottom = axes[3 * b : 3 * b + 3, t]
            show(top, _colour(step.fresh[b]), f"step {t + 1}" if b == 0 else "")
            show(middle, _colour(step.mixed[b]), f"λ = {step.lam:.2f}")
            _frame(top, t)
            _frame(middle, t)
            for source, box in _nested(steps[: t + 1], step.mixed.shape[-2:]):
                _outline(middle, box, source)
            _stack(bottom, step.shares)
        for row, label in enumerate(("new image", "input", "label")):
            axes[3 * b + row, 0].set_ylabel(label, fontsize=8)
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def _nested(steps: Sequence[ChainStep], size: tuple[int, ...]) -> list[tuple[int, Box]]:
    """Where the inputs of earlier steps are in the last one's: (step they came in at, box), the largest first."""
    found: list[tuple[int, Box]] = []
    outer: Box = (0.0, float(size[0]), 0.0, float(size[1]))
    for t in range(len(steps) - 1, 0, -1):
        if steps[t].lam == 1:
            break
        tall, wide = (outer[1] - outer[0]) / size[0], (outer[3] - outer[2]) / size[1]
        top, bottom, left, right = steps[t].box
        outer = (outer[0] + top * tall, outer[0] + bottom * tall, outer[2] + left * wide, outer[2] + right * wide)
        found.append((t - 1, outer))
    return found


def _colour(image: Tensor) -> Tensor:
    return image.clamp(0, 1).expand(3, -1, -1)


def _frame(axis: Any, step: int) -> None:
    for spine in axis.spines.values():
        spine.set(color=f"C{step}", linewidth=2.5)


def _outline(axis: Any, box: Box, step: int) -> None:
    from matplotlib.patches import Rectangle

    top, bottom, left, right = box
    corner = (left - 0.5, top - 0.5)  # the middle of a pixel has whole coordinates
    axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=f"C{step}", linewidth=1.5))


def _stack(axis: Any, shares: Tensor) -> None:
    """One bar, as wide as the label; shares below a hundredth are drawn but not written."""
    begin = 0.0
    for step, share in enumerate(shares.tolist()):
        axis.barh(0, share, left=begin, color=f"C{step}")
        if share >= 0.12:
            axis.text(begin + share / 2, 0, f"{share:.2f}", ha="center", va="center", fontsize=6, color="white")
        begin += share
    axis.set(xlim=(0, 1), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
