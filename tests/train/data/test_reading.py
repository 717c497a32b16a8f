"""Images are read where they stand, or named: no other image takes the place of one that cannot be read."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import write_images, write_tar
from torchvision.transforms import v2

from timm_mix.train.data.loaders import create_eval_loader, create_train_loader, start_epoch
from timm_mix.train.data.reading import ENDINGS, FaultyBatch, Unreadable, collate, decode, read
from timm_mix.train.data.sources import open_dataset
from timm_mix.train.errors import UsageError

PIXELS = v2.Compose([v2.Resize((4, 4)), v2.PILToTensor()])


@pytest.fixture
def torn(tmp_path):
    """root/train with 2 + 3 images of grey 0.. 4; that of grey 2 is torn."""
    root = write_images(tmp_path / "root" / "train", {"ant": 2, "bee": 3})
    (root / "bee" / "0.png").write_bytes((root / "bee" / "0.png").read_bytes()[:40])
    return root.parent


@pytest.mark.parametrize("name", ["", "torch/image_folder"])
def test_the_images_beside_an_unreadable_one_keep_their_places(name, torn):
    dataset = open_dataset(name, torn, "train")
    assert [dataset[i][0].getpixel((0, 0))[0] for i in (0, 1, 3, 4)] == [0, 1, 3, 4]
    with pytest.raises(UsageError, match=r"bee/0\.png is no image that can be read \(.*\): replace or remove it$"):
        dataset[2]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves a tar open
def test_an_unreadable_image_in_a_tar_is_named(torn, tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(torn / "train", "")
    dataset = open_dataset("", tmp_path / "some.tar", "train")
    assert dataset[1][0].getpixel((0, 0))[0] == 1
    with pytest.raises(UsageError, match=r"bee/0\.png is no image that can be read"):
        dataset[2]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves a tar open
def test_a_loop_over_a_data_set_ends(tmp_path):
    assert len(list(open_dataset("", write_tar(tmp_path / "x.tar", {"ant": 2, "bee": 1}), "train"))) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_with_an_unreadable_image_says_so_and_is_black_there(workers, torn):
    dataset = open_dataset("", torn, "train")
    dataset.transform = PIXELS
    train = create_train_loader(dataset, batch_size=5, workers=workers)
    start_epoch(train, 0, 0)
    for loader in (train, create_eval_loader(dataset, batch_size=5, workers=workers)):
        (batch,) = list(loader)
        assert isinstance(batch, FaultyBatch)
        assert "bee/0.png is no image that can be read" in batch.fault
        assert batch.images.shape == (5, 3, 4, 4)
        assert sorted(batch.images[:, 0, 0, 0].tolist()) == [0, 0, 1, 3, 4]


def test_a_batch_of_readable_images_is_torchs_own(tmp_path):
    items = [(torch.full((2,), i), i) for i in range(3)]
    images, target = collate(items)
    assert torch.equal(images, torch.tensor([[0, 0], [1, 1], [2, 2]]))
    assert target.tolist() == [0, 1, 2]


def test_an_error_of_a_transform_is_no_fault_of_the_image(tmp_path):
    dataset = open_dataset("", write_images(tmp_path, {"ant": 1, "bee": 1}), "train")
    dataset.transform = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        read(dataset, 0)


def test_what_is_unreadable_comes_with_an_item_of_the_right_shape(torn):
    dataset = open_dataset("", torn, "train", input_img_mode="L")
    dataset.transform = PIXELS
    found = read(dataset, 2)
    assert isinstance(found, Unreadable)
    assert (found.stand_in[0].shape, found.stand_in[1]) == ((1, 4, 4), 0)


@pytest.mark.parametrize("depth", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_refused_where_pillow_would_clip_them(depth, tmp_path):
    Image.fromarray(np.full((4, 4), 40000, depth)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="more than 8 bits per channel, PIL mode "):
        decode(tmp_path / "deep.tif", "RGB")


def test_a_palette_with_transparency_keeps_its_colours_and_pillow_its_warning(tmp_path):
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    colours.convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "p.png") as image:
        wanted = np.asarray(image.convert("RGBA"))[..., :3]
    assert np.array_equal(np.asarray(decode(tmp_path / "p.png", "RGB")), wanted)


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != ".avif"])  # not every Pillow writes it
def test_training_and_evaluation_find_images_of_every_format(ending, tmp_path):
    write_images(tmp_path / "train", {"ant": 1, "bee": 1})
    image = Image.new("L", (4, 4), 200).convert("1" if ending == ".pbm" else "L")
    np.save(tmp_path / "x.npy", np.asarray(image)) if ending == ".npy" else image.save(tmp_path / f"x{ending}")
    shutil.move(tmp_path / f"x{ending}", tmp_path / "train" / "ant" / f"x{ending.upper()}")
    dataset = open_dataset("", tmp_path, "train")
    assert len(dataset) == 3
    assert {dataset[i][0].mode for i in range(3)} == {"RGB"}
