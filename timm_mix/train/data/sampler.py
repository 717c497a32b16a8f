"""Which samples a process sees, and in which order.

Both samplers are functions of their settings: no generator is carried along, so a run that resumes at an epoch sees the
order that the uninterrupted run would have seen.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from timm_mix.train.errors import UsageError

__all__ = ["EpochBatchSampler", "Place", "ShardSampler"]


class Place(NamedTuple):
    """One sample of an epoch.

    sample: its index in the dataset.   position: in the order of the epoch, over all processes.
    copy: which of its `repeats`.
    """

    sample: int
    position: int
    copy: int


class EpochBatchSampler(Sampler[list[Any]]):
    """Batches of one epoch for one of `world_size` processes, with batch repetition.

    The order of an epoch is `np.random.default_rng([seed, epoch]).permutation(num_samples)`. Step k takes the next
    world_size * n entries of it, n = batch_size / repeats: this global batch holds the same images in the same order
    whatever the number of processes, as long as world_size * batch_size is the same. Rank r takes the r-th slice
    of n entries and lists it `repeats` times: x1 .. xn, x1 .. xn, ...; the dataset augments each copy on its own.
    With `repeats` = 1 the ranks' batches, one after the other, are the one-process batch; with more, the same images
    stand in the same multiplicity, but each rank keeps all copies of its own images.
    An epoch shows each image `repeats` times, in num_samples * repeats / (world_size * batch_size) steps.

    Args:
        batch_size: per process, copies included.
        repeats: how often each image stands in its batch (b of the MixMo paper).
        shuffle: False keeps the order of the dataset.
        places: give a `Place` for every sample; False gives the index alone.
        drop_last: False adds a short last batch. No image is doubled to fill it: with `shuffle` and several processes
            up to world_size - 1 images are left out so that all ranks get equally many; without `shuffle` every image
            is kept and the ranks may differ by one, or have no last batch.
    Raises:
        UsageError: a setting is out of range, batch_size is not a multiple of repeats, or drop_last leaves no batch.
    Reference: Hoffer et al., "Augment your batch", CVPR 2020, arXiv:1901.09335; b in Rame et al., arXiv:2103.06132.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        places: bool = False,
    ):
        _check_at_least(num_samples=(num_samples, 1), batch_size=(batch_size, 1), repeats=(repeats, 1), seed=(seed, 0))
        _check_rank(rank, world_size)
        self.num_samples, self.batch_size, self.repeats, self.seed = num_samples, batch_size, repeats, seed
        self.rank, self.world_size, self.shuffle, self.drop_last = rank, world_size, shuffle, drop_last
        self.places = places
        self.epoch = 0
        self.start_batch = 0
        self._check_batch()

    @property
    def distinct(self) -> int:
        """Distinct images in a full batch of one process."""
        return self.batch_size // self.repeats

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, whatever `start_batch` is."""
        return self.num_samples // (self.distinct * self.world_size) + (len(self._last_slice()) > 0)

    def __iter__(self) -> Iterator[list[Any]]:
        order = self._order()
        stride = self.distinct * self.world_size
        for batch in range(self.start_batch, self.num_samples // stride):
            first = batch * stride + self.rank * self.distinct
            yield self._batch(order, range(first, first + self.distinct))
        last = self._last_slice()
        if last and self.start_batch < len(self):
            yield self._batch(order, last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws, counted from 0, and start it at its first batch."""
        _check_at_least(epoch=(epoch, 0))
        self.epoch = epoch
        self.start_batch = 0

    def set_start(self, batch: int) -> None:
        """Begin at this batch of the epoch, until the next `set_epoch`; the skipped batches cost nothing."""
        if not 0 <= batch <= len(self):
            raise UsageError(
                f"start batch must lie in 0..{len(self)}, the batches of an epoch, got {batch}: "
                "resume with the batch size and the data that the run began with"
            )
        self.start_batch = batch

    def _order(self) -> np.ndarray:
        """Returns: [num_samples] int64, the order of the current epoch."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)

    def _batch(self, order: np.ndarray, positions: range) -> list[Any]:
        indices = order[positions.start : positions.stop].tolist()
        if not self.places:
            return indices * self.repeats
        once = list(zip(indices, positions, strict=True))
        return [Place(sample, position, copy) for copy in range(self.repeats) for sample, position in once]

    def _last_slice(self) -> range:
        """This rank's places, in the order of the epoch, of the short last batch; empty where there is none."""
        rest = self.num_samples % (self.distinct * self.world_size)
        if self.drop_last:
            return range(0)
        first = self.num_samples - rest
        share, extra = divmod(rest, self.world_size)
        if self.shuffle:
            extra = 0  # equal batches for all ranks: a training step is taken by all or by none
        start = first + self.rank * share + min(self.rank, extra)
        return range(start, start + share + (self.rank < extra))

    def _check_batch(self) -> None:
        if self.batch_size % self.repeats:
            below = self.batch_size - self.batch_size % self.repeats
            near = f"{below} or {below + self.repeats}" if below else f"{self.repeats}"
            raise UsageError(
                f"batch_size must be a multiple of repeats ({self.repeats}), got {self.batch_size}: take {near}"
            )
        needed = self.distinct * self.world_size
        if self.drop_last and self.num_samples < needed:
            raise UsageError(
                f"one step needs {needed} distinct images (batch_size {self.batch_size} / repeats {self.repeats} "
                f"* {self.world_size} processes), the dataset has {self.num_samples}: "
                "take a smaller batch_size, more repeats or fewer processes"
            )


class ShardSampler(Sampler[int]):
    """Every sample exactly once over all processes: rank, rank + world_size, ...; no padding, for evaluation.

    Raises:
        UsageError: num_samples < 0, or the rank lies outside the world.
    """

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1):
        _check_at_least(num_samples=(num_samples, 0))
        _check_rank(rank, world_size)
        self._indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)


def _check_at_least(**settings: tuple[int, int]) -> None:
    """settings: name = (given, smallest allowed)."""
    for name, (given, smallest) in settings.items():
        if given < smallest:
            raise UsageError(f"{name} must be at least {smallest}, got {given}: raise it")


def _check_rank(rank: int, world_size: int) -> None:
    _check_at_least(world_size=(world_size, 1))
    if not 0 <= rank < world_size:
        raise UsageError(
            f"rank must lie in 0..{world_size - 1} for {world_size} processes, got {rank}: "
            "pass the RANK and WORLD_SIZE that the launcher sets"
        )
