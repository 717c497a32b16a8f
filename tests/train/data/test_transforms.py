"""The transforms on real pixels: what training may change, and that evaluation changes nothing."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_mix.train.data.transforms import Lighting, create_transform, small_image_transform
from timm_mix.train.errors import UsageError

MEAN, STD = (0.1, 0.3, 0.7), (0.2, 0.5, 1.1)
HEIGHT, WIDTH = 11, 13
CONFIG = {
    "input_size": (3, HEIGHT, WIDTH),
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}


@pytest.fixture
def image():
    """[11, 13] RGB, every pixel its own colour and none of them black."""
    pixels = np.random.default_rng(0).integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small(training=True, **settings):
    return small_image_transform((HEIGHT, WIDTH), MEAN, STD, training=training, **settings)


def normalised(image):
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def raw(tensor):
    """Undo the normalisation: [C, H, W] -> [H, W, C] of 0..255."""
    pixels = tensor * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return (pixels * 255).round().permute(1, 2, 0).int().numpy()


def test_evaluation_normalises_and_changes_no_pixel(image):
    view = small(training=False)(image)
    assert type(view) is torch.Tensor
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, normalised(image))


@pytest.mark.parametrize("training", [True, False])
def test_another_size_is_resized_with_bicubic(image, training):
    big = image.resize((29, 23), Image.BICUBIC)
    view = small(training, padding=0, hflip=0)(big)
    torch.testing.assert_close(view, normalised(big.resize((WIDTH, HEIGHT), Image.BICUBIC)))


def test_the_resize_uses_the_interpolation_that_is_asked_for(image):
    big = image.resize((29, 23))
    view = small(False, interpolation="nearest")(big)
    torch.testing.assert_close(view, normalised(big.resize((WIDTH, HEIGHT), Image.NEAREST)))


def test_an_int_is_a_square():
    view = small_image_transform(7, MEAN, STD, training=False)(Image.new("RGB", (13, 11)))
    assert view.shape == (3, 7, 7)


def test_no_augmentation_is_left_when_all_is_off(image):
    torch.testing.assert_close(small(padding=0, hflip=0)(image), normalised(image))


def test_the_flip_mirrors_left_and_right(image):
    view = small(padding=0, hflip=1.0)(image)
    torch.testing.assert_close(view, normalised(image).flip(-1))


@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "edge", "symmetric"])
def test_a_crop_is_a_window_of_the_padded_image(image, pad_mode):
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode=pad_mode)
    windows = {
        padded[top : top + HEIGHT, left : left + WIDTH].tobytes(): (top, left) for top in range(9) for left in range(9)
    }
    crop = small(hflip=0, pad_mode=pad_mode)
    places = {windows[raw(crop(image)).astype(np.uint8).tobytes()] for _ in range(60)}
    assert len(places) > 20


def test_erasing_writes_zeros_after_normalising_in_a_box_of_the_asked_area(image):
    erase = small(padding=0, hflip=0, re_prob=1.0, re_scale=(0.2, 0.3), re_ratio=(0.99, 1.0))
    for _ in range(17):
        view = erase(image)
        erased = (view == 0).all(0)
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * columns
        assert 0.1 < erased.float().mean() < 0.4
        assert torch.equal(view[:, ~erased], small(False)(image)[:, ~erased])


def test_erasing_writes_the_value_that_is_asked_for(image):
    view = small(padding=0, hflip=0, re_prob=1.0, re_value=7.0)(image)
    assert (view == 7.0).any()


def test_auto_augment_changes_colours_or_shape(image):
    plain = normalised(image)
    augment = small(padding=0, hflip=0, auto_augment="cifar10")
    assert sum(not torch.allclose(augment(image), plain) for _ in range(30)) > 15


def test_the_same_seed_draws_the_same_view(image):
    transform = small(auto_augment="cifar10", re_prob=0.5)
    views = []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(transform(image))
    assert torch.equal(*views)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"auto_augment": "imagenet"}, "auto_augment must be one of cifar10, got 'imagenet'"),
        ({"pad_mode": "zeros"}, "pad_mode must be one of constant, edge, reflect, symmetric, got 'zeros'"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear, bicubic, got 'cubic'"),
    ],
)
def test_an_unknown_choice_names_the_choices(settings, line):
    with pytest.raises(UsageError, match=line):
        small(**settings)


def test_style_small_is_the_small_recipe(image):
    made = create_transform("small", CONFIG, training=True, padding=2, hflip=1.0, aa=None, re_mode=None)
    twin = small(padding=2, hflip=1.0)
    torch.manual_seed(5)
    view = made(image)
    torch.manual_seed(5)
    assert torch.equal(view, twin(image))


@pytest.mark.parametrize("style", ["small", "none"])
def test_evaluation_of_the_small_styles_is_plain(image, style):
    torch.testing.assert_close(create_transform(style, CONFIG, training=False)(image), normalised(image))


def test_style_none_does_not_augment_in_training(image):
    torch.testing.assert_close(create_transform("none", CONFIG, training=True)(image), normalised(image))


def test_style_imagenet_evaluates_as_timm_does(image):
    torch.testing.assert_close(create_transform("imagenet", CONFIG, training=False)(image), normalised(image))
    half = create_transform("imagenet", CONFIG, training=False, crop_pct=0.5)(image)
    twin = image.resize((2 * WIDTH, 2 * HEIGHT), Image.BICUBIC)
    top, left = round(HEIGHT / 2), round(WIDTH / 2)
    torch.testing.assert_close(half, normalised(twin.crop((left, top, left + WIDTH, top + HEIGHT))))


def test_style_imagenet_hands_timm_its_options(image):
    still = {"scale": (1.0, 1.0), "ratio": (WIDTH / HEIGHT, WIDTH / HEIGHT), "color_jitter": 0.0}
    view = create_transform("imagenet", CONFIG, training=True, hflip=0.0, vflip=1.0, **still)(image)
    torch.testing.assert_close(view, normalised(image).flip(-2))
    erased = create_transform("imagenet", CONFIG, training=True, re_prob=1.0, re_mode="const", **still)(image)
    assert (erased == 0).any()


@pytest.mark.parametrize("size", [(29, 31), (41, 37)])
def test_style_imagenet_erases_boxes_of_the_asked_area_and_ratio(size):
    """Published for SplitNet on ImageNet: 5 to 12 % of the image, twice as wide as high to 1.5 times as high."""
    height, width = size
    config = {**CONFIG, "input_size": (3, *size)}
    white = Image.new("RGB", (width, height), (255, 255, 255))
    erase = create_transform(
        *("imagenet", config),
        **{"training": True, "color_jitter": 0.0, "re_prob": 1.0, "re_scale": (0.05, 0.12), "re_ratio": (0.5, 1.5)},
    )
    areas, ratios = [], []
    for _ in range(200):
        erased = (erase(white) == 0).all(0)  # zeros after normalising: no pixel of the white image is
        rows, columns = int(erased.any(1).sum()), int(erased.any(0).sum())
        assert int(erased.sum()) == rows * columns > 0
        areas.append(rows * columns / (height * width))
        ratios.append(rows / columns)
    assert 0.04 < min(areas) < 0.06 < 0.11 < max(areas) < 0.135
    assert 0.4 < min(ratios) < 0.6 < 1.35 < max(ratios) < 1.7


def test_style_imagenet_without_boxes_erases_as_timm_does():
    made, timms = (
        create_transform("imagenet", CONFIG, training=True, re_prob=0.5).transforms[-1],
        timm.data.create_transform(CONFIG["input_size"], is_training=True, re_prob=0.5).transforms[-1],
    )
    assert vars(made) == vars(timms)


def test_evaluation_of_style_imagenet_erases_nothing(image):
    view = create_transform("imagenet", CONFIG, training=False, re_prob=1.0, re_scale=(0.5, 0.6))(image)
    torch.testing.assert_close(view, normalised(image))


def test_aa_is_timms_auto_augment():
    made = create_transform("imagenet", CONFIG, training=True, aa="rand-m9-mstd0.5")
    assert "RandAugment" in repr(made)


def test_color_jitter_may_be_switched_off():
    assert "ColorJitter" in repr(create_transform("imagenet", CONFIG, training=True))
    assert "brightness=None" in repr(create_transform("imagenet", CONFIG, training=True, color_jitter=0.0))


@pytest.mark.parametrize(
    ("style", "options", "line"),
    [
        ("tiny", {}, "transform style must be one of small, imagenet, none, got 'tiny'"),
        ("small", {"scale": (0.1, 1)}, r"'small' has no option scale \(got .*\): drop it, it belongs to imagenet"),
        ("imagenet", {"padding": 4}, r"'imagenet' has no option padding \(got 4\): drop it, it belongs to small"),
        ("none", {"hflip": 0.5}, r"'none' has no option hflip \(got 0\.5\): drop it, it belongs to small and imagenet"),
        ("small", {"flip": 0.5}, "'small' has no option flip .* no style has it"),
        ("imagenet", {"aa": "v0", "auto_augment": "v0"}, "aa and auto_augment are one setting"),
        ("imagenet", {"aa": "foo"}, "does not take .*auto_augment='foo'.*correct that setting"),
        (
            "imagenet",
            {"re_prob": 0.5, "re_ratio": (0.0, 1.0)},
            r"'imagenet' does not take .*re_ratio=\(0.0, 1.0\): .*correct that setting",
        ),
        ("imagenet", {"train_crop_mode": "foo"}, "does not take .*train_crop_mode='foo'"),
        ("small", {"re_prob": 3.0}, "'small' does not take .*re_prob=3.0: .*correct that setting"),
        ("none", {"re_scale": (0.1, 0.2)}, r"'none' has no option re_scale .* it belongs to small and imagenet"),
        ("small", {"aa": "rand-m9"}, "auto_augment must be one of cifar10, got 'rand-m9'"),
    ],
)
def test_a_wrong_style_or_option_is_refused_in_one_line(style, options, line):
    with pytest.raises(UsageError, match=line) as caught:
        create_transform(style, CONFIG, training=True, **options)
    assert "\n" not in str(caught.value)


def test_lighting_adds_one_colour_to_the_whole_image():
    image = torch.rand(3, 5, 7)
    noise = Lighting(0.1)(image) - image
    torch.testing.assert_close(noise, noise[:, :1, :1].expand_as(noise))
    assert noise.abs().max() > 0
    torch.testing.assert_close(Lighting(0.0)(image), image)


def test_lighting_spreads_along_imagenets_axes():
    """Covariance: std^2 A diag(s^2) A^T, with A the axes in columns and s their scales."""
    lighting = Lighting(0.1)
    drawn = torch.stack([lighting(torch.zeros(3, 1, 1)).flatten() for _ in range(20_000)])
    axes, scales = torch.tensor(Lighting.AXES), torch.tensor(Lighting.SCALES)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3), atol=1e-3, rtol=0)  # orthonormal, as printed
    wanted = 0.01 * axes @ torch.diag(scales**2) @ axes.T
    torch.testing.assert_close(drawn.T.cov(), wanted, atol=2e-5, rtol=0)


def test_lighting_comes_before_the_normalisation_and_in_training_only(image):
    plain = {"hflip": 0.0, "color_jitter": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for training in (True, False):
        made = create_transform("imagenet", CONFIG, training=training, lighting=0.1, **plain)
        names = [type(step).__name__ for step in made.transforms]
        assert ("Lighting" in names) == training
        if training:
            assert names.index("Lighting") == names.index("Normalize") - 1


@pytest.mark.parametrize("style", ["small", "none"])
def test_lighting_belongs_to_imagenet(style):
    with pytest.raises(UsageError, match=f"style '{style}' has no option lighting .*belongs to imagenet"):
        create_transform(style, CONFIG, training=True, lighting=0.1)


def test_lighting_of_grey_images_or_below_zero_is_refused():
    grey = {**CONFIG, "input_size": (1, 11, 13), "mean": (0.1,), "std": (0.2,)}
    with pytest.raises(UsageError, match="lighting is for images in colour, got 1 channels: drop it"):
        create_transform("imagenet", grey, training=True, lighting=0.1)
    for std in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"lighting must be >= 0 and finite, got {std}"):
            create_transform("imagenet", CONFIG, training=True, lighting=std)
