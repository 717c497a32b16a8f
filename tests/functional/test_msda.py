"""CutMix and mixup inside MixMo."""

import dataclasses

import numpy as np
import pytest
import torch

from timm_mix.functional.mixmo import member_masks, plan_mixmo
from timm_mix.functional.msda import kept_labels, kept_pixels, plan_msda

B, M, H, W = 5, 3, 8, 12


def _plan(seed=0, batch=B, members=M, **kwargs):
    return plan_msda(batch, members, (H, W), rng=np.random.default_rng(seed), **{"prob": 1.0, **kwargs})


def _masks(seed=0, members=M, shape=(2, H, W)):
    return member_masks(plan_mixmo(B, members, shape, rng=np.random.default_rng(seed)))[0]


@pytest.mark.parametrize("stem", [(H, W), (H // 2, W // 2)])
@pytest.mark.parametrize("method", ["cutmix", "mixup"])
def test_labels_equal_a_loop_over_pixels(method, stem):
    """lam_k = mean(m_k q) / mean(q), with m averaged 2x2 where the stem halves the image; below 1/2 the roles swap."""
    plan, masks = _plan(method=method), _masks(shape=(2, *stem))
    keep, lam = kept_labels(kept_pixels(plan), masks)
    step = H // stem[0]
    for b in range(B):
        for i in range(M):
            inside = np.full((H, W), plan.lam[b, i])
            if method == "cutmix":
                top, bottom, left, right = plan.boxes[b * M + i]
                inside = np.zeros((H, W))
                inside[top:bottom, left:right] = 1
            through, total = 0.0, 0.0
            for y, x in np.ndindex(*stem):
                q = float(masks[b, i, 0, y, x])
                through += q * inside[step * y : step * (y + 1), step * x : step * (x + 1)].mean()
                total += q
            share = through / (total + 1e-8 * stem[0] * stem[1])
            swap = share < 0.5
            assert float(lam[b, i]) == pytest.approx(1 - share if swap else share, abs=1e-5)
            if abs(share - 0.5) > 1e-6:  # at one half either may be the larger
                np.testing.assert_allclose(keep[b, i, 0].numpy(), 1 - inside if swap else inside, atol=1e-6)


def test_the_own_share_is_always_the_larger():
    for seed in range(10):
        _, lam = kept_labels(kept_pixels(_plan(seed)), _masks(seed))
        assert (lam >= 0.5).all()
        assert (lam <= 1).all()


def test_without_msda_the_image_and_its_label_are_whole():
    for method in ("cutmix", "mixup"):
        keep, lam = kept_labels(kept_pixels(_plan(prob=0.0, method=method)), _masks())
        assert (keep == 1).all()
        has_share = _masks().mean((2, 3, 4)) > 0
        torch.testing.assert_close(lam[has_share], torch.ones_like(lam[has_share]), atol=1e-6, rtol=0)


def test_a_single_member_counts_plain_pixels_and_never_swaps():
    plan = _plan(members=1)
    keep, lam = kept_labels(kept_pixels(plan), torch.ones(B, 1, 1, H, W))
    boxes = plan.boxes
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (H * W)
    np.testing.assert_allclose(lam[:, 0].numpy(), areas, atol=1e-6)
    assert (areas < 0.5).any()
    np.testing.assert_allclose(keep.mean((1, 2, 3, 4)).numpy(), areas, atol=1e-6)


def test_every_member_and_sample_is_mixed_with_its_probability():
    lam = np.stack([_plan(seed, batch=50, prob=0.3).lam for seed in range(20)])
    rate = (lam < 1).mean()
    assert abs(rate - 0.3) < 4 * (0.3 * 0.7 / lam.size) ** 0.5


def test_partners_are_a_shuffle_of_the_batch_per_member():
    plan = _plan(batch=17)
    for i in range(M):
        assert sorted(plan.partners[:, i]) == list(range(17))
    assert not np.array_equal(plan.partners[:, 0], plan.partners[:, 1])


def test_ratio_of_the_draw_is_uniform():
    lam = np.concatenate([_plan(seed, batch=100).lam.ravel() for seed in range(10)])
    assert abs(lam.mean() - 0.5) < 4 * (1 / 12 / lam.size) ** 0.5
    assert abs(lam.var() - 1 / 12) < 0.006


def test_a_plan_is_a_function_of_its_generator():
    one, two = _plan(7), _plan(7)
    for spec in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, spec.name), getattr(two, spec.name))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "cutout"}, "msda must be one of cutmix, mixup, got 'cutout'"),
        ({"alpha": 0}, "msda_alpha must be > 0 and finite, got 0"),
        ({"prob": 1.5}, r"msda_prob must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        _plan(**wrong)
