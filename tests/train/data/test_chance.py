"""Keys decide what the global generators draw, and what is drawn in between is put back."""

import random

import numpy as np
import pytest
import torch

from timm_mix.train.data.chance import deterministic_algorithms, keep_generators, seed_generators
from timm_mix.train.errors import UsageError


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def drawn(*key):
    seed_generators(*key)
    return draws()


def test_a_key_repeats_and_every_part_of_it_counts():
    first = drawn(3, 5, 7)
    assert drawn(3, 5, 7) == first
    for other in ((4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (3, 5, 7, 1)):
        assert not set(drawn(*other)) & set(first)


def test_neighbouring_keys_are_not_correlated():
    values = np.array([drawn(0, step) for step in range(2000)])
    assert np.abs(values.mean(0) - 0.5).max() < 0.03  # 4.6 standard deviations
    both = np.corrcoef(np.concatenate([values[:-1], values[1:]], axis=1).T) - np.eye(6)
    assert np.abs(both).max() < 0.11


@pytest.mark.parametrize("error", [False, True])
def test_generators_are_put_back(error):
    seed_generators(1)
    wanted = draws()
    seed_generators(1)
    try:
        with keep_generators():
            seed_generators(2)
            draws()
            if error:
                raise KeyError
    except KeyError:
        pass
    assert draws() == wanted


def test_deterministic_algorithms_end_with_the_block():
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_without_a_deterministic_kernel_is_one_line():
    told = "put_ does not have a deterministic implementation, but you set ... . You can\nturn off"
    line = "--deterministic does not go with this recipe: put_ does not have a"
    with pytest.raises(UsageError, match=line) as caught, deterministic_algorithms(True):
        raise RuntimeError(told)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="out of memory"), deterministic_algorithms(True):
        raise RuntimeError("out of memory")
