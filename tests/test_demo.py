"""The demo and the benchmark, at their smallest."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import demo
from timm_mix.commands import benchmark
from timm_mix.functional.mixmo import plan_mixmo
from timm_mix.lab.pictures.plots import plot_mixed_inputs

# older releases of matplotlib speak an older dialect of pyparsing
pytestmark = [pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning"), pytest.mark.slow]


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_demo_trains_folds_reloads_and_draws(tmp_path, capsys):
    small = ["--model-kwargs", "depth=10", "widen_factor=1", "--epochs", "1", "--workers", "0", "--cpu"]
    demo.main([*small, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split() for line in printed.splitlines() if line.startswith(("member", "ens", "fold"))
    }
    assert set(rows) >= {"member_0", "member_1", "ensemble", "folded"}
    assert (
        rows["ensemble"][1:3] == rows["folded"][1:3]
    )  # top-1 and NLL, the folded ones from a process without timm_mix
    folder = tmp_path / "mixmo_wrn16_2_m2_digits"
    for name in ("curves.png", "mixed_inputs.png"):
        assert _pixels(folder / "pictures" / name).std() > 10
    results = json.loads((folder / "results.json").read_text())
    assert f"{results['last']['ensemble']['top1']:.2f}" == rows["ensemble"][1]


def test_picture_of_mixed_inputs_has_a_row_per_sample(tmp_path):
    plan = plan_mixmo(5, 3, (4, 16, 16), rng=np.random.default_rng(0))
    sizes = []
    for rows in (1, 4):
        plot_mixed_inputs(tmp_path / "p.png", torch.randn(5, 3, 32, 32), plan, torch.zeros(3), torch.ones(3), rows=rows)
        sizes.append(_pixels(tmp_path / "p.png").shape)
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][0] == pytest.approx(4 * sizes[0][0], rel=0.01)


def test_benchmark_writes_its_figures(tmp_path, capsys):
    small = ["--cases", "masks", "--pairs", "1", "--batch", "2", "--device", "cpu"]
    benchmark.main([*small, "--output", str(tmp_path / "b.json")])
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "b.json").read_text())
    assert {"hardware", "versions", "ratios"} <= set(content)
    for row in content["ratios"]:
        assert 0 < row["ratio"] < 1
        assert row["name"] in printed
