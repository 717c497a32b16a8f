"""Every public function and class of the library shows a call in its docstring, and all of them run as they stand."""

import importlib
import inspect
import re
from types import ModuleType

import pytest
from support.examples import assert_examples, modules_of, names_without_example, registers_models

from timm_mix.hub.client import can_push
from timm_mix.mixers import MIXERS

ROOMS = (
    *("announced", "functional", "registry", "places", "own_methods", "models", "mixers", "tasks", "views", "metrics"),
    *("hub", "card", "convert", "drop_in", "train"),
)
MODULES = sorted(modules_of(*(f"timm_mix.{room}" for room in ROOMS)))
PUSHING = {"timm_mix.hub.publish"}  # says so, and no more, where huggingface_hub is too old

# what no few lines in one process can show
WITHOUT_EXAMPLE = {
    "timm_mix.train.loop.member_parallel": ["MemberParallel"],  # several processes
    "timm_mix.train.loop.parallel": ["join_after_restart"],  # processes that torchrun has started again
    "timm_mix.train.loop.trainer": ["Trainer"],  # every part of a run; the examples of train and run make one
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_show_what_happens(name):
    if name in PUSHING and not can_push():
        pytest.skip("this huggingface_hub is too old to push")
    module = importlib.import_module(name)
    written = re.findall(r"^ *>>> ", inspect.getsource(module), re.MULTILINE)
    assert assert_examples(module) == len(written)  # none is overlooked


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_an_example(name):
    assert names_without_example(importlib.import_module(name)) == WITHOUT_EXAMPLE.get(name, [])


@pytest.mark.parametrize("name", [name for name in MODULES if registers_models(importlib.import_module(name))])
def test_every_family_of_models_shows_how_one_is_made(name):
    assert ">>> " in importlib.import_module(name).__doc__


def _module(source):
    """As if it were a file of the package."""
    module = ModuleType("of_this_test")
    exec(source, vars(module))
    return module


def test_an_example_that_shows_something_else_fails_with_what_came():
    module = _module('def two():\n    """\n    >>> two()\n    3\n    """\n    return 2')
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        assert_examples(module)


def test_a_public_name_without_an_example_is_named():
    module = _module('__all__ = ["One", "two"]\nclass One:\n    ">>> One()"\ndef two(): ...\ndef _three(): ...')
    assert names_without_example(module) == ["two"]


def test_examples_behind_a_decorator_of_another_module_run():
    source = (
        'from contextlib import contextmanager\n__all__ = ["one"]\n@contextmanager\ndef one():\n    ">>> 1 + 1\\n2"'
    )
    assert assert_examples(_module(source)) == 1


def test_what_an_example_registers_is_forgotten():
    source = '''
def one():
    """
    >>> timm_mix.register_mixer("of-an-example", timm_mix.mixers.Mixup).__name__
    'Mixup'
    """
'''
    assert assert_examples(_module(source)) == 1
    assert "of-an-example" not in MIXERS
