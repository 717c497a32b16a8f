"""Runs of train.py on two processes (gloo, on the CPU) that are stopped, resumed, or meet a torn image.

Run as a script this file forks the two for one run after the other: python two_rank_runs.py OUT IMAGES TORN
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from script_runs import SIZE, TASKS
from support.processes import free_ports, place

from timm_mix.commands.train import main
from timm_mix.train.errors import run_script
from timm_mix.train.loop import trainer as engine
from timm_mix.train.loop.trainer import Trainer

FLAGS = [
    *(*TASKS["classification"], "--img-size", str(SIZE), "--aug", "small", "--workers", "0", "--cpu", "--epochs", "2"),
    *("--batch-size", "4", "--validation-batch-size", "1", "--drop", "0.3", "--reprob", "0.5", "--resume", "auto"),
    *("--model-ema", "--model-ema-decay", "0.9"),
]
engine.STOP_EVERY = 2


def signal_rank_1():
    """SIGTERM reaches the second process alone, in the second batch of the second evaluation, that of the average."""
    batches, count = Trainer._evaluation_batches, iter(range(99))

    def watched(trainer):
        evaluation = next(count)
        for number, batch in enumerate(batches(trainer)):
            if (evaluation, number) == (1, 1) and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    Trainer._evaluation_batches = watched


def both(flags, before=lambda: None):
    """The exit statuses of the two processes."""
    [port], children = free_ports(1), []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ.update(place(rank, 2, port))
            status = 1
            try:
                before()
                run_script(lambda: main([*FLAGS, *flags]))
                status = 0
            except SystemExit as end:
                status = end.code
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, images, torn = sys.argv[1:]
    where = ["--data-dir", images, "--output", out, "--experiment"]
    statuses = {
        "whole": both([*where, "whole"]),
        "stopped": both([*where, "stopped"], signal_rank_1),
        "resumed": both([*where, "stopped"]),
        "torn": both([*where, "torn", "--data-dir", torn]),
    }
    (Path(out) / "statuses.json").write_text(json.dumps(statuses))
