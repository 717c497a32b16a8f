"""train.py on images that cannot be read, stopped while it evaluates, and both on two processes."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from script_runs import TASKS, TRAIN, assert_same_run, checkpoint, figures
from support.processes import ROOT, start

from timm_mix.train.errors import Stopped, UsageError
from timm_mix.train.loop.trainer import Trainer

pytestmark = pytest.mark.slow

PLAIN = TASKS["classification"]
STEPS = TRAIN // 8
CHANCE = ["--drop", "0.3", "--reprob", "0.5", "--model-ema", "--model-ema-decay", "0.9"]


def torn(images, root, split, name="bee/1.png"):
    """The images with a torn one among them."""
    shutil.copytree(images, root)
    file = root / split / name
    file.write_bytes(file.read_bytes()[:-300])
    return root


@pytest.mark.parametrize("flags", [["--workers", "0"], ["--workers", "2"], ["--device-loader"]])
def test_a_torn_training_image_ends_the_run_by_its_name_and_is_not_learnt(flags, run, images, tmp_path):
    data = torn(images, tmp_path / "torn", "train")
    with pytest.raises(UsageError, match=r"train/bee/1\.png is no image that can be read \(.*\): replace or") as caught:
        run(*PLAIN, "--batch-size", "12", "--checkpoint-interval", "3", "--data-dir", str(data), *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_torn_validation_image_costs_no_training(run, images, tmp_path):
    data = torn(images, tmp_path / "torn", "val")
    flags = [*PLAIN, *CHANCE, "--resume", "auto"]
    run(*flags, name="whole")
    with pytest.raises(UsageError, match=r"val/bee/1\.png is no image that can be read"):
        run(*flags, "--data-dir", str(data))
    assert checkpoint(tmp_path / "run")["progress"]["update"] == STEPS
    shutil.copy(images / "val" / "bee" / "1.png", data / "val" / "bee")
    run(*flags, "--data-dir", str(data))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("evaluation", [0, 1, 2])  # of the weights, of their average, of the next epoch's weights
def test_a_signal_ends_an_evaluation_at_once_and_the_run_goes_on_with_it(evaluation, run, monkeypatch, tmp_path):
    flags = [*PLAIN, *CHANCE, "--epochs", "2", "--resume", "auto", "--validation-batch-size", "1"]
    whole = run(*flags, name="whole")
    batches, count, seen = Trainer._evaluation_batches, iter(range(99)), []

    def watched(trainer):
        this = next(count)
        for batch in batches(trainer):
            seen.append(this)
            if (this, seen.count(this)) == (evaluation, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluation_batches", watched)
        line = f"stopped by SIGTERM after update {STEPS * (1 + evaluation // 2)}, which is saved"
        with pytest.raises(Stopped, match=line):
            run(*flags)
    assert seen.count(evaluation) == 2  # of 7 images
    results = run(*flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture(scope="module")
def two_ranks(images, tmp_path_factory):
    """The folder of the runs on two processes, their exit statuses, and all that was printed."""
    out = tmp_path_factory.mktemp("two")
    # the first batch of the validation images is the first process's, the second one the second's
    data = torn(images, out / "images", "val", "ant/1.png")
    worker = start(Path(__file__).with_name("two_rank_runs.py"), out, images, data, PYTHONPATH=_paths())
    try:
        printed = worker.communicate(timeout=200)[0]
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()
    assert worker.returncode == 0, printed
    return out, json.loads((out / "statuses.json").read_text()), printed


def _paths():
    return os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "commands")))


def test_a_signal_to_one_of_two_processes_ends_the_evaluation_of_both_and_they_go_on(two_ranks):
    out, statuses, printed = two_ranks
    assert statuses["whole"] == [0, 0], printed
    assert statuses["stopped"] == [143, 143], printed
    assert statuses["resumed"] == [0, 0], printed
    assert printed.count("stopped by SIGTERM after update") == 1
    assert_same_run(out / "whole", out / "stopped")


def test_an_image_that_one_of_two_processes_cannot_read_ends_both_with_one_line(two_ranks):
    out, statuses, printed = two_ranks
    assert statuses["torn"] == [2, 2], printed
    assert len(re.findall(r"^error: .*val/ant/1\.png is no image that can be read .*$", printed, re.M)) == 1
    assert "Traceback" not in printed
    assert checkpoint(out / "torn")["progress"]["trained"]
