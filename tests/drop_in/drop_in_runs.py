"""What the tests of drop_in share: images, one small run per task and mixer, and those runs on several processes.

Run under torchrun it does all runs, one after another, each start on a port of its own:
torchrun --nproc_per_node 2 tests/drop_in/drop_in_runs.py IMAGES OUT PORT ...
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import timm.data
import timm.models
import timm.scheduler
import timm.task
import torch
from PIL import Image
from sklearn.datasets import load_digits

from timm_mix.drop_in import parse, run

SCRIPT = Path(__file__).with_name("timm_like_train.py")
SIZE, BATCH, TRAIN, VALIDATION = 16, 8, 40, 10
STEPS = TRAIN // BATCH
NAMES = [
    *((timm.task, "ClassificationTask"), (timm.task, "LogitDistillationTask"), (timm.data, "Mixup")),
    *((timm.data, "create_loader"), (timm.scheduler, "create_scheduler_v2"), (timm.models, "create_model")),
    *((timm.data, "FastCollateMixup"), (timm, "create_model"), (timm.data, "resolve_data_config")),
]
PLAIN = ("wrn16_2", {"depth": 10, "widen_factor": 1})


@dataclass(frozen=True)
class Run:
    """What stands before and after the script's path, and the model."""

    ours: str
    flags: str = ""
    model: tuple = PLAIN

    def arguments(self, images, out, *more):
        name, kwargs = self.model
        model = ["--model", name, "--num-classes", "10", "--model-kwargs", *(f"{k}={v}" for k, v in kwargs.items())]
        data = ["--data-dir", str(images), "--img-size", str(SIZE), "-b", str(BATCH), "--output", str(out)]
        return [*self.ours.split(), str(SCRIPT), *model, *data, *self.flags.split(), *more]


RUNS = {
    "mixmo": Run(
        "--task mixmo --mix block=cut prob=0.5",
        "--amp --amp-dtype bfloat16 --model-ema",
        ("mixmo", {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1, "members": 2}),
    ),
    "cotraining": Run(
        "--task cotraining --mix warmup_epochs=1",
        "--model-ema --grad-accum-steps 2",
        ("splitnet", {"backbone": "wrn16_2", "depth": 10, "split": 2}),
    ),
    "recursivemix": Run("--task recursivemix --mix omega=1e-1", "--model-ema --channels-last --clip-grad 1"),
    "automix": Run("--task automix --mix reduction=4", "--model-ema --grad-accum-steps 2"),
    "manifoldmixup": Run("--task manifoldmixup --mix stages=[0,1]", "--no-prefetcher --bce-loss"),
    "mixup": Run("--mixer mixup --mix mode=elem", "--no-prefetcher --amp --amp-dtype bfloat16"),
    "cutmix": Run("--mixer cutmix --mix alpha=0.5", "--model-ema --torchcompile eager"),
    "resizemix": Run("--mixer resizemix --mix scope=[0.2,0.6] off_epoch=1", "--bce-loss --channels-last"),
    "switch": Run("--mixer switch --mix mixers=[mixup,resizemix]", "--smoothing 0 --grad-accum-steps 3"),
}


def write_digits(root):
    """scikit-learn's first digits as folders of 16x16 png files: train/ and val/, a folder per class."""
    scans = load_digits()
    for number, (scan, label) in enumerate(zip(scans.images, scans.target, strict=True)):
        if number == TRAIN + VALIDATION:
            return
        folder = root / ("train" if number < TRAIN else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        levels = np.round(scan * (255 / 16)).astype(np.uint8)
        Image.fromarray(levels).resize((SIZE, SIZE)).convert("RGB").save(folder / f"{number}.png")


def main(images, out, *ports):
    """All runs, and each resumed for a second epoch, on the processes of this launch.

    What a process came to is in OUT/<run>/rank<r>.pt.
    """
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # torchrun's own store serves one process group
    ports = iter(ports)
    for name, wanted in RUNS.items():
        folder = Path(out) / name
        for more in ((), ("--epochs", "2", "--resume", str(folder / "last.pth.tar"))):
            os.environ["MASTER_PORT"] = next(ports)
            task = run(*parse(wanted.arguments(images, folder, *more))).task
        module = task.get_trainable_module()
        state = {"trained": list(module.parameters()), "evaluated": list(task.get_eval_model().parameters())}
        state |= {"task": task.get_task_state(), "wrapper": type(module).__name__, "total": task.total_steps}
        torch.save(state, folder / f"rank{task.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
