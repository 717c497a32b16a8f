"""What the tests of suites share: a suite file from text, runs of it, and results as train.py writes them."""

import json

from timm_mix.lab.suites.plan import Method, Suite
from timm_mix.train.settings.config import Config

SCORES = {"top1": 50.0, "top5": 90.0, "nll": 1.0, "count": 7}


def a_suite(*methods, seeds=(0,)):
    """`methods`: (name, baseline) each, of plain tiny networks."""
    settings = {"model": "wrn16_2", "model_kwargs": {"depth": 10, "widen_factor": 1}, "epochs": 2}
    return Suite("mine", tuple(seeds), tuple(Method(name, settings, baseline) for name, baseline in methods))


def results_of(config, top1=50.0, nll=1.0, members=None, seconds=(1.0, 1.0), total=None):
    """results.json of a run with one row per entry of `seconds`; `members`: their top-1."""
    scores = {f"member_{i}": {**SCORES, "top1": value} for i, value in enumerate(members or [top1])}
    scores["ensemble"] = {**SCORES, "top1": top1, "nll": nll}
    return {
        "config": config.flat(),
        "hardware": {"cpu": "a cpu", "threads": 1, "processes": 1},
        "versions": {"python": "3.11"},
        "model": {"name": config.model.name, "parameters": 1234},
        "data": {"train_images": 97, "validation_images": 7, "classes": 3},
        "steps_per_epoch": 13,
        "total_epochs": len(seconds) if total is None else total,
        "last": scores,
        "best": {**scores, "ensemble": {**SCORES, "top1": top1 + 1, "nll": nll - 0.1}},
        "epochs": [{"epoch": i, "train_seconds": value} for i, value in enumerate(seconds)],
    }


def all_results(suite, figures):
    """`figures`: (method, seed) -> keywords of results_of."""
    settings = {method.name: method.settings for method in suite.methods}
    return {key: results_of(Config.of(**settings[key[0]]), **figures[key]) for key in figures}


def write_results(run, **figures):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "results.json").write_text(json.dumps(results_of(run.config, **figures)), encoding="utf-8")
