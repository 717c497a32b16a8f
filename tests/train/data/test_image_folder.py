"""The user's own images: how they may lie, and what is told of what is wrong with them."""

import numpy as np
import pytest
from PIL import Image
from support.image_files import write_images

from timm_mix.train.data.image_folder import find_unreadable, open_image_folder
from timm_mix.train.data.sources import class_names, open_dataset
from timm_mix.train.errors import UsageError


def tree(root, **splits):
    """One folder of class folders per split."""
    for number, (split, counts) in enumerate(splits.items()):
        write_images(root / split, counts, first=40 * number)
    return root


def names(dataset):
    return [file.name for file in dataset.files]


def levels(dataset):
    return [dataset[i][0].getpixel((0, 0))[0] for i in range(len(dataset))]


@pytest.mark.parametrize(("train", "validation"), [("train", "val"), ("training", "validation"), ("Train", "Valid")])
def test_both_splits_are_read_under_their_usual_names(tmp_path, train, validation):
    one, two, left_out = open_image_folder(
        tree(tmp_path, **{train: {"ant": 2, "bee": 3}, validation: {"ant": 1, "bee": 1}})
    )
    assert (levels(one), one.targets.tolist()) == ([0, 1, 2, 3, 4], [0, 0, 1, 1, 1])
    assert (levels(two), two.targets.tolist()) == ([40, 41], [0, 1])
    assert not left_out


def test_the_test_images_validate_where_there_are_no_others(tmp_path):
    tree(tmp_path, train={"ant": 2, "bee": 3}, test={"ant": 1, "bee": 1})
    assert levels(open_image_folder(tmp_path)[1]) == [40, 41]
    tree(tmp_path, val={"ant": 2, "bee": 2})
    assert len(open_image_folder(tmp_path)[1]) == 4
    assert levels(open_image_folder(tmp_path, val_split="test")[1]) == [40, 41]


def test_classes_are_numbered_as_timm_numbers_them(tmp_path):
    tree(tmp_path, train={"size 10": 1, "size 9": 1, "Alpha": 1}, val={"size 9": 1, "size 10": 1, "Alpha": 1})
    ours = open_image_folder(tmp_path)[0]
    theirs = open_dataset("", tmp_path, "train")
    assert ours.classes == class_names(theirs)
    assert [ours[i][1] for i in range(3)] == [theirs[i][1] for i in range(3)]


def test_a_class_without_validation_images_is_no_mistake(tmp_path):
    tree(tmp_path, train={"ant": 1, "bee": 1}, val={"bee": 1, "ant": 0})
    assert open_image_folder(tmp_path)[1].targets.tolist() == [1]


def test_one_folder_of_classes_is_split_class_by_class(tmp_path):
    write_images(tmp_path, {"ant": 10, "bee": 20, "cow": 2, "dog": 1})
    train, validation, _ = open_image_folder(tmp_path, val_fraction=0.2, seed=3)
    assert np.bincount(validation.targets, minlength=4).tolist() == [2, 4, 1, 0]
    assert np.bincount(train.targets).tolist() == [8, 16, 1, 1]
    assert sorted(levels(train) + levels(validation)) == list(range(33))


def test_the_split_is_drawn_by_the_seed(tmp_path):
    write_images(tmp_path, {"ant": 30, "bee": 30})
    drawn = [levels(open_image_folder(tmp_path, val_fraction=0.3, seed=seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_training_folder_alone_is_split_too(tmp_path):
    tree(tmp_path, train={"ant": 10, "bee": 10})
    train, validation, _ = open_image_folder(tmp_path, val_fraction=0.5)
    assert (len(train), len(validation)) == (10, 10)


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path, {"bus": 4, "train": 4, "val": 4})
    assert open_image_folder(tmp_path, val_fraction=0.5)[0].classes == ["bus", "train", "val"]


def test_odd_endings_are_read_hidden_files_are_not_and_the_rest_is_counted(tmp_path):
    root = tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1, "bee": 1})
    ant = root / "train" / "ant"
    Image.new("RGB", (4, 4), (200,) * 3).save(ant / "1.JPG", "JPEG")
    Image.new("RGB", (4, 4)).save(ant / "2.webp")
    Image.new("P", (4, 4)).save(ant / "3.GIF", "GIF")
    (ant / "._1.jpg").write_bytes(b"a resource fork")
    (ant / ".hidden").mkdir()
    Image.new("RGB", (4, 4)).save(ant / ".hidden" / "4.png")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (ant / "5.heic").write_bytes(b"")
    (ant / "labels.csv").write_text("1,2")
    (ant / "Thumbs.db").write_text("")
    train, _, left_out = open_image_folder(root)
    assert names(train) == ["0.png", "1.JPG", "2.webp", "3.GIF", "0.png"]
    assert train.classes == ["ant", "bee"]
    assert left_out == {".heic": 1, ".csv": 1}
    assert {train[i][0].mode for i in range(len(train))} == {"RGB"}


def test_folders_in_a_class_folder_belong_to_the_class(tmp_path):
    root = tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1, "bee": 1})
    write_images(root / "train" / "ant", {"red": 2, "bee": 1}, first=10)
    train = open_image_folder(root)[0]
    assert train.targets.tolist() == [0, 0, 0, 0, 1]


def test_links_are_followed(tmp_path):
    root = tree(tmp_path / "data", train={"ant": 1}, val={"ant": 1, "bee": 1})
    write_images(tmp_path / "elsewhere", {"bee": 2}, first=7)
    (root / "train" / "bee").symlink_to(tmp_path / "elsewhere" / "bee")
    (root / "train" / "ant" / "one.png").symlink_to(tmp_path / "elsewhere" / "bee" / "0.png")
    train = open_image_folder(root)[0]
    assert names(train) == ["0.png", "one.png", "0.png", "1.png"]


@pytest.mark.parametrize(("link", "target"), [("ant/again", ""), ("bee/same", "ant"), ("cat", "ant")])
def test_a_folder_that_links_lead_to_twice_is_refused(tmp_path, link, target):
    root = tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1, "bee": 1, "cat": 1})
    (root / "train" / link).symlink_to(root / "train" / target)
    with pytest.raises(UsageError, match=r"train/.* are one folder, whose images would count twice: remove a link"):
        open_image_folder(root)


def test_a_validation_folder_that_is_linked_to_the_training_images_is_refused(tmp_path):
    root = tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1})
    (root / "val" / "bee").symlink_to(root / "train" / "bee")
    with pytest.raises(UsageError, match=r"must be different images, both have .*train/bee: split the data"):
        open_image_folder(root)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_the_models(tmp_path, mode):
    root = tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1, "bee": 1})
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (5, 5)).save(root / "train" / "ant" / f"odd.{ending}")
    for wanted in ("RGB", "L"):
        train = open_image_folder(root, mode=wanted)[0]
        assert find_unreadable(train.files) == []
        assert [train[i][0].mode for i in range(3)] == [wanted] * 3


def test_every_unreadable_file_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files = [tmp_path / name for name in ("good.jpg", "cut.jpg", "cut.png", "empty.png", "text.jpg", "gone.png")]
    for file in files[:3]:
        Image.fromarray(noise).save(file)
    for file in files[1:3]:
        file.write_bytes(file.read_bytes()[:-1000])
    files[3].write_bytes(b"")
    files[4].write_text("hello")
    files[5].symlink_to(tmp_path / "nowhere.png")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(deep)
    faults = find_unreadable([*files, deep], threads=2)
    assert [fault.split()[0] for fault in faults] == [str(file) for file in [*files[1:], deep]]
    assert "more than 8 bits per channel" in faults[-1]
    assert all("\n" not in fault for fault in faults)


def test_a_file_that_breaks_later_is_named_too(tmp_path):
    train, _, _ = open_image_folder(tree(tmp_path, train={"ant": 1, "bee": 1}, val={"ant": 1, "bee": 1}))
    train.files[1].write_bytes(b"")
    with pytest.raises(UsageError, match=r"bee/0.png is no image that can be read .*: replace or remove it"):
        train[1]


GOOD = {"train": {"ant": 2, "bee": 2}, "val": {"ant": 1, "bee": 1}}
MISTAKES = {
    "no images": ({"train": {"ant": 0, "bee": 0}, "val": {"ant": 1, "bee": 1}}, {}, "must hold one folder of images"),
    "one class": ({"train": {"ant": 2}, "val": {"ant": 1}}, {}, "at least two classes, it holds 'ant' alone"),
    "a class without training images": (
        {"train": {"ant": 2, "bee": 0, "cow": 1}, "val": {"ant": 1, "bee": 1, "cow": 1}},
        {},
        "every class needs training images, 'bee' in .*train has none: add some or remove the folder",
    ),
    "no validation images": ({"train": {"ant": 2, "bee": 2}, "val": {"ant": 0, "bee": 0}}, {}, "must hold one folder"),
    "a class more": (
        {"train": {"ant": 2, "bee": 2}, "val": {"ant": 1, "bee": 1, "cow": 1}},
        {},
        "must have the same class folders, got 'cow' only in .*val: rename",
    ),
    "classes of other names": (
        {"train": {"ant": 2, "bee": 2}, "val": {"ants": 1, "bee": 1}},
        {},
        "got 'ant' only in .*train and 'ants' only in .*val: rename",
    ),
    "no validation folder": ({"train": {"ant": 2, "bee": 2}}, {}, "no folder of validation images: .*--val-fraction"),
    "no training folder": ({"val": {"ant": 2, "bee": 2}}, {}, "must hold a folder 'train' of class folders"),
    "no folder of that name": (GOOD, {"train_split": "fold1"}, "must hold a folder 'fold1' .* it holds 'train', 'val'"),
    "one split twice": (GOOD, {"val_split": "train"}, "must be different images, both are .*train"),
    "class folders without a fraction": (
        {"": {"ant": 2, "bee": 2}},
        {},
        "no train/ and val/ of class folders: .*--val-fraction",
    ),
    "a fraction of no use": (GOOD, {"val_fraction": 0.2}, "val holds the validation images, got --val-fraction 0.2"),
    "a fraction of all": (GOOD, {"val_fraction": 1.0}, "val_fraction must lie between 0 and 1, got 1.0"),
    "unsorted images": ({"": {"train": 2, "val": 2}}, {}, "'train', 'val' in .* must hold one folder of images per"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, name):
    splits, settings, line = MISTAKES[name]
    tree(tmp_path, **splits)
    with pytest.raises(UsageError, match=line) as caught:
        open_image_folder(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_images_outside_class_folders_are_told(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"one folder of images per class .*, it holds the images themselves"):
        open_image_folder(tmp_path, val_fraction=0.2)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"--data-dir wants a folder of images, .*nowhere is not there"):
        open_image_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--data-dir wants a folder of images, .*file is a file"):
        open_image_folder(tmp_path / "file")


def test_a_class_of_unknown_files_tells_what_they_are(tmp_path):
    tree(tmp_path, train={"ant": 1, "bee": 0}, val={"ant": 1, "bee": 1})
    (tmp_path / "train" / "bee" / "1.HEIC").write_bytes(b"")
    with pytest.raises(UsageError, match=r"'bee' in .* has none \(only '.heic' files\)"):
        open_image_folder(tmp_path)
