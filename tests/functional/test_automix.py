"""AutoMix and SAMix: masks, mask losses, schedules against loops and limits."""

import math

import numpy as np
import pytest
import torch

from timm_mix.functional.automix import (
    LEAST_LAM,
    adjust_masks,
    attention_masks,
    constant_masks,
    embedded_lam,
    mask_loss,
    mask_loss_weight,
    mix_pairs,
    momentum_at,
    plan_automix,
)

B, C, HEIGHT, WIDTH = 5, 7, 2, 3  # places of the feature map; the image is 4 times as large
SIZE = (8, 12)


def _maps(channels, seed, dtype=torch.float64):
    return torch.randn(B, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _masks(seed=0):
    return attention_masks(_maps(C, seed), _maps(C, seed + 1), 3 * _maps(1, seed + 2), SIZE)


def test_masks_equal_a_loop_over_places():
    query, key, value = _maps(C, 0), _maps(C, 1), _maps(1, 2)
    masks = attention_masks(query, key, value, SIZE)
    places = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    for b in range(B):
        for y, x in places:
            scores = [float(query[b, :, y, x] @ key[b, :, v, u]) / math.sqrt(C) for v, u in places]
            weights = [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]
            drawn = sum(w * float(value[b, 0, v, u]) for w, (v, u) in zip(weights, places, strict=True))
            block = masks[b, :, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            expected = 1 / (1 + math.exp(-drawn))
            torch.testing.assert_close(block[1], torch.full((4, 4), expected, dtype=torch.float64))
            torch.testing.assert_close(block[0], torch.full((4, 4), 1 - expected, dtype=torch.float64))


def test_masks_sum_to_one_and_lie_between_0_and_1():
    masks = _masks()
    torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))
    assert 0 <= masks.min() <= masks.max() <= 1


def test_a_value_of_opposite_sign_swaps_the_pairs_masks():
    """sigmoid(-v) = 1 - sigmoid(v)."""
    query, key, value = _maps(C, 0), _maps(C, 1), _maps(1, 2)
    one, other = (attention_masks(query, key, v, SIZE) for v in (value, -value))
    torch.testing.assert_close(one, other.flip(1))


def test_masks_stay_float32_under_autocast():
    maps = _maps(C, 0, torch.float32), _maps(C, 1, torch.float32), _maps(1, 2, torch.float32)
    expected = attention_masks(*maps, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        masks = attention_masks(*maps, SIZE)
        low = attention_masks(*(m.bfloat16() for m in maps), SIZE)
    assert torch.equal(masks, expected)
    assert low.dtype == torch.float32


def test_bilinear_masks_are_smoother():
    maps = _maps(C, 0), _maps(C, 1), 3 * _maps(1, 2)
    steps = [attention_masks(*maps, SIZE, mode)[:, 1].diff(dim=-1).abs().max() for mode in ("nearest", "bilinear")]
    assert steps[1] < steps[0] / 2


def test_lam_one_leaves_the_image():
    images = torch.rand(B, 3, *SIZE, dtype=torch.float64)
    mixed = mix_pairs(images, torch.arange(B).flip(0), constant_masks(1.0, _masks()))
    assert torch.equal(mixed, images)


def test_mixing_equals_a_loop_over_samples():
    images, masks, partners = torch.rand(B, 3, *SIZE, dtype=torch.float64), _masks(), [3, 0, 4, 1, 2]
    mixed = mix_pairs(images, torch.tensor(partners), masks)
    for b, partner in enumerate(partners):
        torch.testing.assert_close(mixed[b], images[b] * masks[b, 0] + images[partner] * masks[b, 1])


def test_swapping_a_pair_and_its_masks_leaves_the_mix():
    images, masks, partners = torch.rand(B, 3, *SIZE, dtype=torch.float64), _masks(), torch.tensor([3, 0, 4, 1, 2])
    swapped = mix_pairs(images[partners], partners.argsort(), masks.flip(1))
    torch.testing.assert_close(swapped, mix_pairs(images, partners, masks))


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.45, 0.9, 1.0])
def test_swapping_the_pair_mirrors_constant_and_adjusted_masks_and_keeps_the_mask_loss(lam):
    """Not the masks from attention: the query is the sample's, key and value are its partner's."""
    masks = _masks()
    torch.testing.assert_close(constant_masks(1 - lam, masks), constant_masks(lam, masks).flip(1))
    torch.testing.assert_close(adjust_masks(masks.flip(1), 1 - lam), adjust_masks(masks, lam).flip(1))
    for variance in (False, True):
        torch.testing.assert_close(mask_loss(masks.flip(1), 1 - lam, variance), mask_loss(masks, lam, variance))


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_adjusted_masks_have_lam_on_average_and_still_sum_to_one(lam):
    masks = _masks()
    adjusted = adjust_masks(masks, lam)
    torch.testing.assert_close(adjusted.sum(1), torch.ones_like(adjusted[:, 0]))
    torch.testing.assert_close(adjusted[:, 0].mean((1, 2, 3)), torch.full((B,), lam, dtype=torch.float64))
    assert 0 <= adjusted.min() <= adjusted.max() <= 1
    for b in range(B):
        mean = float(masks[b, 0].mean())
        kept = 0 if mean > lam else 1
        share = (lam, 1 - lam)[kept] / (mean, 1 - mean)[kept]
        torch.testing.assert_close(adjusted[b, kept], masks[b, kept] * share)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.55, 1.0])
def test_mask_loss_equals_its_formula(lam):
    masks = _masks()
    shown = masks[:, 1].numpy()
    area = max(abs(1 - shown.mean() - lam) - 0.1, 0)
    assert float(mask_loss(masks, lam)) == pytest.approx(area, abs=1e-12)
    spread = 2 * ((shown - shown.mean()) ** 2).mean()
    assert float(mask_loss(masks, lam, variance=True)) == pytest.approx(area - spread, abs=1e-12)


def test_mask_loss_is_zero_within_the_margin():
    masks = constant_masks(0.42, torch.empty(B, 2, 1, *SIZE, dtype=torch.float64))
    assert float(mask_loss(masks, 0.5)) == 0
    assert float(mask_loss(masks, 0.6)) == pytest.approx(0.08)


def test_embedded_lam_is_symmetric_and_keeps_the_ends():
    """lam' (1/2) = 1/2, lam'(0) = 0, lam'(1) = 1, and lam'(1 - lam) = 1 - lam'(lam)."""
    assert embedded_lam(0.37, -1) == 0.37
    for k in (0.25, 0.5):
        assert [embedded_lam(lam, k) for lam in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.5, 1])
        for lam in (0.1, 0.3):
            assert embedded_lam(1 - lam, k) == pytest.approx(1 - embedded_lam(lam, k))
    with pytest.raises(ValueError, match="k must not be -1/3"):
        embedded_lam(0.3, -1 / 3)


def test_momentum_is_constant_then_rises_to_its_end():
    assert [momentum_at(p) for p in (0, 0.05, 0.0999)] == [0.999] * 3
    curve = [momentum_at(p) for p in np.linspace(0.1, 1, 50)]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(0.999999 - 0.000999 * (math.cos(0.1 * math.pi) + 1) / 2)
    assert curve[-1] == pytest.approx(0.999999)
    assert momentum_at(0.2, warmup=0.25) == 0.999


def test_schedules_equal_their_formulas_at_every_iteration():
    steps = 40
    for it in range(steps + 1):
        cosine = (math.cos(math.pi * it / steps) + 1) / 2
        raised = 0.99999 - (0.99999 - 0.99) * cosine
        momentum = momentum_at(it / steps, base=0.99, end=0.99999, warmup=0.25)
        assert momentum == pytest.approx(0.99 if it < 10 else raised, rel=1e-12)
        assert mask_loss_weight(it / steps, 0.3, decay=True) == pytest.approx(0.3 * cosine, abs=1e-12)


def test_mask_loss_weight_is_constant_or_falls_to_zero():
    assert [mask_loss_weight(p) for p in (0, 0.5, 1)] == [0.1] * 3
    assert [mask_loss_weight(p, decay=True) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.05, 0])


def test_draws_follow_their_laws():
    rng = np.random.default_rng(0)
    plans = [plan_automix(7, rng=rng, mask_adjust=0.25, switch_off=0.8) for _ in range(2000)]
    for name in ("lam_mb", "lam_bb"):
        lams = np.array([getattr(p, name) for p in plans])
        assert lams.mean() == pytest.approx(0.5, abs=3 * math.sqrt(0.05 / 2000))  # Beta(2, 2) has variance 1 / 20
        assert (lams < LEAST_LAM).any()
    assert np.mean([p.adjust for p in plans]) == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 2000))
    assert np.mean([p.switched_off for p in plans]) == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 2000))
    for plan in plans[:20]:
        assert sorted(plan.partners_mb) == sorted(plan.partners_bb) == list(range(7))
    assert np.corrcoef([p.lam_mb for p in plans], [p.lam_bb for p in plans])[0, 1] == pytest.approx(0, abs=0.07)


@pytest.mark.parametrize(
    ("setting", "value"), [("alpha", 0), ("mask_adjust", -0.1), ("switch_off", 1.5), ("alpha", "2")]
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be .*, got {value!r}"):
        plan_automix(4, rng=np.random.default_rng(0), **{setting: value})


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(ValueError, match="upsampling must be nearest or bilinear, got 'cubic'"):
        attention_masks(_maps(C, 0), _maps(C, 1), _maps(1, 2), SIZE, "cubic")
