"""Images in memory: the device loader against the CPU loader, over ranks, repeats, views and resumes."""

import inspect
import os
import random
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from support.equality import same_batches
from support.image_files import write_images, write_tar
from support.settings import loaders_of
from timm.data import IterableImageDataset
from torch.utils.data import BatchSampler, Dataset

from timm_mix.train.data.device_loader import DeviceLoader, device_augmentation, load_images
from timm_mix.train.data.device_transforms import NO_AUGMENTATION, Augmentation
from timm_mix.train.data.loaders import create_eval_loader, create_train_loader, open_dataset, start_epoch
from timm_mix.train.data.sampler import ShardSampler
from timm_mix.train.data.transforms import create_transform, small_image_transform
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.build import Data
from timm_mix.train.settings.config import Config
from timm_mix.views import EpochBatchSampler

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

COUNT, H, W = 53, 7, 11
MEAN, STD = (0.1, 0.3, 0.7), (0.2, 0.5, 1.1)
DATA_CONFIG = {"input_size": (3, H, W), "mean": MEAN, "std": STD, "interpolation": "bicubic"}


class Pictures(Dataset):
    """53 images of noise, 7x11 or of the sizes that are asked for; the label is the number."""

    def __init__(self, mode="RGB", sizes=((H, W),), count=COUNT):
        rng = np.random.default_rng(0)
        shapes = [(*sizes[number % len(sizes)], 3) for number in range(count)]
        self.images = [Image.fromarray(rng.integers(1, 256, s, dtype=np.uint8)).convert(mode) for s in shapes]
        self.transform = None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        image = self.images[number]
        return (image if self.transform is None else self.transform(image)), number


@pytest.fixture(scope="module")
def memory():
    return load_images(Pictures(), (H, W), 3)


def training(memory, batch_size=5, settings=None, views=None, channels_last=False, **sharing):
    sampler = EpochBatchSampler(len(memory), batch_size, **sharing)
    how = {"settings": settings or Augmentation(padding=2), "views": views, "channels_last": channels_last}
    return DeviceLoader(memory, sampler, MEAN, STD, **how)


def evaluation(memory, batch_size=5, rank=0, world_size=1):
    shard = ShardSampler(len(memory), rank, world_size)
    return DeviceLoader(memory, BatchSampler(shard, batch_size, drop_last=False), MEAN, STD)


def plain(data, is_training=False):
    data.transform = create_transform("none", DATA_CONFIG, training=is_training)
    return data


def drawn(loader, epoch=0, seed=3, rank=0):
    start_epoch(loader, epoch, seed, rank)
    return list(loader)


class TestAgainstTheCpuLoader:
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("sizes", [[(H, W)], [(H, W), (13, 5), (2, 29)]])
    def test_evaluation_gives_the_same_bits_and_every_image_once(self, world_size, sizes):
        data = Pictures(sizes=sizes)
        memory, seen = load_images(data, (H, W), 3), []
        for rank in range(world_size):
            loader = evaluation(memory, rank=rank, world_size=world_size)
            twin = create_eval_loader(plain(data), batch_size=5, rank=rank, world_size=world_size)
            assert same_batches(list(loader), list(twin))
            assert len(loader) == len(twin)
            seen += [label for _, target in loader for label in target.tolist()]
        assert sorted(seen) == list(range(COUNT))

    @pytest.mark.parametrize(("world_size", "repeats"), [(1, 1), (2, 1), (3, 2)])
    def test_training_without_augmentation_gives_the_same_bits(self, memory, world_size, repeats):
        for rank, epoch in product(range(world_size), (0, 3)):
            sharing = {"batch_size": 6, "repeats": repeats, "rank": rank, "world_size": world_size}
            loader = training(memory, settings=NO_AUGMENTATION, **sharing)
            assert same_batches(drawn(loader, epoch), drawn(create_train_loader(plain(Pictures()), **sharing), epoch))

    def test_an_augmented_view_is_one_that_the_cpu_loader_may_show(self, memory):
        """All crops and flips of an image, normalised: the view is one of them, to the bit."""
        p = 2
        possible = {}
        for number, image in enumerate(Pictures().images):
            padded = np.pad(np.asarray(image), ((p, p), (p, p), (0, 0)))
            for top, left, flip in product(range(2 * p + 1), range(2 * p + 1), (1, -1)):
                crop = padded[top : top + H, left : left + W][:, ::flip].copy()
                view = small_image_transform((H, W), MEAN, STD, training=False)(Image.fromarray(crop))
                possible[number, view.numpy().tobytes()] = (top, left, flip)
        places = set()
        for epoch in range(10):
            for images, target in drawn(training(memory), epoch):
                for image, label in zip(images, target, strict=True):
                    places.add(possible[int(label), image.numpy().tobytes()])
        assert len(places) == 50  # every place and both directions

    def test_normalisation_is_exact_to_the_rounding_of_float32(self, memory):
        images = torch.cat([images for images, _ in evaluation(memory)]).double()
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in Pictures().images])).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
        exact = (pixels.double() / 255 - mean) / std
        assert (images - exact).abs().max() < 4 * torch.finfo(torch.float32).eps * (1 / std).max()


class TestDraws:
    settings = Augmentation(padding=2, hflip=0.5, vflip=0.5, re_prob=0.5, re_mode="pixel", re_scale=(0.1, 0.4))

    @pytest.mark.parametrize("first", [0, 1, 9, 10])
    def test_a_resumed_epoch_goes_on_exactly(self, memory, first):
        whole = drawn(training(memory, settings=self.settings), 2)
        fresh = training(memory, settings=self.settings)
        fresh.start(2, 3, 0, first_batch=first)
        assert same_batches(list(fresh), whole[first:])

    def test_a_start_batch_set_on_the_sampler_resumes_too(self, memory):
        loader = training(memory, settings=self.settings)
        whole = drawn(loader, 1)
        start_epoch(loader, 1, 3)
        loader.batch_sampler.set_start(4)
        assert same_batches(list(loader), whole[4:])

    def test_an_iteration_that_was_cut_leaves_no_trace(self, memory):
        loader = training(memory, settings=self.settings)
        whole = drawn(loader, 0)
        start_epoch(loader, 0, 3)
        next(iter(loader))
        assert same_batches(drawn(loader, 0), whole)

    @pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 4}, {"rank": 1}])
    def test_epoch_seed_and_rank_each_draw_their_own(self, memory, other):
        loader = training(memory, settings=Augmentation(padding=5), batch_size=COUNT)
        (mine, _), (others, _) = drawn(loader)[0], drawn(loader, **other)[0]
        order = [next(iter(loader.batch_sampler)) for loader.batch_sampler.epoch in (0, other.get("epoch", 0))]
        mine, others = mine[np.argsort(order[0])], others[np.argsort(order[1])]
        assert (mine != others).flatten(1).any(1).float().mean() > 0.9

    def test_every_batch_draws_its_own(self):
        alike = Pictures()
        alike.images = alike.images[:1] * COUNT
        batches = drawn(training(load_images(alike, (H, W), 3), settings=Augmentation(padding=5), batch_size=13))
        assert len({images.numpy().tobytes() for images, _ in batches}) == len(batches) > 1

    def test_copies_of_an_image_are_augmented_one_by_one(self, memory):
        images, target = drawn(training(memory, batch_size=34, repeats=2))[0]
        assert torch.equal(target[:17], target[17:])
        assert (images[:17] != images[17:]).flatten(1).any(1).sum() > 0

    def test_views_are_drawn_one_by_one_and_stand_beside_the_batch(self, memory):
        """One view shows the image as it is, the offset being always the middle: so do all others show this image."""
        images, target = drawn(training(memory, batch_size=13, views=3))[0]
        assert images.shape == (13, 3, 3, H, W)
        assert target.shape == (13,)
        assert len({images[:, view].numpy().tobytes() for view in range(3)}) == 3
        still = drawn(training(memory, batch_size=13, views=3, settings=NO_AUGMENTATION))[0]
        one = drawn(training(memory, batch_size=13, settings=NO_AUGMENTATION))[0]
        assert torch.equal(still[0], one[0][:, None].expand(-1, 3, -1, -1, -1))
        assert torch.equal(still[1], one[1])

    def test_no_global_generator_is_read_or_moved(self):
        def states():
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

        before = states()
        memory = load_images(Pictures(), (H, W), 3, workers=1)
        first = drawn(training(memory, settings=self.settings))
        assert states() == before
        random.random(), np.random.rand(), torch.rand(3)
        assert same_batches(drawn(training(memory, settings=self.settings)), first)


class TestBatches:
    def test_types_and_devices(self, memory):
        images, target = drawn(training(memory))[0]
        assert (images.dtype, target.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous()

    def test_channels_last_holds_the_same_values(self, memory):
        settings = Augmentation(padding=2, re_prob=0.5, re_scale=(0.1, 0.4))
        one, other = (drawn(training(memory, settings=settings, channels_last=flag)) for flag in (False, True))
        assert same_batches(one, other)
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in other)

    def test_several_views_are_contiguous_though_channels_last(self, memory):
        images, _ = drawn(training(memory, views=2, channels_last=True))[0]
        assert images.is_contiguous()

    def test_the_short_last_batch_may_be_kept(self, memory):
        loader = training(memory, drop_last=False)
        sizes = [len(images) for images, _ in drawn(loader)]
        assert sizes == [5] * 10 + [3]
        assert len(loader) == len(sizes)

    def test_writing_into_a_batch_leaves_the_memory_alone(self, memory):
        loader = evaluation(memory)
        first = [(images.clone(), target.clone()) for images, target in loader]
        for images, target in loader:
            images.zero_(), target.zero_()
        assert same_batches(list(loader), first)

    def test_two_ranks_batches_in_a_row_show_the_images_of_the_one_process_batch(self, memory):
        one = drawn(training(memory, 10, settings=NO_AUGMENTATION))
        ranks = [drawn(training(memory, 5, settings=NO_AUGMENTATION, rank=r, world_size=2), rank=r) for r in (0, 1)]
        joined = [tuple(torch.cat(parts) for parts in zip(*pair, strict=True)) for pair in zip(*ranks, strict=True)]
        assert same_batches(joined, one)


class TestLoading:
    def test_workers_read_the_same_images(self, memory):
        other = load_images(Pictures(), (H, W), 3, workers=2)
        assert torch.equal(other.pixels, memory.pixels)
        assert np.array_equal(other.target, memory.target)

    @pytest.mark.parametrize("write", [write_images, lambda path, counts: write_tar(path / "x.tar", counts)])
    def test_folders_and_tars_are_read_image_by_image(self, tmp_path, write):
        data = open_dataset("", write(tmp_path, {"ant": 6, "bee": 7}), "train")
        memory = load_images(data, (5, 7), 3, workers=2)
        grey = memory.pixels[1:].view(13, -1)
        assert (grey == torch.arange(13)[:, None]).all()
        assert memory.target.tolist() == [0] * 6 + [1] * 7

    def test_the_dataset_gives_pil_images_again(self):
        data = Pictures()
        load_images(data, (H, W), 3)
        assert data[0][0] is data.images[0]

    def test_grey_images_are_repeated_as_the_cpu_loader_does(self):
        data = Pictures("L")
        memory = load_images(data, (H, W), 3)
        assert same_batches(list(evaluation(memory)), list(create_eval_loader(plain(data), batch_size=5)))

    def test_grey_images_stay_grey_for_one_channel(self):
        assert load_images(Pictures("L"), (H, W), 1).shape == (1, H, W)

    def test_images_of_too_many_channels_are_refused(self):
        with pytest.raises(UsageError, match="the network takes 1 channels, the images have 3: correct in_chans"):
            load_images(Pictures(), (H, W), 1)

    def test_a_streamed_dataset_is_refused(self):
        stream = IterableImageDataset("", reader=iter([]))
        with pytest.raises(UsageError, match="needs data that can be read by index, got a streamed dataset: drop it"):
            load_images(stream, (H, W), 3)

    @pytest.mark.parametrize(("processes", "fits"), [("1", True), ("2", False)])
    def test_a_set_must_fit_a_quarter_of_a_process_share_of_the_memory(self, monkeypatch, processes, fits):
        memory = {"SC_PAGE_SIZE": 3 * H * W, "SC_PHYS_PAGES": 4 * COUNT}
        monkeypatch.setattr(os, "sysconf", memory.get)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        if fits:
            assert len(load_images(Pictures(), (H, W), 3)) == COUNT
            return
        line = f"keeps a split in 25% of a process' memory, .* {COUNT} images of 3x{H}x{W} take .*: drop device_loader"
        with pytest.raises(UsageError, match=line):
            load_images(Pictures(), (H, W), 3)


class TestSettings:
    def test_the_defaults_are_those_of_the_cpu_recipe(self):
        theirs = inspect.signature(small_image_transform).parameters
        shared = {name: value for name, value in asdict(Augmentation()).items() if name in theirs}
        assert shared == {name: theirs[name].default for name in shared}
        assert set(asdict(Augmentation())) - set(shared) == {"vflip", "re_mode", "re_count"}  # off, or timm's choice

    def test_none_stands_for_the_default_and_all_else_is_taken(self):
        assert device_augmentation("small", {"padding": None, "aa": None}) == Augmentation()
        assert device_augmentation("small", {"padding": 2, "vflip": 0.5}) == Augmentation(padding=2, vflip=0.5)
        assert device_augmentation("none", {"padding": None}) == NO_AUGMENTATION

    @pytest.mark.parametrize(
        ("style", "options", "line"),
        [
            (
                "imagenet",
                {},
                "device_loader is for aug small or none, got imagenet: drop device_loader, or take aug small",
            ),
            (
                "small",
                {"aa": "cifar10"},
                r"has no option aa \(got 'cifar10'\), aug small has .*: drop it, or device_loader",
            ),
            ("small", {"color_jitter": 0.0}, r"device_loader has no option color_jitter \(got 0.0\)"),
            ("small", {"scale": (0.5, 1.0)}, r"device_loader has no option scale \(got \(0.5, 1.0\)\)"),
            ("none", {"hflip": 0.5}, r"has no option hflip \(got 0.5\), aug none has no options there: drop it"),
        ],
    )
    def test_what_the_device_cannot_do_is_refused_in_one_line(self, style, options, line):
        with pytest.raises(UsageError, match=line) as caught:
            device_augmentation(style, options)
        assert "\n" not in str(caught.value)

    def test_the_loaders_of_a_recipe_follow_it(self):
        config = Config.of(
            **{"aug": "small", "device_loader": True, "batch_size": 6, "batch_repeats": 2, "workers": 0, "seed": 3},
            **{"validation_batch_size": 7, "channels_last": True, "padding": 3, "reprob": 0.5},
        )
        data = Data(Pictures(), Pictures(), None, 2)
        train, validation = loaders_of(config, data, DATA_CONFIG, views=2, rank=1, world_size=2, channels_last=True)
        assert train.settings == Augmentation(padding=3, re_prob=0.5)
        twin = EpochBatchSampler(COUNT, 6, repeats=2, seed=3, rank=1, world_size=2)
        assert list(train.batch_sampler) == list(twin)
        assert drawn(train)[0][0].shape == (6, 2, 3, H, W)
        assert validation.settings == NO_AUGMENTATION
        assert [target.tolist() for _, target in validation] == [
            list(range(1, COUNT, 2))[i : i + 7] for i in range(0, COUNT // 2, 7)
        ]
        images, _ = next(iter(validation))
        assert images.is_contiguous(memory_format=torch.channels_last)
