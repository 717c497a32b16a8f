"""What the tests of train.py share: its path, tiny data and models, and how to read what a run left."""

import contextlib
import os
import subprocess
from pathlib import Path

import timm
import torch
from support.trainer_runs import forget_accelerator
from torch.nn import functional as F

from timm_mix.train.data.sources import open_dataset
from timm_mix.train.data.transforms import create_transform

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "train.py"
NAMES = ["ant", "bee", "cat"]
TRAIN, VALIDATION = 36, 7
SIZE = 16
SMALL = ["backbone=wrn16_2", "depth=10", "widen_factor=1"]
TASKS = {
    "classification": ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1"],
    "mixmo": ["--model", "mixmo", "--model-kwargs", *SMALL, "members=2", "--mix", "prob=0.5"],
    "cotraining": ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10", "split=2"],
    "recursivemix": ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1", "--mix", "alpha=0.4"],
    "automix": ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1", "--mix", "reduction=2"],
    "manifoldmixup": ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1"],
}
# no BatchNorm, one patch: gradients of samples do not mix
VIT = ["--model", "test_vit", "--model-kwargs", f"img_size={SIZE}", "--aug", "none"]
PLAIN_SGD = ["--opt", "momentum", "--momentum", "0", "--weight-decay", "0", "--sched", "none"]


@contextlib.contextmanager
def fresh_accelerate():
    """accelerate keeps one state per process: another run in the same test needs none left."""
    try:
        yield
    finally:
        forget_accelerator()


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)


def checkpoint_names(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def reloaded(folder):
    return timm.create_model(f"local-dir:{folder}/model", pretrained=True).eval()


def figures(row):
    """A history row without what depends on the clock."""
    return {name: value for name, value in row.items() if name != "train_seconds"}


def assert_equal_states(one, two):
    """Nested containers with tensors in them."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_equal_states(one[name], two[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_equal_states(a, b)
    else:
        assert one == two


def assert_same_run(one, two):
    """Two run folders end with the same weights, generators and figures, to the bit."""
    contents = [checkpoint(folder) for folder in (one, two)]
    for content in contents:
        content["progress"]["history"] = [figures(row) for row in content["progress"]["history"]]
        del content["config"], content["progress"]["seconds"]  # the config has the name of the folder
    assert_equal_states(*contents)


def scored(model, images):
    """Top-1 in per cent and NLL of a model over the validation images, image by image."""
    config = timm.data.resolve_data_config({}, model=model)
    transform = create_transform("none", config, training=False)
    hits, nll = 0, 0.0
    with torch.no_grad():
        for image, label in open_dataset("", images, "val"):
            log_p = F.log_softmax(model(transform(image)[None])[0].double(), 0)
            hits += int(log_p.argmax()) == label
            nll -= log_p[label].item()
    return 100 * hits / VALIDATION, nll / VALIDATION


def in_a_process(command, **settings):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parent))),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, **settings)
