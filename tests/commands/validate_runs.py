"""What the tests of validate.py share: a saved model, its evaluation in this process or on two."""

import sys

import pytest
import timm
import torch
from script_runs import NAMES, SCRIPT, SIZE, fresh_accelerate, in_a_process
from support.processes import free_ports

from timm_mix.commands import validate
from timm_mix.hub import save_pretrained
from timm_mix.train.evaluate import run as evaluation

VALIDATE = SCRIPT.with_name("validate.py")
WHOLE = "ensemble_logits"
# older releases of matplotlib speak an older dialect of pyparsing
OLD_PYPARSING = pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning")


def save_model(folder, name="mixmo", classes=NAMES, weights=None, **more):
    torch.manual_seed(0)
    kwargs = {"backbone": "wrn16_2", "members": 2} if name == "mixmo" else more
    model = timm.create_model(name, depth=10, widen_factor=1, num_classes=len(classes), **kwargs)
    heads = model.get_classifier()
    with torch.no_grad():
        for head in heads if isinstance(heads, tuple) else [heads]:
            for parameter in head.parameters():  # predictions that differ from image to image
                parameter.mul_(2) if weights is None else parameter.fill_(weights)
    data_config = {"input_size": (3, SIZE, SIZE), "mean": (0.4,) * 3, "std": (0.2,) * 3}
    return save_pretrained(model, folder, label_names=list(classes), data_config=data_config)


def flags_of(model, images, output):
    data = ["--data-dir", str(images), "--aug", "none", "--batch-size", "3", "--workers", "0", "--cpu"]
    return ["--model", str(model), *data, "--output", str(output)]


def evaluate(*flags):
    """validate.py in this process; four passes are enough to see a throughput."""
    with pytest.MonkeyPatch.context() as patch, fresh_accelerate():
        patch.setattr(evaluation, "THROUGHPUT_SECONDS", 0.0)
        return validate.main(flags)


def on_two_processes(*flags):
    [port] = free_ports(1)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return in_a_process([sys.executable, *launcher, str(VALIDATE), *flags])
