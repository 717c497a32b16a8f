"""Fixtures for the tests of train.py and finetune.py: tiny images, a run on them, and what happens within it."""

import numpy as np
import pytest
from finetune_runs import run_finetune, save_sources, write_digits
from PIL import Image
from script_runs import NAMES, SIZE, TRAIN, fresh_accelerate
from support.trainer_runs import press_ctrl_c

from timm_mix.commands.train import main
from timm_mix.train.loop.trainer import Trainer


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """train/ with 36 and val/ with 7 noisy 16x16 images of three classes, each with a channel of its own."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, counts in {"train": (12, 12, 12), "val": (3, 2, 2)}.items():
        for label, (name, count) in enumerate(zip(NAMES, counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 130, (SIZE, SIZE, 3))
                pixels[..., label] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def run(images, tmp_path):
    """Run main on the images; the folder of the run is `tmp_path / name`."""

    def start(*flags, name="run"):
        data = ["--data-dir", str(images), "--img-size", str(SIZE), "--aug", "small", "--workers", "0"]
        place = ["--output", str(tmp_path), "--experiment", name, "--cpu"]
        with fresh_accelerate():
            return main([*data, *place, "--batch-size", "8", "--epochs", "1", *flags])

    return start


@pytest.fixture
def recorded(monkeypatch):
    """The model's state after every update."""
    states = []
    update = Trainer._update

    def spy(trainer, *args):
        sums = update(trainer, *args)
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return sums

    monkeypatch.setattr(Trainer, "_update", spy)
    return states


@pytest.fixture
def interrupted(run, monkeypatch):
    """Run and press Ctrl-C after the first epoch, or in the second update of the second."""
    update = Trainer._update

    def until(trainer, group, number):
        return press_ctrl_c() if number == TRAIN // 8 + 1 else update(trainer, group, number)

    def start(place, *flags):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, *(("_report", press_ctrl_c) if place == "after an epoch" else ("_update", until)))
            with pytest.raises(KeyboardInterrupt, match="stopped"):
                run(*flags)

    return start


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def finetune(digits, sources, tmp_path):
    """Run finetune.py on the digits from a saved model."""

    def start(source, *flags, name="run", data=digits):
        return run_finetune(sources / source, data, tmp_path, "--experiment", name, *flags)

    return start
