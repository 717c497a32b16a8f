"""Equal to the bit: named tensors, batches."""

import torch


def assert_equal_tensors(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def same_batches(left, right):
    """As many batches, of the same images and targets, in the same order."""
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )
