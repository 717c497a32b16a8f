"""SplitNet's divergences, their warm-up, its mixup, and the rules of the parts."""

import math

import numpy as np
import pytest
import torch

from timm_mix.functional.splitnet import (
    DIVERGENCES,
    cotraining_weight,
    divided_dropout,
    divided_weight_decay,
    divided_widen_factor,
    jensen_shannon,
    pairwise_kl,
    plan_shared_mixup,
)

B, S, K = 5, 3, 13


def test_jensen_shannon_equals_a_loop_over_samples():
    logits = torch.randn(B, S, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entropy = lambda p: -sum(q * math.log(q) for q in p)  # noqa: E731
    total = 0.0
    for b in range(B):
        p = [np.exp(z) / np.exp(z).sum() for z in logits[b].numpy()]
        mean = sum(p) / S
        total += entropy(mean) - sum(entropy(q) for q in p) / S
    assert float(jensen_shannon(logits)) == pytest.approx(total / B, rel=1e-5)


def test_equal_members_have_no_divergence():
    logits = torch.randn(B, 1, K).expand(-1, S, -1)
    assert float(jensen_shannon(logits)) == pytest.approx(0, abs=1e-6)


def test_certain_and_disjoint_members_diverge_by_log_s():
    logits = torch.full((B, S, K), -1e4)
    for i in range(S):
        logits[:, i, i] = 1e4
    assert float(jensen_shannon(logits)) == pytest.approx(math.log(S), rel=1e-6)


def test_gradient_reaches_every_member():
    logits = torch.randn(B, S, K, requires_grad=True)
    jensen_shannon(logits).backward()
    assert (logits.grad.abs().sum((0, 2)) > 0).all()


def _logits(seed=0, batch=B, members=S):
    return torch.randn(batch, members, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pairwise_kl_equals_a_loop_over_samples_and_pairs():
    logits = _logits()
    total = 0.0
    for b in range(B):
        p = [np.exp(z) / np.exp(z).sum() for z in logits[b].numpy()]
        for i in range(S):
            for j in range(S):
                if i != j:
                    total += sum(p[j][k] * math.log(p[j][k] / p[i][k]) for k in range(K)) / (S - 1)
    assert float(pairwise_kl(logits)) == pytest.approx(total / B, rel=1e-9)


def test_gradient_of_kl_does_not_reach_the_teacher():
    """z_i is moved by p_i - p_j alone: the teacher's share of the derivative, which autograd would add, is missing."""
    logits = _logits().requires_grad_()
    pairwise_kl(logits).backward()
    p = logits.detach().softmax(-1)
    for i in range(S):
        pull = sum(p[:, i] - p[:, j] for j in range(S) if j != i) / (S - 1) / B
        torch.testing.assert_close(logits.grad[:, i], pull)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_does_not_depend_on_the_order_of_the_members(name):
    logits = _logits()
    torch.testing.assert_close(DIVERGENCES[name](logits[:, [2, 0, 1]]), DIVERGENCES[name](logits))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_a_divergence_of_different_members_is_positive(name, spread):
    assert all(float(DIVERGENCES[name](spread * _logits(seed, batch=1))) > 0 for seed in range(20))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_members_diverge_by_nothing_and_pull_nowhere(name):
    logits = _logits(members=1).expand(-1, S, -1).clone().requires_grad_()
    value = DIVERGENCES[name](logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_single_member_diverges_from_nobody(name):
    assert float(DIVERGENCES[name](_logits(members=1))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_the_other_members_constant_a_members_gradient_stays_the_same(name):
    """What lets every part be trained in a process of its own."""
    logits = _logits().requires_grad_()
    DIVERGENCES[name](logits).backward()
    for i in range(S):
        own = logits.detach().clone().requires_grad_()
        members = [own[:, j] if j == i else logits.detach()[:, j] for j in range(S)]
        DIVERGENCES[name](torch.stack(members, 1)).backward()
        torch.testing.assert_close(own.grad[:, i], logits.grad[:, i])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision_logits_are_compared_in_single_precision(name):
    logits = _logits().bfloat16()
    torch.testing.assert_close(DIVERGENCES[name](logits), DIVERGENCES[name](logits.float()))


def test_mixup_draws_one_ratio_and_one_pairing_for_the_batch():
    plan = plan_shared_mixup(7, 0.2, rng=np.random.default_rng(0))
    assert 0 <= plan.lam[0] <= 1
    assert set(plan.lam) == {plan.lam[0]}
    assert sorted(plan.partner) == list(range(7))


def test_mixup_ratios_follow_the_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)): for a = .2 .1786."""
    rng = np.random.default_rng(0)
    lams = [plan_shared_mixup(1, 0.2, rng=rng).lam[0] for _ in range(4000)]
    assert np.mean(lams) == pytest.approx(0.5, abs=0.03)
    assert np.var(lams) == pytest.approx(1 / 5.6, abs=0.01)


@pytest.mark.parametrize("alpha", [0, -1, math.inf, True, "1"])
def test_mixup_without_a_distribution_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha must be > 0 and finite, got {alpha!r}"):
        plan_shared_mixup(B, alpha, rng=np.random.default_rng(0))


def test_weight_decay_of_the_parts_equals_the_published_factors():
    """.6065, .4724, .4169: exp(1 / S - 1) of the published code."""
    assert [round(divided_weight_decay(1.0, split), 4) for split in (1, 2, 4, 8)] == [1.0, 0.6065, 0.4724, 0.4169]


def test_dropout_of_the_parts_is_divided_by_the_root_or_by_the_number():
    assert [divided_dropout(0.2, split) for split in (1, 2, 4)] == pytest.approx([0.2, 0.2 / 2**0.5, 0.1])
    assert [divided_dropout(0.1, split, linear=True) for split in (1, 2, 4)] == pytest.approx([0.1, 0.05, 0.025])


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.005), (0.3, 0.005), (20, 0.25), (39, 0.4875), (40, 0.5), (299, 0.5)]
)
def test_warmup_equals_the_published_code(epoch, expected):
    assert cotraining_weight(epoch, 0.5, 40) == pytest.approx(expected)


def test_without_warmup_the_weight_is_whole_and_zero_stays_zero():
    assert cotraining_weight(0, 0.5, 0) == 0.5
    assert cotraining_weight(0, 0.0, 40) == 0.0


@pytest.mark.parametrize(("k", "parts"), [(10, [10, 7, 5, 3]), (8, [8, 6, 4, 3]), (12, [12, 8, 6, 4])])
def test_widening_factors_equal_the_published_table(k, parts):
    assert [divided_widen_factor(k, split) for split in (1, 2, 4, 8)] == parts
