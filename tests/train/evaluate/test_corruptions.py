"""Corruptions: one image at a time, harder with the severity, the same whatever is around the image."""

import numpy as np
import pytest
from PIL import Image

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.corruptions import (
    FAMILIES,
    SEVERITIES,
    Corruption,
    NpyCorruption,
    _disk,
    _line,
    corrupt,
    families_in,
    family_names,
)

SIZES = {"small": (31, 37), "large": (101, 113)}
NEUTRAL = {"saturate"}  # of a grey image


def _photo(size, channels=3):
    """Smooth coloured structure with edges, neither black nor white."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    waves = [np.sin(x / 5 + k) * np.cos(y / 7 - k) + 0.5 * ((x + 3 * k) % 16 < 8) for k in range(channels)]
    image = np.stack(waves, -1)
    image = (image - image.min()) / (image.max() - image.min())
    return (40 + 170 * image).astype(np.uint8)


def _corrupt(image, name, severity, seed=0):
    return corrupt(image, name, severity, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_severity_moves_an_image_further_away(name, size):
    image = _photo(size)
    kept = image.copy()
    distances = []
    for severity in SEVERITIES:
        corrupted = _corrupt(image, name, severity)
        assert corrupted.shape == image.shape
        assert corrupted.dtype == np.uint8
        distances.append(np.abs(corrupted.astype(float) - image).mean())
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert np.array_equal(image, kept)


@pytest.mark.parametrize("name", FAMILIES)
def test_grey_images_stay_grey(name):
    image = _photo(SIZES["small"], channels=1)
    corrupted = _corrupt(image, name, 5)
    assert corrupted.shape == image.shape
    assert np.array_equal(corrupted, image) == (name in NEUTRAL)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_is_corrupted_alike_whatever_came_before_it(name):
    image = _photo(SIZES["small"])
    alone = Corruption(name, 3, seed=5)(image, 11)
    after_others = Corruption(name, 3, seed=5)
    for index in range(3):
        after_others(image, index)
    assert np.array_equal(after_others(image, 11), alone)


@pytest.mark.parametrize("change", [{"index": 12}, {"seed": 6}, {"severity": 4}])
def test_index_seed_and_severity_have_noise_of_their_own(change):
    image = np.full((9, 9, 3), 127, np.uint8)
    given = {"severity": 3, "seed": 5, "index": 11}

    def noise(severity, seed, index):
        return Corruption("impulse_noise", severity, seed)(image, index) != 127

    assert not np.array_equal(noise(**given), noise(**{**given, **change}))


def test_noise_has_the_strength_of_its_level():
    image = np.full((64, 64, 3), 127, np.uint8)
    for level, severity in zip(FAMILIES["gaussian_noise"].small, SEVERITIES, strict=True):
        assert _corrupt(image, "gaussian_noise", severity).std() / 255 == pytest.approx(level, rel=0.03)
    for level, severity in zip(FAMILIES["impulse_noise"].small, SEVERITIES, strict=True):
        corrupted = _corrupt(image, "impulse_noise", severity)
        assert (corrupted == 0).mean() == pytest.approx(level / 2, abs=0.005)
        assert (corrupted == 255).mean() == pytest.approx(level / 2, abs=0.005)
    photons = FAMILIES["shot_noise"].small[4]
    assert _corrupt(image, "shot_noise", 5).std() / 255 == pytest.approx((127 / 255 / photons) ** 0.5, rel=0.03)


def test_blur_keeps_a_flat_image_and_spreads_a_dot():
    flat, dot = np.full((33, 33, 3), 90, np.uint8), np.zeros((33, 33, 3), np.uint8)
    dot[16, 16] = 255
    for name in ("gaussian_blur", "defocus_blur", "motion_blur"):
        assert np.array_equal(_corrupt(flat, name, 5), flat)
        spread = _corrupt(dot, name, 5)
        assert 0 < spread[16, 16, 0] < 255
        assert (spread[..., 0] > 0).sum() > 1


def test_kernels_have_the_area_of_their_shape():
    disk, line = _disk(2.0), _line(7.0, 0.0)
    assert disk.sum() == pytest.approx(1)
    assert 1 / disk.max() == pytest.approx(np.pi * 4, rel=0.01)  # the centre is fully inside
    assert np.array_equal(disk, disk.T)
    assert line.shape == (9, 9)
    assert line[4, 1:8].tolist() == pytest.approx([1 / 7] * 7)
    assert line.sum() == pytest.approx(1)


def test_colour_families_do_what_their_level_says():
    image = _photo((16, 16))
    low = image.copy()
    low[...] = (40, 80, 20)  # the value, 80, may rise by 0.2 without being clipped
    brighter = _corrupt(low, "brightness", 4)[0, 0] / 255
    assert brighter[1] == pytest.approx(80 / 255 + 0.2, abs=0.005)
    assert brighter / brighter[1] == pytest.approx(np.array([0.5, 1, 0.25]), abs=0.01)
    assert _corrupt(image, "contrast", 5).std((0, 1)) == pytest.approx(0.15 * image.std((0, 1)), rel=0.05)
    grey = _corrupt(image, "saturate", 5)
    assert np.array_equal(grey, np.repeat(image.max(-1, keepdims=True), 3, axis=-1))


def test_pixelate_makes_blocks():
    image = _photo((32, 32))
    blocks = _corrupt(image, "pixelate", 5)  # half the side
    assert np.array_equal(blocks[::2, ::2], blocks[1::2, 1::2])
    assert blocks[0, 0, 0] == pytest.approx(image[:2, :2, 0].mean(), abs=1)


def test_names_are_sorted_and_all_is_all():
    assert family_names(["jpeg", "contrast"]) == ["contrast", "jpeg"]
    assert family_names(["all"]) == list(FAMILIES)


MISTAKES = {
    "name": (lambda image: _corrupt(image, "snow", 1), "a corruption is one of all, gaussian_noise, .* got 'snow'"),
    "severity": (lambda image: _corrupt(image, "jpeg", 6), "severity must be one of 1, 2, 3, 4, 5, got 6"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_unknown_family_and_severity_are_one_line(name):
    call, line = MISTAKES[name]
    with pytest.raises(UsageError, match=line):
        call(_photo((8, 8)))


@pytest.fixture
def ready(tmp_path):
    """Three images of 5 x 4 pixels at five severities; the grey level tells severity and index."""
    images = np.arange(15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 5, 4, 3), np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile([7, 8, 9], 5))
    return tmp_path


@pytest.mark.parametrize("tiled", [True, False])
def test_a_ready_set_is_read_severity_by_severity(ready, tiled):
    if not tiled:
        np.save(ready / "labels.npy", np.array([7, 8, 9]))
    assert families_in(ready) == ["fog"]
    for severity in SEVERITIES:
        part = NpyCorruption(ready, "fog", severity)
        assert len(part) == 3
        read = [part[index] for index in range(3)]
        assert [np.unique(np.asarray(image)).tolist() for image, _ in read] == [
            [3 * (severity - 1) + index] for index in range(3)
        ]
        assert [label for _, label in read] == [7, 8, 9]
        assert read[0][0].size == (4, 5)


def test_a_grey_ready_set_gives_grey_images(ready):
    np.save(ready / "fog.npy", np.zeros((15, 5, 4, 1), np.uint8))
    image = NpyCorruption(ready, "fog", 1)[0][0]
    assert isinstance(image, Image.Image)
    assert image.mode == "L"


BROKEN = {
    "kind": ({"fog": np.zeros((15, 5, 4, 3))}, r"fog.npy must be uint8 \[5 n, H, W, C\], got float64 \[15, 5, 4, 3\]"),
    "channels": ({"fog": np.zeros((15, 3, 5, 4), np.uint8)}, r"fog.npy must be uint8 .*, got uint8 \[15, 3, 5, 4\]"),
    "length": ({"fog": np.zeros((14, 5, 4, 3), np.uint8)}, "five severities of equal size, got 14 images"),
    "labels": ({"labels": np.zeros(4, np.int64)}, r"labels.npy must hold 3 or 15 whole numbers .*, got int64 \[4\]"),
    "real labels": ({"labels": np.zeros(15)}, r"labels.npy must hold 3 or 15 whole numbers .*, got float64 \[15\]"),
    "a pickle": ({"fog": np.array([{}], dtype=object)}, "cannot read .*fog.npy: .*; it must be a plain .npy file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_ready_set_is_one_line(name, ready):
    for file, array in BROKEN[name][0].items():
        np.save(ready / f"{file}.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=BROKEN[name][1]):
        NpyCorruption(ready, "fog", 1)


def test_a_torn_ready_set_is_one_line(ready):
    (ready / "fog.npy").write_bytes((ready / "fog.npy").read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cannot read .*fog\.npy"):
        NpyCorruption(ready, "fog", 1)


def test_a_folder_without_a_ready_set_is_one_line(ready, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, found in (("nowhere", "no folder"), ("empty", "it holds no .npy file")):
        with pytest.raises(UsageError, match=f"--corruptions-dir wants a folder with labels.npy .*{folder}: {found}"):
            families_in(tmp_path / folder)
    (ready / "labels.npy").unlink()
    with pytest.raises(UsageError, match="it holds fog"):
        families_in(ready)
