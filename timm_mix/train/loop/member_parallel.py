"""Member-parallel training: S consecutive processes hold one SplitNet, each of them one part.

Process r works on part r % S of replica r // S. The processes of a replica see the same images, each in its own view;
the replicas divide the samples, and the processes with the same part average their gradients. What is written is what
a run with the whole model on every process writes: one file, from which either kind of run resumes.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import Dataset, IterableDataset

from timm_mix.models.splitnet import SplitNet
from timm_mix.tasks.member_parallel import gather_members, member_mesh
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.loop.build import build_model
from timm_mix.train.settings.model import ModelSettings
from timm_mix.train.settings.optimise import OptimiseSettings

__all__ = ["MemberParallel", "merge_optimizers", "part_of_optimizer"]


class MemberParallel:
    """Takes the place of `timm_mix.train.loop.parallel.DataParallel`; all processes create it together.

    one_view: all parts see the same.
    part, parts: i and S.   member_group: the processes of this replica.   replica_group: those that hold this part.

    Raises:
        UsageError: the recipe's model is no SplitNet, or the number of processes no multiple of its parts.
    """

    def __init__(self, model: ModelSettings, accelerator: Accelerator, *, one_view: bool = False):
        self.accelerator = accelerator
        self.parts = _count_parts(model)
        with user_errors("train member-parallel"):
            mesh = member_mesh(self.parts, accelerator.device.type)
        self.part, self.share = mesh.get_local_rank("part"), mesh.get_local_rank("replica")
        self.shares = accelerator.num_processes // self.parts
        self.member_group, self.replica_group = mesh.get_group("part"), mesh.get_group("replica")
        # then the processes of a replica must draw alike
        self.seed_rank = self.share if one_view else accelerator.process_index

        self.model_settings: dict[str, Any] = {"only_part": self.part}
        # the processes of a replica draw alike, say the pairs of mixup
        self.task_settings: dict[str, Any] = {"member_group": self.member_group, "rank": self.share}

    @staticmethod
    def check_data(*datasets: Dataset) -> None:
        """A stream divides its samples among all processes.

        Raises:
            UsageError: a dataset that cannot be read by index.
        """
        if any(isinstance(dataset, IterableDataset) for dataset in datasets):
            raise UsageError(
                "member_parallel needs data that can be read by index, got a stream; use a folder, torch/ or hfds/"
            )

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module that is trained: accelerate's mixed precision, averaged gradients where there are replicas."""
        module = self.accelerator.prepare_model(module, evaluation_mode=True)  # not wrapped over all processes
        if self.shares == 1:
            return module
        device = self.accelerator.device
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, process_group=self.replica_group)

    def evaluable(self, model: nn.Module) -> "_Gathered":
        return _Gathered(model, self.member_group)

    @torch.no_grad()
    def average_batchnorm(self, model: nn.Module) -> None:
        """Over the replicas."""
        if self.shares == 1:
            return
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                dist.all_reduce(buffer, group=self.replica_group)
                buffer /= self.shares

    def sum_scores(self, sums: Tensor) -> Tensor:
        """Sum over the replicas, to the bit the same on all processes: they decide alike which epoch is the best."""
        return self.accelerator.reduce(sums if self.part == 0 else torch.zeros_like(sums), reduction="sum")

    def clip(self, task: TrainingTask, wanted: OptimiseSettings) -> None:
        """The norm is that of the whole model's gradient; the other modes look at one parameter at a time."""
        assert wanted.clip_grad is not None
        parameters = list(task.get_clip_parameters(exclude_head=wanted.clip_mode == "agc"))
        if wanted.clip_mode != "norm":
            dispatch_clip_grad(parameters, wanted.clip_grad, mode=wanted.clip_mode)
            return
        square = get_total_norm([p.grad for p in parameters if p.grad is not None]).square()
        dist.all_reduce(square, group=self.member_group)
        clip_grads_with_norm_(parameters, wanted.clip_grad, square.sqrt())

    def whole(self, content: dict[str, Any]) -> dict[str, Any]:
        """The parts of the first replica, put together; each replica has one task state, each process an own one."""
        if self.share > 0:
            return content
        divided = {name: content[name] for name in ("state_dict", "state_dict_ema", "optimizer") if name in content}
        gathered: list[Any] | None = [None] * self.parts if self.part == 0 else None
        dist.gather_object(send_to_device(divided, "cpu"), gathered, dst=0, group=self.member_group)
        if gathered is None:
            return content
        joined: dict[str, Any] = {"optimizer": merge_optimizers([part.pop("optimizer") for part in gathered])}
        for name in gathered[0]:
            joined[name] = {key: value for part in gathered for key, value in part[name].items()}
        return {**content, **joined, "task_states": content["task_states"][:: self.parts]}

    def own(self, content: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state of this part; of the weights a model with one part takes its own by itself."""
        with user_errors("resume: the optimizer's state does not fit this recipe"):
            return {**content, "optimizer": part_of_optimizer(content["optimizer"], self.part, self.parts)}


class _Gathered:
    """A SplitNet over the processes of a replica, for evaluation: every process gets all logits."""

    def __init__(self, model: Any, member_group: Any):
        self.model, self.member_group = model, member_group
        self.num_members, self.ensemble = model.num_members, model.ensemble

    def eval(self) -> None:
        self.model.eval()

    def __call__(self, images: Tensor, return_members: bool) -> Tensor:
        assert return_members
        return gather_members(self.model(images, return_members=True), self.member_group)


def merge_optimizers(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state_dict that one optimizer over all parts has, from those of the parts.

    Groups hold the parameters of part 0, then those of part 1, ..., because a model lists its parameters so.

    >>> states = [torch.optim.SGD(nn.Linear(2, 3).parameters()).state_dict() for part in range(2)]
    >>> states[1]["param_groups"][0]["params"], merge_optimizers(states)["param_groups"][0]["params"]
    ([0, 1], [0, 1, 2, 3])
    """
    groups, state = [], {}
    count = 0
    for number, group in enumerate(states[0]["param_groups"]):
        first = count
        for part in states:
            for index in part["param_groups"][number]["params"]:
                if index in part["state"]:
                    state[count] = part["state"][index]
                count += 1
        groups.append({**group, "params": list(range(first, count))})
    return {**states[0], "state": state, "param_groups": groups}


def part_of_optimizer(whole: dict[str, Any], part: int, parts: int) -> dict[str, Any]:
    """Undo merge_optimizers for one part.

    Raises:
        ValueError: a group that does not divide into equal parts.

    >>> whole = torch.optim.SGD([nn.Parameter(torch.zeros(n)) for n in (1, 2, 3, 4)], momentum=0.9).state_dict()
    >>> whole["state"] = {n: {"momentum_buffer": n} for n in range(4)}
    >>> part_of_optimizer(whole, part=1, parts=2)["state"]
    {0: {'momentum_buffer': 2}, 1: {'momentum_buffer': 3}}
    """
    groups, state = [], {}
    count = 0
    for group in whole["param_groups"]:
        share, rest = divmod(len(group["params"]), parts)
        if rest:
            raise ValueError(f"{len(group['params'])} parameters of a group do not divide into {parts} equal parts")
        first = count
        for index in group["params"][part * share : (part + 1) * share]:
            if index in whole["state"]:
                state[count] = whole["state"][index]
            count += 1
        groups.append({**group, "params": list(range(first, count))})
    return {**whole, "state": state, "param_groups": groups}


def _count_parts(wanted: ModelSettings) -> int:
    """S of the recipe's model, which is built without weights to tell; draws nothing."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(wanted, wanted.num_classes, device="meta")
    if not isinstance(model, SplitNet):
        raise UsageError(f"member_parallel puts a part of a splitnet_* model on each process, got {wanted.name}")
    return model.num_members
