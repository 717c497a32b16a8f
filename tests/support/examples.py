"""The examples in the docstrings of a module: which there are, which are missing, and what they say when they run."""

import doctest
import importlib
import inspect
import pkgutil
from contextlib import ExitStack

import timm_mix.tasks
from timm_mix.functional.blocks import BLOCKS
from timm_mix.mixers import MIXERS

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
REGISTRIES = (BLOCKS, MIXERS, timm_mix.tasks.MIX_BLOCKS, timm_mix.tasks.TASKS)


def modules_of(room):
    """The names of a room's modules: the file or folder `timm_mix.<room>` and all that lie in it."""
    top = importlib.import_module(f"timm_mix.{room}")
    inside = pkgutil.walk_packages(getattr(top, "__path__", ()), f"{top.__name__}.")
    return [top.__name__, *(found.name for found in inside)]


def own_names(module):
    """The functions and classes in `__all__` that this module defines; what it re-exports has its example elsewhere."""
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {
        name: thing
        for name, thing in public.items()
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and thing.__module__ == module.__name__
    }


def names_without_example(module):
    return [name for name, thing in own_names(module).items() if ">>>" not in (thing.__doc__ or "")]


def examples_of(module):
    """One doctest for each docstring with an example.

    A function behind a decorator of another library (torch.no_grad) is passed over by doctest's own search.
    """
    finder = doctest.DocTestFinder()
    found = {test.name: test for test in finder.find(module) if test.examples}
    for name, thing in own_names(module).items():
        full = f"{module.__name__}.{name}"
        if full not in found:
            tests = finder.find(inspect.unwrap(thing), full, module)
            found.update({test.name: test for test in tests if test.examples})
    return list(found.values())


def failures_of(tests):
    """Run examples; what is registered in them is forgotten. Returns: doctest's report, empty if all went well."""
    said = []
    with ExitStack() as stack:
        for registry in REGISTRIES:
            stack.enter_context(registry.scoped())
        for test in tests:
            doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test, out=said.append)
    return "".join(said)
