"""Entrypoints from a table: one function per row, registered as if it were written under @register_model."""

import sys
from typing import Any, Callable, Mapping

from timm.models import register_model
from torch import nn

__all__ = ["register_table"]


def register_table(create: Callable[..., nn.Module], docs: Mapping[str, str]) -> None:
    """Register `name(pretrained=False, **kwargs)` for every name of `docs`, in the module that defines `create`.

    timm files a model under the module of its entrypoint and takes the cfg from that module's default_cfgs.

    Args:
        create: called as create(name, pretrained, **kwargs).
        docs: name of the model -> docstring of its entrypoint.

    >>> entrypoint = timm.models.model_entrypoint("mixmo_wrn28_2_m3")  # a row of mixmo's table
    >>> entrypoint.__module__, entrypoint.__doc__
    ('timm_mix.models.mixmo', 'MixMo with 3 members over wrn28_2.')
    """
    module = sys.modules[create.__module__]
    for name, doc in docs.items():
        assert name in module.default_cfgs, f"{name} has no default cfg"
        entrypoint = _entrypoint(create, name, doc)
        setattr(module, name, entrypoint)
        register_model(entrypoint)


def _entrypoint(create: Callable[..., nn.Module], name: str, doc: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = create.__module__
    entrypoint.__doc__ = doc
    return entrypoint
