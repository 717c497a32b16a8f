"""A resumed run learns the images that it began with."""

import shutil

import numpy as np
import pytest
from PIL import Image

from timm_mix.train.data.digest import digest_of
from timm_mix.train.data.digits import Digits
from timm_mix.train.data.image_folder import open_image_folder
from timm_mix.train.data.sources import open_dataset
from timm_mix.train.errors import UsageError
from timm_mix.train.run import run
from timm_mix.train.settings.config import Config

FILES = [f"{split}/{kind}/{i}.png" for split in ("train", "val") for kind in ("cat", "dog") for i in range(2)]


@pytest.fixture
def pets(tmp_path):
    for i, name in enumerate(FILES):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(path)
    return tmp_path / "pets"


def rename_a_file(pets):
    (pets / "train/cat/0.png").rename(pets / "train/cat/7.png")


def move_between_classes(pets):
    for one, two in (("cat", "dog"), ("dog", "cat")):
        (pets / f"train/{one}/0.png").rename(pets / f"train/{two}/{one}.png")


def rename_a_class(pets):
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / "ant")


READERS = {
    "ours": lambda pets: open_image_folder(pets)[0],
    "timm's": lambda pets: open_dataset("", pets, "train"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("change", [rename_a_file, move_between_classes, rename_a_class])
def test_what_is_renamed_or_moved_has_another_digest(reader, change, pets, tmp_path):
    before = digest_of(reader(pets))
    shutil.copytree(pets, tmp_path / "elsewhere")
    assert digest_of(reader(tmp_path / "elsewhere")) == before
    change(pets)
    assert digest_of(reader(pets)) not in (before, None)


def test_data_without_files_have_none():
    assert digest_of(Digits("train")) is None


@pytest.mark.parametrize("change", [rename_a_file, move_between_classes, rename_a_class])
def test_a_run_does_not_go_on_with_other_images_of_the_same_number(change, pets, tmp_path):
    settings = {"data_dir": str(pets), "model": "test_resnet", "img_size": 32, "batch_size": 2, "workers": 0}
    settings |= {"cpu": True, "epochs": 1, "output": str(tmp_path / "output"), "experiment": "run"}
    run(Config.of(**settings))
    change(pets)
    with pytest.raises(UsageError, match=r"train_digest.*a file or class was renamed, added or sorted otherwise"):
        run(Config.of(**settings, resume="auto"))
