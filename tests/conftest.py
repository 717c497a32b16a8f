"""Shared by all tests: one thread per process, so that results and times do not depend on the machine's load."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import timm_mix  # noqa: F401  (registers the models)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_accelerate_state():
    """accelerate keeps one state per process: leave none to the next test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
