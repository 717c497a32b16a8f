"""Scores of members and ensemble."""

import numpy as np
import pytest
import timm
import torch

from timm_mix.metrics import MemberMetrics, evaluate_members

B, N, K = 11, 3, 13


def test_scores_equal_an_independent_numpy_implementation():
    rng = np.random.default_rng(0)
    members, target = rng.normal(size=(B, N, K)), rng.integers(K, size=B)
    ensemble = members.mean(1)
    metrics = MemberMetrics(N)
    for part in (slice(0, 7), slice(7, B)):  # batches of different sizes
        metrics.update(*(torch.tensor(a[part]) for a in (members, ensemble, target)))
    scores = metrics.compute()
    for name, logits in [*((f"member_{i}", members[:, i]) for i in range(N)), ("ensemble", ensemble)]:
        order = np.argsort(-logits, axis=1)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert scores[name].top1 == pytest.approx(100 * np.mean(order[:, 0] == target))
        assert scores[name].top5 == pytest.approx(100 * np.mean((order[:, :5] == target[:, None]).any(1)))
        assert scores[name].nll == pytest.approx(-np.mean(log_p[np.arange(B), target]), rel=1e-5)
        assert scores[name].count == B


def test_processes_add_up():
    members, target = torch.randn(B, N, K), torch.randint(K, (B,))
    parts = [MemberMetrics(N) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 4), slice(4, B)), strict=True):
        part.update(members[rows], members[rows].mean(1), target[rows])
    other = {id(parts[0].sums): parts[1].sums, id(parts[0].count): parts[1].count}
    parts[0].reduce(lambda tensor: tensor + other[id(tensor)])
    whole = MemberMetrics(N)
    whole.update(members, members.mean(1), target)
    assert parts[0].compute()["ensemble"].nll == pytest.approx(whole.compute()["ensemble"].nll)


def test_plain_models_count_as_one_member():
    model = timm.create_model("wrn16_2", num_classes=K)
    batches = [(torch.randn(2, 3, 32, 32), torch.randint(K, (2,)))]
    scores = evaluate_members(model, batches).compute()
    assert scores["member_0"] == scores["ensemble"]


def test_an_empty_evaluation_is_refused():
    with pytest.raises(ValueError, match="no sample was evaluated"):
        MemberMetrics(N).compute()
