"""Save models as folders that timm loads back, and push them to the Hugging Face Hub."""

import copy
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from timm_mix._hub_errors import HubError
from timm_mix._pull import fetch, load_pretrained, local_name
from timm_mix._push import PushedFile, PushResult, Wish, check_wish, full_repo_id, push_release
from timm_mix._release import read_release

__all__ = [
    "HubError",
    "PushResult",
    "PushedFile",
    "fetch",
    "is_model_folder",
    "load_pretrained",
    "local_name",
    "push_to_hub",
    "save_pretrained",
]


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: list[str] | None = None,
    data_config: dict[str, Any] | None = None,
) -> Path:
    """Write a hub-ready folder that `timm.create_model('local-dir:<folder>', pretrained=True)` loads.

    A folded or any other plain timm model loads without timm_mix; a model with members after `import timm_mix`.
    A new folder appears under its name only when it is whole. In an earlier save the two files are replaced, each at
    once, and whatever else lies there (a README, .git) stays.

    Args:
        label_names: class names in the order of the logits.
        data_config: how the images were fed in training (input_size, mean, std, interpolation, crop_pct).
    Raises:
        ValueError: `folder` exists and is something else than an earlier save; label_names of another length; no whole
            model (features only, or one part of a SplitNet).
    """
    folder = Path(folder).resolve()
    model = unwrap_model(model)
    if not hasattr(model, "num_classes"):
        raise ValueError(f"wanted a whole model, got {type(model).__name__} without num_classes; save the model itself")
    if getattr(model, "only_part", None) is not None:
        raise ValueError(
            f"wanted a whole model, got part {model.only_part} of {model.num_members} (only_part); gather the state "
            "dicts of all parts, load them into a model without only_part and save that"
        )
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f"label_names must name {model.num_classes} classes, got {len(label_names)}")
    if folder.exists() and not is_model_folder(folder):
        raise ValueError(f"{folder} exists and is not a saved model; give another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model_config = (
            None if label_names is None else {"label_names": label_names, "pretrained_cfg": _no_labels(model)}
        )
        # safetensors takes contiguous tensors only, a channels_last model has others
        model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
        # the ensemble may have been chosen after the model was created
        model_args = {"ensemble": model.ensemble} if hasattr(model, "ensemble") else None
        save_for_hf(
            model,
            str(scratch),
            model_config=model_config,
            model_args=model_args,
            safe_serialization=True,
            data_config=data_config,
        )
        for file in scratch.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        _put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _no_labels(model: nn.Module) -> dict[str, None]:
    """Empty what the cfg says of the classes that the weights were first trained for; new names stand beside it."""
    old: Any = getattr(model, "pretrained_cfg", {})
    return {key: None for key in ("label_names", "label_descriptions") if old.get(key)}


def _put_in_place(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.chmod(0o755)
        scratch.rename(folder)
        return
    for name in ("model.safetensors", "config.json"):  # weights first: a config never speaks of weights to come
        os.replace(scratch / name, folder / name)


def is_model_folder(folder: Path) -> bool:
    """Whether save_pretrained may write here: an earlier save, or nothing yet."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or {"config.json", "model.safetensors"} <= names


def push_to_hub(
    model_or_folder: nn.Module | str | Path,
    repo_id: str,
    *,
    fold: bool = False,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
    commit_message: str | None = None,
) -> PushResult:
    """Publish a model, or a folder that save_pretrained wrote; `timm.create_model('hf-hub:<repo_id>')` loads it.

    The folder is checked before anything is sent. All that has changed goes into one commit; an unchanged folder makes
    none, and an interrupted push is finished by the same call. Sent are config.json, model.safetensors, README.md,
    results.json, recipe.yaml, LICENSE, *.png, and the file of an architecture that timm lacks where one file is enough.
    The folder's README.md replaces the one on the Hub. Where the folder has none, what somebody has written there
    stays; else a short one is made.

    Args:
        repo_id: owner/name; a name alone belongs to the owner of the token. Made where it is missing.
        fold: publish the folded network as well, as `<repo_id>-folded`: plain timm loads it.
        private: of a repository that is made; None leaves it to the Hub, but the folded network of a private
            ensemble is private too.
        create_pr: open a pull request instead of committing to the main branch.
        revision: the branch, made from the main one where it is missing.
        token: None takes HF_TOKEN or what `hf auth login` has stored.
        license: the Hub's identifier of the licence; needed where the card names none.
        dry_run: compare with the Hub and write nothing.
    Raises:
        ValueError: the folder, the name or the settings are wrong; nothing is committed.
        HubError: the Hub did not do it.
    """
    wish = Wish(private, create_pr, revision, token, dry_run, commit_message)
    for name in (repo_id, f"{repo_id}-folded") if fold else (repo_id,):
        check_wish(name, wish)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        if isinstance(model_or_folder, nn.Module):
            save_pretrained(model_or_folder, folder)
        else:
            folder = Path(model_or_folder)
        release = read_release(folder, repo_id, license=license)  # before the network is asked for anything
        folded = _save_folded(folder, Path(scratch) / "folded") if fold else None
        if (full := full_repo_id(repo_id, wish)) != repo_id:
            release = read_release(folder, full, license=license)  # the card names the repository
        result = push_release(release, wish)
        if folded is None:
            return result
        release = read_release(folded, f"{full}-folded", license=release.license, ensemble=release)
        return dataclasses.replace(result, folded=push_release(release, wish, made_private=bool(result.private)))


def _save_folded(folder: Path, target: Path) -> Path:
    """Save the one plain network that has the ensemble's logits."""
    ensemble: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    if not hasattr(ensemble, "fold"):
        raise ValueError(f"wanted a MixMo network to fold, got {folder} with {type(ensemble).__name__}")
    cfg = ensemble.pretrained_cfg
    return save_pretrained(ensemble.eval().fold(), target, label_names=cfg.get("label_names"))
