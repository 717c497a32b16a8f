"""What the methods of a suite are worth on a split that chose nothing: accuracy, calibration, time and inference.

A folded network, which needs one forward pass of the plain size, has a row of its own; an average of methods has the
mean probability of theirs, and the time and the inference of all of them.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_mix.lab.suites.child_runs import measured
from timm_mix.lab.suites.comparison import Estimate, Results, training_seconds
from timm_mix.lab.suites.plan import Method, Run, Suite
from timm_mix.models import reduce_members
from timm_mix.train.evaluate.scoring import score

__all__ = ["FIGURES", "HeldOut", "HeldOutRow", "held_out_rows", "measure"]

FIGURES = ("top1", "nll", "nll_calibrated", "ece")
FOLDED = ", folded"


@dataclass(frozen=True)
class HeldOut:
    """One predictor of one seed on the held-out images.

    figures: see FIGURES.   seconds: of training.   flops: of the prediction for one image.
    """

    figures: Mapping[str, float]
    seconds: float
    flops: float


@dataclass(frozen=True)
class HeldOutRow:
    """A method over its seeds; differences and ratios are to its baseline and paired by seed."""

    method: str
    baseline: str | None
    figures: Mapping[str, Estimate]
    differences: Mapping[str, Estimate | None]
    relative_seconds: Estimate | None
    relative_flops: Estimate | None


def measure(suite: Suite, results: Results, output: Path) -> dict[tuple[str, int], HeldOut]:
    """Every predictor with every seed that has been tested, by (name, seed)."""
    found: dict[tuple[str, int], HeldOut] = {}
    for seed in suite.seeds:
        for method in suite.methods:
            if method.average:
                parts = [suite.run(_named(suite, name), seed, output) for name in method.average]
                if all((part.method, seed) in found for part in parts):
                    found[method.name, seed] = _averaged(parts, [found[part.method, seed] for part in parts])
            elif (method.name, seed) in results:
                run = suite.run(method, seed, output)
                for name, one in _of_a_run(run, results[method.name, seed]):
                    found[name, seed] = one
    return found


def held_out_rows(suite: Suite, found: Mapping[tuple[str, int], HeldOut]) -> list[HeldOutRow]:
    """One row per predictor that has been tested, in the order of the suite."""
    rows = []
    for method in suite.methods:
        for name in (method.name, method.name + FOLDED):
            if not any((name, seed) in found for seed in suite.seeds):
                continue
            baseline = method.baseline if name == method.name else method.baseline or method.name
            ours = [found[name, seed] for seed in suite.seeds if (name, seed) in found]
            figures = {key: Estimate(tuple(one.figures[key] for one in ours)) for key in FIGURES}
            differences = {key: _paired(suite, found, name, baseline, _figure(key), operator.sub) for key in FIGURES}
            ratios = (_paired(suite, found, name, baseline, of, operator.truediv) for of in (_seconds, _flops))
            rows.append(HeldOutRow(name, baseline, figures, differences, *ratios))
    return rows


def _named(suite: Suite, name: str) -> Method:
    return next(method for method in suite.methods if method.name == name)


def _of_a_run(run: Run, results: dict[str, Any]) -> Iterable[tuple[str, HeldOut]]:
    content = measured(run)
    if content is None:
        return
    model = _model(run)
    seconds = training_seconds(results)
    yield run.method, HeldOut(_chosen(content["figures"][content["model"]["prediction"]]), seconds, _forward(model))
    if "folded" in content["figures"]:
        yield run.method + FOLDED, HeldOut(_chosen(content["figures"]["folded"]), seconds, _forward(model.fold()))


def _averaged(runs: Sequence[Run], parts: Sequence[HeldOut]) -> HeldOut:
    """Mean probability of the runs' own predictions."""
    logits, target = zip(*(_predictions(run) for run in runs), strict=True)
    joined = reduce_members(torch.stack(logits, 1), "softmax")
    figures = _chosen(asdict(score(joined, target[0])))
    return HeldOut(figures, sum(part.seconds for part in parts), sum(part.flops for part in parts))


def _predictions(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    saved = load_file(run.folder / "test" / "predictions.safetensors")
    model = _model(run)
    members = getattr(model, "num_members", 1)
    logits = saved["logits"][:, :members].double()
    return (reduce_members(logits, model.ensemble) if members > 1 else logits[:, 0]), saved["target"]


def _model(run: Run) -> Any:
    return timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True).eval()


def _forward(model: nn.Module) -> float:
    """FLOPs of the prediction for one image."""
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size))
    return float(counter.get_total_flops())


def _chosen(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: figures[key] for key in FIGURES}


def _seconds(one: HeldOut) -> float:
    return one.seconds


def _flops(one: HeldOut) -> float:
    return one.flops


def _figure(key: str) -> Callable[[HeldOut], float]:
    return lambda one: one.figures[key]


def _paired(
    suite: Suite,
    found: Mapping[tuple[str, int], HeldOut],
    name: str,
    baseline: str | None,
    value: Callable[[HeldOut], float],
    compare: Callable[[float, float], float],
) -> Estimate | None:
    both = [seed for seed in suite.seeds if (name, seed) in found and (baseline, seed) in found]
    values = tuple(compare(value(found[name, seed]), value(found[baseline, seed])) for seed in both)  # type: ignore[index]
    return Estimate(values) if values else None
