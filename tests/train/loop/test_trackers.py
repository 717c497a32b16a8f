"""Trackers log every epoch once, whatever was cut."""

import sys
import types

import pytest
from accelerate import Accelerator
from accelerate.utils import LoggerType

from timm_mix.train.errors import UsageError
from timm_mix.train.loop import trackers
from timm_mix.train.loop.trackers import CsvTracker, figures_of, start_tracker, tracker_of
from timm_mix.train.settings.config import Config


def row(epoch, loss):
    return {"epoch": epoch, "train": {"loss": loss}, "eval": {"ensemble": {"top1": 50.0, "count": 7}}}


def started(config, history):
    accelerator = Accelerator(
        cpu=True, log_with=tracker_of(config.run.tracker, config.folder), project_dir=config.folder
    )
    start_tracker(accelerator, config.run, config.folder, history)
    return accelerator


def test_figures_are_named_by_their_place():
    assert figures_of(row(3, 0.5)) == {
        "epoch": 3,
        "train/loss": 0.5,
        "eval/ensemble/top1": 50.0,
        "eval/ensemble/count": 7,
    }


def test_csv_has_every_epoch_once_after_a_resume(tmp_path):
    config = Config.of(tracker="csv", output=str(tmp_path), experiment="run")
    first = started(config, [])
    for epoch in range(3):
        first.log(figures_of(row(epoch, epoch / 2)), step=epoch)
    resumed = started(config, [row(0, 0.0), row(1, 0.5)])
    resumed.log(figures_of(row(2, 7.0)), step=2)
    assert (tmp_path / "run" / "log.csv").read_text().splitlines() == [
        "epoch,train/loss,eval/ensemble/top1,eval/ensemble/count",
        *("0,0.0,50.0,7", "1,0.5,50.0,7", "2,7.0,50.0,7"),
    ]


def test_a_column_that_begins_later_is_empty_before(tmp_path):
    tracker = CsvTracker(tmp_path / "log.csv")
    tracker.log({"epoch": 0}, step=0)
    tracker.log({"epoch": 1, "more": 0.5}, step=1)
    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,more", "0,", "1,0.5"]


@pytest.fixture
def fake(monkeypatch):
    """Stands in for a tracker's package: what it was started with and told."""
    told = []

    class Run:
        def __init__(self, *args, **settings):
            told.append(("start", args, settings))

        def add_scalar(self, name, value, global_step):
            told.append((name, value, global_step))

        def log(self, values, step):
            told.append((values, step))

        def flush(self):
            pass

        close = finish = flush

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    for name, entry in {"torch.utils.tensorboard": "SummaryWriter", "wandb": "init"}.items():
        module = types.ModuleType(name)
        setattr(module, entry, Run)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("torch.utils.tensorboard", sys.modules["torch.utils.tensorboard"], raising=False)
    return told


def test_tensorboard_forgets_the_epochs_that_are_trained_again(fake, tmp_path):
    config = Config.of(tracker="tensorboard", output=str(tmp_path), experiment="run")
    accelerator = started(config, [row(0, 0.0), row(1, 0.5)])
    accelerator.log(figures_of(row(2, 7.0)), step=2)
    assert fake[0] == ("start", (str(tmp_path / "run" / "tensorboard"),), {"purge_step": 2})
    assert ("train/loss", 7.0, 2) in fake


def test_wandb_goes_on_with_the_run_that_it_began(fake, tmp_path):
    ids = []
    for resume in (None, "auto", "auto", None):
        config = Config.of(tracker="wandb", output=str(tmp_path), experiment="run", resume=resume)
        (_, _, settings) = (started(config, []), fake[-1])[1]
        assert settings["project"] == "timm_mix"
        assert (settings["resume"], settings["name"]) == ("allow", "run")
        ids.append(settings["id"])
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_tracker_that_does_not_start_is_one_line_and_can_be_ended(fake, tmp_path, monkeypatch):
    def fail(**_):
        raise RuntimeError("no\nlogin")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    config = Config.of(tracker="wandb", output=str(tmp_path), experiment="run")
    accelerator = Accelerator(cpu=True, log_with="wandb", project_dir=config.folder)
    with pytest.raises(UsageError, match="cannot start the tracker wandb: no login"):
        start_tracker(accelerator, config.run, config.folder, [])
    accelerator.end_training()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboard")])
def test_a_missing_package_is_one_line(name, package, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    line = f"--tracker {name} needs a package that is not installed: pip install {package}"
    with pytest.raises(UsageError, match=line) as caught:
        tracker_of(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_tracker_nothing_is_written(tmp_path):
    started(Config.of(output=str(tmp_path), experiment="run"), []).log({"loss": 1.0}, step=0)
    assert list(tmp_path.iterdir()) == []
