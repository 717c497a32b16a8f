"""What a repository is to hold: a saved folder, read and checked before anything is sent.

Weights travel as safetensors only. What is not on the list below stays at home: checkpoints, hidden files, notes.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open

from timm_mix.card import RELEASE, THIS_FOLDER, file_hash, make_card
from timm_mix.card.short import Facts, own_file, read_card

__all__ = ["CARD", "CONFIG", "OF_THE_WEIGHTS", "WEIGHTS", "Release", "read_release"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# what may stand beside them; the first two speak of the weights, so that old ones go when the new ones have none
RESULTS = "results.json"
OF_THE_WEIGHTS = (RESULTS, "recipe.yaml")
_OTHERS = (*OF_THE_WEIGHTS, "LICENSE")
_PICTURES = (".png",)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".pth.tar")


@dataclass(frozen=True)
class Release:
    """A folder as it goes to the Hub.

    files: name in the repository -> content, or the path of the weights.
    ignored: names that stay at home.
    short_card: the folder has no card, the short one was made here.

    >>> from timm_mix.hub.save import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> release = read_release(folder, "me/my_model", license="mit")
    >>> release.license, release.short_card, "license: mit" in release.card
    ('mit', True, True)
    """

    folder: Path
    facts: Facts
    files: dict[str, bytes | Path]
    ignored: tuple[str, ...]
    license: str
    written: int  # when the weights were, in ns
    short_card: bool = False

    @property
    def card(self) -> str:
        content = self.files[CARD]
        assert isinstance(content, bytes)
        return content.decode("utf-8-sig")

    def with_card(self, text: bytes, where: str) -> "Release":
        """The same with a card that lies on the Hub; raises ValueError where it is invalid or of another licence."""
        card, license = read_card(where, text, self.license, self.facts)
        return replace(self, files={**self.files, CARD: card}, license=license, short_card=False)

    def check_unmoved(self) -> None:
        """Raises ValueError where the weights have been written again since they were read."""
        if (self.folder / WEIGHTS).stat().st_mtime_ns != self.written:
            raise ValueError(f"{self.folder} was saved again while it was pushed; nothing is committed; push it again")


def read_release(folder: Path, repo_id: str, *, license: str | None = None, ensemble: Release | None = None) -> Release:
    """Read and check a folder that save_pretrained wrote.

    Args:
        license: for a card that names none, or where there is no card: a short one is then written.
        ensemble: whose folded network this is; the licence is then the ensemble's.
    Raises:
        ValueError: something is missing, torn, a pickle, or does not fit together.

    >>> from timm_mix.hub.save import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> written = (folder / "notes.txt").write_text("stays at home")
    >>> release = read_release(folder, "me/my_model", license="mit")
    >>> sorted(release.files), release.ignored
    (['README.md', 'config.json', 'model.safetensors'], ('notes.txt',))
    """
    names = _names(folder)
    written = (folder / WEIGHTS).stat().st_mtime_ns
    architecture, model = _network(folder)
    _check_weights(folder / WEIGHTS, model)
    files: dict[str, bytes | Path] = {WEIGHTS: folder / WEIGHTS}
    _check_results(folder)
    kept = [name for name in names if name in (CONFIG, *_OTHERS) or name.lower().endswith(_PICTURES)]
    kept = [name for name in kept if (folder / name).is_file()]
    files.update({name: (folder / name).read_bytes() for name in kept})
    source = own_file(architecture)
    if source:
        files[source.name] = source.read_bytes()
    members = getattr(model, "num_members", 0)
    facts = Facts(architecture, repo_id, members, source.name if source else None)
    if ensemble:
        facts = replace(facts, ensemble=ensemble.facts.repo_id, ensemble_card=ensemble.card)
    text = _card_text(folder, repo_id)
    files[CARD], license = read_card(folder / CARD, text, license, facts)
    ignored = tuple(name for name in names if name not in files)
    return Release(folder, facts, files, ignored, license, written, short_card=text is None)


def _check_results(folder: Path) -> None:
    """A model saved into the folder of a release leaves figures there that are not its own."""
    try:
        results = json.loads((folder / RESULTS).read_bytes())
        stated = results["weights"]["sha256"] if results["kind"] == RELEASE else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or somebody's own
        return
    if stated is not None and stated != file_hash(folder / WEIGHTS):
        raise ValueError(
            f"the figures in {folder / RESULTS} are of other weights than its {WEIGHTS}; release it anew, or remove "
            f"{RESULTS}, recipe.yaml and {CARD}"
        )


def _card_text(folder: Path, repo_id: str) -> bytes | None:
    """The card that lies there; what was generated of it is generated for the repository that it goes to."""
    path = folder / CARD
    if not path.is_file():
        return None
    text = path.read_bytes().replace(THIS_FOLDER.encode(), f"hf-hub:{repo_id}".encode())
    try:
        generated = text == str(make_card(folder)).encode()
    except (ValueError, KeyError, TypeError):  # no results of a release: the card is somebody's own
        return text
    return str(make_card(folder, repo_id=repo_id)).encode() if generated else text


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
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}; wanted a folder that save_pretrained wrote")
    return names


def _network(folder: Path) -> tuple[str, Any]:
    """The architecture's name, and the network that config.json builds, without memory for its weights."""
    try:
        architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architecture"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
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
    if cfg.get("num_classes") != classes:
        wrong = f"num_classes is {cfg.get('num_classes')}"
    elif isinstance(cfg.get("label_names"), (list, tuple)) and len(cfg["label_names"]) != classes:
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
            broken = [key for key in given if not _is_finite(file.get_tensor(key))]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the model again") from error
    wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path} does not fit {CONFIG}: {len(wrong)} tensors differ, the first is {key}: wanted shape "
            f"{wanted.get(key, 'nothing')}, got {given.get(key, 'nothing')}; save the model again"
        )
    if broken:
        raise ValueError(
            f"{path} holds infinite numbers or NaN, first in {broken[0]}: the network has diverged; push an earlier one"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())
