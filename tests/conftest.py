"""Shared by all tests: one thread per process, so that results and times do not depend on the machine's load."""

import torch

import timm_mix  # noqa: F401  (registers the models)

torch.set_num_threads(1)
