"""Scores of members and ensemble."""

import numpy as np
import pytest
import timm
import torch
from timm.task.evaluator import MultiLabelClassificationEvaluator
from torchmetrics.functional.classification import multiclass_calibration_error

from timm_mix.metrics import (
    LabelMetrics,
    MemberMetrics,
    brier_score,
    calibration_bins,
    calibration_error,
    cross_fit_temperature,
    evaluate_members,
    fit_temperature,
    pair_diversity,
    risk_coverage,
)

B, N, K = 11, 3, 13
MANY = 401  # samples; a prime


def _logits(seed=0, sharpness=2.0):
    """Logits [MANY, K] that know something of their labels."""
    rng = np.random.default_rng(seed)
    logits, target = sharpness * rng.normal(size=(MANY, K)), rng.integers(K, size=MANY)
    logits[np.arange(MANY), target] += sharpness * (1 + rng.normal(size=MANY))
    return torch.tensor(logits), torch.tensor(target)


def _confidence(seed=0):
    logits, target = _logits(seed)
    confidence, predicted = logits.softmax(-1).max(-1)
    return confidence, predicted == target


def _mean_nll(logits, target, temperature=1.0):
    z = logits.numpy() / temperature
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    return -log_p[np.arange(len(z)), target.numpy()].mean()


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


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_is_the_weighted_gap_of_every_bin(bins):
    confidence, correct = _confidence()
    error = 0.0
    for b in range(bins):
        chosen = [i for i in range(MANY) if b / bins < confidence[i] <= (b + 1) / bins]
        if chosen:
            error += abs(sum(float(correct[i]) - float(confidence[i]) for i in chosen)) / MANY
    assert calibration_error(calibration_bins(confidence, correct, bins)) == pytest.approx(error, rel=1e-12)


def test_ece_is_that_of_torchmetrics_where_no_confidence_is_one():
    logits, target = _logits()
    wanted = multiclass_calibration_error(logits, target, K, n_bins=15)
    assert calibration_error(calibration_bins(*_confidence())) == pytest.approx(float(wanted), rel=1e-5)


def test_a_confidence_of_one_or_on_an_edge_belongs_to_the_bin_below():
    confidence = torch.tensor([1.0, 0.95, 0.55, 0.5, 0.45, 0.0], dtype=torch.float64)
    bins = calibration_bins(confidence, torch.tensor([1, 0, 1, 1, 0, 0]), 10)
    assert bins.count.tolist() == [1, 2, 1, 2]
    assert bins.accuracy.tolist() == [0, 0.5, 1, 0.5]
    assert bins.confidence.tolist() == pytest.approx([0, 0.475, 0.55, 0.975])


def test_bins_of_equal_mass_differ_by_one_sample_at_the_most():
    confidence, correct = _confidence()
    bins = calibration_bins(confidence, correct, equal_mass=True)
    assert sorted(set(bins.count.tolist())) == [MANY // 15, MANY // 15 + 1]
    assert bins.count.sum() == MANY
    order = np.argsort(confidence.numpy(), kind="stable")
    error, first = 0.0, 0
    for count in bins.count.int().tolist():
        part = order[first : first + count]
        error += abs(correct.numpy()[part].mean() - confidence.numpy()[part].mean()) * count / MANY
        first += count
    assert calibration_error(bins) == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_two_top_bins_are_two(equal_mass):
    """Their gaps have opposite signs, so that one bin of both, or a last edge elsewhere, costs less."""
    confidence = torch.tensor([0.05, 0.15, 0.82, 0.88, 0.92, 0.98], dtype=torch.float64)
    correct = torch.tensor([0, 0, 1, 1, 0, 1])
    bins = calibration_bins(confidence, correct, bins=3 if equal_mass else 10, equal_mass=equal_mass)
    # widths of .1: {.05} {.15} {.82, .88} {.92, .98}; thirds: {.05, .15} {.82, .88} {.92, .98}
    assert bins.count.tolist() == ([2, 2, 2] if equal_mass else [1, 1, 2, 2])
    assert bins.accuracy[-2:].tolist() == [1, 0.5]
    assert bins.confidence[-2:].tolist() == pytest.approx([0.85, 0.95])
    low = 0.05 + 0.15
    assert calibration_error(bins) == pytest.approx((low + 2 * 0.15 + 2 * 0.45) / 6, rel=1e-12)


@pytest.mark.parametrize("edge", [0.9, 1.0])
def test_an_upper_edge_of_the_top_bins_belongs_to_them(edge):
    confidence = torch.tensor([edge - 0.01, edge], dtype=torch.float64)
    assert calibration_bins(confidence, torch.tensor([1, 0]), 10).count.tolist() == [2]
    above = torch.tensor([0.9, 0.9 + 1e-9], dtype=torch.float64)
    assert calibration_bins(above, torch.tensor([1, 0]), 10).count.tolist() == [1, 1]


def test_fewer_samples_than_bins_are_a_bin_each():
    assert calibration_bins(torch.tensor([0.2, 0.9]), torch.tensor([1, 0]), equal_mass=True).count.tolist() == [1, 1]


def test_brier_score_is_the_squared_distance_to_the_label():
    logits, target = _logits()
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    wanted = ((p - np.eye(K)[target]) ** 2).sum(1).mean()
    assert brier_score(logits, target) == pytest.approx(wanted, rel=1e-12)
    assert brier_score(1e3 * torch.eye(K), torch.arange(K).roll(1)) == pytest.approx(2)


@pytest.mark.parametrize("sharpness", [0.3, 2.0, 10.0])
def test_the_fitted_temperature_has_the_least_nll(sharpness):
    logits, target = _logits(sharpness=sharpness)
    fitted = fit_temperature(logits, target)
    least = _mean_nll(logits, target, fitted)
    for factor in (0.5, 0.99, 0.9999, 1.0001, 1.01, 2.0):
        assert _mean_nll(logits, target, factor * fitted) > least
    assert fit_temperature(7 * logits, target) == pytest.approx(7 * fitted, rel=1e-6)


def test_a_temperature_without_an_optimum_ends_at_its_bound():
    labels = torch.arange(K)
    assert fit_temperature(torch.eye(K), labels) == 0.01
    assert fit_temperature(-torch.eye(K), labels) == 100


def test_each_half_gets_the_temperature_of_the_other():
    logits, target = _logits()
    kept = logits.clone()
    scaled, (on_first, on_second) = cross_fit_temperature(logits, target, seed=3)
    order = np.random.default_rng(3).permutation(MANY)
    first, second = order[: MANY // 2], order[MANY // 2 :]
    assert on_first == fit_temperature(logits[first], target[first])
    assert on_second == fit_temperature(logits[second], target[second])
    assert on_first != on_second
    assert torch.equal(scaled[first], logits[first] / on_second)
    assert torch.equal(scaled[second], logits[second] / on_first)
    assert torch.equal(logits, kept)


def test_risk_at_a_coverage_is_the_error_of_the_most_confident():
    confidence, correct = _confidence()
    coverage, risk = risk_coverage(confidence, correct)
    order = np.argsort(-confidence.numpy(), kind="stable")
    for k in (1, 2, 57, MANY):
        assert coverage[k - 1] == k / MANY
        assert risk[k - 1] == pytest.approx(1 - correct.numpy()[order[:k]].mean())


def test_equal_confidences_share_their_errors():
    one = risk_coverage(torch.full((4,), 0.5), torch.tensor([1, 1, 1, 0]))[1]
    other = risk_coverage(torch.full((4,), 0.5), torch.tensor([0, 1, 1, 1]))[1]
    assert one.tolist() == other.tolist() == [0.25] * 4


def test_diversity_of_pairs_equals_counting_by_hand():
    members = torch.stack([_logits(seed)[0] for seed in range(N)], dim=1)
    target = _logits()[1]
    found = pair_diversity(members, target)
    assert [pair.members for pair in found] == [(0, 1), (0, 2), (1, 2)]
    z, y = members.numpy(), target.numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    for pair in found:
        i, j = pair.members
        one_wrong = both_wrong = different = 0
        for k in range(MANY):
            a, b = z[k, i].argmax(), z[k, j].argmax()
            different += a != b
            one_wrong += (a == y[k]) != (b == y[k])
            both_wrong += a != y[k] and b != y[k]
        assert pair.disagreement == pytest.approx(different / MANY)
        assert pair.ratio_error == pytest.approx(one_wrong / both_wrong)
        kl = [(p[:, a] * np.log(p[:, a] / p[:, b])).sum(1).mean() for a, b in ((i, j), (j, i))]
        assert pair.kl == pytest.approx(sum(kl) / 2)


def test_without_a_shared_error_there_is_no_ratio():
    right = torch.eye(K)
    pair = pair_diversity(torch.stack([right, right], dim=1), torch.arange(K))[0]
    assert (pair.disagreement, pair.ratio_error, pair.kl) == (0, None, 0)


NOTHING = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
TOO_FEW = {
    "bins": (lambda: calibration_bins(*NOTHING, bins=0), "bins must be >= 1, got 0"),
    "no bin": (lambda: calibration_bins(*NOTHING), "a calibration error needs at least 1 sample, got 0"),
    "temperature": (lambda: fit_temperature(*NOTHING), "a temperature needs at least 1 sample, got 0"),
    "halves": (
        lambda: cross_fit_temperature(torch.zeros(1, K), torch.zeros(1, dtype=torch.int64)),
        "needs at least 2 samples, got 1",
    ),
    "risk": (lambda: risk_coverage(*NOTHING), "a risk needs at least 1 sample, got 0"),
    "diversity": (lambda: pair_diversity(*NOTHING), "diversity needs at least 1 sample, got 0"),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_too_few_samples_are_refused(name):
    call, line = TOO_FEW[name]
    with pytest.raises(ValueError, match=line):
        call()


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (
            torch.zeros(4, 3),
            torch.zeros(5, dtype=torch.long),
            r"logits \[n, K\] and target \[n\], got \[4, 3\] and \[5\]",
        ),
        (torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long), r"got \[4, 2, 3\] and \[4\]"),
        (torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.long), "a temperature needs finite logits, got NaN"),
        (torch.full((4, 3), torch.inf), torch.zeros(4, dtype=torch.long), "a temperature needs finite logits, got NaN"),
        (torch.zeros(4, 3), torch.full((4,), 3), r"a target must be a class in 0 \.\. 2, got 3"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, -1]), r"a target must be a class in 0 \.\. 2, got -1"),
    ],
)
def test_a_temperature_of_what_does_not_fit_is_refused(logits, target, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, target)


def test_label_metrics_are_timms_over_batches():
    rng = np.random.default_rng(0)
    members, target = (
        torch.tensor(rng.normal(size=(B, N, K))).float(),
        torch.tensor(rng.integers(2, size=(B, K))).float(),
    )
    metrics = LabelMetrics(N)
    for rows in (slice(0, 4), slice(4, None)):
        metrics.update(members[rows], members[rows].mean(1), target[rows])
    scores = metrics.compute()
    for name, logits in {"member_2": members[:, 2], "ensemble": members.mean(1)}.items():
        theirs = MultiLabelClassificationEvaluator()
        theirs.update(logits, target)
        wanted = theirs.compute()
        assert scores[name].bce == pytest.approx(wanted.pop("loss"), rel=1e-6)
        assert {key: getattr(scores[name], key) for key in wanted} == wanted
        assert scores[name].count == B
    with pytest.raises(ValueError, match="no sample was evaluated"):
        LabelMetrics(N).compute()
