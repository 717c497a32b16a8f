"""The digits: the split is what the docstring promises, and the images are scikit-learn's scans."""

import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from timm_mix.train.data.digits import EVAL_SPLITS, TRAIN_SPLITS, Digits, split_indices
from timm_mix.train.errors import UsageError


def test_the_split_has_1437_training_and_360_validation_samples():
    assert (len(Digits("train")), len(Digits("validation"))) == (1437, 360)


def test_the_splits_share_no_sample_and_leave_none_out():
    targets = load_digits().target
    train, validation = split_indices(targets, 360, seed=0)
    assert sorted([*train, *validation]) == list(range(1797))


def test_every_class_keeps_its_share():
    targets = load_digits().target
    _, validation = split_indices(targets, 360, seed=0)
    share = np.bincount(targets) * 360 / len(targets)
    assert (np.abs(np.bincount(targets[validation]) - share) < 1).all()


def test_quotas_go_to_the_largest_remainders():
    targets = np.repeat([0, 1, 2], [7, 11, 13])  # 8 of 31: shares 1.81, 2.84, 3.35
    train, validation = split_indices(targets, 8, seed=3)
    assert np.bincount(targets[validation]).tolist() == [2, 3, 3]
    assert np.bincount(targets[train]).tolist() == [5, 8, 10]


def test_the_split_is_fixed():
    assert Digits("val").targets.tolist() == Digits("val").targets.tolist()
    assert np.array_equal(np.asarray(Digits("val")[7][0]), np.asarray(Digits("val")[7][0]))


def test_images_are_the_scans_enlarged_to_32_pixels_rgb():
    scans = load_digits()
    _, validation = split_indices(scans.target, 360, seed=0)
    image, target = Digits("validation")[5]
    twin = np.empty((8, 8), np.uint8)
    for row in range(8):
        for column in range(8):
            twin[row, column] = round(scans.images[validation[5], row, column] / 16 * 255)
    twin_image = Image.fromarray(twin).resize((32, 32), Image.BICUBIC).convert("RGB")
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert image.tobytes() == twin_image.tobytes()
    assert target == scans.target[validation[5]]
    assert type(target) is int


def test_black_is_0_and_the_sixteenth_level_is_255():
    pixels = np.stack([np.asarray(image) for image, _ in Digits("validation")])
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize(("names", "size"), [(TRAIN_SPLITS, 1437), (EVAL_SPLITS, 360)])
def test_synonyms_name_the_same_split(names, size):
    assert [len(Digits(name)) for name in names] == [size] * len(names)


def test_the_transform_may_be_replaced():
    digits = Digits("validation", transform=lambda image: image.size)
    assert digits[2][0] == (32, 32)
    digits.transform = None
    assert isinstance(digits[2][0], Image.Image)


def test_the_classes_are_the_ten_digits():
    assert Digits("validation").classes == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="splits 'train' and 'validation', got 'tset': use one of train, training"):
        Digits("tset")


def test_a_missing_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # what an import of a missing module meets
    with pytest.raises(UsageError, match=r"not installed: pip install 'timm_mix\[demo\]'"):
        Digits("train")
