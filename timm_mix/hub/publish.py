"""Publish a model on the Hugging Face Hub."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from torch import nn

from timm_mix.hub.client import OLDEST_TO_PUSH, can_push
from timm_mix.hub.errors import HubError
from timm_mix.hub.push import PushResult, Wish, check_wish, full_repo_id, push_release
from timm_mix.hub.release import read_release
from timm_mix.hub.save import save_pretrained

__all__ = ["push_to_hub"]


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
        HubError: the Hub did not do it; or the installed huggingface_hub is too old, which is said before all else.

    >>> model = timm.create_model("wrn16_2", depth=10, num_classes=5)
    >>> result = push_to_hub(model, "me/my_model", license="apache-2.0", dry_run=True)
    >>> sorted(file.name for file in result.files)
    ['README.md', 'config.json', 'model.safetensors', 'wide_resnet_cifar.py']
    >>> result.reload
    'import timm, wide_resnet_cifar; model = timm.create_model("hf-hub:me/my_model", pretrained=True)'
    """
    if not can_push():
        wanted = ".".join(map(str, OLDEST_TO_PUSH))
        raise HubError(
            f"cannot push to {repo_id}: pushing needs huggingface_hub {wanted} or newer, installed is "
            f"{huggingface_hub.__version__} (enough for loading); pip install -U huggingface_hub"
        )
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
