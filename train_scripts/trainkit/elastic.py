"""torchrun's restarts: processes that start again must not meet the addresses of those that were killed."""

import os

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

__all__ = ["join_after_restart"]


def join_after_restart(cpu: bool) -> None:
    """Start the process group, where torchrun has started the processes again; accelerate finds it started.

    torchrun keeps one store for all its restarts (seen in torch 2.15), and under the names that the new processes look
    up stand the addresses of the old ones: who reads before the other has written connects to nobody. A prefix per
    restart keeps them apart.
    """
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart == 0 or int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    store, rank, world_size = next(rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restart}", store)
    backend = "gloo" if cpu or not torch.cuda.is_available() else "nccl"  # as accelerate chooses
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
