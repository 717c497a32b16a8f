"""Pictures of an evaluation: reliability, members, risk and coverage, accuracy under attack and corruption."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from timm_mix.metrics import Bins
from timm_mix.train.evaluate.canvas import PALETTE, open_pyplot, save_figure

__all__ = [
    "plot_corruptions",
    "plot_fgsm",
    "plot_members",
    "plot_precision_recall",
    "plot_reliability",
    "plot_risk_coverage",
]

NAMED_CLASSES = 40  # beyond that the names of the classes would not be legible
WRITTEN_CELLS = 12


def plot_reliability(path: Path, panels: Mapping[str, tuple[Bins, float]], title: str) -> None:
    """Accuracy over confidence, one panel per (bins, ECE); below, the share of images in each bin.

    The bars are 95 % intervals of the accuracy (Wilson's), so that a bin of few images does not look like a fault.

    >>> from timm_mix.metrics import calibration_bins, calibration_error
    >>> bins = calibration_bins(torch.tensor([0.55, 0.65, 0.95]), torch.tensor([0, 1, 1]))
    >>> plot_reliability(Path("reliability.png"), {"as it is": (bins, calibration_error(bins))}, "resnet18")
    >>> Path("reliability.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, axes = plt.subplots(
        *(2, len(panels)),
        figsize=(4.2 * len(panels), 5.2),
        height_ratios=(3, 1),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, (name, (bins, ece)) in enumerate(panels.items()):
        upper, lower = axes[:, column]
        confidence, accuracy, count = (np.asarray(values) for values in (bins.confidence, bins.accuracy, bins.count))
        upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
        upper.vlines(confidence, confidence, accuracy, color=PALETTE[1], linewidth=5, alpha=0.35, label="gap")
        style = {"color": PALETTE[0], "marker": "o", "markersize": 5, "linewidth": 1.2, "capsize": 2}
        upper.errorbar(confidence, accuracy, yerr=_interval(accuracy, count), label="images of a bin", **style)
        upper.set(title=f"{name}: ECE {100 * ece:.2f} %", xlim=(0, 1), ylim=(0, 1.02))
        lower.bar(confidence, 100 * count / count.sum(), width=0.03, color=PALETTE[0])
        lower.set(xlabel="confidence (probability of the predicted class)")
        upper.grid(alpha=0.3)
        lower.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy (share of right predictions)")
    axes[1, 0].set_ylabel("images (%)")
    axes[0, 0].legend(loc="upper left", fontsize=8)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_members(
    path: Path, names: Sequence[str], agreement: Tensor, confusion: Tensor, classes: Sequence[str], title: str
) -> None:
    """Left: how often two predictors name the same class. Right: true against predicted class of the ensemble.

    Shapes: agreement [P, P] in 0..1; confusion [K, K] in images.

    >>> share, counts = torch.tensor([[1.0, 0.9], [0.9, 1.0]]), torch.tensor([[8, 2], [1, 9]])
    >>> plot_members(Path("members.png"), ["member_0", "member_1"], share, counts, ["cat", "dog"], "ensemble_logits")
    >>> Path("members.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.6), width_ratios=(1, 1.25), layout="constrained")
    _matrix(figure, left, 100 * np.asarray(agreement), names, "same prediction (% of the images)", zoom=True)
    left.set_title("agreement")
    counts = np.asarray(confusion, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    _matrix(figure, right, shares, classes, "share of the true class (%)")
    right.set(title=f"confusion of {title}", xlabel="predicted class", ylabel="true class")
    save_figure(figure, path)


def plot_risk_coverage(path: Path, curves: Mapping[str, tuple[Tensor, Tensor]], whole: str, title: str) -> None:
    """Errors among the most confident images, over the share of images that are answered; the AURC in the legend.

    >>> curve = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.25])
    >>> plot_risk_coverage(Path("risk_coverage.png"), {"model": curve}, "model", "resnet18")
    >>> Path("risk_coverage.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    top = 0.0
    for n, (name, (coverage, risk)) in enumerate(curves.items()):
        label = f"{name} (AURC {100 * float(risk.mean()):.2f} %)"
        axis.plot(100 * np.asarray(coverage), 100 * np.asarray(risk), label=label, **_style(n, name, whole))
        top = max(top, 100 * float(risk[len(risk) // 20 :].max()))  # the first images make a jagged peak
    axis.set(xlabel="coverage (% of the images, most confident first)", ylabel="risk (% wrong)", title=title)
    axis.set(xlim=(0, 100), ylim=(0, 1.1 * top + 0.1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    save_figure(figure, path)


def plot_precision_recall(path: Path, logits: Mapping[str, Tensor], target: Tensor, whole: str, title: str) -> None:
    """Precision over recall of all labels together, as the threshold of the probability falls.

    Shapes: logits predictor -> [n, K]; target [n, K] of 0 and 1.

    >>> target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> plot_precision_recall(Path("precision_recall.png"), {"model": 2 * target - 1}, target, "model", "resnet18")
    >>> Path("precision_recall.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for n, (name, rows) in enumerate(logits.items()):
        hits = np.asarray(target)[np.unravel_index(np.argsort(-np.asarray(rows), axis=None), rows.shape)].cumsum()
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / max(hits[-1], 1)
        axis.plot(100 * recall, 100 * precision, label=name, **_style(n, name, whole))
    axis.set(xlabel="recall (%)", ylabel="precision (%)", title=title, xlim=(0, 100), ylim=(0, 102))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    save_figure(figure, path)


def plot_fgsm(
    path: Path, epsilons: Sequence[float], top1: Mapping[str, Sequence[float]], whole: str, title: str
) -> None:
    """Top-1 over the size of the step; top1: predictor -> one figure per eps.

    >>> plot_fgsm(Path("fgsm.png"), [0, 1, 2], {"model": [90.0, 55.0, 20.0]}, "model", "resnet18")
    >>> Path("fgsm.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for n, (name, row) in enumerate(top1.items()):
        axis.plot(epsilons, row, marker="o", markersize=4, label=name, **_style(n, name, whole))
    axis.set(xlabel="FGSM step ε (1/255 of the pixel range)", ylabel="top-1 (%)", title=f"{title}, attack on {whole}")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def plot_corruptions(
    path: Path, top1: Mapping[str, Mapping[str, Sequence[float]]], clean: Mapping[str, float], whole: str, title: str
) -> None:
    """Left: mean over the families. Right: every family, for the model's own prediction.

    Args:
        top1: family -> predictor -> one figure per severity, 1 first.
        clean: predictor -> the figure without corruption, severity 0.

    >>> top1 = {"jpeg": {"model": [88.0, 85.0, 80.0, 71.0, 60.0]}}
    >>> plot_corruptions(Path("corruptions.png"), top1, {"model": 90.0}, "model", "resnet18")
    >>> Path("corruptions.png").is_file()
    True
    """
    plt = open_pyplot()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 1.6 + max(3.4, 0.36 * len(top1))), width_ratios=(1, 1.1), layout="constrained"
    )
    for n, name in enumerate(clean):
        mean = np.mean([rows[name] for rows in top1.values()], axis=0)
        severities = range(len(mean) + 1)
        style = _style(n, name, whole)
        left.plot(severities, [clean[name], *mean], marker="o", markersize=4, label=name, **style)
    of = f"mean of {len(top1)} families" if len(top1) > 1 else next(iter(top1))
    left.set(xlabel="severity (0: as they are)", ylabel="top-1 (%)", title=f"{title}, {of}")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    grid = np.array([[clean[whole], *rows[whole]] for rows in top1.values()])
    shown = right.imshow(grid, cmap="cividis", aspect="auto", vmin=0, vmax=max(100.0 * (grid.max() > 50), grid.max()))
    _write_cells(right, grid, shown)
    right.set_xticks(range(grid.shape[1]), ["0", *map(str, range(1, grid.shape[1]))])
    right.set_yticks(range(len(top1)), [name.replace("_", " ") for name in top1])
    right.set(xlabel="severity", title=f"{whole}, top-1 (%)")
    save_figure(figure, path)


def _style(n: int, name: str, whole: str) -> dict[str, Any]:
    """The model's own prediction stands out; the folded network lies on it and is dotted."""
    if name == whole:
        return {"color": "black", "linewidth": 2.2}
    line = ":" if name == "folded" else "--" if name.startswith("ensemble") else "-"
    return {"color": PALETTE[n % 6], "linewidth": 2.2 if name == "folded" else 1.3, "linestyle": line}


def _matrix(figure: Any, axis: Any, values: np.ndarray, names: Sequence[str], label: str, zoom: bool = False) -> None:
    low = float(np.floor(values.min())) if zoom else 0.0
    shown = axis.imshow(values, cmap="cividis", vmin=min(low, 99.0), vmax=100)
    figure.colorbar(shown, ax=axis, label=label, shrink=0.85)
    if len(names) <= NAMED_CLASSES:
        size = 9 if len(names) <= WRITTEN_CELLS else 6
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axis.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= WRITTEN_CELLS:
        _write_cells(axis, values, shown)


def _write_cells(axis: Any, values: np.ndarray, shown: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        dark = shown.norm(value) < 0.5
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")


def _interval(accuracy: np.ndarray, count: np.ndarray, z: float = 1.96) -> np.ndarray:
    """Distances [2, b] from the accuracy to the ends of Wilson's interval."""
    centre = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.maximum([accuracy - (centre - half), centre + half - accuracy], 0)
