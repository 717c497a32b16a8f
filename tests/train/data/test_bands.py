"""Images of any number of channels: what becomes of every kind of file, and what is refused."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from timm_mix.train.data.bands import read_bands, to_bands
from timm_mix.train.data.reading import decode, find_fault

H, W = 5, 7


def pixels(channels, dtype=np.uint8):
    count = H * W * channels
    return (np.arange(count) * (np.iinfo(dtype).max // count)).astype(dtype).reshape(H, W, channels)


def write_tiff(path, array, colour=False):
    """An uncompressed TIFF of [H, W, C] with all bands of a pixel side by side, as Pillow does not write it."""
    height, width, channels = array.shape
    beside = channels - (3 if colour else 1)  # what stands beside the colours, or grey
    bits, data = array.dtype.itemsize * 8, array.tobytes()
    tags, extra, after = [], b"", 8 + 2 + 10 * 12 + 4
    for tag, kind, values in (
        *(
            (256, 3, [width]),
            (257, 3, [height]),
            (258, 3, [bits] * channels),
            (259, 3, [1]),
            (262, 3, [2 if colour else 1]),
        ),
        *((273, 4, [None]), (277, 3, [channels]), (278, 3, [height]), (279, 4, [len(data)])),
        (338, 3, [2 if colour else 0] * beside),
    ):
        form = {3: "H", 4: "I"}[kind]
        if values == [None]:
            values = [after + sum(2 * count for count in (channels, beside) if count > 2)]
        packed = struct.pack(f"<{len(values)}{form}", *values)
        if len(packed) > 4:
            place, extra = struct.pack("<I", after + len(extra)), extra + packed
        else:
            place = packed.ljust(4, b"\0")
        tags.append(struct.pack("<HHI", tag, kind, len(values)) + place)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + b"".join(tags) + b"\0\0\0\0"
    path.write_bytes(head + extra + data)


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (">u2", 65535)])
@pytest.mark.parametrize("first", [False, True])
def test_whole_numbers_become_shares_of_the_largest(dtype, largest, first, tmp_path):
    array = pixels(4, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    np.save(tmp_path / "a.npy", array.transpose(2, 0, 1) if first else array)
    wanted = torch.from_numpy(array.astype(np.float32).transpose(2, 0, 1)) / largest
    assert torch.equal(read_bands(tmp_path / "a.npy", 4), wanted)


def test_floating_point_numbers_stay_as_they_are(tmp_path):
    array = np.random.default_rng(0).normal(size=(H, W, 13))
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(read_bands(tmp_path / "a.npy", 13), torch.from_numpy(array.transpose(2, 0, 1)).float())


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4), ("CMYK", 4)])
def test_a_tiff_that_pillow_reads_whole(mode, channels, tmp_path):
    Image.frombytes(mode, (W, H), pixels(channels).tobytes()).save(tmp_path / "a.tif")
    assert torch.equal(read_bands(tmp_path / "a.tif", channels), to_bands(pixels(channels), channels))


def test_a_tiff_with_a_page_for_each_band(tmp_path):
    pages = [Image.fromarray(pixels(13, np.uint16)[..., i]) for i in range(13)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert torch.equal(read_bands(tmp_path / "a.tif", 13), to_bands(pixels(13, np.uint16), 13))


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_a_tiff_of_more_bands_is_read_by_tifffile_where_that_is(channels, tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", pixels(channels, np.uint16))
    monkeypatch.setitem(sys.modules, "tifffile", SimpleNamespace(imread=lambda path: pixels(channels, np.uint16)))
    assert torch.equal(read_bands(tmp_path / "a.tif", channels), to_bands(pixels(channels, np.uint16), channels))
    monkeypatch.setitem(sys.modules, "tifffile", None)  # not installed
    with pytest.raises(
        ValueError, match=rf"does not read {channels} bands of it: pip install tifffile, or save .* .npy"
    ):
        read_bands(tmp_path / "a.tif", channels)


def test_sixteen_bits_of_a_colour_are_not_read_as_eight(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", pixels(4, np.uint16), colour=True)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "RGBA"  # of 8 bits
    monkeypatch.setitem(sys.modules, "tifffile", SimpleNamespace(imread=lambda path: pixels(4, np.uint16)))
    assert torch.equal(read_bands(tmp_path / "a.tif", 4), to_bands(pixels(4, np.uint16), 4))


REFUSED = {
    "another number": (np.zeros((H, W, 3), np.uint8), "the shape 5 x 7 x 3, the network takes 4 channels"),
    "a batch": (np.zeros((2, H, W, 4), np.uint8), "the shape 2 x 5 x 7 x 4"),
    "signs": (np.zeros((H, W, 4), np.int16), "it holds int16, wanted uint8, uint16 or floating point numbers"),
    "no numbers": (np.full((H, W, 4), np.nan), "values that are no numbers"),
    "words": (np.full((H, W, 4), "a"), "it holds <U1"),
}


@pytest.mark.parametrize(("array", "line"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_are_no_bands(array, line, tmp_path):
    np.save(tmp_path / "a.npy", array)
    assert line in find_fault(tmp_path / "a.npy", 4)


def test_an_array_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    for mode in (4, "RGB"):
        assert "is no image that can be read" in find_fault(tmp_path / "a.npy", mode)


@pytest.mark.parametrize("shape", [(H, W), (H, W, 1), (1, H, W), (H, W, 3), (3, H, W)])
def test_arrays_of_pictures_are_pictures(shape, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    assert find_fault(tmp_path / "a.npy") is None
    for mode in ("L", "RGB"):
        picture = decode(Path(tmp_path / "a.npy"), mode)
        assert (picture.mode, picture.size) == (mode, (W, H))
    with (tmp_path / "a.npy").open("rb") as stream:  # as timm's readers hand them on
        assert decode(stream, "RGB").size == (W, H)
