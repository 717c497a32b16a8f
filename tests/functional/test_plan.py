"""Sample mixing: plans, images, targets."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timm_mix.functional.plan import MixPlan, apply_mix, mix_targets, plan_cutmix, plan_mixup, plan_resizemix

B, C, H, W, K = 5, 3, 7, 11, 13
SIZE = (H, W)


def _images(seed=0, batch=B):
    return torch.rand(batch, C, H, W, generator=torch.Generator().manual_seed(seed))


def _plans(seed=0, batch=B, size=SIZE, **settings):
    """One plan of each kind."""
    rng = np.random.default_rng(seed)
    return {
        "mixup": plan_mixup(batch, rng=rng, **settings),
        "cutmix": plan_cutmix(batch, size, rng=rng, **settings),
        "resizemix": plan_resizemix(batch, size, rng=rng, **settings),
    }


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "resizemix"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_images_equal_a_loop_over_pixels(kind, mode):
    for seed in range(4):
        plan, x = _plans(seed, mode=mode)[kind], _images(seed)
        expected = x.clone()
        for b in range(B):
            other, lam = x[plan.partner[b]], plan.lam[b]
            for y, z in np.ndindex(H, W):
                if plan.boxes is None:
                    expected[b, :, y, z] = lam * x[b, :, y, z] + (1 - lam) * other[:, y, z]
                    continue
                top, bottom, left, right = plan.boxes[b]
                if not (top <= y < bottom and left <= z < right):
                    continue
                if plan.resized:
                    row, col = (y - top) * H // (bottom - top), (z - left) * W // (right - left)
                    expected[b, :, y, z] = other[:, row, col]
                else:
                    expected[b, :, y, z] = other[:, y, z]
        torch.testing.assert_close(apply_mix(x, plan), expected)


@pytest.mark.parametrize("kind", ["cutmix", "resizemix"])
def test_lam_is_the_area_left_to_the_sample(kind):
    for seed in range(20):
        plan = _plans(seed, mode="elem")[kind]
        shown = apply_mix(torch.arange(1.0, B + 1).view(B, 1, 1, 1).expand(B, 1, H, W), plan)
        for b in range(B):
            if plan.partner[b] != b:
                assert float((shown[b] == b + 1).float().mean()) == pytest.approx(plan.lam[b], abs=1e-6)


def test_resizing_agrees_with_torchs_nearest():
    plan = MixPlan(np.arange(B)[::-1].copy(), np.full(B, 0.5), np.tile([1, 6, 2, 9], (B, 1)), resized=True)
    x = _images()
    torch.testing.assert_close(apply_mix(x, plan)[:, :, 1:6, 2:9], F.interpolate(x.flip(0), size=(5, 7)))


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "resizemix"])
def test_without_mixing_images_and_labels_stay(kind):
    plan, x, y = _plans(prob=0.0, mode="elem")[kind], _images(), torch.arange(B)
    torch.testing.assert_close(apply_mix(x, plan), x)
    torch.testing.assert_close(mix_targets(y, plan, K), F.one_hot(y, K).float())


def test_modes_share_their_draws():
    for kind in ("mixup", "cutmix", "resizemix"):
        batch, pair, elem = (_plans(3, batch=7, size=(64, 64), mode=m)[kind].lam for m in ("batch", "pair", "elem"))
        assert len(set(batch)) == 1
        np.testing.assert_array_equal(pair, pair[::-1])
        assert len(set(pair)) == 4
        assert len(set(elem)) == 7


def test_lam_of_mixup_is_beta_distributed_and_probability_counts():
    rng = np.random.default_rng(0)
    lam = plan_mixup(4000, rng=rng, alpha=0.5, mode="elem").lam
    assert lam.mean() == pytest.approx(0.5, abs=3 * math.sqrt(0.125 / 4000))  # Beta(1/2, 1/2) has variance 1/8
    assert lam.var() == pytest.approx(0.125, abs=0.01)
    mixed = plan_mixup(4000, rng=rng, prob=0.3, mode="elem").lam < 1
    assert mixed.mean() == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 4000))


def test_cutmix_boxes_follow_the_papers_rule():
    """Sides sqrt(1 - lam), the centre uniform, clipped: with lam drawn at .75 an inner box has half the side."""
    boxes = plan_cutmix(3000, (64, 64), rng=np.random.default_rng(0), alpha=1.0, mode="elem").boxes
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    inner = (boxes[:, 0] > 0) & (boxes[:, 1] < 64) & (boxes[:, 2] > 0) & (boxes[:, 3] < 64)
    np.testing.assert_array_equal(height[inner], width[inner])
    assert 0 <= boxes.min() <= boxes.max() <= 64


def test_resizemix_boxes_lie_inside_and_have_sides_in_scope():
    boxes = plan_resizemix(3000, (50, 100), rng=np.random.default_rng(0), scope=(0.2, 0.4), mode="elem").boxes
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert height.min() == 10
    assert height.max() == 20
    assert np.abs(width - 2 * height).max() <= 1
    assert boxes[:, 0].min() == 0
    assert boxes[:, 1].max() == 50
    assert boxes[:, 3].max() == 100


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_equal_a_loop_over_samples(smoothing):
    plan, y = _plans(mode="elem")["mixup"], torch.tensor([4, 0, 12, 7, 7])
    targets = mix_targets(y, plan, K, smoothing)
    for b in range(B):
        own, other = (np.eye(K)[y[i]] * (1 - smoothing) + smoothing / K for i in (b, plan.partner[b]))
        np.testing.assert_allclose(targets[b].numpy(), plan.lam[b] * own + (1 - plan.lam[b]) * other, atol=1e-6)
    torch.testing.assert_close(mix_targets(F.one_hot(y, K), plan, K, smoothing), targets)


def test_the_callers_tensors_stay_as_they_are():
    for plan in _plans(mode="elem").values():
        x = _images()
        before = x.clone()
        apply_mix(x, plan)
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, "alpha must be > 0 and finite, got 0"),
        ({"prob": 1.5}, r"prob must be in \[0, 1\], got 1.5"),
        ({"mode": "row"}, "mode must be one of batch, pair, elem, got 'row'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        plan_mixup(B, rng=np.random.default_rng(0), **settings)


def test_bad_scopes_batches_and_targets_are_named():
    with pytest.raises(ValueError, match=r"scope must be 0 < low <= high <= 1, got \(0.5, 0.1\)"):
        plan_resizemix(B, SIZE, rng=np.random.default_rng(0), scope=(0.5, 0.1))
    plan = _plans()["mixup"]
    with pytest.raises(ValueError, match="the plan is for 5 images, got 3"):
        apply_mix(_images(batch=3), plan)
    with pytest.raises(ValueError, match=r"targets must be \[5\] class indices or \[5, 13\] soft labels, got \[5, 2\]"):
        mix_targets(torch.zeros(B, 2), plan, K)
