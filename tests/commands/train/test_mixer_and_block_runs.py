"""train.py with a mixer, and with settings of the Mix Block's own: it trains, and resumes exactly."""

import pytest
from script_runs import TASKS, assert_same_run, checkpoint, figures

pytestmark = pytest.mark.slow

BLOCK = ["--block-lr", "0.3", "--block-min-lr", "0.03", "--block-momentum", "0.5", "--opt", "momentum"]


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("classification", ["--mixer", "switch", "--mix", "mixers=[cutmix, resizemix]", "off_epoch=2"]),
        ("automix", [*BLOCK, "--sched-on-updates"]),
    ],
)
def test_a_run_resumed_after_an_epoch_ends_like_an_uninterrupted_one(task, flags, run, interrupted, tmp_path):
    flags = ["--task", task, *TASKS[task], *flags, "--smoothing", "0.1", "--epochs", "3", "--resume", "auto"]
    if task == "automix":
        flags += ["--mix", "reduction=2"]
    whole = run(*flags, name="whole")
    interrupted("after an epoch", *flags)
    results = run(*flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("classification", ["--mixup", "1", "--cutmix", "1"]),
        ("classification", ["--mixer", "resizemix"]),
        ("mixmo", []),
        ("cotraining", ["--mix", "mixup=0.2"]),
        ("recursivemix", []),
        ("automix", []),
        ("manifoldmixup", []),
    ],
)
def test_mixing_that_has_ended_stays_ended_in_a_resumed_run(task, flags, run, interrupted, tmp_path):
    flags = ["--task", task, *TASKS[task], *flags, "--epochs", "3", "--resume", "auto", "--mixup-off-epoch", "1"]
    whole = run(*flags, name="whole")
    interrupted("in an epoch", *flags)  # in the second one
    results = run(*flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    if task == "automix":
        assert [row["train"]["mask"] == 0 for row in whole["epochs"]] == [False, True, True]
    if task == "recursivemix":
        assert [row["train"]["consistency"] == 0 for row in whole["epochs"]] == [False, True, True]


def test_the_blocks_rate_ends_near_its_floor(run, tmp_path):
    run("--task", "automix", *TASKS["automix"], *BLOCK, "--sched-on-updates", "--epochs", "3")
    groups = checkpoint(tmp_path / "run")["optimizer"]["param_groups"]
    rates = {bool(group.get("mix_block")): (group["lr"], group["momentum"]) for group in groups}
    assert rates[True] == (pytest.approx(0.03), 0.5)
    assert rates[False] == (pytest.approx(0.0, abs=1e-9), 0.9)
