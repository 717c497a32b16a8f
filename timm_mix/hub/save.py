"""Save a model as a folder that timm loads back."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

__all__ = ["is_model_folder", "save_pretrained"]


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: list[str] | None = None,
    data_config: dict[str, Any] | None = None,
    multi_label: bool = False,
) -> Path:
    """Write a hub-ready folder that `timm.create_model('local-dir:<folder>', pretrained=True)` loads.

    A folded or any other plain timm model loads without timm_mix; a model with members after `import timm_mix`. So it
    does in transformers: AutoModelForImageClassification, AutoImageProcessor, pipeline and TimmBackbone.
    A new folder appears under its name only when it is whole. In an earlier save the two files are replaced, each at
    once, and whatever else lies there (a README, .git) stays.

    Args:
        label_names: class names in the order of the logits; None: those that the model's cfg holds, if any.
        data_config: how the images were fed in training (input_size, mean, std, interpolation, crop_pct).
        multi_label: an image may have any number of labels; transformers' pipeline then takes sigmoids.
    Raises:
        ValueError: `folder` exists and is something else than an earlier save; label_names of another length; no whole
            model (features only, or one part of a SplitNet).

    >>> model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=2)
    >>> folder = save_pretrained(model, "my_model", label_names=["cat", "dog"])
    >>> timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["label_names"]
    ['cat', 'dog']
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
    label_names = _known_labels(model) if label_names is None else label_names
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
        _for_transformers(scratch / "config.json", multi_label)
        for file in scratch.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        _put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _known_labels(model: nn.Module) -> list[str] | None:
    """Of the classes that the model has now."""
    cfg: Any = getattr(model, "pretrained_cfg", {})
    names = cfg.get("label_names")
    fits = names and len(names) == model.num_classes and cfg.get("num_classes") == model.num_classes
    return list(names) if fits and isinstance(names, list | tuple) else None


def _for_transformers(config: Path, multi_label: bool) -> None:
    """timm writes the number of classes twice, and transformers gives what stands at the root a second time."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.get("model_args", {}).pop("num_classes", None)
    if multi_label:
        content["problem_type"] = "multi_label_classification"
    config.write_text(json.dumps(content, indent=2), encoding="utf-8")


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
    """Whether save_pretrained may write here: an earlier save, or nothing yet.

    >>> folder = save_pretrained(timm.create_model("test_resnet"), "my_model")
    >>> is_model_folder(folder), is_model_folder(folder / "nothing_yet")
    (True, False)
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or {"config.json", "model.safetensors"} <= names
