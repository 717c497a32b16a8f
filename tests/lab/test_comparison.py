"""Means, paired differences, intervals and costs, against figures worked by hand."""

import math

import pytest
from suite_files import a_suite, all_results

from timm_mix.lab.suites.comparison import Estimate, cost_rows, rows

# Student's t, two-sided 95 %, from the printed tables: degrees of freedom -> quantile
T = {1: 12.706, 2: 4.303, 4: 2.776}


def test_one_value_has_neither_spread_nor_interval():
    one = Estimate((71.0,))
    assert (one.n, one.mean, one.std, one.half_width, one.interval) == (1, 71.0, None, None, None)


@pytest.mark.parametrize("values", [(2.0, 5.0), (2.0, 5.0, 11.0), (2.0, 3.0, 5.0, 7.0, 11.0)])
def test_the_interval_is_students_t(values):
    n = len(values)
    mean = sum(values) / n
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    found = Estimate(values)
    assert (found.mean, found.std) == pytest.approx((mean, std))
    assert found.half_width == pytest.approx(T[n - 1] * std / math.sqrt(n), rel=1e-3)
    assert found.interval == pytest.approx((mean - found.half_width, mean + found.half_width))


def test_equal_values_have_an_interval_of_no_width():
    assert Estimate((3.0, 3.0)).interval == (3.0, 3.0)


@pytest.fixture
def suite():
    return a_suite(("plain", None), ("mixed", "plain"), seeds=(3, 5, 7))


def test_differences_are_paired_by_seed(suite):
    tops = {("plain", 3): 10.0, ("plain", 5): 20.0, ("plain", 7): 60.0}
    tops |= {("mixed", 3): 11.0, ("mixed", 5): 23.0, ("mixed", 7): 65.0}
    figures = {key: {"top1": top1, "nll": 2.0 - top1 / 100} for key, top1 in tops.items()}
    plain, mixed = rows(suite, all_results(suite, figures))
    assert plain.top1.mean == 30.0
    assert (plain.baseline, plain.top1_difference, plain.nll_difference) == (None, None, None)
    assert mixed.top1.mean == 33.0
    assert mixed.top1_difference.values == (1.0, 3.0, 5.0)  # their spread is 2, that of the methods is 26 and more
    assert mixed.top1_difference.std == pytest.approx(2.0)
    assert mixed.nll_difference.values == pytest.approx((-0.01, -0.03, -0.05))


def test_only_seeds_that_both_have_are_paired(suite):
    figures = {("plain", 3): {"top1": 10.0}, ("plain", 7): {"top1": 20.0}}
    figures |= {("mixed", 5): {"top1": 90.0}, ("mixed", 7): {"top1": 22.0}}
    _, mixed = rows(suite, all_results(suite, figures))
    assert mixed.top1.values == (90.0, 22.0)
    assert mixed.top1_difference.values == (2.0,)


def test_a_method_without_runs_has_a_row_without_figures(suite):
    plain, mixed = rows(suite, all_results(suite, {("mixed", 3): {}}))
    assert (plain.top1, plain.nll, plain.best_member) == (None, None, None)
    assert (mixed.top1.n, mixed.top1_difference) == (1, None)


def test_the_best_member_is_chosen_seed_by_seed_among_several(suite):
    figures = {("plain", 3): {}, ("mixed", 3): {"members": [40.0, 48.0]}, ("mixed", 5): {"members": [46.0, 44.0]}}
    plain, mixed = rows(suite, all_results(suite, figures))
    assert plain.best_member is None  # one member is the network itself
    assert mixed.best_member.values == (48.0, 46.0)


def test_figures_are_those_of_the_epoch_that_the_run_publishes(suite):
    results = all_results(suite, {("plain", 3): {"top1": 10.0, "nll": 1.0}})
    assert rows(suite, results)[0].top1.values == (10.0,)
    results["plain", 3]["config"]["export"] = "best"
    (row, _) = rows(suite, results)
    assert (row.top1.values, row.nll.values) == ((11.0,), (0.9,))


def test_seconds_are_those_of_all_epochs_and_their_ratio_is_paired(suite):
    figures = {("plain", 3): {"seconds": (1.0, 3.0)}, ("plain", 5): {"seconds": (4.0, 4.0)}}
    figures |= {("mixed", 3): {"seconds": (4.0, 4.0)}, ("mixed", 5): {"seconds": (4.0, 8.0)}}
    plain, mixed = cost_rows(suite, all_results(suite, figures))
    assert (plain.seconds.values, mixed.seconds.values) == ((4.0, 8.0), (8.0, 12.0))
    assert mixed.relative_seconds.values == (2.0, 1.5)
    assert plain.relative_seconds is None
    assert plain.parameters == 1234


def test_predicted_flops_are_those_of_all_steps(suite):
    results = all_results(suite, {("plain", 3): {}, ("mixed", 3): {}})
    results["mixed", 3]["config"]["batch_size"] *= 3
    plain, mixed = cost_rows(suite, results)
    assert plain.predicted.iterations == 26  # 13 steps in each of 2 epochs
    assert (plain.relative_flops, mixed.relative_flops) == (None, pytest.approx(3.0))
    assert mixed.predicted.flops == 26 * mixed.predicted.batch_flops > 0
