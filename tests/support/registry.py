"""Weights for a test: made here, registered, and taken out of timm's registry again."""

import sys
import warnings
from collections import deque
from contextlib import contextmanager

import timm
import torch
from timm.models import model_entrypoint, register_model

from timm_mix.hub import save_pretrained
from timm_mix.models.weights import shipped

DIGITS = [str(digit) for digit in range(10)]


@contextmanager
def registered(folder):
    """Only the weights in `folder`; those that ship are back afterwards."""
    before = {arch: (model_entrypoint(arch), _module(arch).default_cfgs[arch]) for arch in shipped.TAGS}
    try:
        for arch, (create, cfg) in before.items():
            plain = timm.models.DefaultCfg(tags=deque([""]), cfgs={"": cfg.cfgs[""]})
            _register(arch, getattr(create, "__wrapped__", create), plain)
        shipped.register_weights(folder)
        yield
    finally:
        for arch, (create, cfg) in before.items():
            _register(arch, create, cfg)


def _module(arch):
    return sys.modules[model_entrypoint(arch).__module__]


def _register(arch, create, cfg):
    module = _module(arch)
    module.default_cfgs[arch] = cfg
    setattr(module, arch, create)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        register_model(create)


def save_weights(folder, name, seed=0, num_classes=10, **data):
    """A folder <arch>.<tag> with random float16 weights; returns its state."""
    torch.manual_seed(seed)
    model = timm.create_model(name.partition(".")[0], num_classes=num_classes).half()
    labels = DIGITS if num_classes == 10 else [f"class {i}" for i in range(num_classes)]
    save_pretrained(model, folder / name, label_names=labels, data_config=data or None)
    return model.state_dict()
