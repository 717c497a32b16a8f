"""Labels in a table: every way to write one, what is drawn from it, and what is told of a mistake in it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from timm_mix.train.data.digest import digest_of
from timm_mix.train.data.label_table import open_label_table, open_labelled, read_label_table
from timm_mix.train.data.labels import balanced_weights, count_labels
from timm_mix.train.data.loaders import create_eval_loader
from timm_mix.train.errors import UsageError

LISTED = "file,labels,split\n0.png,sea;sand,train\n1.png,,train\n2.png,dog; sea,val\n3.png,sand,test\n"
SWITCHED = "file,sand,dog,sea,split\n0.png,1,0,1,train\n1.png,0,0,0,train\n2.png,0,1,1,val\n3.png,1,0,0,test\n"


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def write(folder, text):
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_listed_labels_are_rows_of_zeros_and_ones(folder):
    table = read_label_table(write(folder, LISTED), folder)
    assert table.classes == ["dog", "sand", "sea"]
    assert table.targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert table.targets.dtype == np.float32


def test_a_column_per_class_keeps_the_order_of_the_columns(folder):
    listed = read_label_table(write(folder, LISTED), folder)
    switched = read_label_table(write(folder, SWITCHED), folder)
    assert switched.classes == ["sand", "dog", "sea"]
    order = [switched.classes.index(name) for name in listed.classes]
    assert np.array_equal(switched.targets[:, order], listed.targets)


def test_one_label_per_image_is_a_class_index_as_in_folders(folder):
    table = read_label_table(write(folder, "file_name,caption,label\n0.png,a,c10\n1.png,b,c9\n"), folder)
    assert (table.classes, table.targets.tolist(), table.targets.dtype) == (["c9", "c10"], [1, 0], np.int64)


def test_the_byte_order_mark_and_blank_lines_of_spreadsheets_are_no_matter(folder):
    table = read_label_table(write(folder, "\ufefffile,label\n\n0.png,sea\n\n1.png,sand\n"), folder)
    assert table.classes == ["sand", "sea"]


@pytest.mark.parametrize(
    ("split", "rows"), [("train", [0, 1]), ("training", [0, 1]), ("validation", [2]), ("test", [3])]
)
def test_splits_are_found_by_any_of_their_names(folder, split, rows):
    images = open_label_table(write(folder, LISTED), folder, split)
    assert [file.name for file in images.files] == [f"{i}.png" for i in rows]


def test_a_table_without_splits_is_the_split_of_an_evaluation(folder):
    assert len(open_label_table(write(folder, "file,label\n0.png,sea\n1.png,sand\n"), folder, "validation")) == 2


def test_a_share_is_held_back_of_every_class_and_none_loses_its_last_image(folder):
    lines = "".join(f"{i}.png,{'sea' if i < 8 else 'dog'}{';rare' if i == 3 else ''}\n" for i in range(12))
    for seed in range(5):
        train, held = open_labelled(write(folder, f"file,labels\n{lines}"), folder, val_fraction=0.25, seed=seed)
        assert len(train) + len(held) == 12
        assert not set(train.files) & set(held.files)
        assert train.targets.sum(0).min() >= 1
        assert held.targets[:, 0].sum() == 1  # a quarter of the 4 dogs
    again = open_labelled(folder / "labels.csv", folder, val_fraction=0.25, seed=4)[1]
    assert again.files == held.files


def test_batches_and_what_stands_for_an_unreadable_image(folder):
    (folder / "1.png").write_text("half an image")
    images = open_label_table(write(folder, LISTED), folder, "train")
    images.transform = lambda image: torch.zeros(3, 4, 4)
    batch = next(iter(create_eval_loader(images, batch_size=2)))
    assert "1.png is no image" in batch.fault
    assert batch.target.tolist() == [[0, 1, 1], [0, 0, 0]]
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    _, target = next(iter(DataLoader(images, batch_size=2)))
    assert (target.dtype, target.shape) == (torch.float32, (2, 3))


def test_counts_and_digest_follow_the_labels(folder):
    images = open_label_table(write(folder, LISTED), folder, "train")
    assert count_labels(images, 3, "a test").tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match=r"--balanced-sampling is for one label per image"):
        balanced_weights(images, 3)
    other = open_label_table(write(folder, LISTED.replace("1.png,,", "1.png,dog,")), folder, "train")
    assert digest_of(other) != digest_of(images)


MISTAKES = {
    "its first line is empty": "",
    "a column file and one of": "image,label\n0.png,a\n",
    "its first line is 'file;label'": "file;label\n0.png;a\n",
    "it has file twice": "file,file,label\n0.png,0.png,a\n",
    "it has labels and label": "file,labels,label\n0.png,a,a\n",
    "names no image": "file,label\n",
    "line 3, must have 2 cells, it has 1": "file,label\n0.png,a\n1.png\n",
    "line 2: 'lost.png' is no file in": "file,label\nlost.png,a\n",
    "line 2: '' is no file in": "file,label\n,a\n",
    "in lines 2 and 3: keep one": "file,label\n0.png,a\n0.png,b\n",
    "line 3: the label is missing": "file,label\n0.png,a\n1.png,\n",
    "names a class twice": "file,labels\n0.png,a;b\n1.png,b;b\n",
    "a must be 0 or 1, got '2'": "file,a,b\n0.png,2,0\n",
    "at least two classes, it names a": "file,label\n0.png,a\n1.png,a\n",
    "separated by commas: ": 'file,label\n0.png,"a"b\n',
    "has no column split: add one": "file,label\n0.png,a\n1.png,b\n",
    "must have the split 'validation', it has 'train'": "file,label,split\n0.png,a,train\n1.png,b,train\n",
    "every class needs training images, 'b'": "file,label,split\n0.png,a,train\n1.png,b,val\n",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_in_the_table_is_one_line(folder, line):
    with pytest.raises(UsageError) as error:
        open_labelled(write(folder, MISTAKES[line]), folder)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_in_how_it_is_opened_is_one_line(folder):
    path = write(folder, LISTED)
    for line, call in {
        "has a column split, got --val-fraction": lambda: open_labelled(path, folder, val_fraction=0.2),
        "--labels-csv wants a file": lambda: open_labelled(folder / "other.csv", folder),
        "--data-dir is missing": lambda: open_labelled(path, None),
        "--data-dir wants a folder": lambda: open_labelled(path, folder / "lost"),
    }.items():
        with pytest.raises(UsageError, match=line):
            call()
    path.write_bytes(b"file,label\n\xff\xfe,a\n")
    with pytest.raises(UsageError, match="cannot read the table"):
        read_label_table(path, folder)
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        open_labelled(write(folder, "file,label\n0.png,a\n1.png,b\n"), folder, val_fraction=1.5)
