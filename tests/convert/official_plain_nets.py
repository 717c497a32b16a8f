"""RecursiveMix's, AutoMix's and SAMix's published networks: their keys, and what some compute from those keys."""

import gzip
import json
from pathlib import Path

import torch
from official_splitnet_nets import BATCH_NORM
from torch.nn import functional as F


def read_archs(source):
    """Published name -> {num_classes, params, shapes: key -> shape}; the files name where they come from."""
    path = Path(__file__).with_name(f"official_{source}_keys.json.gz")
    archs = json.loads(gzip.decompress(path.read_bytes()))["archs"]
    for arch in archs.values():
        arch["shapes"] = _unpacked(arch.pop("tensors"))
    return archs


def _unpacked(tensors):
    shapes = {}
    for line in tensors:
        key, _, text = line.partition(" ")
        shape = [int(size) for size in text.split(",")]
        if key.endswith(".*"):
            shapes |= {f"{key[:-1]}{name}": shape if "num" not in name else [] for name in BATCH_NORM}
        else:
            shapes[key] = shape
    return shapes


def learned(shapes):
    """How many parameters there are."""
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if "running" not in key and shape)


def meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def _bn(state, name, x, eps=1e-5):
    weight, bias, mean, var = (state[f"{name}.{part}"] for part in BATCH_NORM[:4])
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def _linear(state, name, x):
    return F.linear(x.mean((2, 3)), state[f"{name}.weight"], state[f"{name}.bias"])


def recursivemix_resnet18(state, x):
    x = F.relu(_bn(state, "conv1.1", _conv(state, "conv1.0", x)))
    for stage in (2, 3, 4, 5):
        for j in (0, 1):
            name, stride = f"conv{stage}_x.{j}", 2 if stage > 2 and j == 0 else 1
            branch = f"{name}.residual_function"
            out = F.relu(_bn(state, f"{branch}.1", _conv(state, f"{branch}.0", x, stride)))
            out = _bn(state, f"{branch}.4", _conv(state, f"{branch}.3", out))
            if f"{name}.shortcut.0.weight" in state:
                x = _bn(state, f"{name}.shortcut.1", _conv(state, f"{name}.shortcut.0", x, stride))
            x = F.relu(x + out)
    return _linear(state, "fc", x)


def recursivemix_densenet161(state, x):
    """Its indices leave no room for an activation in the transitions: 0 is the batch norm, 1 the convolution."""
    x = _conv(state, "conv1", x)
    for block, layers in enumerate((6, 12, 36, 24)):
        stage = "features.dense_block3" if block == 3 else f"features.dense_block_layer_{block}"
        for layer in range(layers):
            name = f"{stage}.bottle_neck_layer_{layer}.bottle_neck"
            out = _conv(state, f"{name}.2", F.relu(_bn(state, f"{name}.0", x)))
            out = _conv(state, f"{name}.5", F.relu(_bn(state, f"{name}.3", out)))
            x = torch.cat([x, out], 1)
        if block < 3:
            name = f"features.transition_layer_{block}.down_sample"
            x = F.avg_pool2d(_conv(state, f"{name}.1", _bn(state, f"{name}.0", x)), 2)
    return _linear(state, "linear", F.relu(_bn(state, "features.bn", x)))


def openmixup_resnet18(state, x, network, head):
    base = f"backbone_{network}"
    x = F.relu(_bn(state, f"{base}.bn1", _conv(state, f"{base}.conv1", x)))
    for stage in (1, 2, 3, 4):
        for j in (0, 1):
            name, stride = f"{base}.layer{stage}.{j}", 2 if stage > 1 and j == 0 else 1
            out = F.relu(_bn(state, f"{name}.bn1", _conv(state, f"{name}.conv1", x, stride)))
            out = _bn(state, f"{name}.bn2", _conv(state, f"{name}.conv2", out))
            if f"{name}.downsample.0.weight" in state:
                x = _bn(state, f"{name}.downsample.1", _conv(state, f"{name}.downsample.0", x, stride))
            x = F.relu(x + out)
    return _linear(state, f"head_{head}_{network}.fc", x)


def openmixup_wrn28_8(state, x, network, head):
    """The first block's shortcut sees its activated input, the other stages' the raw one."""
    base = f"backbone_{network}"

    def act(name, x):
        return F.leaky_relu(_bn(state, name, x, eps=1e-3), 0.1)

    x = _conv(state, f"{base}.conv1", x)
    for stage in (1, 2, 3):
        for j in range(4):
            name, stride = f"{base}.block{stage}.layer.{j}", 2 if stage > 1 and j == 0 else 1
            out = act(f"{name}.bn1", x)
            if stage == 1 and j == 0:
                x = out
            out = _conv(state, f"{name}.conv1", out, stride)
            out = _conv(state, f"{name}.conv2", act(f"{name}.bn2", out))
            x = out + (_conv(state, f"{name}.convShortcut", x, stride) if j == 0 else x)
    return _linear(state, f"head_{head}_{network}.fc", act(f"{base}.bn1", x))
