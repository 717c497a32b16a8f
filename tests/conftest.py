"""Shared by all tests: one thread per process, so that results and times do not depend on the machine's load."""

import pytest
import torch
from support.trainer_runs import forget_accelerator

import timm_mix  # noqa: F401  (registers the models)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_accelerate_state():
    """accelerate keeps one state per process: leave none to the next test."""
    yield
    forget_accelerator()
