"""MixMo's draws, masks, weights and schedule."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.boxes import draw_boxes, draw_intervals
from timm_mix.functional.mixmo import binary_probability, member_masks, member_weights, plan_mixmo

B, M, C, H, W = 5, 3, 2, 11, 7
BINARY = [name for name, block in BLOCKS.items() if block.binary]
NOISES = [name for name, block in BLOCKS.items() if block.fill is not None and block.draw is None]
# those without noise have a twin written in loops
TWINS = ["linear", "cut", "horizontal", "vertical", "channel_concat"]


def _plan(seed=0, batch=B, members=M, **kwargs):
    return plan_mixmo(batch, members, (C, H, W), rng=np.random.default_rng(seed), **kwargs)


def _twin_masks(plan, regions):
    """Masks of one plan, place by place, from the regions that its roles cut out."""
    batch, members = plan.kappa.shape
    masks = np.zeros((batch, members, C, H, W))
    for b in range(batch):
        for place in np.ndindex(C, H, W):
            left, by_role = 1.0, []
            for region in regions:
                by_role.append(left * region[(b, *place)])
                left *= 1 - region[(b, *place)]
            others = plan.kappa[b, len(regions) :]
            by_role += [left * kappa / others.sum() for kappa in others]
            for i in range(members):
                masks[(b, i, *place)] = by_role[plan.roles[i]]
    return masks


def _twin_regions(plan):
    """The regions of a plan without noise, place by place."""
    regions = []
    for drawn in plan.regions:
        region = np.zeros((B, C, H, W))
        for b in range(B):
            for c, y, x in np.ndindex(C, H, W):
                if plan.family == "cut":
                    top, bottom, left, right = drawn[b]
                    inside = top <= y < bottom and left <= x < right
                else:
                    inside = (
                        drawn[b, 0] <= {"channel_concat": c, "horizontal": y, "vertical": x}[plan.family] < drawn[b, 1]
                    )
                region[b, c, y, x] = inside
        regions.append(region)
    return regions


@pytest.mark.parametrize("partition", [False, True])
@pytest.mark.parametrize("members", [2, 3, 8])
@pytest.mark.parametrize("block", TWINS)
def test_masks_equal_a_loop_over_places(block, members, partition):
    for seed in range(3):
        plan = _plan(seed, members=members, block=block, partition=partition and block != "linear")
        masks, _ = member_masks(plan)
        twin = _twin_masks(plan, _twin_regions(plan))
        np.testing.assert_allclose(masks.expand(-1, -1, C, -1, -1).numpy(), twin, atol=1e-6)


@pytest.mark.parametrize("members", range(1, 9))
@pytest.mark.parametrize("block", BLOCKS)
def test_masks_are_shares_and_ratios_are_the_kept_area(block, members):
    for seed, partition in ((0, False), (1, True)):
        plan = _plan(seed, members=members, block=block, partition=partition and block in BINARY)
        masks, ratios = member_masks(plan)
        assert masks.shape[:2] == (B, members)
        assert masks.shape[2] in (1, C)
        assert masks.shape[3:] == (H, W)
        assert masks.min() >= 0
        assert masks.max() <= 1
        torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(masks.mean((2, 3, 4)), ratios, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", BINARY)
def test_binary_blocks_give_every_place_to_one_member(block):
    for members, partition in ((2, False), (3, True), (8, True)):
        masks, _ = member_masks(_plan(members=members, block=block, partition=partition))
        assert set(masks.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("block", BINARY)
def test_without_partition_the_others_share_the_rest_by_their_kappa(block):
    plan = _plan(block=block, members=3)
    masks, _ = member_masks(plan)
    by_role = masks[:, np.argsort(plan.roles)]
    kappa = torch.tensor(plan.kappa, dtype=torch.float32)[:, :, None, None, None]
    torch.testing.assert_close(by_role[:, 1] * kappa[:, 2], by_role[:, 2] * kappa[:, 1], atol=1e-6, rtol=0)
    assert set(by_role[:, 0].unique().tolist()) <= {0.0, 1.0}


# Mean of the first mask over 2,000 draws at 16 x 32 x 32 for kappa = .2, .5, .8, measured in the published code of
# arXiv:2103.06132; None where the rule itself gives the mean (the intervals mix kappa and 1 - kappa half and half).
PUBLISHED = {
    "linear": (0.2, 0.5, 0.8),
    "cut": (0.151, 0.322, 0.465),
    "horizontal": None,
    "vertical": None,
    "channel_concat": None,
    "channel": (0.2, 0.5, 0.8),
    "noise": (0.35, 0.5, 0.65),
    "patchup_hard": (0.237, 0.491, 0.659),
    "patchup_hard_2d": (0.237, 0.491, 0.659),
    "patchup_soft": (0.390, 0.746, 0.932),
    "cow": (0.497, 0.497, 0.497),
    "fmix": (0.2, 0.5, 0.8),
}


def test_every_block_has_its_published_area_and_a_twin_unless_it_is_noise():
    assert set(PUBLISHED) == set(BLOCKS)
    assert {*TWINS, *NOISES} == set(BLOCKS)
    assert [name for name in BLOCKS if name not in BINARY] == ["linear", "noise", "patchup_soft"]


@pytest.mark.parametrize("block", BLOCKS)
def test_mean_area_equals_the_published_code(block):
    draws = 2000
    for i, kappa in enumerate((0.2, 0.5, 0.8)):
        areas = _first_areas(block, kappa, draws)
        n = 32 if block in ("horizontal", "vertical") else 16
        expected = PUBLISHED[block][i] if PUBLISHED[block] else (int(kappa * n) + int((1 - kappa) * n)) / (2 * n)
        error = 3 * areas.std() / draws**0.5 * 2**0.5  # the published figure is a mean of 2,000 draws, too
        assert abs(areas.mean() - expected) <= error + 5e-4, block  # it is rounded to 3 digits


def _first_areas(block, kappa, draws):
    """Area of role 0's region in `draws` plans whose kappa is fixed."""
    plan = plan_mixmo(draws, 2, (16, 32, 32), rng=np.random.default_rng(0), block=block)
    fixed = np.tile([kappa, 1 - kappa], (draws, 1))
    regions = (_redraw(block, fixed[:, 0]),) if plan.regions else ()
    areas = fixed[:, :1] if plan.areas.shape[1] else plan.areas
    plan = dataclasses.replace(plan, kappa=fixed, areas=areas, regions=regions, roles=np.arange(2))
    return member_masks(plan)[1][:, 0].numpy()


def _redraw(block, kappa):
    rng = np.random.default_rng(1)
    if block == "cut":
        return draw_boxes(kappa, (32, 32), rng=rng)
    return draw_intervals(kappa, 16 if block == "channel_concat" else 32, rng=rng)


def test_noise_is_a_function_of_the_plans_seed():
    for block in NOISES:
        plan = _plan(block=block)
        assert torch.equal(member_masks(plan)[0], member_masks(plan)[0])
        other = dataclasses.replace(plan, seed=plan.seed + 1)
        assert not torch.equal(member_masks(plan)[0], member_masks(other)[0])


def test_one_ratio_per_batch_is_an_option():
    assert (_plan(same_ratio=True).kappa == _plan(same_ratio=True).kappa[:1]).all()
    assert not (_plan().kappa == _plan().kappa[:1]).all()


def test_every_member_sees_every_image_once():
    plan = _plan(batch=17)
    for i in range(M):
        assert sorted(plan.images[:, i]) == list(range(17))


def test_repetition_shows_the_same_image_to_all_members():
    plan = _plan(batch=17, repetition=0.4)
    same = (plan.images == plan.images[:, :1]).all(1)
    assert same[: int(0.4 * 17)].all()
    assert not same.all()


def test_without_repetition_members_see_different_images():
    shared = [(p.images[:, 0] == p.images[:, 1]).mean() for p in (_plan(seed, batch=101) for seed in range(50))]
    assert abs(np.mean(shared) - 1 / 101) < 3 * np.std(shared) / 50**0.5 + 1e-9


def test_roles_are_shuffled():
    owners = [int(np.flatnonzero(_plan(seed).roles == 0)[0]) for seed in range(300)]
    counts = np.bincount(owners, minlength=M)
    assert abs(counts - 100).max() < 4 * math.sqrt(300 * (1 / 3) * (2 / 3))


def test_ratios_of_two_members_follow_beta():
    kappa = np.concatenate([_plan(s, batch=100, members=2, block="linear", alpha=2.0).kappa[:, 0] for s in range(20)])
    variance = 1 / (4 * (2 * 2 + 1))  # of Beta(2, 2)
    assert abs(kappa.mean() - 0.5) < 3 * math.sqrt(variance / 2000)
    assert abs(kappa.var() - variance) < 0.004


def test_prob_chooses_between_the_blocks():
    cut = [_plan(seed, prob=0.3).family == "cut" for seed in range(400)]
    assert abs(np.mean(cut) - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 400)
    assert all(_plan(seed, prob=0.0).family == "linear" for seed in range(20))


def test_mimo_has_equal_ratios():
    torch.testing.assert_close(member_masks(_plan(block="linear", equal=True))[1], torch.full((B, M), 1 / M))


def test_a_plan_is_a_function_of_its_generator():
    one, two = _plan(7), _plan(7)
    for name in ("images", "kappa", "areas", "roles", "regions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_tiny_alpha_still_gives_masks_that_sum_to_one():
    for seed in range(20):
        masks, ratios = member_masks(_plan(seed, alpha=1e-3))
        np.testing.assert_allclose(masks.sum(1).numpy(), 1, atol=1e-6)
        np.testing.assert_allclose(ratios.sum(1).numpy(), 1, atol=1e-6)


def test_weights_equal_the_formula_of_the_paper_for_two_members():
    kappa, r = np.random.default_rng(0).random(B), 3.0
    ratios = torch.tensor(np.stack([kappa, 1 - kappa], 1))
    expected = [2 * k ** (1 / r) / (k ** (1 / r) + (1 - k) ** (1 / r)) for k in kappa]
    np.testing.assert_allclose(member_weights(ratios, r)[:, 0].numpy(), expected)


@pytest.mark.parametrize("r", [1.0, 3.0, math.inf])
def test_weights_sum_to_the_number_of_members(r):
    ratios = torch.tensor(_plan().kappa)
    np.testing.assert_allclose(member_weights(ratios, r).sum(1).numpy(), M)


def test_weight_at_one_half_is_one_and_limits_hold():
    half = torch.full((1, 2), 0.5)
    assert member_weights(half, 3.0).tolist() == [[1, 1]]
    ratios = torch.tensor([[0.2, 0.8]])
    assert member_weights(ratios, math.inf).tolist() == [[1, 1]]
    np.testing.assert_allclose(member_weights(ratios, 1.0).numpy(), [[0.4, 1.6]], rtol=1e-6)


def test_probability_fades_over_the_last_twelfth():
    """Published: 300 epochs, full p up to epoch 274, 0 in epoch 300 (t = epoch / 300)."""
    assert binary_probability(274 / 300, 0.5) == 0.5
    assert binary_probability(275 / 300, 0.5) == pytest.approx(0.5)
    assert binary_probability(287.5 / 300, 0.5) == pytest.approx(0.25)
    assert binary_probability(1.0, 0.5) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"members": 0}, "members must be >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be > 0 and finite, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be > 0 and finite, got nan"),
        ({"alpha": math.inf}, "alpha must be > 0 and finite, got inf"),
        ({"alpha": "2"}, "alpha must be > 0 and finite, got '2'"),
        ({"block": "cutt"}, "block must be one of linear, cut, .*, fmix, got 'cutt'"),
        ({"partition": True, "block": "noise"}, r"partition needs a binary block \(cut, .*got 'noise'"),
        ({"prob": 1.5}, r"prob must be in \[0, 1\], got 1.5"),
        ({"repetition": -0.1}, r"repetition must be in \[0, 1\], got -0.1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        _plan(**wrong)


def test_r_below_one_is_refused():
    with pytest.raises(ValueError, match=r"r must be >= 1 .*got 0.5"):
        member_weights(torch.full((1, 2), 0.5), 0.5)
