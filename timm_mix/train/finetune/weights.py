"""The network that fine-tuning starts from, with the weights of a file whose classes may be others."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from timm.models import load_state_dict
from torch import nn

from timm_mix.models.from_plain import is_plain
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import check_archive
from timm_mix.train.finetune.settings import FinetuneSettings
from timm_mix.train.loop.build import build_model
from timm_mix.train.loop.network import FOREIGN, fitted
from timm_mix.train.settings.model import ModelSettings

__all__ = ["open_model"]


def open_model(wanted: FinetuneSettings, source: ModelSettings, num_classes: int, **more: Any) -> nn.Module:
    """build_model; a file of weights with other classes than the data gives its body, under fresh heads.

    The file is of the network itself or, for one with members, of its plain backbone.

    Raises:
        UsageError: as build_model does; keep_head with a file of other classes; weights of another network.

    >>> torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), "seven.pth")
    >>> source = ModelSettings("test_resnet", initial_checkpoint="seven.pth")
    >>> open_model(FinetuneSettings(), source, num_classes=5).num_classes
    5
    """
    file = source.initial_checkpoint
    if file is None or not Path(file).is_file() or Path(file).suffix in FOREIGN:
        return build_model(source, num_classes, **more)
    check_archive(file)
    model: Any = build_model(dataclasses.replace(source, initial_checkpoint=None), num_classes, **more)
    with user_errors(f"load {file} into {source.name}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, before it refuses a pickle
            state = load_state_dict(file)
        if wanted.keep_head and getattr(model, "divided", False) and is_plain(state, model):
            raise UsageError(
                f"keep_head needs heads, parts that start from the plain {model.backbone} have none: drop it"
            )
        state = fitted(model, state)
        heads = tuple(f"{name}." for name in _names(model.pretrained_cfg.get("classifier")))
        own = model.state_dict()
        others = {key for key in own if key.startswith(heads) and key in state and len(state[key]) != len(own[key])}
        if others and wanted.keep_head:
            known = len(state[min(others)])
            raise UsageError(f"keep_head needs the {known} classes of {file}, got {num_classes}: drop it")
        model.load_state_dict({**state, **{key: own[key] for key in others}})
    return model


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
