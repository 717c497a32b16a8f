"""Memory and open files of every task and mixer over thousands of training steps: neither may grow.

    make steady      python tests/steady.py [--steps 2000] [--only NAME ...]

Memory is the resident set of this process, after garbage collection; the first quarter of the steps warms up. It may
grow by the noise of the allocator, 2 MiB, over the other three quarters. The exit status is 1 if one does not hold.
"""

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import timm_mix
from timm_mix.mixers import MIXERS, create_mixer
from timm_mix.tasks import TASKS
from timm_mix.tasks.mixer import MixerTask

ALLOWED = 2 << 20  # bytes
K = 5
NETS = {"mixmo": ("mixmo", {"members": 2}), "cotraining": ("splitnet", {"split": 2})}


def make(name: str) -> Any:
    """A task by its name, or plain classification under a mixer."""
    kind, kwargs = NETS.get(name, ("wrn16_2", {}))
    backbone = {"backbone": "wrn16_2"} if kwargs else {}
    model = timm.create_model(
        kind, depth=10, widen_factor=1 if kind != "splitnet" else 2, num_classes=K, **backbone, **kwargs
    )
    shared: dict[str, Any] = {"num_classes": K, "verbose": False, "steps_per_epoch": 50}
    if name in MIXERS:
        return MixerTask(model, nn.CrossEntropyLoss(), mixer=create_mixer(name, num_classes=K), **shared)
    settings = {"reduction": 2} if name == "automix" else {}
    return timm_mix.create_task(name, model, nn.CrossEntropyLoss(), total_steps=2000, **shared, **settings)


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, steps: int) -> tuple[list[int], list[int]]:
    """Bytes of memory and the number of open files after each eighth of the steps."""
    task = make(name)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    memory, files = [], []
    for step in range(steps):
        images = torch.rand(8, 3, 8, 8, generator=generator)
        target = torch.randint(K, (8,), generator=generator)
        task(images, target)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step + 1)
        if (step + 1) % (steps // 8) == 0:
            memory.append(resident())
            files.append(len(os.listdir("/proc/self/fd")))
    return memory, files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, metavar="N")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tasks and mixers; default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    grows = False
    for name in args.only or [*TASKS, *MIXERS]:
        memory, files = measure(name, args.steps)
        growth = memory[-1] - memory[1]
        bad = growth > ALLOWED or files[-1] > files[1]
        grows |= bad
        shown = " ".join(f"{size / 2**20:.1f}" for size in memory)
        print(f"{name:14s} MiB {shown}  open files {files[1]} -> {files[-1]}{'  GROWS' if bad else ''}", flush=True)
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
