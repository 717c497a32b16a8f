"""results.json: what was run, where, and every figure that came out."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from timm_mix.places import PACKAGE
from timm_mix.train.settings.config import Config
from timm_mix.version import __version__

__all__ = ["checkout_commit", "describe_machine", "describe_results", "in_words", "score"]

ROOT = PACKAGE.parent  # of the checkout

_PACKAGES = ("timm", "torch", "torchvision", "accelerate", "huggingface_hub", "safetensors", "numpy")


def describe_machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Hardware, versions and commit, as every results file states them.

    >>> about = describe_machine(torch.device("cpu"))
    >>> about["hardware"]["device"], about["versions"]["timm_mix"] == __version__
    ('cpu', True)
    """
    hardware: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": str(device.type),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "timm_mix": __version__}  # a checkout may lie on the path only
    for package in _PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return {"hardware": hardware, "versions": versions, "commit": checkout_commit()}


def checkout_commit() -> str | None:
    """The commit of the checkout that these scripts lie in, with -dirty where files differ; None outside of one.

    >>> commit = checkout_commit()
    >>> commit is None or len(commit.removesuffix("-dirty")) == 40
    True
    """
    if not (ROOT / ".git").exists():  # installed: a checkout around it is somebody else's
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe_results(
    config: Config, history: list[dict[str, Any]], about: dict[str, Any], machine: dict[str, Any]
) -> dict[str, Any]:
    """The content of results.json after an epoch.

    >>> tops = (70.0, 72.0, 71.0)
    >>> history = [{"epoch": epoch, "eval": {"ensemble": {"top1": top1}}} for epoch, top1 in enumerate(tops)]
    >>> results = describe_results(Config.of(seed=7), history, {}, {})
    >>> results["seed"], results["last"]["epoch"], results["best"]["epoch"]
    (7, 2, 1)
    """
    best = max(history, key=score)  # the first of equals
    return {
        "command": sys.argv,
        "config": config.flat(),
        "seed": config.run.seed,
        **machine,
        **about,
        "last": {"epoch": history[-1]["epoch"], **_published(history[-1])},
        "best": {"epoch": best["epoch"], "chosen_on": "the validation split itself", **_published(best)},
        "epochs": history,
    }


def score(row: dict[str, Any]) -> float:
    """By which epochs are compared: top-1, of several labels per image mAP, of the weights that would be published.

    >>> score({"eval": {"ensemble": {"top1": 71.0}}, "eval_ema": {"ensemble": {"top1": 72.5}}})
    72.5
    """
    return _main_figure(_published(row)["ensemble"])


def in_words(row: dict[str, Any]) -> str:
    """The figures of an epoch for its line on the screen.

    >>> in_words({"eval": {"ensemble": {"top1": 71.0, "nll": 0.9, "count": 5}}})
    'top-1 71.00 %  NLL 0.9000'
    """
    scores = row["eval"]
    whole = scores["ensemble"]
    top1 = f"top-1 {whole['top1']:.2f} %  NLL {whole['nll']:.4f}" if "top1" in whole else ""
    line = top1 or f"mAP {whole['map']:.2f} %  F1 {whole['micro_f1']:.2f} %  BCE {whole['bce']:.4f}"
    members = [_main_figure(value) for name, value in scores.items() if name != "ensemble"]
    if len(members) > 1:
        line += f"  members {', '.join(f'{figure:.2f}' for figure in members)}"
    if "eval_ema" in row:
        line += f"  EMA {_main_figure(row['eval_ema']['ensemble']):.2f} %"
    return line


def _main_figure(scores: dict[str, Any]) -> float:
    return scores["top1"] if "top1" in scores else scores["map"]


def _published(row: dict[str, Any]) -> dict[str, Any]:
    """Figures of the weights that the run publishes: the averaged ones where there are."""
    return row.get("eval_ema", row["eval"])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
