"""Co-training with one part of a SplitNet per process (left open by Zhao et al., arXiv:2011.14660, sec. 5).

The loss couples the parts through their predictions alone, so that a process needs no more of the others than their
logits: one all-gather of [B, K] numbers per step. The gradient of part i flows through its own logits; with the others
held constant, that is block i of the gradient of the joint loss, and nothing has to be communicated backward.

    mesh = member_mesh(2)  # W processes: W / 2 replicas, each on 2 consecutive ranks
    model = timm.create_model("splitnet_resnet50_s2", only_part=mesh.get_local_rank("part"))
    task = create_task("cotraining", model, num_classes=1000, rank=mesh.get_local_rank("replica"),
                       member_group=mesh.get_group("part"))
    task.prepare_distributed(process_group=mesh.get_group("replica"))  # data parallel, where there are several replicas

All processes of a replica are fed the same samples in the same order, each the view of its own part.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["check_member_group", "gather_members", "member_mesh"]


def member_mesh(parts: int, device_type: str = "cpu") -> DeviceMesh:
    """The processes as a table [replicas, parts], dimensions `replica` and `part`; all processes call this.

    Raises:
        ValueError: the number of processes is no multiple of the number of parts.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> mesh = member_mesh(1)
    >>> mesh.mesh_dim_names, tuple(mesh.shape)
    (('replica', 'part'), (1, 1))
    >>> dist.destroy_process_group()
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes % parts:
        raise ValueError(
            f"with a part per process, {parts} parts need a multiple of {parts} processes, got {processes}: start "
            f"{parts} (torchrun --nproc-per-node {parts})"
        )
    return init_device_mesh(device_type, (processes // parts, parts), mesh_dim_names=("replica", "part"))


def gather_members(logits: Tensor, group: Any) -> Tensor:
    """The logits of all parts, of which this process computed one: gradients flow to that one.

    Exchanged in float32 at least, whatever the parts compute in.

    Args:
        group: the processes of a replica, in the order of their parts.
    Shapes: logits [B, 1, K], B the same on all processes of the group.   returns [B, S, K].

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> gather_members(torch.zeros(4, 1, 5), dist.group.WORLD).shape
    torch.Size([4, 1, 5])
    >>> dist.destroy_process_group()
    """
    own = logits.float() if logits.element_size() < 4 else logits
    members = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(members, own.detach().contiguous(), group=group)
    members[dist.get_rank(group)] = own
    return torch.cat(members, dim=1)


def check_member_group(model: Any, group: Any) -> None:
    """Rank i of a replica's group must hold part i, and nothing else.

    Raises:
        ValueError: another number of processes than parts, or another part.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> import timm
    >>> check_member_group(timm.create_model("splitnet_wrn16_2_s2", depth=10), dist.group.WORLD)
    Traceback (most recent call last):
    ValueError: member_group must have a process for each of 2 parts, got 1
    >>> dist.destroy_process_group()
    """
    processes, rank, held = dist.get_world_size(group), dist.get_rank(group), getattr(model, "only_part", None)
    if processes != model.num_members:
        raise ValueError(f"member_group must have a process for each of {model.num_members} parts, got {processes}")
    if held != rank:
        raise ValueError(f"rank {rank} of member_group must hold part {rank} alone (only_part={rank}), got {held}")
