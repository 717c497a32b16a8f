"""The loaders over real images: what is read, in which order, and that epochs repeat."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.equality import same_batches
from support.image_files import write_images, write_tar
from timm.data import IterableImageDataset
from torchvision.transforms import v2

from timm_mix.train.data.loaders import (
    create_eval_loader,
    create_train_loader,
    epoch_batches,
    open_dataset,
    start_epoch,
)
from timm_mix.train.data.transforms import small_image_transform
from timm_mix.train.errors import UsageError
from timm_mix.views import Views

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

PIXELS = v2.Compose([v2.ToImage(), v2.ToPureTensor()])
AUGMENT = small_image_transform(32, (0.5,) * 3, (0.5,) * 3, training=True, re_prob=0.5)


def draw(loader, epoch, seed=3, rank=0):
    start_epoch(loader, epoch, seed, rank)
    return [(images.clone(), targets.clone()) for images, targets in loader]


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", None, "validation")


class TestTrainLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_epoch_repeats_exactly_and_another_differs(self, digits, workers):
        digits.transform = AUGMENT
        loader = create_train_loader(digits, batch_size=89, seed=3, workers=workers)
        first, second = draw(loader, 0), draw(loader, 1)
        fresh = create_train_loader(digits, batch_size=89, seed=3, workers=workers)
        torch.rand(7), random.random(), np.random.rand()
        assert same_batches(draw(fresh, 1), second)
        assert same_batches(draw(fresh, 0), first)
        assert not torch.equal(first[0][0], second[0][0])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_random_numpy_and_torch_all_repeat_and_differ_between_workers_and_ranks(self, digits, workers):
        digits.transform = lambda _: torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        loader = create_train_loader(digits, batch_size=180, workers=workers)
        (first, _), (second, _) = epoch = draw(loader, 0)
        assert same_batches(draw(loader, 0), epoch)
        other_rank, other_seed = draw(loader, 0, rank=1), draw(loader, 0, seed=4)
        for other in (second, other_rank[0][0], other_seed[0][0], draw(loader, 1)[0][0]):
            assert not (first == other).any()

    def test_nothing_depends_on_the_number_of_workers(self, digits):
        digits.transform = AUGMENT
        alone, shared = (create_train_loader(digits, batch_size=89, workers=workers) for workers in (0, 2))
        assert same_batches(draw(alone, 2), draw(shared, 2))

    def test_two_ranks_batches_in_a_row_are_the_one_process_batch(self, digits):
        digits.transform = PIXELS
        one = draw(create_train_loader(digits, batch_size=62), 1)
        ranks = [draw(create_train_loader(digits, batch_size=31, rank=rank, world_size=2), 1) for rank in (0, 1)]
        joined = [
            (torch.cat([left[0], right[0]]), torch.cat([left[1], right[1]])) for left, right in zip(*ranks, strict=True)
        ]
        assert same_batches(joined, one)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole_one_and_reads_nothing_before(self, digits, workers):
        digits.transform = AUGMENT
        loader = create_train_loader(digits, batch_size=88, repeats=2, workers=workers)
        whole = draw(loader, 1)
        start_epoch(loader, 1, 3, first_batch=5)
        assert same_batches(list(loader), whole[5:])
        assert len(whole) == 8

    def test_reading_a_batch_leaves_the_main_processs_generators(self, digits):
        digits.transform = AUGMENT
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        next(iter(create_train_loader(digits, batch_size=13)))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]

    def test_a_loader_that_starts_by_itself_is_told_the_place(self):
        class Own:
            def start(self, *place):
                self.place = place

        loader = Own()
        start_epoch(loader, 3, seed=5, rank=1, first_batch=7)
        assert loader.place == (3, 5, 1, 7)

    def test_copies_of_an_image_are_augmented_one_by_one(self, digits):
        digits.transform = AUGMENT
        images, targets = draw(create_train_loader(digits, batch_size=34, repeats=2), 0)[0]
        assert torch.equal(targets[:17], targets[17:])
        assert not torch.equal(images[:17], images[17:])

    def test_images_and_targets_collate_to_float_and_int64(self, digits):
        digits.transform = AUGMENT
        images, targets = draw(create_train_loader(digits, batch_size=13), 0)[0]
        assert (images.shape, images.dtype) == ((13, 3, 32, 32), torch.float32)
        assert (targets.shape, targets.dtype) == ((13,), torch.int64)

    def test_views_collate_beside_the_batch(self, digits):
        digits.transform = Views(AUGMENT, 2)
        images, _ = draw(create_train_loader(digits, batch_size=13, workers=2), 0)[0]
        assert images.shape == (13, 2, 3, 32, 32)
        assert not torch.equal(images[:, 0], images[:, 1])

    def test_the_short_last_batch_may_be_kept(self, digits):
        digits.transform = PIXELS
        sizes = [len(images) for images, _ in create_train_loader(digits, batch_size=101, drop_last=False)]
        assert sizes == [101, 101, 101, 57]

    def test_tar_targets_are_int64_too(self, tmp_path):
        dataset = open_dataset("", write_tar(tmp_path / "x.tar", {"ant": 2, "bee": 3}), "train")
        dataset.transform = PIXELS
        assert next(iter(create_train_loader(dataset, batch_size=5)))[1].dtype == torch.int64

    def test_workers_do_not_share_the_read_position_of_a_tar(self, tmp_path):
        dataset = open_dataset("", write_tar(tmp_path / "x.tar", {"ant": 97, "bee": 103}), "train")
        dataset.transform = PIXELS
        dataset[0]  # opens the tar in this process, before the workers are forked
        loader = create_eval_loader(dataset, batch_size=5, workers=2)
        seen = torch.cat([images[:, 0, 0, 0] for images, _ in loader])
        assert seen.tolist() == list(range(200))

    def test_a_negative_number_of_workers_is_refused(self, digits):
        with pytest.raises(UsageError, match="workers must be at least 0, got -1"):
            create_train_loader(digits, batch_size=5, workers=-1)

    def test_evaluating_does_not_disturb_the_global_generators(self, digits):
        digits.transform = PIXELS
        torch.manual_seed(0)
        list(create_eval_loader(digits, batch_size=101))
        after = torch.rand(3)
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(3))


class TestEpochBatches:
    def test_a_steps_chance_is_a_function_of_its_place(self, digits):
        digits.transform = PIXELS
        loader = create_train_loader(digits, batch_size=89)

        def drawn(first=0, **place):
            settings = {"epoch": 1, "seed": 3, "rank": 0, **place}
            return [
                (random.random(), np.random.rand(), torch.rand(()).item())
                for _ in epoch_batches(loader, **settings, first_batch=first)
            ]

        whole = drawn()
        assert len(whole) == 4
        assert drawn(first=2) == whole[2:]
        numbers = {number for step in whole for number in step}
        for other in ({"epoch": 2}, {"seed": 4}, {"rank": 1}):
            numbers |= {number for step in drawn(**other) for number in step}
        assert len(numbers) == 4 * 4 * 3  # no two alike


class Stream:
    """A reader for timm's IterableImageDataset: 11 grey images, the epoch in the label."""

    epoch = 0
    workers = None

    def __iter__(self):
        return iter([(Image.new("RGB", (7, 5), (level,) * 3), self.epoch) for level in range(11)])

    def __len__(self):
        return 11

    def set_epoch(self, epoch):
        self.epoch = epoch

    def set_loader_cfg(self, num_workers=None):
        self.workers = num_workers


class TestIterableDataset:
    @pytest.fixture
    def stream(self):
        return IterableImageDataset("", reader=Stream(), transform=PIXELS)

    def test_training_reads_plain_batches_and_is_told_the_epoch(self, stream):
        loader = create_train_loader(stream, batch_size=5)
        assert [targets.tolist() for _, targets in draw(loader, 3)] == [[3] * 5, [3] * 5]
        assert stream.reader.workers == 0

    def test_evaluation_keeps_the_short_last_batch(self, stream):
        assert [len(images) for images, _ in create_eval_loader(stream, batch_size=4)] == [4, 4, 3]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole_one(self, stream, workers):
        stream.transform = lambda _: torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        loader = create_train_loader(stream, batch_size=3, workers=workers)

        def trained(first):  # a step draws from the generators, too
            batches = epoch_batches(loader, 1, 3, 0, first)
            return [(images, targets, torch.rand(2)) for images, targets in batches]

        whole, rest = trained(0), trained(1)
        assert len(whole) == 3
        for one, two in zip(whole[1:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def test_batch_repetition_is_refused(self, stream):
        with pytest.raises(UsageError, match="read by index, got repeats=2 with a streamed one: use repeats=1"):
            create_train_loader(stream, batch_size=4, repeats=2)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 0)])
def test_evaluation_reads_every_image_exactly_once(tmp_path, world_size, workers):
    dataset = open_dataset("", write_images(tmp_path, {"ant": 6, "bee": 7}), "val")
    dataset.transform = PIXELS
    seen = []
    for rank in range(world_size):
        loader = create_eval_loader(dataset, batch_size=3, rank=rank, world_size=world_size, workers=workers)
        for images, targets in loader:
            seen += zip(images[:, 0, 0, 0].tolist(), targets.tolist(), strict=True)
    assert sorted(seen) == [(level, int(level >= 6)) for level in range(13)]
