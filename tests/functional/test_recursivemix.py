"""RecursiveMix: the box, the paste, the targets, the consistency."""

import math

import numpy as np
import pytest
import torch

from timm_mix.functional.recursivemix import (
    RecursiveMixPlan,
    paste_history,
    plan_recursivemix,
    recursive_targets,
    region_consistency,
)

B, C, H, W, K = 5, 3, 7, 11, 13


def _images(batch=B, height=H, width=W, seed=0):
    return torch.rand(batch, C, height, width, generator=torch.Generator().manual_seed(seed))


def _plan(seed=0, alpha=0.5, size=(H, W)):
    return plan_recursivemix(size, alpha, rng=np.random.default_rng(seed))


def test_the_box_follows_the_published_rule():
    """r = sqrt(U(0, alpha)), s = int(side * r), [c - s // 2, c + s // 2), clipped; lam is the area left."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        ratio = math.sqrt(rng.uniform(0, 0.5))
        box = []
        for length in (32, 48):
            centre, side = rng.integers(length), int(length * ratio)
            box += [max(centre - side // 2, 0), min(centre + side // 2, length)]
        plan = _plan(seed, size=(32, 48))
        assert plan.box == tuple(box)
        pasted = np.zeros((32, 48), bool)
        pasted[box[0] : box[1], box[2] : box[3]] = True
        assert plan.lam == pytest.approx(1 - pasted.mean(), abs=1e-12)


def test_the_box_never_covers_more_than_alpha():
    assert min(_plan(seed, alpha=0.3, size=(64, 64)).lam for seed in range(300)) >= 0.7


def test_nearest_paste_equals_a_loop():
    images, old = _images(seed=1), _images(height=9, width=6, seed=2)
    plan = RecursiveMixPlan((2, 6, 3, 10), 1 - 28 / 77)
    expected = images.clone()
    for b in range(B):
        for y in range(4):
            for x in range(7):
                expected[b, :, 2 + y, 3 + x] = old[b, :, int(y * 9 / 4), int(x * 6 / 7)]
    assert torch.equal(paste_history(images, old, plan), expected)


def test_bilinear_paste_keeps_the_corners():
    images, old = _images(seed=1), _images(seed=2)
    mixed = paste_history(images, old, RecursiveMixPlan((1, 5, 2, 9), 0.6), mode="bilinear")
    for new, before in (((1, 2), (0, 0)), ((4, 8), (H - 1, W - 1)), ((1, 8), (0, W - 1))):
        torch.testing.assert_close(mixed[:, :, new[0], new[1]], old[:, :, before[0], before[1]])


def test_bilinear_paste_equals_a_loop():
    """Corner on corner: place i of n lies at i (m - 1) / (n - 1) of the m that were."""
    images, old = _images(seed=1).double(), _images(height=9, width=6, seed=2).double()
    expected = images.clone()
    for y in range(4):
        for x in range(7):
            v, u = y * 8 / 3, x * 5 / 6
            top, left = min(int(v), 7), min(int(u), 4)
            a, b = v - top, u - left
            rows = [(1 - b) * old[:, :, top + i, left] + b * old[:, :, top + i, left + 1] for i in range(2)]
            expected[:, :, 2 + y, 3 + x] = (1 - a) * rows[0] + a * rows[1]
    mixed = paste_history(images, old, RecursiveMixPlan((2, 6, 3, 10), 1 - 28 / 77), mode="bilinear")
    torch.testing.assert_close(mixed, expected)


def test_targets_equal_a_loop():
    y, old = (torch.rand(B, K, dtype=torch.float64).softmax(1) for _ in range(2))
    mixed = recursive_targets(y, old, RecursiveMixPlan((0, 4, 0, 4), 0.7))
    for b in range(B):
        for k in range(K):
            assert float(mixed[b, k]) == pytest.approx(0.7 * float(y[b, k]) + 0.3 * float(old[b, k]), rel=1e-12)


def test_an_empty_box_leaves_images_and_targets():
    images, old = _images(seed=1), _images(seed=2)
    plan = RecursiveMixPlan((3, 3, 2, 9), 1.0)
    mixed = paste_history(images, old, plan)
    assert torch.equal(mixed, images)
    assert mixed.data_ptr() != images.data_ptr()
    y, before = torch.eye(K)[:B], torch.eye(K)[B : 2 * B]
    assert torch.equal(recursive_targets(y, before, plan), y)


def test_the_callers_tensors_stay_as_they_are():
    images, old = _images(seed=1), _images(seed=2)
    kept = images.clone(), old.clone()
    paste_history(images, old, RecursiveMixPlan((0, 4, 0, 4), 1 - 16 / 77))
    assert torch.equal(images, kept[0])
    assert torch.equal(old, kept[1])


@pytest.mark.parametrize("before", [B + 3, B, 2])
def test_batches_of_any_length_meet(before):
    """A larger old batch is cut; of a smaller one the last images and targets stay."""
    images, old = _images(seed=1), _images(before, seed=2)
    plan = RecursiveMixPlan((0, 4, 0, 4), 1 - 16 / 77)
    mixed = paste_history(images, old, plan)
    y = torch.eye(K)[:B]
    targets = recursive_targets(y, torch.full((before, K), 1 / K), plan)
    torch.testing.assert_close(targets.sum(1), torch.ones(B))
    assert torch.equal(mixed[before:], images[before:])
    assert torch.equal(targets[before:], y[before:])
    assert not torch.equal(mixed[:1], images[:1])


def test_consistency_equals_a_loop_over_samples():
    generator = torch.Generator().manual_seed(3)
    region, old = (torch.randn(4, K, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for z, before in zip(region.tolist(), old.tolist(), strict=True):
        p = np.exp(before) / np.exp(before).sum()
        log_q = np.array(z) - math.log(np.exp(z).sum())
        expected -= (p * log_q).sum()
    plan = RecursiveMixPlan((0, 1, 0, 1), 0.7)
    assert float(region_consistency(region, old, plan, B)) == pytest.approx(0.3 * expected / B, rel=1e-12)


def test_consistency_has_the_gradient_of_the_kl_divergence():
    """Paper and code differ by the old prediction's entropy, a constant."""
    generator = torch.Generator().manual_seed(3)
    region = torch.randn(B, K, generator=generator, dtype=torch.float64, requires_grad=True)
    old = torch.randn(B, K, generator=generator, dtype=torch.float64)
    plan = RecursiveMixPlan((0, 1, 0, 1), 0.7)
    (ours,) = torch.autograd.grad(region_consistency(region, old, plan, B), region)
    kl = torch.nn.functional.kl_div(region.log_softmax(1), old.softmax(1), reduction="batchmean")
    (theirs,) = torch.autograd.grad(kl, region)
    torch.testing.assert_close(ours, 0.3 * theirs)


@pytest.mark.parametrize("alpha", [0, -1.0, 1.5, math.nan, "1", True])
def test_alpha_must_be_a_share(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got"):
        _plan(alpha=alpha)


def test_bad_sizes_modes_and_channels_are_named():
    with pytest.raises(ValueError, match=r"size must be \(H, W\), both >= 1, got \(0, 4\)"):
        _plan(size=(0, 4))
    plan = _plan()
    with pytest.raises(ValueError, match="resize must be one of nearest, bilinear, got 'bicubic'"):
        paste_history(_images(), _images(), plan, mode="bicubic")
    with pytest.raises(ValueError, match="the history must have the images' 3 channels, got 1"):
        paste_history(_images(), _images()[:, :1], plan)
