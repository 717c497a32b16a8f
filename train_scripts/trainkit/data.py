"""The loaders of training and evaluation; `trainkit.sources` opens the datasets and is offered here, too.

Images collate to [B, C, H, W], or [B, V, C, H, W] with `MultiView`; targets to int64 [B].

What makes an epoch repeatable: `start_epoch` before each one. It sets the sampler's epoch and seeds the loader's
generator, from which torch derives the seed of every worker; a worker seeds `random`, numpy and torch with it. Workers
live for one epoch (no persistent_workers), so nothing is carried over. The order of the images does not depend on the
number of workers; their augmentation does, and with workers=0 it runs in the main process on the global generators, so
`start_epoch` then seeds those too.
"""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from trainkit.errors import UsageError
from trainkit.sampler import EpochBatchSampler, ShardSampler
from trainkit.sources import check_splits, class_names, open_dataset

__all__ = ["check_splits", "class_names", "create_eval_loader", "create_train_loader", "open_dataset", "start_epoch"]


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
) -> DataLoader:
    """Make the training loader of one process; call `start_epoch` before each iteration over it.

    A map-style dataset is read by `EpochBatchSampler` (`loader.batch_sampler`). An iterable one (hfids, tfds, wds)
    shuffles and shards itself: it gives plain batches, and `seed`, `rank` and `world_size` are not read.

    Raises:
        UsageError: what `EpochBatchSampler` raises, or repeats > 1 with an iterable dataset.
    """
    shared = _loader_settings(workers, pin_memory)
    if not isinstance(dataset, IterableDataset):
        sampler = EpochBatchSampler(
            len(dataset),  # type: ignore[arg-type]
            batch_size,
            repeats=repeats,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        return DataLoader(dataset, batch_sampler=sampler, **shared)
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
    """
    shared = _loader_settings(workers, pin_memory)
    if isinstance(dataset, IterableDataset):
        _tell_workers(dataset, workers)
        return DataLoader(dataset, batch_size=batch_size, **shared)
    sampler = ShardSampler(len(dataset), rank, world_size)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **shared)


def start_epoch(loader: DataLoader, epoch: int, seed: int, rank: int = 0) -> None:
    """Make the next iteration over a training loader a function of (seed, epoch, rank) alone.

    Sets the epoch of the sampler (or of the iterable dataset) and seeds the loader's generator, hence all workers.
    With workers=0 the augmentations run in this process: its global generators (`random`, numpy, torch) are then
    seeded as well, which whatever else draws from them will see.

    Args:
        loader: from `create_train_loader`.
        epoch: counted from 0.
        seed: of the run, >= 0; each rank draws its own augmentations.
        rank: of this process.
    """
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(2, np.uint64)
    loader.generator.manual_seed(int(words[0]))
    if isinstance(loader.batch_sampler, EpochBatchSampler):
        loader.batch_sampler.set_epoch(epoch)
    elif hasattr(loader.dataset, "set_epoch"):
        loader.dataset.set_epoch(epoch)
    if loader.num_workers == 0:
        _seed_global_generators(int(words[1]))


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
    """Seed a worker from the seed that torch gave it, and drop tar files that it shares with its parent."""
    _seed_global_generators(torch.initial_seed())
    reader = getattr(get_worker_info().dataset, "reader", None)  # type: ignore[union-attr]
    state = getattr(reader, "tar_state", None)
    for tar in state.values() if isinstance(state, dict) else [state]:
        if tar is not None:  # an inherited file handle has one read position for all processes
            tar.reset()
            for child in tar.children.values():
                child.reset()


def _seed_global_generators(seed: int) -> None:
    """Seed `random`, numpy and torch from three words of one seed."""
    words = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]))


def _tell_workers(dataset: Dataset, workers: int) -> None:
    """timm's iterable datasets estimate their length from the number of workers."""
    if hasattr(dataset, "set_loader_cfg"):
        dataset.set_loader_cfg(num_workers=workers)
