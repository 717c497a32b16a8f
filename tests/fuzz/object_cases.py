"""Cases of what is read from disk and of calls from Python: checkpoints, saved models, tasks, mixers, networks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from command_cases import case
from harness import Case
from torch import nn

import timm_mix
from timm_mix.hub import HubError, load_pretrained, save_pretrained
from timm_mix.metrics import calibration_bins, cross_fit_temperature, fit_temperature, pair_diversity, risk_coverage
from timm_mix.mixers import create_mixer
from timm_mix.models import reduce_members
from timm_mix.models.mixmo import MixMo
from timm_mix.models.splitnet import SplitNet

__all__ = ["object_cases"]

SMALL = {"depth": 10, "num_classes": 3}


def object_cases() -> Iterator[Case]:
    yield from _checkpoints()
    yield from _folders()
    yield from _finished_runs()
    yield from _tasks()
    yield from _mixers()
    yield from _networks()
    yield from _metrics()


def _checkpoints() -> Iterator[Case]:
    damaged = [f"torn_{share}" for share in (0.0, 0.01, 0.3, 0.7, 0.99)]
    damaged += [f"flipped_{place}" for place in (0.1, 0.3, 0.5, 0.7, 0.9)]
    damaged += ["text", "zeros", "list", "tensor", "pickle"]
    states = ["another_dict", "nan", "lacks", "more", "shape", "string", "other_net"]
    for name in (*damaged, *states):
        path = f"{{m}}/checkpoints/{name}.pt"
        yield case("checkpoints", "train", ["--resume", path, "--epochs", "2"], f"{name}.pt")
        yield case("checkpoints", "validate", ["--model", path], f"{name}.pt")
    for name in (*damaged, *(name for name in states if name != "nan")):
        yield case("checkpoints", "finetune", ["--initial-checkpoint", f"{{m}}/checkpoints/{name}.pt"], "")
    for key in ("state_dict", "optimizer", "config", "progress", "version"):
        path = f"{{m}}/checkpoints/without_{key}.pt"
        yield case("checkpoints", "train", ["--resume", path, "--epochs", "2"], f"without_{key}.pt")


def _folders() -> Iterator[Case]:
    broken = (
        *("no_json", "list", "null", "no_architecture", "other_architecture", "module", "number", "hostile_args"),
        *("hostile_checkpoint", "unknown_args", "huge_args", "args_list", "negative_classes", "text_classes"),
        *("lacks", "more", "shape", "no_weights", "no_config", "torn", "wrong_header", "nothing"),
    )
    for name in broken:
        yield case("saved models", "finetune", ["--model", f"local-dir:{{m}}/models/{name}"], "")
        yield case("saved models", "validate", ["--model", f"{{m}}/models/{name}"], "")
        yield _call("saved models", f"load_pretrained {name}", _load(name), "", HubError)
    for name in ("classes", "labels", "nan", "other_net"):
        yield case("saved models", "validate", ["--model", f"{{m}}/models/{name}"], None if name == "other_net" else "")


def _load(name: str) -> Callable[[Path], object]:
    return lambda material: load_pretrained(str(material / "models" / name))


def _finished_runs() -> Iterator[Case]:
    """A copy of a run goes on, or says that nothing is left to do."""

    def go_on(epochs: str) -> Callable[[Path], object]:
        def attempt(material: Path) -> object:
            import shutil

            from timm_mix.commands import train

            shutil.copytree(material / "runs" / "plain", "out/plain")
            from material import GOOD

            data = ["--data-dir", str(material / "good"), "--output", "out", "--experiment", "plain"]
            return train.main([*GOOD, *data, "--resume", "auto", "--epochs", epochs])

        return attempt

    yield Case("resuming", "a finished run with as many epochs", go_on("1"), None)
    yield Case("resuming", "a finished run with more epochs", go_on("2"), None)


def _call(area: str, name: str, attempt: Callable[[Path], object], says: str | None, errors: Any = ValueError) -> Case:
    return Case(area, name, attempt, says, errors if isinstance(errors, tuple) else (errors,))


def _net(name: str) -> nn.Module:
    kwargs = {"split": 2} if name == "splitnet" else {"members": 2} if name == "mixmo" else {}
    backbone = {"backbone": "wrn16_2"} if kwargs else {}
    return timm.create_model(name if kwargs else "wrn16_2", **backbone, **kwargs, **SMALL)


OF_TASK = {"mixmo": "mixmo", "cotraining": "splitnet", "recursivemix": "", "automix": "", "manifoldmixup": ""}
IMAGES: dict[str, Callable[[], Any]] = {
    "five channels": lambda: torch.rand(4, 5, 16, 16),
    "grey images": lambda: torch.rand(4, 1, 16, 16),
    "no batch": lambda: torch.rand(3, 16, 16),
    "six dimensions": lambda: torch.rand(1, 1, 4, 3, 16, 16),
    "bytes": lambda: torch.zeros(4, 3, 16, 16, dtype=torch.uint8),
    "an empty batch": lambda: torch.rand(0, 3, 16, 16),
    "numpy": lambda: np.zeros((4, 3, 16, 16), np.float32),
}
TARGETS: dict[str, Callable[[], Any]] = {
    "a label beyond the classes": lambda: torch.tensor([0, 1, 2, 3]),
    "a negative label": lambda: torch.tensor([0, 1, 2, -1]),
    "too few labels": lambda: torch.tensor([0, 1]),
    "labels as numbers": lambda: torch.tensor([0.0, 1.0, 2.0, 0.0]),
    "rows of other classes": lambda: torch.rand(4, 7),
    "labels of three dimensions": lambda: torch.rand(4, 3, 2),
}


def _step(name: str, images: Callable[[], Any], target: Callable[[], Any]) -> Callable[[Path], object]:
    def attempt(_: Path) -> object:
        task = timm_mix.create_task(name, _net(OF_TASK[name]), nn.CrossEntropyLoss(), num_classes=3, verbose=False)
        return task(images(), target())

    return attempt


def _tasks() -> Iterator[Case]:
    four = lambda: torch.tensor([0, 1, 2, 0])  # noqa: E731
    for name in OF_TASK:
        for what, images in IMAGES.items():
            yield _call("tasks", f"{name}: {what}", _step(name, images, four), "", (ValueError, TypeError))
        for what, target in TARGETS.items():
            good = lambda: torch.rand(4, 3, 16, 16)  # noqa: E731
            yield _call("tasks", f"{name}: {what}", _step(name, good, target), "", (ValueError, TypeError))


def _mixers() -> Iterator[Case]:
    def mix(name: str, images: Callable[[], Any], target: Callable[[], Any]) -> Callable[[Path], object]:
        return lambda _: create_mixer(name, num_classes=3)(images(), target())

    four = lambda: torch.tensor([0, 1, 2, 0])  # noqa: E731
    for name in ("mixup", "cutmix", "resizemix", "switch"):
        for what in ("no batch", "bytes", "six dimensions", "numpy"):
            yield _call("mixers", f"{name}: {what}", mix(name, IMAGES[what], four), "", (ValueError, TypeError))
        for what, target in TARGETS.items():
            good = lambda: torch.rand(4, 3, 16, 16)  # noqa: E731
            yield _call("mixers", f"{name}: {what}", mix(name, good, target), "", (ValueError, TypeError))


def _networks() -> Iterator[Case]:
    errors = (ValueError, TypeError, RuntimeError, AttributeError)
    tries: dict[str, Callable[[], object]] = {
        "mixmo members=0": lambda: timm.create_model("mixmo", backbone="wrn16_2", members=0),
        "mixmo members=1000000": lambda: timm.create_model("mixmo", backbone="wrn16_2", members=10**6),
        "mixmo members=2.5": lambda: timm.create_model("mixmo", backbone="wrn16_2", members=2.5),
        "mixmo of nothing": lambda: timm.create_model("mixmo", backbone=""),
        "mixmo of a mixmo": lambda: timm.create_model("mixmo", backbone="mixmo_wrn16_2_m2"),
        "mixmo of an unused tag": lambda: timm.create_model("mixmo", backbone="resnet18.a1_in1k"),
        "splitnet split=0": lambda: timm.create_model("splitnet", backbone="wrn16_2", split=0),
        "splitnet split=-2": lambda: timm.create_model("splitnet", backbone="wrn16_2", split=-2),
        "splitnet split=1000000": lambda: timm.create_model("splitnet", backbone="wrn16_2", split=10**6),
        "ensemble=vote": lambda: timm.create_model("mixmo", backbone="wrn16_2", ensemble="vote"),
        "wrn depth=11": lambda: timm.create_model("wrn16_2", depth=11),
        "wrn depth=10**9": lambda: timm.create_model("wrn16_2", depth=10**9 + 6),
        "from_plain of no model": lambda: MixMo.from_plain(nn.Linear(3, 3)),
        "from_plain of a mixmo": lambda: MixMo.from_plain(_net("mixmo")),
        "from_plain members=0": lambda: MixMo.from_plain(_net(""), members=0),
        "from_plain split=3 of 32": lambda: SplitNet.from_plain(timm.create_model("test_resnet"), split=10**6),
        "reduce_members by vote": lambda: reduce_members(torch.zeros(2, 2, 3), "vote"),
        "model.fc = ...": lambda: setattr(_net("mixmo"), "fc", nn.Linear(3, 3)),
        "save_pretrained of no model": lambda: save_pretrained(nn.Linear(2, 2), "x"),
        "save_pretrained two names": lambda: save_pretrained(_net(""), "x", label_names=["a", "b"]),
        "divide resnet18 by 0": lambda: timm_mix.divide("resnet18", 0),
        "divide nothing": lambda: timm_mix.divide("", 2),
        "create_task of no name": lambda: timm_mix.create_task("", _net(""), nn.CrossEntropyLoss(), num_classes=3),
        "create_mixer of no name": lambda: create_mixer("", num_classes=3),
        "create_mixer prob=2": lambda: create_mixer("cutmix", num_classes=3, prob=2.0),
        "create_mixer classes=0": lambda: create_mixer("cutmix", num_classes=0),
        "create_mixer smoothing=1": lambda: create_mixer("cutmix", num_classes=3, label_smoothing=1.0),
    }
    for name, attempt in tries.items():
        yield _call("networks", name, lambda _, attempt=attempt: attempt(), "", errors)


def _metrics() -> Iterator[Case]:
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    nan = torch.full((4, 3), float("nan"))
    tries: dict[str, Callable[[], object]] = {
        "temperature of nothing": lambda: fit_temperature(z[:0], y[:0]),
        "temperature of other sizes": lambda: fit_temperature(z, y[:2]),
        "temperature of NaN": lambda: fit_temperature(nan, y),
        "temperature of one half": lambda: cross_fit_temperature(z[:1], y[:1]),
        "bins of nothing": lambda: calibration_bins(z[:0, 0], y[:0]),
        "no bins": lambda: calibration_bins(z[:, 0].sigmoid(), y, bins=0),
        "risk of nothing": lambda: risk_coverage(z[:0, 0], y[:0]),
        "diversity of nothing": lambda: pair_diversity(torch.zeros(0, 2, 3), y[:0]),
    }
    for name, attempt in tries.items():
        yield _call("metrics", name, lambda _, attempt=attempt: attempt(), "")
