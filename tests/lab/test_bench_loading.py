"""What benchmark.py measures of the data path: both sides do the same work."""

import os
from argparse import Namespace

import pytest
import torch
from support.image_files import write_images

from timm_mix.lab.bench import loading

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"), pytest.mark.slow]

CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch):
    """23 images per epoch, 2 workers."""
    monkeypatch.setattr(loading, "IMAGES", 23)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_all_loaders_read_an_epoch_of_the_same_size(few):
    images = loading._images("digits", None)
    for epoch in (loading._timm_epoch, loading._cpu_epoch):
        assert epoch(images, 5, 1, CPU)() == 20
    assert loading._device_epoch(images, 5, CPU)() == 20


def test_a_slice_begins_anew_where_the_dataset_ends(tmp_path):
    write_images(tmp_path / "train", {"ant": 2, "bee": 1})
    images = loading._Slice(loading.open_dataset("", tmp_path, "train"), 7)
    images.transform = lambda image: image.getpixel((0, 0))[0]
    assert [images[i] for i in range(len(images))] == [(0, 0), (1, 0), (2, 1), (0, 0), (1, 0), (2, 1), (0, 0)]


def test_the_loading_case_takes_a_folder_beside_the_digits(few, tmp_path, monkeypatch):
    write_images(tmp_path / "train", {"ant": 2, "bee": 1})
    monkeypatch.setattr(loading, "compare", lambda name, a, b, pairs, device: (name, a(), b(), pairs))
    rows = list(loading.bench_loading(Namespace(pairs=1, batch=5, data_dir=str(tmp_path)), CPU))
    for i, data in enumerate(["digits", str(tmp_path)]):
        for row, title in zip(rows[2 * i : 2 * i + 2], ["timm's create_loader", "our CPU loader"], strict=True):
            name = f"images/s, device loader over {title} with 2 workers, 23 of {data}, 32x32, batch 5"
            assert row == (name, 20, 20, 1)
    assert len(rows) == 4


def test_the_trainer_case_compares_seconds_per_step(monkeypatch):
    seen = []

    def run(config):
        seen.append(config.data.device_loader)
        return {"steps_per_epoch": 4, "epochs": [{"train_seconds": 100.0}, {"train_seconds": 2.0}]}

    monkeypatch.setattr(loading, "run", run)
    monkeypatch.setattr(loading._PlainLoop, "step_seconds", lambda self: 0.25)
    rows = list(loading.bench_trainer(Namespace(pairs=3, batch=64), CPU))
    assert [row.ratio for row in rows] == [0.5, 0.5]
    assert [row.name for row in rows] == [
        "steps/s, train.py over a plain loop, wrn16_2, batch 64, digits",
        "steps/s, train.py --device-loader over a plain loop, wrn16_2, batch 64, digits",
    ]
    assert seen == [False] * 4 + [True] * 4


def test_train_py_runs_with_the_settings_of_the_case(monkeypatch):
    monkeypatch.setattr(loading, "MODEL", "test_resnet")
    assert loading._trainer_step_seconds(["--device-loader"], 700, CPU) > 0


def test_the_plain_loop_learns(monkeypatch):
    monkeypatch.setattr(loading, "MODEL", "test_resnet")
    torch.manual_seed(0)
    loop = loading._PlainLoop(700, CPU)
    before = [parameter.clone() for parameter in loop.model.parameters()]
    loop.step_seconds()
    assert not any(torch.equal(*pair) for pair in zip(before, loop.model.parameters(), strict=True))
