"""The tables as text: what a reader and what a program gets."""

import csv

import pytest
from suite_files import a_suite, all_results

from timm_mix.lab.pictures.plots import plot_comparison
from timm_mix.lab.suites.comparison import rows
from timm_mix.lab.suites.tables import costs_csv, costs_markdown, table_csv, table_markdown

FIGURES = {
    **{("plain", 3): {"top1": 10.0, "nll": 1.5}, ("plain", 5): {"top1": 20.0, "nll": 1.25}},
    ("mixed", 3): {"top1": 11.0, "nll": 1.0, "members": [9.0, 10.0]},
    ("mixed", 5): {"top1": 23.0, "nll": 1.0, "members": [19.0, 18.0]},
}


@pytest.fixture
def suite():
    return a_suite(("plain", None), ("mixed", "plain"), ("lost", "plain"), seeds=(3, 5))


@pytest.fixture
def results(suite):
    return all_results(suite, FIGURES)


def cells(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in body]


def test_the_table_says_mean_spread_and_paired_difference(suite, results):
    text = table_markdown("the command", suite, results, [])
    plain, mixed, lost = cells(text)
    assert (plain["n"], plain["top-1 (%)"], plain["NLL"]) == ("2", "15.00 ± 7.07", "1.3750 ± 0.1768")
    assert (plain["baseline"], plain["top-1 difference"], plain["best member, top-1 (%)"]) == ("", "", "")
    # differences 1 and 3: mean 2, std sqrt(2), t(0.975; 1) = 12.7062, half width 12.7062
    assert mixed["top-1 difference"] == "+2.00 [-10.71, +14.71]"
    assert mixed["NLL difference"] == "-0.3750 [-1.9633, +1.2133]"
    assert mixed["best member, top-1 (%)"] == "14.50 ± 6.36"
    assert (lost["n"], lost["top-1 (%)"], lost["top-1 difference"]) == ("0", "", "")
    assert "Made by `the command`, seeds 3, 5. 97 training images, 7 validation images, 2 epochs." in text
    assert "Figures are those of the last epoch." in text
    assert text.endswith("a cpu, threads 1, processes 1; python 3.11.\n")


def test_one_seed_has_no_interval_and_says_so(suite, results):
    (_, mixed, _) = cells(table_markdown("", suite, {key: results[key] for key in FIGURES if key[1] == 3}, []))
    assert (mixed["n"], mixed["top-1 (%)"], mixed["top-1 difference"]) == ("1", "11.00", "+1.00 (n = 1)")


def test_seconds_are_in_the_costs_alone(suite, results):
    before = [table_markdown("", suite, results, []), table_csv(suite, results)], costs_csv(suite, results)
    for content in results.values():
        content["epochs"][0]["train_seconds"] *= 17
    assert [table_markdown("", suite, results, []), table_csv(suite, results)] == before[0]
    assert costs_csv(suite, results) != before[1]


def test_costs_are_relative_to_the_baseline(suite, results):
    results["mixed", 3]["epochs"][0]["train_seconds"] = 5.0
    plain, mixed = cells(costs_markdown("the command", suite, results))
    assert (plain["parameters"], plain["iterations"], plain["seconds / baseline"]) == ("1,234", "26", "")
    assert mixed["seconds / baseline"] == "2.00 ± 1.41"  # 6 s to 2 s, 2 s to 2 s
    assert mixed["FLOPs / baseline"] == "1.00"


def test_failed_runs_are_listed(suite, results):
    text = table_markdown("", suite, results, ["lost seed 3: exit status 1"])
    assert "Failed runs, which the table lacks:\n\n- lost seed 3: exit status 1\n" in text


def test_runs_of_different_machines_are_told_apart(suite, results):
    results["plain", 5]["hardware"] = {"cpu": "another cpu", "threads": 2, "processes": 1}
    text = table_markdown("", suite, results, [])
    assert text.endswith(
        "a cpu, threads 1, processes 1; python 3.11.\n\nanother cpu, threads 2, processes 1; python 3.11.\n"
    )


def test_a_table_of_nothing_is_a_table(suite):
    assert [line["n"] for line in cells(table_markdown("", suite, {}, []))] == ["0", "0", "0"]
    assert "No run has ended." in costs_markdown("", suite, {})


def test_csv_holds_the_exact_figures(suite, results):
    plain, mixed, lost = csv.DictReader(table_csv(suite, results).splitlines())
    assert float(mixed["top1_difference"]) == 2.0
    assert float(mixed["top1_difference_high"]) == pytest.approx(2 + 12.7062, abs=1e-4)
    assert float(mixed["top1_difference_low"]) == pytest.approx(2 - 12.7062, abs=1e-4)
    assert (mixed["pairs"], plain["pairs"], plain["top1_difference"], lost["top1_mean"]) == ("2", "0", "", "")
    plain, mixed = csv.DictReader(costs_csv(suite, results).splitlines())
    assert (float(mixed["relative_seconds"]), plain["relative_seconds"]) == (1.0, "")


def test_the_picture_shows_a_dot_per_figure(suite, results, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda axis, x, y, **kw: (drawn.append((x, y)), errorbar(axis, x, y, **kw))[1]
    )
    plot_comparison(tmp_path / "table.png", "mine", rows(suite, results))
    assert drawn == [(15.0, 0), (17.0, 1), (2.0, 1)]  # nothing of the method that has no run
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
