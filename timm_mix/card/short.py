"""The card of a folder: as it lies there, or a short one that says how to load it and under which licence it is."""

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from timm.models import model_entrypoint

from timm_mix.card import check_license

__all__ = ["Facts", "has_own_words", "how_to_load", "is_signed", "own_file", "read_card"]

_FRONT = re.compile(r"^\s*---\r?\n.*?\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_SIGNATURE = "\n<!-- timm_mix wrote this card (sha256 {}) and writes it anew as long as nobody has changed it -->\n"
_INHERITED = ("license_name", "license_link", "datasets")


@dataclass(frozen=True)
class Facts:
    """What the card says.

    members: how many networks vote, 0 for a plain model.
    own_file: name of the one file that teaches timm the architecture, None where timm has it or one is not enough.
    ensemble, ensemble_card: the repository and the card of the ensemble whose folded network this is.

    >>> Facts("mixmo_wrn16_2_m2", "me/my_model", members=2).members
    2
    """

    architecture: str
    repo_id: str
    members: int = 0
    own_file: str | None = None
    ensemble: str | None = None
    ensemble_card: str = ""


def how_to_load(facts: Facts, revision: str | None = None) -> str:
    """The line that loads it: plain timm knows its own architectures only.

    >>> how_to_load(Facts("resnet18", "me/my_model"))
    'import timm; model = timm.create_model("hf-hub:me/my_model", pretrained=True)'
    """
    at = f"@{revision}" if revision else ""
    ours = f"timm, {Path(facts.own_file).stem}" if facts.own_file else "timm, timm_mix"
    names = ours if _is_ours(facts.architecture) else "timm"
    return f'import {names}; model = timm.create_model("hf-hub:{facts.repo_id}{at}", pretrained=True)'


def own_file(architecture: str) -> Path | None:
    """The backbones for small images are files that need timm only, one per family.

    >>> own_file("wrn16_2").name, own_file("resnet18"), own_file("mixmo_wrn16_2_m2")
    ('wide_resnet_cifar.py', None, None)
    """
    module = sys.modules[model_entrypoint(architecture).__module__]
    if _is_ours(architecture) and module.__name__.endswith("_cifar") and module.__file__:
        return Path(module.__file__)
    return None


def read_card(path: Path | str, text: bytes | None, license: str | None, facts: Facts) -> tuple[bytes, str]:
    """The card and its licence; a text that names its licence stays as it is. A short one is signed.

    Args:
        path: where the card lies, or would, or its address; for the errors.
        text: None: a short one is written.
    Raises:
        ValueError: there is no licence, another one than the given, or no valid metadata.

    >>> card, license = read_card("README.md", None, "mit", Facts("resnet18", "me/my_model"))
    >>> "license: mit" in card.decode(), license
    (True, 'mit')
    """
    given = _short_text(facts).encode() if text is None else text
    card = _parse(path, given)
    data: Any = card.data
    named = data.license
    if named is None and license is None:
        raise ValueError(f"{path} names no licence and none is given; give one, e.g. apache-2.0 or cc-by-nc-4.0")
    if license is not None and named not in (None, license):
        raise ValueError(f"the licence given is {license!r}, but {path} says {named!r}; make them agree")
    used = check_license(named or license)
    if named is not None:
        return given, used
    for key, value in {**_metadata(facts), "license": used}.items():
        if getattr(data, key, None) is None:
            setattr(data, key, value)
    made = str(card).encode()
    return made + (_signature(made) if text is None else b""), used


def is_signed(card: bytes) -> bool:
    """Whether it is a short card that nobody has changed since.

    >>> card, _ = read_card("README.md", None, "mit", Facts("resnet18", "me/my_model"))
    >>> is_signed(card), is_signed(card + b"Trained on my own photographs.")
    (True, False)
    """
    end = len(card) - len(_signature(b""))
    return end > 0 and card[end:] == _signature(card[:end])


def has_own_words(card: bytes) -> bool:
    """Whether it says more than the licence, with which a repository begins that is made on the Hub's pages.

    >>> front = b"---\\nlicense: mit\\n---\\n"
    >>> has_own_words(front), has_own_words(front + b"Trained on my own photographs.")
    (False, True)
    """
    text = _FRONT.sub("", card.decode("utf-8-sig"), count=1)
    named = set(_parse("README.md", card).data.to_dict())
    return bool(text.strip()) or not named <= {"license", "license_name", "license_link"}


def _signature(card: bytes) -> bytes:
    return _SIGNATURE.format(hashlib.sha256(card).hexdigest()).encode()


def _parse(path: Path | str, content: bytes) -> ModelCard:
    try:
        text = content.decode("utf-8-sig")
        return ModelCard(text if _FRONT.match(text) else f"---\n{{}}\n---\n{text}")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} has no valid metadata between its --- lines: {reason}") from error


def _metadata(facts: Facts) -> dict[str, Any]:
    ours = facts.members or facts.ensemble or _is_ours(facts.architecture)
    found: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", *(["timm_mix"] if ours else [])],
    }
    if facts.ensemble:
        inherited = ModelCard(facts.ensemble_card).data.to_dict()
        found |= {key: inherited[key] for key in _INHERITED if key in inherited}
        found["base_model"] = facts.ensemble
    return found


def _short_text(facts: Facts) -> str:
    name = facts.repo_id.rpartition("/")[2]
    what = f"`{facts.architecture}`, an image classifier."
    if facts.ensemble:
        what = (
            f"The ensemble [{facts.ensemble}](https://huggingface.co/{facts.ensemble}) folded into one plain "
            f"`{facts.architecture}`: the same logits at the cost of one network."
        )
    elif facts.members:
        what = f"`{facts.architecture}`: {facts.members} members that vote, a network of timm_mix."
    code = "\n".join(how_to_load(facts).split("; "))
    note = ""
    if facts.own_file:
        note = (
            f"timm itself lacks this architecture; the file `{facts.own_file}` of this repository teaches it "
            f"(`hf download {facts.repo_id} {facts.own_file} --local-dir .`), and so does `import timm_mix`. Without "
            'either timm says "Unknown model".\n'
        )
    elif _is_ours(facts.architecture):
        note = 'timm itself lacks this architecture: without `import timm_mix` it says "Unknown model".\n'
    return f"# {name}\n\n{what}\n\n```python\n{code}\n```\n" + (f"\n{note}" if note else "")


def _is_ours(architecture: str) -> bool:
    return model_entrypoint(architecture).__module__.startswith("timm_mix.")
