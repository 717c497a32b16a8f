"""timm's other scripts under drop_in, with checkpoints that a task of ours left.

They are in timm's repository and not in what the package index has of it, so that they run here as stand-ins
(timms_scripts/). TIMM_SCRIPTS=path/to/pytorch-image-models runs the real ones instead.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from drop_in_runs import BATCH, SIZE, TRAIN, VALIDATION, Run
from safetensors.torch import load_file

from timm_mix.drop_in import Order, parse, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(os.environ.get("TIMM_SCRIPTS", Path(__file__).with_name("timms_scripts")))
MODEL = "mixmo_wrn16_2_m2"
NAMED = ["--model", MODEL, "--num-classes", "10"]
SMALL = ["--img-size", str(SIZE), "-b", str(BATCH)]
ON_CPU = ["--device", "cpu", "--device-modules", "timm_mix"]  # the flag of all three that have it


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of two epochs with MixMo in the seat."""
    folder = tmp_path_factory.mktemp("trained")
    wanted = Run("--task mixmo", "--epochs 2", (MODEL, {"depth": 16}))
    run(*parse(wanted.arguments(images, folder)))
    return folder


@pytest.fixture
def data(images):
    return ["--data-dir", str(images), "--split", "val", "-j", "0", *SMALL, "--device", "cpu"]


def script(name, *arguments):
    """In this process, which knows our names already: what drop_in adds to that must not be in the way."""
    run(Order(), SCRIPTS / name, [str(argument) for argument in arguments])


def command(*words, cwd=None):
    """A fresh process, which knows our names only from what it is told."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
    )


def names_in(path):
    with path.open() as file:
        return [row["model"] for row in csv.DictReader(file)]


def test_a_script_knows_our_names_by_drop_in_or_by_device_modules_and_not_alone(trained, data, tmp_path):
    flags = [SCRIPTS / "validate.py", *data, *NAMED, "--checkpoint", trained / "last.pth.tar"]
    alone = command(*flags)
    assert alone.returncode == 1
    assert f"Unknown model ({MODEL})" in alone.stderr
    for name, words in {
        "drop_in": ["-m", "timm_mix.drop_in", *flags],
        "device_modules": [*flags, "--device-modules", "timm_mix"],
    }.items():
        told = command(*words, "--results-file", tmp_path / f"{name}.csv")
        assert told.returncode == 0, told.stderr
        assert names_in(tmp_path / f"{name}.csv") == [MODEL]
    assert (tmp_path / "drop_in.csv").read_text() == (tmp_path / "device_modules.csv").read_text()


def test_benchmark_and_train_take_device_modules(images, tmp_path):
    """Without drop_in: the names of the models, and no task in the seat."""
    few = ["--num-warm-iter", "1", "--num-bench-iter", "2"]
    told = command(SCRIPTS / "benchmark.py", *NAMED, *SMALL, *few, *ON_CPU)
    assert told.returncode == 0, told.stderr
    assert "infer_samples_per_sec" in told.stdout
    plain = Run("", model=(MODEL, {"depth": 10})).arguments(images, tmp_path, "--device-modules", "timm_mix")
    told = command(*plain)
    assert told.returncode == 0, told.stderr
    loaded = timm.create_model(MODEL, depth=10, num_classes=10, checkpoint_path=str(tmp_path / "last.pth.tar"))
    assert loaded.num_members == 2


def test_inference_writes_a_line_for_every_image(trained, data, tmp_path):
    checkpoint = ["--checkpoint", trained / "last.pth.tar"]
    script("inference.py", *data, *NAMED, *checkpoint, "--results-dir", tmp_path, "--results-format", "csv")
    (written,) = tmp_path.glob("*.csv")
    assert len([line for line in written.read_text().splitlines() if ".png" in line]) == VALIDATION


@pytest.mark.parametrize("bench", ["inference", "train"])
def test_benchmark_measures(bench, capsys):
    few = ["--num-warm-iter", "1", "--num-bench-iter", "2"]
    script("benchmark.py", "--bench", bench, *NAMED, *SMALL, *few, "--device", "cpu")
    assert f"{bench.removesuffix('ence')}_samples_per_sec" in capsys.readouterr().out


@pytest.mark.ecosystem
@pytest.mark.filterwarnings("ignore")  # those of torch's exporter
def test_onnx_export_and_onnx_validate(trained, images, tmp_path, capsys):
    checkpoint = ["--checkpoint", trained / "last.pth.tar"]
    script("onnx_export.py", tmp_path / "mixmo.onnx", *NAMED, *checkpoint, *SMALL)
    script("onnx_validate.py", images / "val", "--onnx-input", tmp_path / "mixmo.onnx", "-j", "0", *SMALL)
    assert re.search(r"Prec@1 \d", capsys.readouterr().out)


def test_averaged_and_cleaned_checkpoints_load_in_timm(trained, tmp_path):
    script(
        "avg_checkpoints.py", "--input", trained, "--filter", "checkpoint-*.pth.tar", "--output", tmp_path / "avg.pth"
    )
    both = [torch.load(trained / f"checkpoint-{i}.pth.tar", weights_only=False)["state_dict"] for i in range(2)]
    averaged = timm.create_model(MODEL, num_classes=10, checkpoint_path=str(tmp_path / "avg.pth"))
    wanted = (both[0]["heads.0.weight"].double() + both[1]["heads.0.weight"].double()) / 2
    torch.testing.assert_close(averaged.heads[0].weight.detach().double(), wanted)
    cleaned = ["--output", tmp_path / "clean.safetensors", "--no-hash", "--safetensors"]
    script("clean_checkpoint.py", "--checkpoint", trained / "last.pth.tar", *cleaned)
    (file,) = tmp_path.glob("clean*.safetensors")
    assert load_file(file).keys() == both[1].keys()
    timm.create_model(MODEL, num_classes=10, checkpoint_path=str(file))


@pytest.mark.parametrize("as_module", [False, True], ids=["rewritten", "its own -m"])
def test_the_children_of_bulk_runner_know_our_names(as_module, data, tmp_path):
    out = tmp_path / "all.csv"
    runner = ["-m", "timm_mix.drop_in", SCRIPTS / "bulk_runner.py", "--model-list", "mixmo_wrn16_2_m*"]
    child = ["-m", "timm_mix.drop_in"] if as_module else []
    told = command(*runner, "--results-file", out, *child, SCRIPTS / "validate.py", *data, "--num-classes", "10")
    assert told.returncode == 0, told.stderr
    assert sorted(names_in(out)) == sorted(timm.list_models("mixmo_wrn16_2_m*"))
    assert TRAIN > len(names_in(out)) > 1
