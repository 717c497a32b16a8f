"""Every public function and class shows an example in its docstring, and all of them run as they stand."""

import importlib
from types import ModuleType

import pytest
import torch
from support.examples import examples_of, failures_of, modules_of, names_without_example, own_names

from timm_mix.mixers import MIXERS

ROOMS = (
    "functional",
    "metrics",
    "mixers",
    "views",
    "places",
    "registry",
    "tasks",
)
MODULES = [name for room in ROOMS for name in modules_of(room)]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_an_example(name):
    missing = names_without_example(importlib.import_module(name))
    assert not missing, f"{name}: no >>> in the docstring of {', '.join(missing)}"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run_and_show_what_is_true(name):
    module = importlib.import_module(name)
    tests = examples_of(module)
    torch.manual_seed(0)
    report = failures_of(tests)
    assert not report, report
    # none is passed over: one for each public name, besides those of methods and of the module itself
    assert {f"{name}.{own}" for own in own_names(module)} <= {test.name for test in tests}


def test_the_rooms_hold_their_modules():
    assert len(MODULES) == len(set(MODULES))
    assert {"timm_mix.functional.plan", "timm_mix.mixers._base", "timm_mix.tasks.facts", "timm_mix.views"} <= {*MODULES}


TOY = '''
import torch

__all__ = ["LIMIT", "bare", "right", "wrong", "wrapped"]
LIMIT = 3

def right():
    """
    >>> right()
    1
    """
    return 1

def wrong():
    """
    >>> wrong()
    1
    """
    return 2

@torch.no_grad()
def wrapped():
    """
    >>> wrapped()
    3
    """
    return 4

def bare():
    """Nothing to see."""

def _private():
    """Needs none."""
'''


@pytest.fixture
def toy():
    module = ModuleType("toy")
    exec(compile(TOY, "toy", "exec"), module.__dict__)
    return module


def test_a_name_without_an_example_is_found(toy):
    assert names_without_example(toy) == ["bare"]


def test_a_wrong_result_is_found_behind_a_decorator_too(toy):
    report = failures_of(examples_of(toy))
    assert "Expected:\n    1\nGot:\n    2\n" in report
    assert "Expected:\n    3\nGot:\n    4\n" in report
    assert "right()" not in report


def test_what_an_example_registers_is_forgotten(toy):
    toy.right.__doc__ = """
    >>> import timm_mix
    >>> timm_mix.register_mixer("of-an-example", timm_mix.mixers.Mixup).__name__
    'Mixup'
    """
    tests = [test for test in examples_of(toy) if test.name == "toy.right"]
    assert len(tests) == 1
    assert failures_of(tests) == ""
    assert "of-an-example" not in MIXERS
