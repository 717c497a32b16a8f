"""What a repository is to hold: a saved folder, read and checked before anything is sent.

Weights travel as safetensors only. What is not on the list below stays at home: checkpoints, hidden files, notes.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from timm.models import model_entrypoint

__all__ = ["CARD", "CONFIG", "OF_THE_WEIGHTS", "WEIGHTS", "Release", "how_to_load", "read_release"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# what may stand beside them; the first two speak of the weights, so that old ones go when the new ones have none
OF_THE_WEIGHTS = ("results.json", "recipe.yaml")
_OTHERS = (*OF_THE_WEIGHTS, "LICENSE")
_PICTURES = (".png",)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FRONT = re.compile(r"^\s*---\r?\n.*?\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Release:
    """A folder as it goes to the Hub.

    files: name in the repository -> content, or the path of the weights.
    ignored: names that stay at home.
    members: how many networks vote, 0 for a plain model.
    own_file: name of the one file that timm needs to know the architecture, None where timm has it or the file would
        not be enough.
    """

    folder: Path
    architecture: str
    files: dict[str, bytes | Path]
    ignored: tuple[str, ...]
    members: int
    own_file: str | None
    license: str
    written: int  # when the weights were, in ns

    @property
    def card(self) -> str:
        content = self.files[CARD]
        assert isinstance(content, bytes)
        return content.decode("utf-8-sig")

    def check_unmoved(self) -> None:
        """Raises ValueError where the weights have been written again since they were read."""
        if (self.folder / WEIGHTS).stat().st_mtime_ns != self.written:
            raise ValueError(f"{self.folder} was saved again while it was pushed; nothing is committed; push it again")


def read_release(folder: Path, repo_id: str, *, license: str | None = None, folded_from: str | None = None) -> Release:
    """Read and check a folder that save_pretrained wrote.

    Args:
        license: for a card that names none, or where there is no card: a short one is then written.
        folded_from: the repository of the ensemble whose folded network this is.
    Raises:
        ValueError: something is missing, torn, a pickle, or does not fit together.
    """
    names = _names(folder)
    written = (folder / WEIGHTS).stat().st_mtime_ns
    architecture, model = _network(folder)
    _check_weights(folder / WEIGHTS, model)
    files: dict[str, bytes | Path] = {WEIGHTS: folder / WEIGHTS}
    kept = [name for name in names if name in (CONFIG, *_OTHERS) or name.lower().endswith(_PICTURES)]
    files.update({name: (folder / name).read_bytes() for name in kept})
    source = _own_file(architecture)
    own_file = source.name if source else None
    if source:
        files[source.name] = source.read_bytes()
    members = getattr(model, "num_members", 0)
    about = _about(architecture, repo_id, members, own_file, folded_from)
    files[CARD], license = _card(folder / CARD, license, about, folded_from, members)
    ignored = tuple(name for name in names if name not in files)
    return Release(folder, architecture, files, ignored, members, own_file, license, written)


def how_to_load(architecture: str, repo_id: str, own_file: str | None = None, revision: str | None = None) -> str:
    """The line that loads it: plain timm knows its own architectures only."""
    at = f"@{revision}" if revision else ""
    names = f"timm, {Path(own_file).stem}" if own_file else "timm, timm_mix" if _is_ours(architecture) else "timm"
    return f'import {names}; model = timm.create_model("hf-hub:{repo_id}{at}", pretrained=True)'


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"wanted a folder that save_pretrained wrote, got {folder}, which is no folder")
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if pickles:
        raise ValueError(
            f"{folder} holds {', '.join(pickles[:3])}: pickled weights run code when they are loaded and are never "
            "pushed; move them away and keep model.safetensors"
        )
    for name in (CONFIG, WEIGHTS):
        if name not in names:
            raise ValueError(f"{folder} lacks {name}; wanted a folder that save_pretrained wrote")
    return names


def _network(folder: Path) -> tuple[str, Any]:
    """The architecture's name, and the network that config.json builds, without memory for its weights."""
    try:
        architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architecture"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} is not a model's config ({error!r}); save the model again") from error
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(f"{folder / CONFIG} names the architecture {architecture!r}, which timm and timm_mix lack")
    try:
        with torch.device("meta"):
            model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as error:  # whatever a constructor makes of wrong arguments
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / CONFIG} does not build {architecture}: {reason}") from error
    # where these differ timm loads the weights without the classifier, and says so to nobody
    cfg, classes = model.pretrained_cfg, model.num_classes
    if cfg["num_classes"] != classes:
        wrong = f"num_classes is {cfg['num_classes']}"
    elif cfg.get("label_names") and len(cfg["label_names"]) != classes:
        wrong = f"{len(cfg['label_names'])} label_names"
    else:
        return architecture, model
    raise ValueError(
        f"{folder / CONFIG} contradicts itself: {wrong}, and the network has {classes} classes; save the model again"
    )


def _check_weights(path: Path, model: Any) -> None:
    wanted = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            given = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the model again") from error
    wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path} does not fit {CONFIG}: {len(wrong)} tensors differ, the first is {key}: wanted shape "
            f"{wanted.get(key, 'nothing')}, got {given.get(key, 'nothing')}; save the model again"
        )


def _card(path: Path, license: str | None, about: str, folded_from: str | None, members: int) -> tuple[bytes, str]:
    """The card, as it lies there where it names its licence, and that licence."""
    given = path.read_bytes() if path.is_file() else about.encode()
    try:
        text = given.decode("utf-8-sig")
        if not _FRONT.match(text):
            text = f"---\n{{}}\n---\n{text}"
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} has no valid metadata between its --- lines: {reason}") from error
    data: Any = card.data
    named = data.license
    if named is None and license is None:
        raise ValueError(f"{path} names no licence and none is given; give one, e.g. apache-2.0 or cc-by-nc-4.0")
    if license is not None and named not in (None, license):
        raise ValueError(f"the licence given is {license!r}, but {path} says {named!r}; make them agree")
    used = named or license
    if not isinstance(used, str) or not _LICENSE.fullmatch(used):
        raise ValueError(f"a licence is named by the Hub's identifier, such as apache-2.0, got {used!r}")
    if named is not None:
        return given, used
    data.license = used
    data.library_name = data.library_name or "timm"
    data.pipeline_tag = data.pipeline_tag or "image-classification"
    data.tags = data.tags or ["image-classification", "timm", *(["timm_mix"] if members or folded_from else [])]
    if folded_from and not data.base_model:
        data.base_model = folded_from
    return str(card).encode(), used


def _about(architecture: str, repo_id: str, members: int, own_file: str | None, folded_from: str | None) -> str:
    """The text of a card for a folder that has none."""
    name = repo_id.rpartition("/")[2]
    if folded_from:
        what = (
            f"The ensemble [{folded_from}](https://huggingface.co/{folded_from}) folded into one plain "
            f"`{architecture}`: the same logits at the cost of one network."
        )
    elif members:
        what = f"`{architecture}`: {members} members that vote, trained with timm_mix."
    else:
        what = f"`{architecture}`, an image classifier."
    code = "\n".join(how_to_load(architecture, repo_id, own_file).split("; "))
    note = ""
    if own_file:
        note = (
            f"timm itself lacks this architecture; the file `{own_file}` of this repository teaches it "
            f"(`hf download {repo_id} {own_file} --local-dir .`), and so does `import timm_mix`. Without either timm "
            'says "Unknown model".\n'
        )
    elif _is_ours(architecture):
        note = 'timm itself lacks this architecture: without `import timm_mix` it says "Unknown model".\n'
    return f"# {name}\n\n{what}\n\n```python\n{code}\n```\n" + (f"\n{note}" if note else "")


def _is_ours(architecture: str) -> bool:
    return model_entrypoint(architecture).__module__.startswith("timm_mix.")


def _own_file(architecture: str) -> Path | None:
    """The backbones for small images are files that need timm only, one per family."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    if _is_ours(architecture) and module.__name__.endswith("_cifar") and module.__file__:
        return Path(module.__file__)
    return None
