"""The loaders of training and evaluation; `timm_mix.train.data.sources` opens the datasets and is offered here, too.

Images collate to [B, C, H, W], or [B, V, C, H, W] with `timm_mix.views.Views`; targets to int64 [B].

What makes a run repeatable: all chance in a training item is a function of (seed, epoch, its position in the epoch's
order, which of its copies, rank), and all chance in a training step is one of (seed, epoch, step, rank). So neither
depends on the number of workers nor on where a run was cut, and `epoch_batches` starts anywhere in an epoch at once.
A stream (hfids, tfds, wds) shuffles and shards itself: its items are drawn one after the other by each worker, and to
start in the middle of an epoch it has to be read from the epoch's beginning.

A batch with an image that cannot be read is a `timm_mix.train.data.reading.FaultyBatch`.
"""

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from timm_mix.train.data.chance import keep_generators, seed_generators
from timm_mix.train.data.reading import collate, read
from timm_mix.train.data.sampler import ShardSampler
from timm_mix.train.data.sources import check_splits, class_names, open_dataset
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.views import EpochBatchSampler, Place

__all__ = [
    "check_splits",
    "class_names",
    "create_eval_loader",
    "create_train_loader",
    "epoch_batches",
    "open_dataset",
    "start_epoch",
]

WORKER_GRACE = 30  # seconds
_ITEM, _STEP = 0, 1  # last words of the keys: no item draws what a step draws


def create_train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    repeats: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = True,
    weights: Any = None,
) -> DataLoader:
    """Make the training loader of one process; call `start_epoch` before each iteration over it.

    A map-style dataset is read by `EpochBatchSampler` (`loader.batch_sampler`), with its `weights`. An iterable one
    (hfids, tfds, wds) shuffles and shards itself: it gives plain batches, without `seed`, `rank`, `world_size`
    and `weights`.

    Raises:
        UsageError: what `EpochBatchSampler` raises, or repeats > 1 with an iterable dataset.

    >>> images = [(torch.rand(3, 8, 8), label) for label in range(5)]
    >>> loader = create_train_loader(images, batch_size=4, repeats=2)
    >>> start_epoch(loader, epoch=0, seed=0)
    >>> [target.tolist() for _, target in loader]
    [[2, 4, 2, 4], [3, 0, 3, 0]]
    """
    shared = _loader_settings(workers, pin_memory)
    if not isinstance(dataset, IterableDataset):
        sharing: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size, "drop_last": drop_last}
        sharing["weights"] = weights
        with user_errors("make batches of the training images"):
            sampler = EpochBatchSampler(len(dataset), batch_size, repeats=repeats, places=True, **sharing)  # type: ignore[arg-type]
        return DataLoader(_KeyedDataset(dataset), batch_sampler=sampler, collate_fn=collate, **shared)
    if repeats > 1:
        raise UsageError(
            f"batch repetition needs a dataset that can be read by index, got repeats={repeats} with a streamed one: "
            "use repeats=1, or a folder, torch/ or hfds/ dataset"
        )
    _tell_workers(dataset, workers)
    return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, **shared)


def create_eval_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Make the evaluation loader of one process: every sample exactly once over all processes, in a fixed order.

    The last batch may be short and the ranks may have different numbers of batches. An iterable dataset shards itself.

    >>> images = [(torch.rand(3, 8, 8), label) for label in range(5)]
    >>> [target.tolist() for _, target in create_eval_loader(images, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """
    shared = _loader_settings(workers, pin_memory)
    if isinstance(dataset, IterableDataset):
        _tell_workers(dataset, workers)
        return DataLoader(dataset, batch_size=batch_size, **shared)
    sampler = ShardSampler(len(dataset), rank, world_size)  # type: ignore[arg-type]
    return DataLoader(_PlainDataset(dataset), batch_size=batch_size, sampler=sampler, collate_fn=collate, **shared)


def start_epoch(loader: Any, epoch: int, seed: int, rank: int = 0, first_batch: int = 0) -> None:
    """Let the next iteration over a training loader begin at this place.

    A loader with a method `start(epoch, seed, rank, first_batch)` does it itself. A stream begins its epoch anew
    whatever `first_batch` is, see `epoch_batches`.

    Args:
        loader: from `create_train_loader`, or with `start`.
        epoch: counted from 0.
        seed: of the run, >= 0.
        rank: of this process: each rank draws its own augmentations.
        first_batch: batches of the epoch to leave out; they cost nothing.

    >>> loader = create_train_loader([(torch.rand(3, 8, 8), label) for label in range(6)], batch_size=2)
    >>> start_epoch(loader, epoch=3, seed=0, first_batch=1)
    >>> len(list(loader))  # of three
    2
    """
    if hasattr(loader, "start"):
        loader.start(epoch, seed, rank, first_batch)
    elif isinstance(loader.batch_sampler, EpochBatchSampler):
        with user_errors("start there in the training images"):
            loader.batch_sampler.set_epoch(epoch)
            loader.batch_sampler.set_start(first_batch)
        loader.dataset.key = (seed, epoch, rank)
    else:
        word = np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0]
        loader.generator.manual_seed(int(word))  # torch derives the workers' seeds from it
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(epoch)


def epoch_batches(
    loader: Any, epoch: int, seed: int, rank: int = 0, first_batch: int = 0, device: torch.device | None = None
) -> Iterator[Any]:
    """Batches of an epoch from `first_batch` on; each with the global generators seeded for the step that it makes.

    Args: those of `start_epoch`, and
        device: whose generator is seeded, too.

    >>> loader = create_train_loader([(torch.rand(3, 8, 8), label) for label in range(6)], batch_size=2)
    >>> whole = [target.tolist() for _, target in epoch_batches(loader, epoch=3, seed=0)]
    >>> rest = [target.tolist() for _, target in epoch_batches(loader, epoch=3, seed=0, first_batch=1)]
    >>> rest == whole[1:]
    True
    """
    start_epoch(loader, epoch, seed, rank, first_batch)
    is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    batches = iter(_seeded(loader, 0 if is_stream else first_batch, (seed, epoch, rank), device))
    return islice(batches, first_batch, None) if is_stream else batches


def _seeded(loader: Any, step: int, key: tuple[int, ...], device: torch.device | None) -> Iterator[Any]:
    """Seeds before a batch is read: a stream without workers draws its augmentations from the same generators."""
    batches = iter(loader)
    while True:
        seed_generators(*key, step, _STEP, device=device)
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch
        step += 1


class _KeyedDataset(Dataset):
    """Reads samples by their `Place`, which seeds the chance in their transform.

    key: (seed, epoch, rank), see `start_epoch`.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.key = (0, 0, 0)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, places: list[Place]) -> list[Any]:
        if get_worker_info() is not None:
            return [self._item(place) for place in places]
        with keep_generators():  # of the main process, where the network draws from them
            return [self._item(place) for place in places]

    def _item(self, place: Place) -> Any:
        seed_generators(*self.key, place.position, place.copy, _ITEM)
        return read(self.dataset, place.sample)


class _PlainDataset(Dataset):
    """Reads samples by their index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return read(self.dataset, index)


def _loader_settings(workers: int, pin_memory: bool) -> dict[str, Any]:
    if workers < 0:
        raise UsageError(f"workers must be at least 0, got {workers}: 0 loads in the main process")
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _start_worker,
        "generator": torch.Generator(),
        "persistent_workers": False,  # a worker that lived on would carry its generators into the next epoch
    }


def _start_worker(worker: int) -> None:
    """Seed a worker for its stream, let it outlive the signals to its process group, and drop shared tar files."""
    seed_generators(torch.initial_seed())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process finishes its update first and then ends all workers
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))
    dataset = get_worker_info().dataset  # type: ignore[union-attr]
    reader = getattr(getattr(dataset, "dataset", dataset), "reader", None)
    state = getattr(reader, "tar_state", None)
    for tar in state.values() if isinstance(state, dict) else [state]:
        if tar is not None:  # an inherited file handle has one read position for all processes
            tar.reset()
            for child in tar.children.values():
                child.reset()


def _tell_workers(dataset: Dataset, workers: int) -> None:
    """timm's iterable datasets estimate their length from the number of workers."""
    if hasattr(dataset, "set_loader_cfg"):
        dataset.set_loader_cfg(num_workers=workers)
