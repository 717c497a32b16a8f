"""How the processes of a run share its work: each holds the whole model and its own share of the samples."""

import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad, distribute_bn
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Dataset

from timm_mix.train.settings.optimise import OptimiseSettings

__all__ = ["DataParallel", "join_after_restart"]


class DataParallel:
    """Data parallel through Accelerate; `timm_mix.train.loop.member_parallel.MemberParallel` is the other way.

    share, shares: which of how many shares of the samples this process works on.
    seed_rank: with the run's seed it seeds augmentation and dropout of this process.
    part, parts: which part of how many of the model this process holds.
    model_settings, task_settings: what build_model and build_task need to know of it.

    >>> parallel = DataParallel(Accelerator(cpu=True))  # of a single process
    >>> parallel.share, parallel.shares, parallel.parts
    (0, 1, 1)
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.share, self.shares = accelerator.process_index, accelerator.num_processes
        self.seed_rank = accelerator.process_index
        self.part, self.parts = 0, 1
        self.model_settings: dict[str, Any] = {}
        self.task_settings: dict[str, Any] = {}

    @staticmethod
    def check_data(*datasets: Dataset) -> None:
        """Any data will do."""

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module that is trained."""
        return self.accelerator.prepare(module)

    def evaluable(self, model: nn.Module) -> Any:
        """What evaluate_members takes for the model."""
        return model

    def average_batchnorm(self, model: nn.Module) -> None:
        """Every process gathered its own BatchNorm statistics: make them one."""
        if self.shares > 1:
            distribute_bn(model, self.shares, reduce=True)

    def sum_scores(self, sums: Tensor) -> Tensor:
        """Sum over the shares of the samples."""
        return self.accelerator.reduce(sums, reduction="sum")

    def clip(self, task: TrainingTask, wanted: OptimiseSettings) -> None:
        assert wanted.clip_grad is not None
        parameters = task.get_clip_parameters(exclude_head=wanted.clip_mode == "agc")
        dispatch_clip_grad(parameters, wanted.clip_grad, mode=wanted.clip_mode)

    def whole(self, content: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint of the run, on the main process, from what each process has; all processes call this."""
        return content

    def own(self, content: dict[str, Any]) -> dict[str, Any]:
        """What this process takes of a checkpoint."""
        return content


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
