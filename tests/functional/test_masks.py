"""Masks over members: shape, sum, area."""

import numpy as np
import pytest
import torch

from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.masks import check_masks, check_shares, linear_masks
from timm_mix.functional.mixmo import member_masks, plan_mixmo

B, M, H, W = 5, 3, 11, 7
ENCODED = torch.zeros(B, 13, H, W)


def test_linear_masks_hold_the_ratio_at_every_place():
    ratios = torch.tensor(np.random.default_rng(0).dirichlet([2] * M, B))
    masks = linear_masks(ratios, (H, W))
    assert masks.shape == (B, M, 1, H, W)
    for b in range(B):
        for m in range(M):
            assert (masks[b, m] == ratios[b, m]).all()


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("channels", [1, 13])
def test_masks_of_the_contract_are_accepted(batch, channels):
    masks = torch.rand(batch, M, channels, H, W)
    masks = masks / masks.sum(1, keepdim=True)
    check_masks(masks, M, ENCODED)
    check_shares(masks)


@pytest.mark.parametrize(
    "shape", [(B, M, 1, W, H), (B, M + 1, 1, H, W), (2, M, 1, H, W), (B, M, 2, H, W), (B, M, H, W)]
)
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"masks must be \[5 or 1, 3, 1 or 13, 11, 7\].*got \["):
        check_masks(torch.full(shape, 1 / 3), M, ENCODED)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(B, M, 1, H, W, dtype=torch.bool), r"masks must be a floating-point tensor, got torch.bool"),
        (np.ones((B, M, 1, H, W)), "masks must be a floating-point tensor, got ndarray"),
        (torch.ones(B, M, 1, H, W, device="meta"), "masks must be on cpu, where the images are, got meta"),
    ],
)
def test_masks_of_another_kind_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        check_masks(masks, M, ENCODED)


def test_negative_shares_are_refused():
    masks = torch.tensor([2.0, -1.0])[None, :, None, None, None].expand(1, 2, 1, H, W)
    with pytest.raises(ValueError, match="masks must be >= 0 at every place, got -1"):
        check_shares(masks)


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_masks_that_do_not_sum_to_one_are_refused(wrong):
    masks = torch.full((B, M, 1, H, W), 1 / M)
    masks[2, 1, 0, 3, 4] = wrong
    with pytest.raises(ValueError, match="masks must sum to 1 over the members"):
        check_shares(masks)


def test_rounding_of_half_precision_masks_is_accepted():
    ratios = torch.tensor(np.random.default_rng(0).dirichlet([2] * M, B)).to(torch.bfloat16)
    check_shares(linear_masks(ratios, (H, W)))


@pytest.mark.parametrize("family", BLOCKS)
def test_masks_are_the_same_under_autocast(family):
    plan = plan_mixmo(8, 2, (8, 32, 48), rng=np.random.default_rng(0), block=family)
    masks, ratios = member_masks(plan)
    with torch.autocast("cpu", torch.bfloat16):
        under, shares = member_masks(plan)
    assert torch.equal(masks, under)
    assert torch.equal(ratios, shares)
