"""The tables of a comparison as text: markdown to read, CSV with the exact figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from timm_mix.card.table import markdown_table
from timm_mix.lab.suites.comparison import CONFIDENCE, Estimate, Results, cost_rows, rows
from timm_mix.lab.suites.held_out import FIGURES, HeldOut, held_out_rows
from timm_mix.lab.suites.plan import Suite

__all__ = ["costs_csv", "costs_markdown", "held_out_csv", "held_out_markdown", "table_csv", "table_markdown"]

_EXPORTS = {"last": "the last epoch", "best": "the best epoch, chosen on the validation split itself"}
_NOTES = f"""\
± is the standard deviation over the n seeds. Differences are method minus baseline, paired by seed, with the \
{CONFIDENCE:.0%} confidence interval of their mean (Student's t); one pair has none. They tell what other seeds would \
do, not what other validation images would. The best member is chosen on the validation split itself."""
_COST_NOTES = """\
FLOPs are predicted, for all training steps of one run: convolutions, matrix products and attention, forward and \
backward. Seconds are measured, for the training epochs of one run without evaluation, on a machine that may have done \
other things as well: mean ± standard deviation over the seeds, the ratio paired by seed."""

_HELD_OUT_NOTES = f"""\
Every figure is that of the saved model (see the epochs above) on the split that the title names, which chose nothing. \
NLL in nats; NLL_c is the NLL after a temperature that is fitted on the other half of the images; ECE with 15 bins. \
± is the standard deviation over the n seeds; differences are paired by seed, with the {CONFIDENCE:.0%} confidence \
interval of their mean (Student's t): they tell what other seeds would do, not what other images would. Time: measured \
seconds of training over the baseline's, on a machine that may have done other things as well. Inference: FLOPs of one \
prediction over the baseline's. A row called folded is the model above it as one plain network."""


def table_markdown(command: str, suite: Suite, results: Results, failures: Sequence[str]) -> str:
    """The accuracies; nothing in it depends on the clock.

    Args:
        command: what makes the table again.
        failures: a line for each run that failed.
    """
    lines = []
    for row in rows(suite, results):
        lines.append(
            {
                **{"method": row.method, "n": str(row.top1.n if row.top1 else 0)},
                **{"top-1 (%)": _mean(row.top1, 2), "NLL": _mean(row.nll, 4)},
                "best member, top-1 (%)": _mean(row.best_member, 2),
                **{"baseline": row.baseline or "", "top-1 difference": _difference(row.top1_difference, 2)},
                "NLL difference": _difference(row.nll_difference, 4),
            }
        )
    parts = [f"# {suite.name}", _about(command, suite, results), _markdown(lines), _NOTES]
    if failures:
        parts.append("Failed runs, which the table lacks:\n\n" + "\n".join(f"- {failure}" for failure in failures))
    return "\n\n".join([*parts, _machines(results)]) + "\n"


def costs_markdown(command: str, suite: Suite, results: Results) -> str:
    """What the methods cost; its seconds change from call to call."""
    lines = [
        {
            **{"method": row.method, "parameters": f"{row.parameters:,}"},
            **{"iterations": f"{row.predicted.iterations:,}", "FLOPs": f"{row.predicted.flops:.3g}"},
            "FLOPs / baseline": "" if row.relative_flops is None else f"{row.relative_flops:.2f}",
            **{"seconds": _mean(row.seconds, 1), "seconds / baseline": _mean(row.relative_seconds, 2)},
            "baseline": row.baseline or "",
        }
        for row in cost_rows(suite, results)
    ]
    title, made = f"# {suite.name}: costs", f"Made by `{command}`."
    return "\n\n".join([title, made, _markdown(lines), _COST_NOTES, _machines(results)]) + "\n"


def table_csv(suite: Suite, results: Results) -> str:
    """The exact figures of the accuracies."""
    lines = []
    for row in rows(suite, results):
        line: dict[str, object] = {"method": row.method, "n": row.top1.n if row.top1 else 0}
        for name in ("top1", "nll", "best_member"):
            mean: Estimate | None = getattr(row, name)
            line |= {f"{name}_mean": mean and mean.mean, f"{name}_std": mean and mean.std}
        line |= {"baseline": row.baseline, "pairs": row.top1_difference.n if row.top1_difference else 0}
        for name in ("top1_difference", "nll_difference"):
            mean = getattr(row, name)
            low, high = (mean and mean.interval) or (None, None)
            line |= {name: mean and mean.mean, f"{name}_low": low, f"{name}_high": high}
        lines.append(line)
    return _csv(lines)


def costs_csv(suite: Suite, results: Results) -> str:
    """The exact figures of the costs."""
    return _csv(
        [
            {
                **{"method": row.method, "parameters": row.parameters, "iterations": row.predicted.iterations},
                **{"flops": row.predicted.flops, "relative_flops": row.relative_flops},
                **{"seconds_mean": row.seconds.mean, "seconds_std": row.seconds.std},
                "relative_seconds": row.relative_seconds and row.relative_seconds.mean,
                "baseline": row.baseline,
            }
            for row in cost_rows(suite, results)
        ]
    )


def held_out_markdown(command: str, suite: Suite, results: Results, found: Mapping[tuple[str, int], HeldOut]) -> str:
    """What the methods are worth on the suite's test split; `found`: of `measure`."""
    lines = [
        {
            **{"method": row.method, "n": str(row.figures["top1"].n)},
            **{"top-1 (%)": _mean(row.figures["top1"], 2), "NLL": _mean(row.figures["nll"], 3)},
            **{"NLL_c": _mean(row.figures["nll_calibrated"], 3), "ECE": _mean(row.figures["ece"], 3)},
            **{"baseline": row.baseline or "", "top-1 difference": _difference(row.differences["top1"], 2)},
            "NLL difference": _difference(row.differences["nll"], 3),
            **{"time": _ratio(row.relative_seconds), "inference": _ratio(row.relative_flops)},
        }
        for row in held_out_rows(suite, found)
    ]
    title = f"# {suite.name}: split {suite.test}"
    parts = [title, _about(command, suite, results), _markdown(lines), _HELD_OUT_NOTES, _machines(results)]
    return "\n\n".join(parts) + "\n"


def held_out_csv(suite: Suite, found: Mapping[tuple[str, int], HeldOut]) -> str:
    """The exact figures, one line per predictor and seed."""
    return _csv(
        [
            {
                **{"method": name, "seed": seed, **{key: one.figures[key] for key in FIGURES}},
                **{"training_seconds": one.seconds, "inference_flops": one.flops},
            }
            for (name, seed), one in found.items()
        ]
    )


def _ratio(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:.2f}"


def _about(command: str, suite: Suite, results: Results) -> str:
    text = f"Made by `{command}`, seeds {', '.join(map(str, suite.seeds))}."
    if not results:
        return text
    counts = {
        "training images": [content["data"]["train_images"] for content in results.values()],
        "validation images": [content["data"]["validation_images"] for content in results.values()],
        "epochs": [content["total_epochs"] for content in results.values()],
    }
    text += f" {', '.join(f'{_spread(values)} {name}' for name, values in counts.items())}."
    exports = {content["config"]["export"] for content in results.values()}
    return f"{text} Figures are those of {' or of '.join(_EXPORTS[name] for name in sorted(exports))}."


def _spread(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _machines(results: Results) -> str:
    """Hardware and versions; several paragraphs where the runs differ in them."""
    told: dict[str, None] = {}
    for content in results.values():
        hardware = content["hardware"]
        place = hardware.get("gpu", f"{hardware['cpu']}, threads {hardware['threads']}")
        versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        told[f"{place}, processes {hardware['processes']}; {versions}."] = None
    return "\n\n".join(told) or "No run has ended."


def _mean(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    spread = "" if estimate.std is None else f" ± {estimate.std:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{spread}"


def _difference(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    if estimate.interval is None:
        return f"{estimate.mean:+.{digits}f} (n = 1)"
    low, high = estimate.interval
    return f"{estimate.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _markdown(lines: Sequence[Mapping[str, str]]) -> str:
    if not lines:
        return "No run has ended."
    align = "l" + "r" * (len(lines[0]) - 1)
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines], align)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
