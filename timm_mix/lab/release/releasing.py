"""From a finished run of train.py to a folder that ships: float16 weights, and figures measured with these weights."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.data import resolve_data_config
from timm.models._input import get_model_args
from torch import nn

from timm_mix.card import RELEASE, check_license, file_hash, make_card
from timm_mix.hub import save_pretrained
from timm_mix.models import hub_id, is_declared, shipped_folder
from timm_mix.places import PACKAGE
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_json, write_whole
from timm_mix.train.loop.results import checkout_commit
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.text import check_settings

__all__ = ["Release", "Run", "forget_origin", "read_run", "replacing", "take_model", "write_release"]

DATA_HERE = "DATA"  # stands for the folder of the images in the commands of results.json
ROOT = PACKAGE.parent  # of the checkout
# settings that say where and how conveniently a run went, not what it computed
_OF_THE_MACHINE = (
    *("output", "experiment", "resume", "data_dir", "dataset_download", "workers", "pin_mem", "cpu", "tracker"),
    *("checkpoint_interval", "checkpoint_hist", "log_interval"),
)
# not of the name: told by the tag's cfg, without effect on the logits, or compared on its own
_IGNORED_ARGS = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "ensemble")
_OF_OTHER_WEIGHTS = (
    *("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
    *("label_names", "label_descriptions"),
)
_NEEDED, _BESIDE = {"config.json", "model.safetensors", "README.md"}, {"results.json", "recipe.yaml"}
_WRAPPERS = {"mixmo": ("members", "m"), "splitnet": ("split", "s")}


@dataclass(frozen=True)
class Run:
    """A finished run of train.py: its folder, the content of its results.json, its settings."""

    folder: Path
    results: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Release:
    """What is to be shipped under which name.

    name: <architecture>.<tag>. folded_from: the architecture with members, where it is a folded network.
    data_config: how the images were fed. data_name: how the data set is called. license: of the weights.
    """

    name: str
    model: nn.Module
    labels: list[str] | None
    folded_from: str | None
    data_config: dict[str, Any]
    data_name: str
    license: str


def read_run(folder: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        UsageError: no finished run of train.py.
    """
    folder = Path(folder)
    try:
        results = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"a release needs the folder of a run, {folder}/results.json cannot be read: {reason}"
        ) from None
    wanted = ("config", "epochs", "seed", "hardware", "versions", "data", "last", "best")
    lacking = [key for key in wanted if not isinstance(results, dict) or results.get(key) is None]
    if lacking:
        raise UsageError(f"{folder}/results.json must be that of a run of train.py, it has no {lacking[0]!r}")
    config = Config.of(**check_settings(f"{folder}/results.json", results["config"], Config))
    done, total = len(results["epochs"]), results.get("total_epochs", config.optimise.epochs)
    if done < total or not (folder / "model" / "config.json").is_file():
        raise UsageError(
            f"the run in {folder} must be finished, it has {done} of {total} epochs; --resume auto goes on"
        )
    return Run(folder, results, config)


def take_model(run: Run, tag: str, *, fold: bool, license: str | None, data_name: str | None) -> Release:
    """The run's model, or its folded network, under a registered architecture's name.

    Raises:
        UsageError: weights that do not load, no registered name that builds this very network, nothing to fold, a
            licence that is none of the Hub's, or one or a name of the data that must be given.
    """
    if not tag or not tag.replace("_", "").isalnum():
        raise UsageError(f"--tag must be letters, digits and _, got {tag!r}")
    if license is not None:
        with user_errors("release"):
            check_license(license)
    with user_errors(f"load the model of {run.folder}"):
        model = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True)
    folded_from = None
    if fold:
        if not hasattr(model, "fold"):
            raise UsageError(f"--fold is for mixmo models, {run.folder} holds {_architecture(model)}; drop it")
        folded_from = _registered_name(model)[0]
        with user_errors(f"fold {folded_from}"):
            model = model.fold()
    arch, rest = _registered_name(model)
    if rest:
        raise UsageError(
            f"a tag names an architecture as it is registered, the model of {run.folder} is {arch} with "
            f"{', '.join(f'{key}={value!r}' for key, value in rest.items())}; save it without a tag"
        )
    if license is None and (run.config.model.pretrained or run.config.model.initial_checkpoint):
        raise UsageError("the run started from others' weights, whose licence counts: give --license")
    name = data_name or run.config.data.dataset.rpartition("/")[2]
    if not name:
        raise UsageError("the run read a folder of images: say by --data-name what they are called, such as cifar100")
    data_config = resolve_data_config({}, model=model)
    license = license or "apache-2.0"
    named = _as_registered(model, arch, data_config, license)
    labels = model.pretrained_cfg.get("label_names")
    return Release(f"{arch}.{tag}", named, labels and list(labels), folded_from, data_config, name, license)


def _architecture(model: Any) -> str:
    return str(model.pretrained_cfg["architecture"])


def _registered_name(model: Any) -> tuple[str, dict[str, Any]]:
    """The registered architecture and what it is called with; 'mixmo' of wrn16_2 and 2 is mixmo_wrn16_2_m2."""
    arch = _architecture(model)
    args = {key: value for key, value in getattr(model, "_model_args", {}).items() if key not in _IGNORED_ARGS}
    if arch in _WRAPPERS:
        count, letter = _WRAPPERS[arch]
        named = f"{arch}_{args.get('backbone')}_{letter}{args.get(count)}"
        if timm.is_model(named):
            arch, args = named, {key: value for key, value in args.items() if key not in ("backbone", count)}
    plain = get_model_args(timm.create_model(arch))  # timm saves what a network has by default, too
    return arch, {key: value for key, value in args.items() if key not in plain or plain[key] != value}


def _as_registered(model: Any, arch: str, data_config: dict[str, Any], license: str) -> nn.Module:
    """What the tag will create: the architecture with no other settings, these weights in float16."""
    named: Any = timm.create_model(arch, num_classes=model.num_classes, in_chans=data_config["input_size"][0])
    if getattr(named, "ensemble", None) != getattr(model, "ensemble", None):
        raise UsageError(f"{arch} joins its members by {named.ensemble}, the run's model by {model.ensemble}")
    with user_errors(f"load the run's weights into {arch}"):
        named.load_state_dict(model.state_dict(), strict=True)
    named.half()
    for key, tensor in named.state_dict().items():
        if not tensor.isfinite().all():
            raise UsageError(f"the weights must fit into float16, {key} does not")
    forget_origin(named)
    named.pretrained_cfg["license"] = license
    return named


def forget_origin(model: Any) -> None:
    """Take out of a model's cfg what it says of the weights that its architecture has elsewhere."""
    for key in _OF_OTHER_WEIGHTS:
        model.pretrained_cfg.pop(key, None)


def write_release(
    run: Run, release: Release, target: Path, evaluate: Callable[[list[str]], dict[str, Any]]
) -> dict[str, Any]:
    """Save, evaluate what was saved, write results.json, recipe.yaml and README.md; returns the results.

    Args:
        evaluate: validate.py's main without --output: flags -> the content of its results.json.
    """
    with replacing(target) as scratch:
        save_pretrained(release.model, scratch, label_names=release.labels, data_config=release.data_config)
        (scratch / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        real = {DATA_HERE: str(run.config.data.data_dir)}
        flags = _data_flags(run.config.data, run.config.augment.aug, folds=hasattr(release.model, "fold"))
        measured = evaluate(["--model", str(scratch), *(real.get(flag, flag) for flag in flags)])
        shipped = is_declared(release.name) and target.parent.resolve() == shipped_folder().resolve()
        place = os.path.relpath(target, ROOT) if target.resolve().is_relative_to(ROOT) else str(target)
        model = release.name if shipped else place
        command = ["python", "train_scripts/validate.py", "--model", model, *flags, "--output", "output/check"]
        results = _results(run, release, measured, scratch)
        top1 = measured["figures"][results["prediction"]]["top1"]
        results["reproduce"] = {"command": " ".join(command), "prediction": results["prediction"], "top1": top1}
        results["training"] = _training(run, f"{place}/recipe.yaml")
        write_json(scratch / "results.json", results)
        recipe = _recipe(run, release, results["training"]["command"]).encode()
        write_whole(scratch / "recipe.yaml", lambda stream: stream.write(recipe))
        card = str(make_card(scratch)).encode()
        write_whole(scratch / "README.md", lambda stream: stream.write(card))
    return results


def _data_flags(images: DataSettings, aug: str, *, folds: bool) -> list[str]:
    """What tells validate.py of the images that the run validated on; the CPU, so that it gives the same anywhere."""
    flags = ["--dataset", images.dataset] if images.dataset else []
    flags += ["--data-dir", DATA_HERE] if images.data_dir else []
    flags += ["--split", images.val_split] if images.val_split != "validation" else []
    flags += ["--class-map", images.class_map] if images.class_map else []
    return [*flags, "--aug", aug, *(["--fold"] if folds else []), "--cpu"]


def _results(run: Run, release: Release, measured: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    weights, data = folder / "model.safetensors", release.data_config
    return {
        "kind": RELEASE,
        "name": release.name,
        "hub_id": hub_id(release.name),
        "license": release.license,
        "method": run.config.task.name,
        "folded_from": release.folded_from,
        "members": measured["model"]["members"],
        "prediction": measured["model"]["prediction"],
        "weights": {
            "file": weights.name,
            "dtype": "float16",
            "bytes": weights.stat().st_size,
            "sha256": file_hash(weights),
            "parameters": measured["model"]["parameters"],
        },
        "data": {
            "name": release.data_name,
            "split": run.config.data.val_split,
            "images": measured["data"]["images"],
            "train_images": run.results["data"]["train_images"],
            "classes": measured["data"]["classes"],
            "input_size": list(data["input_size"]),
            "mean": list(data["mean"]),
            "std": list(data["std"]),
        },
        "figures": measured["figures"],
        **({"diversity": measured["diversity"]} if measured.get("diversity") else {}),
        "protocol": measured["protocol"],
        "evaluation": {key: measured[key] for key in ("hardware", "versions")},
    }


def _training(run: Run, recipe: str) -> dict[str, Any]:
    results, config = run.results, run.config
    processes = results["hardware"]["processes"]
    start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    data = f" --data-dir {DATA_HERE}" if config.data.data_dir else ""
    known = {"commit": results["commit"]} if results.get("commit") else {"released_at": checkout_commit()}
    return {
        "command": f"{start} train_scripts/train.py --config {recipe}{data}",
        "seed": results["seed"],
        "epochs": len(results["epochs"]),
        "export": config.run.export,
        "averaged": config.optimise.model_ema,
        "seconds": round(sum(row.get("train_seconds", 0.0) for row in results["epochs"]), 1),
        "hardware": results["hardware"],
        "versions": results["versions"],
        **known,
        "figures_in_training": {key: value for key, value in results[config.run.export].items() if key != "chosen_on"},
    }


def _recipe(run: Run, release: Release, command: str) -> str:
    """The settings that differ from train.py's defaults, as a recipe that train.py reads."""
    given: dict[str, Any] = {}
    defaults = Config.of().flat()
    for name, value in run.config.flat().items():
        if name in ("model", "seed") or (name not in _OF_THE_MACHINE and value != defaults[name]):
            given[name] = list(value) if isinstance(value, tuple) else value
    given["experiment"] = release.name.replace(".", "_")
    header = f"# What {release.name} was trained with; settings that are not here have train.py's defaults.\n"
    return f"{header}# command: {command}\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder that appears as `target` when it is whole, or not at all; an earlier release there is replaced.

    Raises:
        UsageError: `target` exists and is something else, or holds more than was written here: all of it would go.
    """
    if target.exists() and not _is_release(target):
        raise UsageError(f"{target} exists and is not an earlier one: give another --output or remove it")
    if target.exists() and (others := sorted({path.name for path in target.iterdir()} - {*_NEEDED, *_BESIDE})):
        shown = ", ".join(others[:3])
        raise UsageError(f"{target} holds {shown}, which was not written here: give another --output or move it away")
    with user_errors(f"write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield outer / "new"
        with user_errors(f"write {target}"):
            if target.exists():
                target.rename(outer / "old")
            try:
                (outer / "new").rename(target)
            except BaseException:
                if (outer / "old").exists():
                    (outer / "old").rename(target)
                raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _is_release(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or names >= _NEEDED
