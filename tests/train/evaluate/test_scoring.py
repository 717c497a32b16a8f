"""Figures of a predictor: counts by hand."""

import numpy as np
import pytest
import torch

from timm_mix.train.evaluate.scoring import agreement, confusion, diversity, score

MANY, N, K = 103, 3, 7


def _members(seed=0):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(MANY, N, K)), rng.integers(K, size=MANY)
    logits[np.arange(MANY), :, target] += 1
    return torch.tensor(logits), torch.tensor(target)


@pytest.mark.parametrize("classes", [2, 4, K])
def test_accuracy_counts_the_label_among_the_best(classes):
    members, target = _members()
    logits, target = members[:, 0, :classes], target % classes
    figures = score(logits, target)
    order = np.argsort(-logits.numpy(), axis=1)
    for k, found in ((1, figures.top1), (5, figures.top5)):
        hits = [int(target[i]) in order[i, :k] for i in range(MANY)]
        assert found == 100 * sum(hits) / MANY
    assert figures.count == MANY


def test_another_seed_draws_other_halves():
    members, target = _members()
    assert score(members[:, 0], target).temperatures != score(members[:, 0], target, seed=1).temperatures
    assert score(members[:, 0], target) == score(members[:, 0], target, seed=0)


def test_a_single_sample_has_no_halves():
    with pytest.raises(ValueError, match="needs at least 2 samples, got 1"):
        score(torch.zeros(1, K), torch.zeros(1, dtype=torch.int64))


def test_diversity_is_the_mean_over_the_pairs():
    members, target = _members()
    found = diversity(members, target)
    assert [pair["members"] for pair in found["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    for key in ("disagreement", "ratio_error", "kl"):
        assert found[key] == pytest.approx(np.mean([pair[key] for pair in found["pairs"]]))
    assert diversity(members[:, :1], target) is None


def test_a_pair_without_a_shared_error_leaves_no_mean_ratio():
    right = torch.eye(K)[None].repeat(2, 1, 1).transpose(0, 1)
    assert diversity(right, torch.arange(K))["ratio_error"] is None


def test_rows_of_the_confusion_are_the_true_classes():
    members, target = _members()
    found = confusion(members[:, 0], target)
    wanted = np.zeros((K, K), int)
    for z, y in zip(members[:, 0].numpy(), target.numpy(), strict=True):
        wanted[y, z.argmax()] += 1
    assert np.array_equal(found, wanted)


def test_agreement_is_the_share_of_equal_predictions():
    predictions = [torch.tensor(row) for row in ([0, 1, 2, 3], [0, 1, 3, 3], [1, 1, 1, 1])]
    assert agreement(predictions).tolist() == [[1, 0.75, 0.25], [0.75, 1, 0.25], [0.25, 0.25, 1]]
