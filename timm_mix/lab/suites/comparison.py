"""The table of a suite: means over seeds, differences to a baseline paired by seed, and what each method costs.

difference   d_s = value of the method - value of the baseline, both with seed s
interval     mean(d) +- t(0.975; n - 1) std(d) / sqrt(n),    Student's t over the n seeds that both have
"""

import math
import operator
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm_mix.lab.suites.plan import Suite
from timm_mix.train.cost import Cost, predict_cost
from timm_mix.train.settings.config import Config

__all__ = ["CONFIDENCE", "CostRow", "Estimate", "Results", "Row", "cost_rows", "rows", "training_seconds"]

CONFIDENCE = 0.95
Results = Mapping[tuple[str, int], dict[str, Any]]  # (method, seed) -> content of results.json


@dataclass(frozen=True)
class Estimate:
    """A figure over the seeds that have it, at least one."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Of the sample (n - 1); None for n = 1."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The confidence interval of the mean; None for n = 1."""
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)

    @property
    def half_width(self) -> float | None:
        """Of the confidence interval of the mean; None for n = 1."""
        if self.std is None:
            return None
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        return float(stdtrit(self.n - 1, (1 + CONFIDENCE) / 2)) * self.std / math.sqrt(self.n)


@dataclass(frozen=True)
class Row:
    """Accuracy of one method; None where no seed has the figure (best_member: where there is one member only)."""

    method: str
    baseline: str | None
    top1: Estimate | None
    nll: Estimate | None
    best_member: Estimate | None
    top1_difference: Estimate | None
    nll_difference: Estimate | None


@dataclass(frozen=True)
class CostRow:
    """Cost of one method; relative figures are to its baseline, None where there is none."""

    method: str
    baseline: str | None
    parameters: int
    predicted: Cost
    relative_flops: float | None
    seconds: Estimate
    relative_seconds: Estimate | None


def rows(suite: Suite, results: Results) -> list[Row]:
    """One row per method that is trained, in the order of the suite."""
    found = []
    for method in suite.methods:
        if method.average:
            continue
        name, baseline = method.name, method.baseline
        means = [_over_seeds(suite, results, name, figure) for figure in (_top1, _nll, _best_member)]
        differences = [_paired(suite, results, name, baseline, figure, operator.sub) for figure in (_top1, _nll)]
        found.append(Row(name, baseline, *means, *differences))
    return found


def cost_rows(suite: Suite, results: Results) -> list[CostRow]:
    """One row per method that has a run."""
    first: dict[str, dict[str, Any]] = {}
    for (name, _), content in results.items():
        first.setdefault(name, content)
    costs = {name: _predicted(content) for name, content in first.items()}
    found = []
    for method in suite.methods:
        name, baseline = method.name, method.baseline
        seconds = _over_seeds(suite, results, name, training_seconds)
        if seconds is None:
            continue
        flops = costs[name].flops / costs[baseline].flops if baseline in costs else None
        relative = _paired(suite, results, name, baseline, training_seconds, operator.truediv)
        parameters = first[name]["model"]["parameters"]
        found.append(CostRow(name, baseline, parameters, costs[name], flops, seconds, relative))
    return found


def _predicted(content: dict[str, Any]) -> Cost:
    known = {key: value for key, value in content["config"].items() if key in Config.settings()}
    config = Config.of(**known)
    steps = {"steps_per_epoch": content["steps_per_epoch"], "epochs": content["total_epochs"]}
    return predict_cost(config.model, config.task, config.data, num_classes=content["data"]["classes"], **steps)


def _over_seeds(
    suite: Suite, results: Results, method: str, figure: Callable[[dict[str, Any]], float | None]
) -> Estimate | None:
    found = (figure(results[method, seed]) for seed in suite.seeds if (method, seed) in results)
    values = tuple(value for value in found if value is not None)
    return Estimate(values) if values else None


def _paired(
    suite: Suite,
    results: Results,
    method: str,
    baseline: str | None,
    figure: Callable[[dict[str, Any]], float],
    compare: Callable[[float, float], float],
) -> Estimate | None:
    if baseline is None:
        return None
    both = [seed for seed in suite.seeds if (method, seed) in results and (baseline, seed) in results]
    values = tuple(compare(figure(results[method, seed]), figure(results[baseline, seed])) for seed in both)
    return Estimate(values) if values else None


def _published(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    return content[content["config"]["export"]]


def _top1(content: dict[str, Any]) -> float:
    return _published(content)["ensemble"]["top1"]


def _nll(content: dict[str, Any]) -> float:
    return _published(content)["ensemble"]["nll"]


def _best_member(content: dict[str, Any]) -> float | None:
    members = [scores["top1"] for name, scores in _published(content).items() if name.startswith("member_")]
    return max(members) if len(members) > 1 else None


def training_seconds(content: dict[str, Any]) -> float:
    """Of a run, without evaluation; from its results.json."""
    return sum(row["train_seconds"] for row in content["epochs"])
