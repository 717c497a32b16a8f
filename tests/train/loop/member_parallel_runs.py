"""What the tests of member-parallel training share: a run, and the processes that hold a part each (gloo, on the CPU).

Run as a script this file forks the processes, for the steps of the trainer or for an interrupted run of train.py:
python tests/train/loop/member_parallel_runs.py steps OUT
python tests/train/loop/member_parallel_runs.py interrupted OUT IMAGES
"""

import contextlib
import os
import sys
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from support.processes import fork, free_ports, place
from support.settings import task_of
from support.trainer_runs import forget_accelerator, press_ctrl_c
from torch.nn.parallel import DistributedDataParallel

import timm_mix
from timm_mix.commands.train import main
from timm_mix.metrics import evaluate_members
from timm_mix.tasks.member_parallel import gather_members
from timm_mix.train.loop.build import build_model, build_optimizer
from timm_mix.train.loop.member_parallel import MemberParallel
from timm_mix.train.loop.trainer import Trainer
from timm_mix.train.settings.config import Config

S, BATCH, SIZE, K, STEPS = 2, 5, 8, 7, 3
WORLDS = {"two processes": 2, "four processes": 4}
BACKBONE = {"backbone": "wrn16_2", "depth": 10, "split": S}
CONFIG = {
    **{"model": "splitnet", "model_kwargs": BACKBONE, "task": "cotraining", "mix": {"weight": 0.5}, "cpu": True},
    **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "seed": 3, "epochs": 1},
}
# what may be set beside: name -> settings of a run
RUNS = {
    "plain": {},
    "clipped and averaged": {"clip_grad": 0.5, "l2_penalty": 1e-3, "model_ema": True, "model_ema_decay": 0.5},
    "accumulated": {"grad_accum_steps": 3},
    "mixed up": {"mix": {"weight": 0.5, "divergence": "kl", "mixup": 0.2}, "smoothing": 0.1},
}


def config_of(name):
    return Config.of(**{**CONFIG, **RUNS[name]})


def batches_of(replicas):
    """STEPS batches of a replica: images (a view per part) and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, replicas, BATCH, S, 3, SIZE, SIZE, generator=generator)
    return x, torch.randint(K, (STEPS, replicas, BATCH), generator=generator)


def _trained(name, accelerator):
    """What one process holds before and after STEPS steps of the trainer."""
    config = config_of(name)
    parallel = MemberParallel(config.model, accelerator)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, K, **parallel.model_settings)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    images, target = (part[:, parallel.share] for part in batches_of(parallel.shares))
    batches = list(zip(images[:, :, parallel.part], target, strict=True))
    task = task_of(config, model, K, STEPS, **parallel.task_settings)
    optimizer = build_optimizer(config.optimise, model)
    trainer = Trainer(config, accelerator, task, optimizer, None, 1, batches, [], {}, parallel=parallel)
    group = config.optimise.grad_accum_steps
    sums = [trainer._update(batches[i : i + group], i // group) for i in range(0, STEPS, group)]
    content = {"state_dict": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    whole = parallel.whole({**content, "task_states": [{"rank": r // S} for r in range(accelerator.num_processes)]})
    alike = MemberParallel(Config.of(**CONFIG).model, accelerator, one_view=True)
    return {
        "place": (parallel.part, parallel.share, parallel.shares),
        "seeds": (parallel.seed_rank, alike.seed_rank),
        "start": start,
        "parameters": {key: value.detach() for key, value in model.named_parameters()},
        "ema": task.get_checkpoint_state(ema=True).get("state_dict_ema"),
        "momenta": len(optimizer.state),
        "wrapped": isinstance(task.trainable_module, DistributedDataParallel),
        "loss": [float(entry["loss"]) for entry in sums],
        "checkpoint": whole if accelerator.is_main_process else None,
        "scores": _scores(model, parallel, batches),
        "batchnorm": {key: value.clone() for key, value in model.named_buffers()},
    }


def _scores(model, parallel, batches):
    parallel.average_batchnorm(model)
    metrics = evaluate_members(parallel.evaluable(model), batches)
    metrics.reduce(parallel.sum_scores)
    return {name: (scores.nll, scores.count) for name, scores in metrics.compute().items()}


def _refusals(accelerator):
    """What processes that do not fit are told."""
    told = {}
    config = Config.of(**{**CONFIG, "model_kwargs": {**BACKBONE, "split": 3, "divide": False}})
    wrong_part = timm.create_model("splitnet", only_part=1 - accelerator.process_index % S, num_classes=K, **BACKBONE)
    group = MemberParallel(Config.of(**CONFIG).model, accelerator).member_group
    three = timm.create_model("splitnet", **{**BACKBONE, "split": 3, "divide": False}, num_classes=K)
    cases = {
        "processes": lambda: MemberParallel(config.model, accelerator),
        "another part": lambda: timm_mix.create_task("cotraining", wrong_part, num_classes=K, member_group=group),
        "another S": lambda: timm_mix.create_task("cotraining", three, num_classes=K, member_group=group),
    }
    for name, case in cases.items():
        try:
            case()
        except ValueError as error:
            told[name] = str(error)
    return told


def _gathered(accelerator):
    """Logits of this process's part, those of all, and the gradient of a sum in which part i counts 2 + i times."""
    group = MemberParallel(Config.of(**CONFIG).model, accelerator).member_group
    generator = torch.Generator().manual_seed(accelerator.process_index)
    own = torch.randn(BATCH, 1, K, generator=generator).bfloat16().requires_grad_()
    members = gather_members(own, group)
    (members * torch.arange(2.0, 2.0 + S)[:, None]).sum().backward()
    return {"own": own.detach(), "members": members.detach(), "gradient": own.grad}


def difference(one, two):
    """The largest difference of what `one` holds, relative to the scale of `two`."""
    scale = max(value.abs().max() for value in two.values())
    return float(max((one[name] - two[name]).abs().max() for name in one) / scale)


def flags(images, out):
    """Of the script: every source of chance, averaged weights, bfloat16."""
    data = ["--data-dir", str(images), "--img-size", str(SIZE), "--aug", "small", "--workers", "0", "--cpu"]
    model = ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10"]
    chance = ["--drop", "0.2", "--reprob", "0.5"]
    run = ["--task", "cotraining", "--member-parallel", "--batch-size", str(BATCH), "--epochs", "2", "--amp"]
    ema = ["--model-ema", "--model-ema-decay", "0.5"]
    return [*data, *model, *chance, *run, *ema, "--output", str(out), "--experiment", "run"]


def _interrupt_and_resume(rank, world, ports, images, out):
    """The script, stopped after its first epoch and started again; each run makes and ends a process group."""
    report = Trainer._report
    for keep, port in zip((press_ctrl_c, report), ports, strict=True):
        forget_accelerator()
        os.environ.update(place(rank, world, port))
        Trainer._report = keep
        with contextlib.suppress(KeyboardInterrupt):
            main([*flags(images, out), "--resume", "auto"])


def _steps(rank, world, port, out):
    """Every run's steps in one process."""
    os.environ.update(place(rank, world, port))
    accelerator = Accelerator(cpu=True)
    found = {name: _trained(name, accelerator) for name in RUNS}
    found |= {"told": _refusals(accelerator), "gathered": _gathered(accelerator)}
    torch.save(found, out / f"world{world}rank{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, out, *rest = sys.argv[1:]
    if kind == "steps":
        for world in WORLDS.values():
            fork(_steps, world, free_ports(1)[0], Path(out))
    else:
        fork(_interrupt_and_resume, S, free_ports(2), Path(rest[0]), Path(out))
