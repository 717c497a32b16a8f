"""Datasets from real files: what is read, under which label, and one line for every mistake."""

import shutil

import numpy as np
import pytest
import torch
from support.image_files import write_images, write_tar

from timm_mix.train.data.sources import check_splits, class_names, is_stream, open_dataset
from timm_mix.train.errors import UsageError

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def levels(dataset):
    """The grey level and the label of every sample."""
    return [(np.asarray(image)[0, 0, 0].item(), int(target)) for image, target in dataset]


@pytest.fixture
def tree(tmp_path):
    """root/train with 2 + 3 images of grey 0.., root/val with 1 + 1 of grey 100.."""
    write_images(tmp_path / "train", {"ant": 2, "bee": 3})
    write_images(tmp_path / "val", {"ant": 1, "bee": 1}, first=100)
    return tmp_path


class TestOpenDataset:
    def test_a_folder_is_read_with_its_labels(self, tree):
        dataset = open_dataset("", tree, "train")
        assert levels(dataset) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]
        assert dataset.transform is None

    @pytest.mark.parametrize("name", ["", "folder", "ImageFolder", "torch/image_folder"])
    @pytest.mark.parametrize("split", ["val", "validation", "eval"])
    def test_a_synonym_finds_the_folder_of_the_split(self, tree, name, split):
        assert levels(open_dataset(name, str(tree), split)) == [(100, 0), (101, 1)]

    def test_the_exact_name_wins_over_a_synonym(self, tree):
        write_images(tree / "validation", {"ant": 1}, first=50)
        assert levels(open_dataset("", tree, "validation")) == [(50, 0)]

    def test_a_root_without_splits_is_the_split(self, tree):
        assert len(open_dataset("", tree / "train", "validation")) == 5

    def test_a_class_called_train_is_no_split(self, tmp_path):
        write_images(tmp_path, {"apple": 2, "train": 3})
        assert class_names(open_dataset("", tmp_path, "validation")) == ["apple", "train"]

    def test_a_tar_is_read_with_its_labels(self, tmp_path):
        dataset = open_dataset("tar", write_tar(tmp_path / "some.tar", {"ant": 2, "bee": 3}), "train")
        assert levels(dataset) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]

    def test_a_tar_may_be_named_as_the_split(self, tmp_path):
        write_tar(tmp_path / "train.tar", {"ant": 2, "bee": 3})
        assert len(open_dataset("", tmp_path, "train.tar")) == 5

    def test_a_class_map_numbers_the_classes(self, tree):
        dataset = open_dataset("", tree, "train", class_map={"bee": 0, "ant": 1})
        assert [label for _, label in levels(dataset)] == [1, 1, 0, 0, 0]

    def test_the_image_mode_is_handed_on(self, tree):
        assert open_dataset("", tree, "train", input_img_mode="L")[0][0].mode == "L"

    def test_digits_need_no_root(self):
        assert len(open_dataset("digits", None, "validation")) == 360

    @pytest.mark.parametrize(
        ("name", "root", "split", "line"),
        [
            ("", None, "train", "dataset '' needs a data folder, got none: pass the folder"),
            ("", "{root}/nowhere", "train", "nowhere does not exist: correct the path"),
            ("", "{root}/val/ant/0.png", "train", r"a folder or a .tar file, got the file .*0.png"),
            ("", "{root}", "test", r"must hold the split 'test', it holds train, val: name one of these"),
            ("", "{root}", "tarin", r"must hold the split 'tarin', it holds train, val: name one of these"),
            ("", "{root}/train", "tarin", "split 'tarin', it has no splits: use one of train, training, val"),
            ("", "{root}/empty", "train", "cannot be opened: Found 0 images .*; pass a folder with one subfolder"),
            ("", "{root}/val/ant", "val", "must hold one folder per class, it holds the images themselves"),
            ("", "{root}/broken.tar", "val", "cannot be opened: .*; pass a folder .* or a .tar file"),
            ("", "{root}/none.tar", "val", "cannot be opened: it holds no image of a known class; pass a folder"),
            (
                "torch/image_folder",
                "{root}/empty",
                "train",
                "cannot be opened: Found no valid file for the classes ant",
            ),
            ("torch/cifar11", "{root}", "train", "Unknown torchvision dataset cifar11; the names are torch/ and"),
            ("torch/cifar10", "{root}", "train", "cannot be opened: Dataset not found.*; .*allow the download"),
            ("torch/cifar10", "{root}", "tarin", "'torch/cifar10' has no split 'tarin': use one of train, training"),
            ("torch/cifar10", None, "train", "'torch/cifar10' needs a data folder, got none"),
            ("torch/imagenet", "{root}", "tarin", "cannot be opened: .*tarin.*"),
            ("digits", None, "tarin", "splits 'train' and 'validation', got 'tarin'"),
            ("digit", None, "train", "a dataset is named digits, folder, torch/NAME, .* got 'digit': correct the name"),
            ("hdfs/x", None, "train", "a dataset is named .* got 'hdfs/x': correct the name"),
        ],
    )
    def test_a_mistake_is_one_line(self, tree, name, root, split, line):
        (tree / "empty" / "ant").mkdir(parents=True)
        (tree / "broken.tar").write_bytes(b"this is no tar file" * 99)
        write_tar(tree / "none.tar", {})
        with pytest.raises(UsageError, match=line) as caught:
            open_dataset(name, root and root.format(root=tree), split)
        assert "\n" not in str(caught.value)

    def test_a_root_of_unsorted_splits_is_not_taken_for_classes(self, tmp_path):
        write_images(tmp_path, {"train": 3, "val": 2})
        with pytest.raises(UsageError, match="must hold the split 'test', it holds train, val"):
            open_dataset("", tmp_path, "test")

    @pytest.mark.parametrize(
        ("name", "package"),
        [("hfds/x", "datasets"), ("hfids/x", "datasets"), ("wds/x", "webdataset"), ("tfds/x", "tensorflow-datasets")],
    )
    def test_a_missing_package_says_how_to_install_it(self, name, package, monkeypatch, tmp_path):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=f"not installed: pip install {package}"):
            open_dataset(name, tmp_path, "train")

    def test_a_class_map_is_refused_where_timm_would_ignore_it(self, tree):
        for name in ("digits", "torch/cifar10", "torch/image_folder"):
            with pytest.raises(UsageError, match=r"class_map is for folders, tars, .* drop it"):
                open_dataset(name, tree, "train", class_map={"ant": 0})

    def test_a_class_without_training_images_is_refused_and_one_without_validation_images_is_not(self, tree):
        (tree / "train" / "cat").mkdir()
        (tree / "val" / "cat").mkdir()
        with pytest.raises(UsageError, match=r"every class needs training images, 'cat' in .*train has none: add"):
            open_dataset("", tree, "train", is_training=True)
        assert len(open_dataset("", tree, "val")) == 2

    @pytest.mark.parametrize(("link", "target"), [("ant/again", ""), ("cat", "ant")])
    def test_a_folder_that_links_lead_to_twice_is_refused(self, tree, link, target):
        (tree / "train" / link).symlink_to(tree / "train" / target)
        with pytest.raises(UsageError, match=r"train/.* are one folder, whose images would count twice: remove a"):
            open_dataset("", tree, "train")

    def test_a_hidden_folder_of_images_is_no_class(self, tree):
        shutil.copytree(tree / "val" / "ant", tree / "val" / ".ipynb_checkpoints")
        with pytest.raises(UsageError, match=r"must not be hidden, .*val has images in a folder '\.ipynb_checkpoints'"):
            open_dataset("", tree, "val")

    def test_a_missing_class_map_is_one_line(self, tree):
        with pytest.raises(UsageError, match=r"Cannot locate specified class map file \(no.txt\)"):
            open_dataset("", tree, "train", class_map="no.txt")


@pytest.mark.parametrize(("name", "stream"), [("wds/x", True), ("HFIDS/x", True), ("hfds/x", False), ("", False)])
def test_streams_are_known_by_their_names(name, stream):
    assert is_stream(name) == stream


class TestClassNames:
    def test_folders_tars_torchvision_and_digits_name_their_classes(self, tree):
        tar = write_tar(tree / "x.tar", {"bee": 1, "ant": 1})
        assert class_names(open_dataset("", tree, "train")) == ["ant", "bee"]
        assert class_names(open_dataset("", tar, "train")) == ["ant", "bee"]
        assert class_names(open_dataset("torch/folder", tree, "train")) == ["ant", "bee"]
        assert class_names(open_dataset("digits", None, "val"))[3] == "3"

    def test_they_stand_in_the_order_of_a_class_map(self, tree):
        assert class_names(open_dataset("", tree, "train", class_map={"bee": 0, "ant": 1})) == ["bee", "ant"]

    @pytest.mark.parametrize("class_map", [{"ant": 0, "bee": 0}, {"ant": 0, "bee": 2}])
    def test_there_are_none_unless_each_index_has_one(self, tree, class_map):
        assert class_names(open_dataset("", tree, "train", class_map=class_map)) is None

    def test_several_words_for_a_class_become_one_name(self):
        dataset = torch.utils.data.TensorDataset(torch.zeros(2))
        dataset.classes = [("tench", "Tinca tinca"), "goldfish"]  # what torchvision's ImageNet has
        assert class_names(dataset) == ["tench, Tinca tinca", "goldfish"]

    def test_a_dataset_without_classes_has_none(self):
        assert class_names(torch.utils.data.TensorDataset(torch.zeros(2))) is None


class TestCheckSplits:
    def test_two_splits_with_the_same_classes_pass(self, tree):
        check_splits(open_dataset("", tree, "train"), open_dataset("", tree, "val"))
        check_splits(open_dataset("digits", None, "train"), open_dataset("digits", None, "val"))

    def test_a_class_that_one_split_lacks_is_named(self, tree):
        shutil.rmtree(tree / "val" / "ant")
        with pytest.raises(UsageError, match="same classes, 2 and 1 were found, they differ in 'ant': add"):
            check_splits(open_dataset("", tree, "train"), open_dataset("", tree, "val"))

    def test_a_validation_folder_that_is_linked_to_the_training_images_is_refused(self, tree):
        shutil.rmtree(tree / "val" / "bee")
        (tree / "val" / "bee").symlink_to(tree / "train" / "bee")
        with pytest.raises(UsageError, match=r"must be different images, both have .*train/bee: split the data"):
            check_splits(open_dataset("", tree, "train"), open_dataset("", tree, "val"))

    def test_training_on_the_validation_images_is_refused(self, tree):
        both = [open_dataset("", tree / "train", split) for split in ("train", "val")]
        with pytest.raises(UsageError, match=r"must be different images, both have .*train/ant: split the data"):
            check_splits(*both)
