"""The examples in docstrings: run all of a module, and find the public names that have none.

They may use torch, timm, numpy (np) and timm_mix without importing them, and write into the working folder, which is
a new one. huggingface_hub is offline: an example never asks the network. What one registers is forgotten.
"""

import contextlib
import doctest
import importlib
import inspect
import os
import pkgutil
import tempfile

import huggingface_hub
import numpy as np
import timm
import torch

import timm_mix
from timm_mix.functional.blocks import BLOCKS
from timm_mix.mixers import MIXERS
from timm_mix.models.divide import DIVISIONS
from timm_mix.tasks import MIX_BLOCKS, TASKS

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
ACT_WHEN_IMPORTED = {"__main__", "fast_depthwise"}  # run a command; change torch in this process
_KNOWN = {"np": np, "timm": timm, "timm_mix": timm_mix, "torch": torch}


def modules_of(*rooms):
    """The names of all modules in these packages, the packages themselves included, that may be imported for a look."""
    for room in rooms:
        package = importlib.import_module(room)
        yield room
        inside = pkgutil.walk_packages(getattr(package, "__path__", []), f"{room}.")
        names = (found.name for found in inside)
        yield from (name for name in names if name.rpartition(".")[2] not in ACT_WHEN_IMPORTED)


def assert_examples(module):
    """Run every example in a new folder; returns how many statements there were."""
    said, tried = [], 0
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    with _scratch_folder(), _offline(), contextlib.ExitStack() as stack:
        for registry in (BLOCKS, DIVISIONS, MIXERS, MIX_BLOCKS, TASKS):
            stack.enter_context(registry.scoped())
        for test in _examples(module):
            torch.manual_seed(0)
            tried += runner.run(test, out=said.append).attempted
    assert not runner.failures, "".join(said)
    return tried


def names_without_example(module):
    """The functions and classes of __all__ that are defined here, registered models aside, and show no call."""
    return [name for name, value in _public(module) if not timm.is_model(name) and ">>> " not in (value.__doc__ or "")]


def registers_models(module):
    """Whether timm knows some function of this module as a model."""
    return any(timm.is_model(name) for name, _ in _public(module))


def _public(module):
    for name in dict.fromkeys(getattr(module, "__all__", ())):
        value = getattr(module, name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__:
            yield name, value


def _examples(module):
    """By name; doctest itself overlooks functions behind a decorator of another module (contextmanager)."""
    globs, finder = {**_KNOWN, **vars(module)}, doctest.DocTestFinder()
    found = {test.name: test for test in finder.find(module, globs=globs)}
    for name, value in _public(module):
        full = f"{module.__name__}.{name}"
        if full not in found:
            found |= {test.name: test for test in finder.find(value, full, globs=globs)}
    return [test for test in found.values() if test.examples]


@contextlib.contextmanager
def _scratch_folder():
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _offline():
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
