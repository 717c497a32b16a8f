"""Shared by all tests: one thread per process, so that results and times do not depend on the machine's load."""

from collections import Counter

import pytest
import torch
from support.trainer_runs import forget_accelerator

import timm_mix  # noqa: F401  (registers the models)

torch.set_num_threads(1)

# marker -> how its tests are run
LEFT_OUT = {"slow": "make test-all", "hub_matrix": "make hub-matrix", "gpu": "pytest -m gpu where there is one"}
_COUNTS = pytest.StashKey[Counter]()


def pytest_deselected(items):
    """Count what this run leaves out; under xdist the workers see it, each all of it."""
    for item in items:
        name = next((name for name in LEFT_OUT if item.get_closest_marker(name)), None)
        if name is not None:
            item.config.stash.setdefault(_COUNTS, Counter())[name] += 1


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(_COUNTS, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[_COUNTS] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    for name, count in config.stash.get(_COUNTS, Counter()).items():
        terminalreporter.write_line(f"left out: {count} tests marked {name} ({LEFT_OUT[name]})")


@pytest.fixture(autouse=True)
def _no_accelerate_state():
    """accelerate keeps one state per process: leave none to the next test."""
    yield
    forget_accelerator()
