"""Batched augmentation: the laws of its draws, and its pixels against twins written in loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from timm_mix.train.data.device_transforms import NO_AUGMENTATION, Augmentation, cut_views, erase, plan_views
from timm_mix.train.errors import UsageError

N, C, H, W = 5, 3, 7, 11
MANY = 4000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """[N, H, W, C] uint8, none of them black."""
    return rng.integers(1, 256, (N, H, W, C), dtype=np.uint8)


def in_memory(images):
    return torch.cat([torch.zeros(1, C, dtype=torch.uint8), torch.from_numpy(images).view(-1, C)])


def cut_one_by_one(images, index, plan, settings):
    """Pad, crop and flip as one would by hand; returns [n, C, H, W]."""
    views = []
    for i, number in enumerate(index):
        p = settings.padding
        padded = np.pad(images[number], ((p, p), (p, p), (0, 0)), mode=settings.pad_mode)
        view = padded[plan.top[i] : plan.top[i] + H, plan.left[i] : plan.left[i] + W]
        if plan.hflip[i]:
            view = view[:, ::-1]
        if plan.vflip[i]:
            view = view[::-1]
        views.append(view.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(views))


@pytest.mark.parametrize("pad_mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("padding", [0, 2, 4])
def test_views_equal_the_brute_force_twin(images, rng, pad_mode, padding):
    settings = Augmentation(padding=padding, pad_mode=pad_mode, hflip=0.5, vflip=0.5)
    index = rng.integers(N, size=101)
    plan = plan_views(101, (C, H, W), settings, rng=rng)
    views = cut_views(in_memory(images), (H, W), index, plan, settings)
    assert torch.equal(views, cut_one_by_one(images, index, plan, settings))


def test_padding_wider_than_the_image_is_cut_like_any_other(images, rng):
    settings = Augmentation(padding=13)
    index = rng.integers(N, size=101)
    plan = plan_views(101, (C, H, W), settings, rng=rng)
    views = cut_views(in_memory(images), (H, W), index, plan, settings)
    assert torch.equal(views, cut_one_by_one(images, index, plan, settings))
    assert (views == 0).flatten(1).all(1).any()


def test_without_augmentation_the_views_are_the_images(images, rng):
    plan = plan_views(N, (C, H, W), NO_AUGMENTATION, rng=rng)
    views = cut_views(in_memory(images), (H, W), np.arange(N), plan, NO_AUGMENTATION)
    assert torch.equal(views, torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize("axis", ["top", "left"])
def test_crop_offsets_are_uniform_over_all_places(rng, axis):
    plan = plan_views(9 * MANY, (C, H, W), Augmentation(padding=4), rng=rng)
    counts = np.bincount(getattr(plan, axis), minlength=9)
    assert len(counts) == 9
    assert ((counts - MANY) ** 2 / MANY).sum() < 31.8  # chi-square of 8 degrees of freedom, p = 1e-4


def test_the_draws_of_a_view_are_independent(rng):
    plan = plan_views(9 * MANY, (C, H, W), Augmentation(hflip=0.5, vflip=0.5, re_prob=0.5), rng=rng)
    erased = plan.boxes.any((1, 2))
    drawn = np.stack([plan.top, plan.left, plan.hflip, plan.vflip, erased]).astype(float)
    correlations = np.corrcoef(drawn)[np.triu_indices(5, 1)]
    assert abs(correlations).max() < 4.5 / np.sqrt(9 * MANY)


@pytest.mark.parametrize(("flip", "prob"), [("hflip", 0.0), ("hflip", 0.3), ("vflip", 0.8), ("vflip", 1.0)])
def test_flips_come_with_their_probability(rng, flip, prob):
    share = getattr(plan_views(MANY, (C, H, W), Augmentation(**{flip: prob}), rng=rng), flip).mean()
    assert abs(share - prob) <= 4.5 * np.sqrt(prob * (1 - prob) / MANY)


BOXES = {
    "of the small recipe": {"re_scale": (0.0625, 0.1), "re_ratio": (0.99, 1.0)},
    "timm's": {"re_scale": (0.02, 1 / 3), "re_ratio": (0.3, 1 / 0.3)},
    "that seldom fit": {"re_scale": (0.6, 1.0), "re_ratio": (0.2, 5.0)},
    "too large": {"re_scale": (1.0, 1.0), "re_ratio": (1.0, 1.0)},
    "many": {"re_scale": (0.2, 0.6), "re_ratio": (0.5, 1.5), "re_count": 3},
}


def erased_by(transform, size):
    """What a transform of one image erases, MANY times over."""
    ones = torch.ones(1, *size)
    masks = torch.stack([transform(ones.clone())[0] == 0 for _ in range(MANY)])
    return _measures(masks)


def _measures(masks):
    """Area, rows and columns, first row and first column of each."""
    rows, columns = masks.any(2).int(), masks.any(1).int()
    return torch.stack([masks.sum((1, 2)), rows.sum(1), columns.sum(1), rows.argmax(1), columns.argmax(1)]).double()


def timms(settings, size):
    twin = RandomErasing(settings.re_prob, *settings.re_scale, *settings.re_ratio, max_count=settings.re_count)
    twin.device = "cpu"
    return erased_by(twin, size)


def torchvisions(settings, size):
    return erased_by(v2.RandomErasing(settings.re_prob, settings.re_scale, settings.re_ratio), size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(11, 13), (32, 32)])
@pytest.mark.parametrize(
    ("twin", "boxes"),
    [*((timms, name) for name in BOXES), *((torchvisions, name) for name in BOXES if name != "many")],
)
def test_erased_boxes_follow_the_law_of_the_one_by_one_erasing(rng, boxes, size, twin):
    torch.manual_seed(1)
    settings = Augmentation(re_prob=0.7, **BOXES[boxes])
    plan = plan_views(MANY, (1, *size), settings, rng=rng)
    ours, theirs = _measures(erase(torch.ones(MANY, 1, *size), plan)[:, 0] == 0), twin(settings, size)
    for a, b in zip(ours, theirs, strict=True):
        assert _distance(a, b) < 2.1 * np.sqrt(2 / MANY)  # Kolmogorov-Smirnov, p < 3e-4
        assert abs((a == 0).double().mean() - (b == 0).double().mean()) < 4.5 * np.sqrt(0.5 / MANY)


def _distance(a, b):
    """Largest distance between two empirical distribution functions."""
    places = torch.cat([a, b]).unique()
    shares = [torch.searchsorted(x.sort().values, places, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def test_boxes_lie_within_the_image(rng):
    boxes = plan_views(MANY, (C, H, W), Augmentation(re_prob=1.0, **BOXES["many"]), rng=rng).boxes
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)
    assert ((top >= 0) & (top <= bottom) & (bottom <= H)).all()
    assert ((left >= 0) & (left <= right) & (right <= W)).all()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["const", "rand"])
def test_erasing_equals_the_brute_force_twin(rng, mode, form):
    settings = Augmentation(re_prob=0.8, re_mode=mode, **BOXES["many"])
    plan = plan_views(101, (C, H, W), settings, rng=rng)
    views = torch.from_numpy(rng.standard_normal((101, C, H, W), dtype=np.float32)).contiguous(memory_format=form)
    twin = views.clone()
    for i, boxes in enumerate(plan.boxes):
        for k, (top, bottom, left, right) in enumerate(boxes):
            for c in range(C):
                twin[i, c, top:bottom, left:right] = 0 if mode == "const" else float(plan.colours[i, k, c])
    assert torch.equal(erase(views, plan), twin)
    assert (views == twin).all()  # in place
    assert views.is_contiguous(memory_format=form)


def test_colours_of_boxes_are_normal(rng):
    colours = plan_views(MANY, (C, H, W), Augmentation(re_prob=0.5, re_mode="rand"), rng=rng).colours
    assert colours.shape == (MANY, 1, C)
    assert abs(colours.mean()) < 4.5 / np.sqrt(colours.size)
    assert abs((colours**2).mean() - 1) < 4.5 * np.sqrt(2 / colours.size)


def test_pixels_of_boxes_are_normal_and_all_others_untouched(rng):
    plan = plan_views(MANY, (C, H, W), Augmentation(re_prob=0.5, re_mode="pixel", **BOXES["timm's"]), rng=rng)
    erased = (erase(torch.ones(MANY, 1, H, W), replace(plan, noise_seed=None)) == 0).expand(MANY, C, H, W)
    views = erase(torch.full((MANY, C, H, W), 9.0), plan)
    assert (views[~erased] == 9).all()
    noise = views[erased]
    assert abs(noise.mean()) < 4.5 / np.sqrt(len(noise))
    assert abs((noise**2).mean() - 1) < 4.5 * np.sqrt(2 / len(noise))
    assert len(noise.unique()) > 0.9 * len(noise)


def test_a_plan_fixes_the_pixels_of_its_boxes():
    settings = Augmentation(re_prob=1.0, re_mode="pixel", **BOXES["timm's"])
    plan = plan_views(5, (C, H, W), settings, rng=np.random.default_rng(3))
    one, same, other = (
        erase(torch.ones(5, C, H, W), replace(plan, noise_seed=plan.noise_seed + more)) for more in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_plan_without_boxes_erases_nothing(rng):
    views = torch.ones(5, C, H, W)
    erase(views, plan_views(5, (C, H, W), Augmentation(re_prob=0.0, re_mode="pixel"), rng=rng))
    assert (views == 1).all()


def test_the_generator_alone_decides_about_a_plan():
    settings = Augmentation(re_prob=0.5, re_mode="pixel", re_count=2)
    one, same, other = (plan_views(31, (C, H, W), settings, rng=np.random.default_rng(seed)) for seed in (3, 3, 4))
    for name in ("top", "left", "hflip", "boxes", "noise_seed"):
        assert np.array_equal(getattr(one, name), getattr(same, name)), name
        assert not np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pad_mode": "zeros"}, "pad_mode must be one of constant, edge, reflect, symmetric, got 'zeros'"),
        ({"re_mode": "noise"}, "re_mode must be one of const, rand, pixel, got 'noise'"),
        ({"hflip": 1.5}, r"hflip must lie in \[0, 1\], got 1.5"),
        ({"vflip": -0.5}, r"vflip must lie in \[0, 1\], got -0.5"),
        ({"re_prob": 3.0}, r"re_prob must lie in \[0, 1\], got 3.0"),
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"re_count": 0}, "re_count must be at least 1, got 0"),
        ({"re_scale": (0.5, 0.2)}, r"re_scale must be two shares .*, got \(0.5, 0.2\)"),
        ({"re_scale": (0.5, 1.2)}, r"re_scale must be two shares in \[0, 1\]"),
        ({"re_ratio": (0.0, 1.0)}, r"re_ratio must be two numbers > 0, the smaller first, got \(0.0, 1.0\)"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(settings, line):
    with pytest.raises(UsageError, match=line) as caught:
        Augmentation(**settings)
    assert "\n" not in str(caught.value)
