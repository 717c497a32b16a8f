"""train.py that is cut, stopped, out of disk space or out of finite numbers: what it leaves, and how it goes on."""

import errno
import math
import os
import signal
import sys

import pytest
import torch
from script_runs import TASKS, TRAIN, assert_same_run, checkpoint, checkpoint_names, figures, in_a_process
from timm.task import ClassificationTask

from timm_mix.train.checkpoints import folder as rotation
from timm_mix.train.errors import Stopped, UsageError, run_script
from timm_mix.train.loop.guards import LossGuard
from timm_mix.train.loop.keeper import Keeper
from timm_mix.train.loop.trainer import Trainer

pytestmark = pytest.mark.slow

PLAIN = TASKS["classification"]
STEPS = TRAIN // 8
EVERY = ["--checkpoint-interval", "1", "--epochs", "2", "--resume", "auto"]
CHANCE = ["--drop", "0.3", "--reprob", "0.5", "--model-ema", "--model-ema-decay", "0.9"]


def cut():
    raise KeyboardInterrupt("cut")


@pytest.fixture
def before(monkeypatch):
    """Do something before an update of the next run."""

    def set_up(number, action):
        update = Trainer._update

        def until(trainer, group, current):
            if current == number:
                monkeypatch.setattr(Trainer, "_update", update)
                action()
            return update(trainer, group, current)

        monkeypatch.setattr(Trainer, "_update", until)

    return set_up


@pytest.fixture
def cut_run(run, before):
    """A run that is cut in this update."""

    def start(number, *flags):
        before(number, cut)
        with pytest.raises(KeyboardInterrupt, match="cut"):
            run(*flags)

    return start


@pytest.mark.parametrize("task", ["mixmo", "cotraining", "recursivemix", "automix"])
def test_a_run_goes_on_within_an_epoch(task, run, cut_run, tmp_path):
    flags = ["--task", task, *TASKS[task], *CHANCE, *EVERY]
    whole = run(*flags, name="whole")
    for number in (STEPS - 1, STEPS + 2):  # the second time a run that was resumed itself
        cut_run(number, *flags)
        progress = checkpoint(tmp_path / "run")["progress"]
        assert (progress["update"], progress["batch"]) == (number, number % STEPS)
    results = run(*flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_goes_on_between_accumulated_updates(run, cut_run, tmp_path):
    flags = [*PLAIN, *CHANCE, *EVERY, "--grad-accum-steps", "3", "--mixup", "1"]  # groups of 3 and 1
    run(*flags, name="whole")
    cut_run(3, *flags)
    assert checkpoint(tmp_path / "run")["progress"]["batch"] == 3
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_device_loader_goes_on_within_an_epoch(run, cut_run, tmp_path):
    flags = ["--task", "cotraining", *TASKS["cotraining"], *CHANCE, *EVERY, "--device-loader", "--batch-repeats", "2"]
    run(*flags, name="whole")
    cut_run(STEPS + 2, *flags)
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_number_of_workers_changes_nothing_nor_does_a_change_of_it(run, cut_run, tmp_path):
    flags = ["--task", "mixmo", *TASKS["mixmo"], *CHANCE, *EVERY, "--batch-repeats", "2"]
    run(*flags, "--workers", "0", name="whole")
    cut_run(STEPS + 1, *flags, "--workers", "2")
    run(*flags, "--workers", "1")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_update_and_it_goes_on(number, status, run, before, tmp_path, capsys):
    flags = [*PLAIN, *CHANCE, "--epochs", "2", "--resume", "auto"]
    run(*flags, name="whole")
    before(STEPS + 1, lambda: os.kill(os.getpid(), number))
    capsys.readouterr()
    with pytest.raises(SystemExit, match=f"^{status}$") as end:
        run_script(lambda: run(*flags))
    assert end.value.code == status
    line = f"stopped by {number.name} after update {STEPS + 2}, which is saved; go on with --resume auto\n"
    assert capsys.readouterr().err == line
    assert checkpoint(tmp_path / "run")["progress"]["update"] == STEPS + 2
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_signal_in_the_last_update_of_an_epoch_leaves_its_evaluation_for_later(run, before, tmp_path):
    flags = [*PLAIN, *CHANCE, "--resume", "auto"]
    run(*flags, name="whole")
    before(STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after update {STEPS}, which is saved"):
        run(*flags)
    assert checkpoint(tmp_path / "run")["progress"]["batch"] == STEPS
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# a signal to the whole process group, as a cluster's scheduler sends it: the workers must not die before the update
SIGNALLED = """
import os, signal
from timm_mix.commands.train import main
from timm_mix.train.loop.trainer import Trainer
from timm_mix.train.errors import run_script

update = Trainer._update
Trainer._update = lambda *args: (os.killpg(0, signal.SIGTERM), update(*args))[1]
run_script(main)
"""


def test_the_script_ends_with_the_signals_status_workers_or_not(images, tmp_path):
    flags = ["--data-dir", str(images), "--img-size", "16", "--aug", "small", "--batch-size", "8", "--cpu"]
    flags += ["--output", str(tmp_path), "--experiment", "run", "--workers", "2", "--epochs", "3", *PLAIN]
    done = in_a_process([sys.executable, "-c", SIGNALLED, *flags], start_new_session=True)
    assert done.returncode == 143, done.stderr
    assert done.stderr == "stopped by SIGTERM after update 1, which is saved; go on with --resume auto\n"


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full for the checkpoints with these numbers, from 0."""

    def fill(*numbers):
        write, count = rotation.write_checkpoint, iter(range(99))

        def limited(content, stream):
            if next(count) in numbers:
                stream.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            write(content, stream)

        monkeypatch.setattr(rotation, "write_checkpoint", limited)

    return fill


def test_a_full_disk_is_a_warning_and_the_older_checkpoint_stays(run, cut_run, full_disk, tmp_path, capsys):
    flags = [*PLAIN, *CHANCE, *EVERY]
    run(*flags, name="whole")
    capsys.readouterr()
    full_disk(2, 3)  # after the third update and at the end of the epoch
    cut_run(STEPS, *flags)
    line = "warning: cannot write the checkpoint of update {}: No space left on device; going on, the older one stays"
    assert capsys.readouterr().err.splitlines() == [line.format(3), line.format(4)]
    assert checkpoint(tmp_path / "run")["progress"]["update"] == 2
    assert checkpoint_names(tmp_path / "run") == {"last.pt", "update_000000001.pt", "update_000000002.pt"}
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_at_the_end_is_an_error_that_can_be_made_good(run, full_disk, tmp_path):
    flags = [*PLAIN, *CHANCE, "--epochs", "2", "--resume", "auto"]
    run(*flags, name="whole")
    full_disk(1)
    line = f"cannot write the checkpoint of update {2 * STEPS}: No space left on device; make room and go on with"
    with pytest.raises(UsageError, match=line):
        run(*flags)
    assert not (tmp_path / "run" / "model").exists()
    run(*flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_best_weights_that_could_not_be_saved_are_not_replaced_by_others(run, full_disk, monkeypatch):
    tops = iter((50.0, 80.0, 60.0))
    scores = lambda *_: {"ensemble": {"top1": next(tops), "top5": 100.0, "nll": 1.0, "count": 7}}  # noqa: E731
    monkeypatch.setattr(Trainer, "_evaluate", scores)
    full_disk(1)
    with pytest.raises(UsageError, match=r"the weights of epoch 2 could not be saved, .* has those of epoch 1; publ"):
        run(*PLAIN, "--epochs", "3", "--export", "best")


def test_a_torn_newest_checkpoint_costs_the_updates_since_the_one_before(run, cut_run, tmp_path, capsys):
    flags = [*PLAIN, *CHANCE, *EVERY]
    run(*flags, name="whole")
    cut_run(STEPS + 2, *flags)
    newest = tmp_path / "run" / "checkpoints" / f"update_{STEPS + 2:09d}.pt"
    newest.write_bytes(newest.read_bytes()[:-7])
    capsys.readouterr()
    run(*flags)
    assert capsys.readouterr().err.startswith(f"warning: cannot read checkpoint {newest} (")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def losses(monkeypatch):
    """Multiply the task's loss in a step, from 0."""

    def set_up(step, factor):
        forward, count = ClassificationTask.forward, iter(range(99))

        def spy(task, x, y):
            result = forward(task, x, y)
            return {**result, "loss": result["loss"] * factor} if next(count) == step else result

        monkeypatch.setattr(ClassificationTask, "forward", spy)

    return set_up


@pytest.mark.parametrize("looks", [["--log-interval", "1"], ["--checkpoint-interval", "2"], []])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(looks, run, losses, tmp_path):
    losses(STEPS + 1, math.nan)
    line = rf"the loss of update {STEPS + 2} is nan \(last finite loss: \d.*\); try a lower --lr, --clip-grad 1"
    with pytest.raises(UsageError, match=line):
        run(*PLAIN, "--epochs", "3", *looks)
    saved = checkpoint(tmp_path / "run")
    assert saved["progress"]["update"] == STEPS
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_not_finite_are_not_saved_with_a_finite_loss_either(run, monkeypatch, tmp_path):
    update = Trainer._update

    def overflow(trainer, group, number):
        sums = update(trainer, group, number)
        if number == STEPS - 1:
            next(trainer.model.parameters()).data[0] = math.inf
        return sums

    monkeypatch.setattr(Trainer, "_update", overflow)
    with pytest.raises(UsageError, match=r"the loss is finite, but the weights are not \(last finite loss: \d"):
        run(*PLAIN)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_losses_are_looked_at_every_so_many_updates(run, monkeypatch):
    looks = []
    check = LossGuard.check
    monkeypatch.setattr(LossGuard, "check", lambda guard, *args: (looks.append(len(guard)), check(guard, *args))[1])
    run(*PLAIN, "--log-interval", "3")
    assert looks == [3, 1]  # of 4 updates


def test_every_epoch_is_logged_once_by_a_run_that_was_cut(run, monkeypatch, tmp_path):
    flags = [*PLAIN, "--epochs", "3", "--tracker", "csv", "--resume", "auto"]
    save, count = Keeper.save, iter(range(99))
    with monkeypatch.context() as patch:  # between the tracker and the checkpoint of the second epoch
        patch.setattr(Keeper, "save", lambda *args, **kwargs: cut() if next(count) == 1 else save(*args, **kwargs))
        with pytest.raises(KeyboardInterrupt, match="cut"):
            run(*flags)
    results = run(*flags)
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "log.csv").read_text().splitlines())
    assert [row[0] for row in rows] == ["0", "1", "2"]
    logged = [float(row[header.index("train/loss")]) for row in rows]
    assert logged == [row["train"]["loss"] for row in results["epochs"]]


def test_deterministic_algorithms_give_the_same_bits_on_the_cpu(run, tmp_path):
    flags = ["--task", "automix", *TASKS["automix"], *CHANCE]
    run(*flags, name="plain")
    run(*flags, "--deterministic", name="deterministic")
    assert_same_run(tmp_path / "plain", tmp_path / "deterministic")
    assert not torch.are_deterministic_algorithms_enabled()
