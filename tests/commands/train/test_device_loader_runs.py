"""train.py --device-loader: every task trains, a resumed run ends like an uninterrupted one, mistakes are one line."""

import pytest
from script_runs import (
    TASKS,
    VALIDATION,
    assert_equal_states,
    checkpoint,
    figures,
    reloaded,
    scored,
)
from support.equality import assert_equal_tensors

from timm_mix.train.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("place", ["after an epoch", "in an epoch"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(place, run, interrupted, tmp_path):
    flags = ["--device-loader", "--task", "mixmo", *TASKS["mixmo"], "--reprob", "0.5", "--remode", "pixel"]
    flags += ["--epochs", "3", "--resume", "auto"]
    whole = run(*flags, name="whole")
    interrupted(place, *flags)
    results = run(*flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    one, two = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    assert_equal_tensors(one["state_dict"], two["state_dict"])
    assert_equal_states(one["task_states"], two["task_states"])


@pytest.mark.parametrize("more", [[], ["--channels-last", "--batch-repeats", "2", "--amp"]])
@pytest.mark.parametrize("task", ["classification", "cotraining"])
def test_a_run_is_scored_on_every_validation_image(task, more, run, images, tmp_path):
    results = run("--device-loader", "--task", task, *TASKS[task], *more)
    last = results["last"]["ensemble"]
    assert last["count"] == VALIDATION
    top1, nll = scored(reloaded(tmp_path / "run"), images)
    if "--amp" not in more:
        assert (last["top1"], last["nll"]) == pytest.approx((top1, nll), rel=1e-5)


def test_without_augmentation_a_run_is_the_one_of_the_cpu_loader(run, tmp_path):
    flags = ["--task", "classification", *TASKS["classification"], "--aug", "none", "--epochs", "2"]
    run(*flags, name="cpu")
    run(*flags, "--device-loader", name="device")
    one, two = (checkpoint(tmp_path / name)["state_dict"] for name in ("cpu", "device"))
    assert_equal_tensors(one, two)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--aa", "cifar10"], r"device_loader has no option aa \(got 'cifar10'\)"),
        (["--color-jitter", "0.4"], r"device_loader has no option color_jitter \(got 0.4\)"),
        (["--aug", "imagenet"], "device_loader is for aug small or none, got imagenet"),
    ],
)
def test_what_stays_on_the_cpu_is_refused_before_anything_is_written(flags, line, run, tmp_path):
    with pytest.raises(UsageError, match=line):
        run("--device-loader", "--task", "classification", *TASKS["classification"], *flags)
    assert not (tmp_path / "run").exists()
