"""Pictures of a run: mixed inputs with their masks, and training curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.functional.mixmo import MixMoPlan, member_masks
from timm_mix.train.evaluate.canvas import open_pyplot, save_figure

__all__ = ["plot_comparison", "plot_curves", "plot_division", "plot_mask_families", "plot_mixed_inputs", "show"]


def plot_mixed_inputs(path: Path, images: Tensor, plan: MixMoPlan, mean: Tensor, std: Tensor, rows: int = 6) -> None:
    """One row per mixed sample: each member's image, its mask, and the masks applied to the pixels.

    The network mixes features, not pixels; the last column shows which place belongs to whom.

    Shapes: images [B, C, H, W] normalised; mean and std [C].
    """
    plt = open_pyplot()
    batch, members = plan.images.shape
    shares, ratios = member_masks(plan)
    shares = shares.mean(2, keepdim=True)  # over the channels, where the block differs between them
    masks = F.interpolate(shares.flatten(0, 1), size=images.shape[-2:]).unflatten(0, (batch, members))
    pixels = (images * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
    seen = pixels[torch.from_numpy(plan.images)]  # [B, M, C, H, W]
    mixed = (seen * masks).sum(1)
    rows, columns = min(rows, batch), 2 * members + 1
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.6 * rows), squeeze=False, layout="constrained")
    for b in range(rows):
        for i in range(members):
            show(axes[b, 2 * i], seen[b, i], f"member {i}" if b == 0 else "")
            share = f"share {ratios[b, i]:.2f}"
            show(axes[b, 2 * i + 1], masks[b, i].expand(3, -1, -1), f"mask {i}\n{share}" if b == 0 else share)
        show(axes[b, -1], mixed[b], "mixed" if b == 0 else "")
    save_figure(figure, path)


def plot_curves(path: Path, results: dict[str, Any]) -> None:
    """Training loss, and top-1 of every member and of the ensemble, over the epochs of a results.json."""
    plt = open_pyplot()
    epochs = [row["epoch"] + 1 for row in results["epochs"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in results["epochs"][0]["train"]:
        left.plot(epochs, [row["train"][name] for row in results["epochs"]], label=name)
    left.set(xlabel="epoch", ylabel="training loss (nats)", title=results["model"]["name"])
    for name in results["epochs"][0]["eval"]:
        style = {"color": "black", "linewidth": 2} if name == "ensemble" else {"linewidth": 1}
        right.plot(epochs, [row["eval"][name]["top1"] for row in results["epochs"]], label=name, **style)
    right.set(xlabel="epoch", ylabel="validation top-1 (%)")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def plot_mask_families(
    path: Path, drawn: dict[str, list[tuple[Tensor, Tensor]]], kappas: tuple[float, ...], columns: int = 2
) -> None:
    """One page of mixing blocks, white where the place is role 0's; the area really kept stands above each mask.

    Shapes: drawn: family -> per kappa (masks [D, h, w], first channel of each; areas [D], over all channels).
    """
    plt = open_pyplot()
    draws = len(next(iter(drawn.values()))[0][1])
    width = draws * len(kappas)
    rows = -(-len(drawn) // columns)
    size = (0.75 * width * columns, 0.95 * rows)
    figure, axes = plt.subplots(rows, width * columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for n, (family, by_kappa) in enumerate(drawn.items()):
        first = (n % columns) * width
        for k, (masks, areas) in enumerate(by_kappa):
            for d in range(draws):
                axis = axes[n // columns, first + k * draws + d]
                axis.axis("on")
                show(axis, masks[d].expand(3, -1, -1), "")
                label = f"{areas[d]:.2f}" if d else f"κ={kappas[k]}: {areas[d]:.2f}"
                axis.set_title(label, fontsize=5)
        axes[n // columns, first].set_ylabel(family, fontsize=6)
    save_figure(figure, path)


def plot_division(path: Path, rows: Sequence[Any]) -> None:
    """Width, parameters and multiply-accumulates over the number of parts, one colour per architecture.

    Args:
        rows: with the fields of divide_table.Row. Dotted: one part; drawn through: all parts.
    """
    plt = open_pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    by_arch: dict[str, list[Any]] = {}
    for row in rows:
        by_arch.setdefault(row.arch, []).append(row)
    for n, (arch, own) in enumerate(by_arch.items()):
        own = sorted(own, key=lambda row: row.split)
        splits = [row.split for row in own]
        style = {"color": f"C{n % 10}", "marker": "o", "markersize": 4}
        axes[0].plot(splits, [row.width for row in own], label=arch, **style)
        for axis, name, unit in ((axes[1], "parameters", 1e6), (axes[2], "macs", 1e9)):
            axis.plot(splits, [getattr(row, name) / unit for row in own], **style)
            axis.plot(splits, [getattr(row, f"part_{name}") / unit for row in own], linestyle=":", **style)
    labels = ("features of one part", "parameters (M)", "multiply-accumulates (G)")
    ticks = sorted({row.split for row in rows})
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="number of parts S", ylabel=label)
        axis.set_xticks(ticks, [str(split) for split in ticks])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=7)
        axis.grid(alpha=0.3, which="both")
    for axis in axes[1:]:
        axis.set_title("all parts (line), one part (dotted)", fontsize=9)
    axes[0].legend(fontsize=7)
    save_figure(figure, path)


def plot_comparison(path: Path, title: str, rows: Sequence[Any]) -> None:
    """Top-1 of every method, and its difference to the baseline: a dot per mean, its confidence interval, the seeds.

    Args:
        rows: with the fields of timm_mix.lab.suites.comparison.Row. Hollow dots: one seed, no interval.
    """
    plt = open_pyplot()
    size = (10, 1.4 + 0.38 * len(rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for place, row in enumerate(rows):
        _estimate(left, place, row.top1, "#0072B2")  # blue and vermilion of Okabe and Ito: told apart by everyone
        _estimate(right, place, row.top1_difference, "#D55E00")
    left.set(xlabel="ensemble, validation top-1 (%)", title=title)
    left.set_yticks(range(len(rows)), [row.method for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    right.axvline(0, color="black", linewidth=1)
    right.set(xlabel="top-1 minus the baseline's, same seed (points)", title="bars: 95 % confidence interval")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    save_figure(figure, path)


def _estimate(axis: Any, place: int, estimate: Any, colour: str) -> None:
    """A mean with its interval at a height, and small grey dots for the values that it is the mean of."""
    if estimate is None:
        return
    if estimate.half_width is None:
        axis.plot(estimate.mean, place, "o", markeredgecolor=colour, markerfacecolor="white", markersize=7)
        return
    axis.errorbar(estimate.mean, place, xerr=estimate.half_width, fmt="o", color=colour, capsize=3, markersize=7)
    axis.plot(estimate.values, [place + 0.22] * estimate.n, ".", color="0.45", markersize=4)


def show(axis: Any, image: Tensor, title: str) -> None:
    axis.imshow(np.asarray(image.permute(1, 2, 0)), vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
