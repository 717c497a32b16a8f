"""MixMo's draws, masks, weights and schedule."""

import math

import numpy as np
import pytest
import torch

from timm_mix.functional.mixmo import binary_probability, member_masks, member_weights, plan_mixmo

B, M, H, W = 5, 3, 11, 7


def _plan(seed=0, batch=B, members=M, **kwargs):
    return plan_mixmo(batch, members, (H, W), rng=np.random.default_rng(seed), **kwargs)


def _twin_masks(plan):
    """Masks of one plan, place by place."""
    batch, members = plan.kappa.shape
    masks = np.zeros((batch, members, *plan.size))
    for b in range(batch):
        rest = sum(plan.kappa[b, j] for j in range(1, members))
        for i in range(members):
            role = plan.roles[i]
            for y in range(plan.size[0]):
                for x in range(plan.size[1]):
                    if plan.boxes is None:
                        share = plan.kappa[b, role]
                    else:
                        top, bottom, left, right = plan.boxes[b]
                        inside = top <= y < bottom and left <= x < right
                        share = float(inside) if role == 0 else (0 if inside else plan.kappa[b, role] / rest)
                    masks[b, i, y, x] = share
    return masks


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize("block", ["linear", "cut"])
def test_masks_equal_a_loop_over_places(members, block):
    for seed in range(5):
        plan = _plan(seed, members=members, block=block)
        masks = member_masks(plan)
        assert masks.shape == (B, members, 1, H, W)
        if members > 1:
            np.testing.assert_allclose(masks[:, :, 0].numpy(), _twin_masks(plan), atol=1e-6)
        np.testing.assert_allclose(masks.sum(1).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("members", [2, 3, 8])
@pytest.mark.parametrize("block", ["linear", "cut"])
def test_ratios_are_the_share_that_each_member_gets(members, block):
    for seed in range(5):
        plan = _plan(seed, members=members, block=block)
        np.testing.assert_allclose(member_masks(plan).mean((2, 3, 4)).numpy(), plan.ratios, atol=1e-6)
        np.testing.assert_allclose(plan.ratios.sum(1), 1, atol=1e-12)


def test_cut_masks_of_two_members_are_binary():
    masks = member_masks(_plan(members=2, block="cut"))
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


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
    cut = [_plan(seed, prob=0.3).boxes is not None for seed in range(400)]
    assert abs(np.mean(cut) - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 400)
    assert all(_plan(seed, prob=0.0).boxes is None for seed in range(20))


def test_mimo_has_equal_ratios():
    np.testing.assert_array_equal(_plan(block="linear", equal=True).ratios, 1 / M)


def test_a_plan_is_a_function_of_its_generator():
    one, two = _plan(7), _plan(7)
    for name in ("images", "kappa", "ratios", "roles", "boxes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_tiny_alpha_still_gives_masks_that_sum_to_one():
    for seed in range(20):
        masks = member_masks(_plan(seed, alpha=1e-3))
        np.testing.assert_allclose(masks.sum(1).numpy(), 1, atol=1e-6)


def test_weights_equal_the_formula_of_the_paper_for_two_members():
    kappa, r = np.random.default_rng(0).random(B), 3.0
    ratios = torch.tensor(np.stack([kappa, 1 - kappa], 1))
    expected = [2 * k ** (1 / r) / (k ** (1 / r) + (1 - k) ** (1 / r)) for k in kappa]
    np.testing.assert_allclose(member_weights(ratios, r)[:, 0].numpy(), expected)


@pytest.mark.parametrize("r", [1.0, 3.0, math.inf])
def test_weights_sum_to_the_number_of_members(r):
    ratios = torch.tensor(_plan().ratios)
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
        ({"block": "cutt"}, "block must be one of linear, cut, got 'cutt'"),
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
