"""train.py resumes a run exactly, repeats it by seed and keeps its best epoch."""

from pathlib import Path

import pytest
import torch
from script_runs import (
    TASKS,
    TRAIN,
    VIT,
    assert_same_run,
    checkpoint,
    figures,
    reloaded,
)
from support.equality import assert_equal_tensors
from support.trainer_runs import press_ctrl_c

from timm_mix.train.errors import UsageError
from timm_mix.train.loop.trainer import Trainer


@pytest.mark.parametrize(
    ("task", "workers", "place"),
    [
        ("mixmo", 0, "after an epoch"),
        ("mixmo", 0, "in an epoch"),
        pytest.param("mixmo", 2, "after an epoch", marks=pytest.mark.slow),
        pytest.param("cotraining", 0, "after an epoch", marks=pytest.mark.slow),
        pytest.param("classification", 2, "in an epoch", marks=pytest.mark.slow),
        pytest.param("recursivemix", 0, "after an epoch", marks=pytest.mark.slow),
        pytest.param("automix", 0, "after an epoch", marks=pytest.mark.slow),
        pytest.param("manifoldmixup", 0, "in an epoch", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(task, workers, place, run, interrupted, tmp_path):
    # every source of chance: mixing, order, crops, flips, erasing, dropout
    flags = ["--task", task, *TASKS[task], "--drop", "0.3", "--reprob", "0.5", "--workers", str(workers)]
    flags += ["--epochs", "3", "--model-ema", "--model-ema-decay", "0.9", "--warmup-epochs", "1", "--resume", "auto"]
    whole = run(*flags, name="whole")
    interrupted(place, *flags)
    assert checkpoint(tmp_path / "run")["progress"]["epoch"] == 1
    assert not (tmp_path / "run" / "model").exists()
    results = run(*flags)

    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert (results["last"], results["best"]) == (whole["last"], whole["best"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert_equal_tensors(reloaded(tmp_path / "whole").state_dict(), reloaded(tmp_path / "run").state_dict())


def test_a_finished_run_that_is_resumed_trains_no_further(run, monkeypatch, tmp_path):
    flags = ["--task", "mixmo", *TASKS["mixmo"], "--resume", "auto"]
    first = run(*flags)
    weights = checkpoint(tmp_path / "run")["state_dict"]
    monkeypatch.setattr(Trainer, "_update", press_ctrl_c)
    again = run(*flags)
    assert again["epochs"] == first["epochs"]
    assert_equal_tensors(reloaded(tmp_path / "run").state_dict(), weights)


def test_a_finished_run_goes_on_for_more_epochs_at_the_learning_rates_of_a_longer_one(run, capsys, tmp_path):
    flags = [*TASKS["classification"], "--resume", "auto", "--sched-on-updates"]
    short = run(*flags, "--epochs", "1")
    capsys.readouterr()
    longer = run(*flags, "--epochs", "3")
    assert "the run of 1 epochs is finished and goes on to 3" in capsys.readouterr().out
    assert longer["epochs"][0] == short["epochs"][0]
    whole = run(*flags, "--epochs", "3", name="whole")
    assert [row["lr"] for row in longer["epochs"][1:]] == [row["lr"] for row in whole["epochs"][1:]]
    run(*flags, "--epochs", "3")
    assert "the run is finished, it has 3 epochs; more --epochs go on with it" in capsys.readouterr().out


def test_a_run_that_is_not_finished_keeps_its_length(run, interrupted):
    flags = ["--task", "classification", *TASKS["classification"], "--resume", "auto", "--epochs", "3"]
    interrupted("after an epoch", *flags)
    with pytest.raises(UsageError, match="was made with epochs=3, got epochs=4"):
        run(*flags, "--epochs", "4")


def test_a_run_that_replaces_another_one_says_so(run, tmp_path, capsys):
    flags = ["--task", "mixmo", *TASKS["mixmo"]]
    run(*flags)
    assert capsys.readouterr().err == ""
    run(*flags)
    line = f"warning: {tmp_path / 'run'} has a run, which this one replaces; --resume auto would go on with it\n"
    assert capsys.readouterr().err == line
    run(*flags, "--resume", "auto")
    assert capsys.readouterr().err == ""


def test_a_finished_checkpoint_of_another_folder_is_published(run, tmp_path):
    flags = ["--task", "mixmo", *TASKS["mixmo"]]
    run(*flags, name="first")
    run(*flags, "--resume", str(tmp_path / "first" / "checkpoints" / "last.pt"), name="second")
    weights = [reloaded(tmp_path / name).state_dict() for name in ("first", "second")]
    assert_equal_tensors(*weights)


def test_seeds_give_different_runs_and_one_seed_the_same(run):
    flags = ["--task", "mixmo", *TASKS["mixmo"]]
    losses = [run(*flags, "--seed", seed)["epochs"][0]["train"]["loss"] for seed in ("1", "1", "2")]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("tops", "best"), [((50.0, 80.0, 60.0), 1), ((50.0, 80.0, 80.0), None)])
def test_best_is_one_epoch_in_results_checkpoint_and_model(tops, best, run, recorded, monkeypatch, tmp_path):
    top = iter(tops)
    monkeypatch.setattr(
        Trainer, "_evaluate", lambda *_: {"ensemble": {"top1": next(top), "top5": 100.0, "nll": 1.0, "count": 7}}
    )
    results = run(*VIT, "--epochs", "3", "--export", "best")
    saved = checkpoint(tmp_path / "run", "best")
    epochs = saved["progress"]["epoch"]  # that are done
    assert results["best"]["epoch"] == epochs - 1
    assert best in (None, epochs - 1)  # of two equal epochs either may be the best, but only one
    assert_equal_tensors(recorded[epochs * (TRAIN // 8) - 1], saved["state_dict"])
    assert_equal_tensors(reloaded(tmp_path / "run").state_dict(), saved["state_dict"])


OLD = Path(__file__).with_name("before_the_house.pt")


def test_a_checkpoint_from_before_the_settings_had_parts_still_resumes(run, tmp_path):
    """After 2 of 3 epochs on these very images by the trainer of commit 985f052 (train_scripts/trainkit)."""
    small = ["backbone=resnet18", "layers=[1,1,1,1]", "channels=[4,4,8,8]", "members=2"]
    flags = ["--task", "mixmo", "--model", "mixmo", "--model-kwargs", *small, "--mix", "prob=0.5", "--model-ema"]
    flags += ["--clip-grad", "5", "--warmup-epochs", "1", "--seed", "7", "--epochs", "3", "--resume", str(OLD)]
    results = run(*flags)
    before = torch.load(OLD, weights_only=True)["progress"]["history"]
    assert len(before) == 2
    assert results["epochs"][:2] == before
    assert [row["epoch"] for row in results["epochs"]] == [0, 1, 2]
    assert checkpoint(tmp_path / "run")["progress"]["update"] == 12
