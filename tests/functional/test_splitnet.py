"""SplitNet's divergence, its warm-up and the width rule."""

import math

import numpy as np
import pytest
import torch

from timm_mix.functional.splitnet import cotraining_weight, divided_widen_factor, jensen_shannon

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
