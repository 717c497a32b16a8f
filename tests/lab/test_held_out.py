"""What a suite tells of its test split: figures, folded rows, averages, ratios to the baseline."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from suite_files import a_suite, results_of
from test_tables import cells

from timm_mix.hub import save_pretrained
from timm_mix.lab.suites.held_out import FIGURES, held_out_rows, measure
from timm_mix.lab.suites.plan import Method
from timm_mix.lab.suites.tables import held_out_csv, held_out_markdown
from timm_mix.train.errors import UsageError

TARGET = torch.tensor([0, 1, 2, 0, 1, 2])
MIXMO = {"model": "mixmo", "model_kwargs": {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1, "members": 2}}


@pytest.fixture
def suite():
    whole = a_suite(("plain", None), ("again", "plain"), seeds=(3, 5))
    more = Method("mixed", {**MIXMO, "epochs": 2}, "plain"), Method("both", {}, "plain", average=("plain", "again"))
    return replace(whole, methods=(*whole.methods, *more), test="test")


def figures_of(top1):
    return dict.fromkeys(FIGURES, 0.5) | {"top1": top1, "unused": 1}


def write_run(suite, output, name, seed, *, top1, logits, seconds=(1.0, 1.0)):
    """A run that was trained and tested, as far as the tables read it; the content of its results.json."""
    run = suite.run(next(method for method in suite.methods if method.name == name), seed, output)
    kwargs = run.settings["model_kwargs"]
    model = timm.create_model(run.settings["model"], num_classes=3, **kwargs)
    data_config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_pretrained(model, run.folder / "model", label_names=["a", "b", "c"], data_config=data_config)
    own = "model" if name != "mixed" else "ensemble_logits"
    figures = {own: figures_of(top1)} | ({"folded": figures_of(top1 - 1)} if name == "mixed" else {})
    content = {"config": {"split": "test", "data_dir": None}, "figures": figures, "model": {"prediction": own}}
    (run.folder / "test").mkdir()
    (run.folder / "test" / "results.json").write_text(json.dumps(content))
    save_file({"logits": logits, "target": TARGET}, run.folder / "test" / "predictions.safetensors")
    return results_of(run.config, seconds=seconds)


@pytest.fixture
def found(suite, tmp_path):
    certain = 20 * torch.eye(3)[TARGET]
    wrong = certain.roll(1, dims=1)
    results = {}
    for seed, first in ((3, certain), (5, wrong)):
        half = torch.cat([wrong[:2], certain[2:]])  # right in four images of six
        files = {"plain": (60.0, first[:, None], (1.0, 1.0)), "again": (62.0, half[:, None], (2.0, 2.0))}
        files["mixed"] = (64.0 + seed, first[:, None].expand(-1, 3, -1).contiguous(), (3.0, 3.0))
        for name, (top1, logits, seconds) in files.items():
            results[name, seed] = write_run(suite, tmp_path, name, seed, top1=top1, logits=logits, seconds=seconds)
    return measure(suite, results, tmp_path)


def test_a_folded_network_has_a_row_and_costs_what_the_plain_one_does(suite, found):
    rows = {row.method: row for row in held_out_rows(suite, found)}
    assert list(rows) == ["plain", "again", "mixed", "mixed, folded", "both"]
    assert rows["mixed"].figures["top1"].values == (67.0, 69.0)
    assert rows["mixed, folded"].differences["top1"].values == (6.0, 8.0)  # 66 - 60, 68 - 60
    assert rows["mixed"].relative_seconds.values == (3.0, 3.0)
    assert 1 < rows["mixed"].relative_flops.mean < 1.2  # a second first layer
    assert rows["mixed, folded"].relative_flops.values == (1.0, 1.0)


def test_an_average_is_the_mean_probability_at_the_cost_of_all(suite, found):
    # seed 3: certain beside `half`, equally sure: where they differ both classes have 1/2, the first of them is named
    both = found["both", 3]
    assert both.figures["nll"] == pytest.approx(2 * 0.6931472 / 6, abs=1e-6)
    assert both.seconds == 6.0
    assert both.flops == 2 * found["plain", 3].flops
    # seed 5: wrong everywhere beside half: 2 images with both wrong, four where they differ
    assert found["both", 5].figures["top1"] <= 400 / 6 + 1e-9
    assert found["both", 5].figures["nll"] == pytest.approx((2 * 20 + 4 * 0.6931472) / 6, abs=1e-5)


def test_what_has_not_been_tested_has_no_row(suite, tmp_path):
    results = {("plain", 3): write_run(suite, tmp_path, "plain", 3, top1=50.0, logits=torch.zeros(6, 1, 3))}
    (row,) = held_out_rows(suite, measure(suite, results, tmp_path))  # no average of one
    assert (row.method, row.figures["top1"].n, row.baseline) == ("plain", 1, None)
    (tmp_path / "plain" / "seed3" / "test" / "results.json").unlink()
    assert measure(suite, results, tmp_path) == {}


def test_another_split_or_folder_counts_as_not_tested(suite, tmp_path):
    results = {("plain", 3): write_run(suite, tmp_path, "plain", 3, top1=50.0, logits=torch.zeros(6, 1, 3))}
    assert measure(replace(suite, test="val"), results, tmp_path) == {}
    (tmp_path / "plain" / "seed3" / "test" / "results.json").write_text("[]")
    with pytest.raises(UsageError, match=r"test/results\.json is no results file of validate\.py: remove it"):
        measure(suite, results, tmp_path)


def test_the_table_names_split_ratios_and_differences(suite, found, tmp_path):
    results = {(name, seed): results_of(suite.run(suite.methods[0], seed, tmp_path).config) for name, seed in found}
    text = held_out_markdown("the command", suite, results, found)
    lines = {line["method"]: line for line in cells(text)}
    assert text.startswith("# mine: split test\n")
    assert lines["mixed, folded"]["top-1 difference"].startswith("+7.00 [")
    assert (lines["plain"]["time"], lines["both"]["time"], lines["both"]["inference"]) == ("", "3.00", "2.00")
    exact = held_out_csv(suite, found).splitlines()
    assert exact[0] == "method,seed,top1,nll,nll_calibrated,ece,training_seconds,inference_flops"
    assert len(exact) == 1 + 2 * 5
