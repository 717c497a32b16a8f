"""The batch sampler against a twin written in loops, over ranks, repeats and resumes."""

from itertools import chain

import numpy as np
import pytest

from timm_mix.views import EpochBatchSampler


def joined(batches):
    return list(chain.from_iterable(batches))


def twin_batches(num_samples, batch_size, repeats, seed, epoch, rank, world_size):
    """Full batches of one rank: walk the order image by image, deal n to each rank in turn, copy them."""
    order = list(np.random.default_rng([seed, epoch]).permutation(num_samples))
    distinct = batch_size // repeats
    batches = []
    while len(order) >= distinct * world_size:
        hands = []
        for _ in range(world_size):
            hands.append([order.pop(0) for _ in range(distinct)])
        batches.append([image for _ in range(repeats) for image in hands[rank]])
    return batches


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "repeats", "world_size"),
    [(101, 7, 1, 1), (101, 6, 2, 1), (103, 10, 5, 3), (97, 13, 1, 2), (31, 31, 1, 1), (17, 20, 4, 3)],
)
def test_batches_equal_the_brute_force_twin(num_samples, batch_size, repeats, world_size):
    for rank in range(world_size):
        sampler = EpochBatchSampler(num_samples, batch_size, repeats=repeats, seed=11, rank=rank, world_size=world_size)
        for epoch in (0, 3):
            sampler.set_epoch(epoch)
            twin = twin_batches(num_samples, batch_size, repeats, 11, epoch, rank, world_size)
            assert list(sampler) == twin
            assert len(sampler) == len(twin)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_batches_in_a_row_are_the_one_process_batch(world_size):
    one = EpochBatchSampler(101, 6 * world_size, seed=5)
    ranks = [EpochBatchSampler(101, 6, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [joined(batches) for batches in zip(*ranks, strict=True)] == list(one)


def test_with_repeats_the_ranks_share_out_the_images_of_the_one_process_batch():
    one = EpochBatchSampler(101, 24, repeats=4, seed=5)
    ranks = [EpochBatchSampler(101, 12, repeats=4, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, left, right in zip(one, *ranks, strict=True):
        assert sorted(left + right) == sorted(whole)
        assert left[:3] + right[:3] == whole[:6]
        assert not set(left) & set(right)


def test_each_copy_stands_one_block_after_the_other():
    for batch in EpochBatchSampler(29, 15, repeats=3, seed=2):
        assert batch == batch[:5] * 3
        assert len(set(batch)) == 5


def test_an_epoch_with_repeats_shows_each_image_that_often():
    shown = np.bincount(joined(EpochBatchSampler(35, 20, repeats=4)), minlength=35)
    assert shown.tolist() == [4] * 35


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_the_number_of_steps_grows_with_repeats(repeats):
    assert len(EpochBatchSampler(50_000, 64, repeats=repeats)) == 50_000 * repeats // 64


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochBatchSampler(53, 53, seed=seed)
        sampler.set_epoch(epoch)
        return next(iter(sampler))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert order(1, 2) != order(2, 1)


def test_a_fresh_sampler_continues_at_any_epoch():
    used = EpochBatchSampler(53, 5, seed=7)
    for epoch in range(3):
        used.set_epoch(epoch)
        list(used)
    fresh = EpochBatchSampler(53, 5, seed=7)
    for sampler in (used, fresh):
        sampler.set_epoch(3)
    assert list(used) == list(fresh)


@pytest.mark.parametrize(("drop_last", "start"), [(True, 0), (True, 1), (True, 10), (False, 10), (False, 11)])
def test_a_start_batch_skips_exactly_the_batches_before_it(drop_last, start):
    whole = list(EpochBatchSampler(53, 5, seed=7, drop_last=drop_last))
    sampler = EpochBatchSampler(53, 5, seed=7, drop_last=drop_last)
    sampler.set_start(start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)


@pytest.mark.parametrize("start", [-1, 11])
def test_a_start_outside_the_epoch_is_refused(start):
    with pytest.raises(ValueError, match=rf"start batch must lie in 0\.\.10, the batches of an epoch, got {start}"):
        EpochBatchSampler(53, 5).set_start(start)


def test_a_new_epoch_starts_at_its_first_batch():
    sampler = EpochBatchSampler(53, 5)
    sampler.set_start(4)
    sampler.set_epoch(1)
    assert len(list(sampler)) == 10


def test_the_short_last_batch_holds_the_rest_without_doubles():
    batches = list(EpochBatchSampler(23, 10, repeats=2, drop_last=False))
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 6]
    assert sorted(joined(batches)) == sorted([*range(23), *range(23)])


@pytest.mark.parametrize(("num_samples", "last"), [(23, 1), (22, 1), (21, 0), (20, 0)])
def test_ranks_of_a_shuffled_epoch_get_equally_many_images(num_samples, last):
    ranks = [list(EpochBatchSampler(num_samples, 5, rank=rank, world_size=2, drop_last=False)) for rank in (0, 1)]
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert sizes == [[5, 5] + [last] * (last > 0)] * 2
    images = joined(ranks[0] + ranks[1])
    assert len(images) == len(set(images))


@pytest.mark.parametrize("num_samples", [1, 19, 21, 23, 29, 30])
def test_ranks_in_dataset_order_leave_no_image_out(num_samples):
    samplers = [
        EpochBatchSampler(num_samples, 5, rank=rank, world_size=3, shuffle=False, drop_last=False) for rank in range(3)
    ]
    ranks = [list(sampler) for sampler in samplers]
    assert [len(batches) for batches in ranks] == [len(sampler) for sampler in samplers]
    assert sorted(joined(joined(ranks))) == list(range(num_samples))
    assert all(batch for batches in ranks for batch in batches)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0\.\.1 for 2 processes, got 2"),
        ({"rank": -1}, r"rank must lie in 0\.\.0 for 1 processes, got -1"),
        ({"batch_size": 66, "repeats": 4}, r"multiple of repeats \(4\), got 66: take 64 or 68"),
        ({"batch_size": 3, "repeats": 4}, r"multiple of repeats \(4\), got 3: take 4"),
        ({"batch_size": 14, "repeats": 2, "num_samples": 13, "world_size": 2}, "needs 14 distinct images .* has 13"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(settings, line):
    with pytest.raises(ValueError, match=line) as caught:
        EpochBatchSampler(**{"num_samples": 101, "batch_size": 8, **settings})
    assert "\n" not in str(caught.value)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        EpochBatchSampler(7, 3).set_epoch(-1)


def test_one_global_batch_of_images_is_enough():
    assert len(EpochBatchSampler(13, 13)) == 1


@pytest.mark.parametrize("drop_last", [True, False])
def test_places_are_where_a_sample_stands_in_the_order_over_all_processes(drop_last):
    settings = {"repeats": 2, "seed": 5, "world_size": 2, "drop_last": drop_last}
    order = np.random.default_rng([5, 0]).permutation(31).tolist()
    seen = set()
    for rank in range(2):
        plain = EpochBatchSampler(31, 6, rank=rank, **settings)
        for batch, indices in zip(EpochBatchSampler(31, 6, rank=rank, places=True, **settings), plain, strict=True):
            assert [place.sample for place in batch] == indices
            assert [order[place.position] for place in batch] == indices
            assert [place.copy for place in batch] == [0] * (len(batch) // 2) + [1] * (len(batch) // 2)
            seen |= {(place.position, place.copy) for place in batch}
    assert seen == {(position, copy) for position in range(30) for copy in range(2)}
