"""Which samples a process evaluates; `timm_mix.views.EpochBatchSampler` says which ones it trains on."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from timm_mix.train.errors import UsageError

__all__ = ["ShardSampler"]


class ShardSampler(Sampler[int]):
    """Every sample exactly once over all processes: rank, rank + world_size, ...; no padding, for evaluation.

    Raises:
        UsageError: num_samples < 0, or the rank lies outside the world.

    >>> [list(ShardSampler(5, rank, world_size=2)) for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    """

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1):
        for name, given, smallest in (("num_samples", num_samples, 0), ("world_size", world_size, 1)):
            if given < smallest:
                raise UsageError(f"{name} must be at least {smallest}, got {given}: raise it")
        if not 0 <= rank < world_size:
            raise UsageError(
                f"rank must lie in 0..{world_size - 1} for {world_size} processes, got {rank}: "
                "pass the RANK and WORLD_SIZE that the launcher sets"
            )
        self._indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)
