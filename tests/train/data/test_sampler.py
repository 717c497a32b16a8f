"""The shards of an evaluation: every sample exactly once."""

from itertools import chain

import pytest

from timm_mix.train.data.sampler import ShardSampler
from timm_mix.train.errors import UsageError


@pytest.mark.parametrize("world_size", [1, 2, 3, 17])
def test_shards_hold_every_sample_exactly_once(world_size):
    shards = [ShardSampler(13, rank, world_size) for rank in range(world_size)]
    assert sorted(chain.from_iterable(shards)) == list(range(13))
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]


def test_a_shard_takes_every_world_size_th_sample():
    assert list(ShardSampler(13, 1, 3)) == [1, 4, 7, 10]


def test_a_shard_outside_the_world_is_refused():
    with pytest.raises(UsageError, match=r"rank must lie in 0\.\.2 for 3 processes, got 3"):
        ShardSampler(13, 3, 3)
    with pytest.raises(UsageError, match="num_samples must be at least 0, got -1"):
        ShardSampler(-1, 0, 1)
