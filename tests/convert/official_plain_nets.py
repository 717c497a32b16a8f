"""RecursiveMix's, AutoMix's and SAMix's published networks: their keys, and what some compute from those keys."""

import gzip
import json
from pathlib import Path

import torch
from official_layers import bn_of, conv_of, linear_of, unpacked
from torch.nn import functional as F


def read_archs(source):
    """Published name -> {num_classes, params, shapes: key -> shape}; the files name where they come from."""
    path = Path(__file__).with_name(f"official_{source}_keys.json.gz")
    archs = json.loads(gzip.decompress(path.read_bytes()))["archs"]
    for arch in archs.values():
        arch["shapes"] = unpacked(arch.pop("tensors"))
    return archs


def learned(shapes):
    """How many parameters there are."""
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if "running" not in key and shape)


def recursivemix_resnet18(state, x):
    x = F.relu(bn_of(state, "conv1.1", conv_of(state, "conv1.0", x)))
    for stage in (2, 3, 4, 5):
        for j in (0, 1):
            name, stride = f"conv{stage}_x.{j}", 2 if stage > 2 and j == 0 else 1
            branch = f"{name}.residual_function"
            out = F.relu(bn_of(state, f"{branch}.1", conv_of(state, f"{branch}.0", x, stride)))
            out = bn_of(state, f"{branch}.4", conv_of(state, f"{branch}.3", out))
            if f"{name}.shortcut.0.weight" in state:
                x = bn_of(state, f"{name}.shortcut.1", conv_of(state, f"{name}.shortcut.0", x, stride))
            x = F.relu(x + out)
    return linear_of(state, "fc", x)


def recursivemix_densenet161(state, x):
    """Its indices leave no room for an activation in the transitions: 0 is the batch norm, 1 the convolution."""
    x = conv_of(state, "conv1", x)
    for block, layers in enumerate((6, 12, 36, 24)):
        stage = "features.dense_block3" if block == 3 else f"features.dense_block_layer_{block}"
        for layer in range(layers):
            name = f"{stage}.bottle_neck_layer_{layer}.bottle_neck"
            out = conv_of(state, f"{name}.2", F.relu(bn_of(state, f"{name}.0", x)))
            out = conv_of(state, f"{name}.5", F.relu(bn_of(state, f"{name}.3", out)))
            x = torch.cat([x, out], 1)
        if block < 3:
            name = f"features.transition_layer_{block}.down_sample"
            x = F.avg_pool2d(conv_of(state, f"{name}.1", bn_of(state, f"{name}.0", x)), 2)
    return linear_of(state, "linear", F.relu(bn_of(state, "features.bn", x)))


def openmixup_resnet18(state, x, network, head):
    base = f"backbone_{network}"
    x = F.relu(bn_of(state, f"{base}.bn1", conv_of(state, f"{base}.conv1", x)))
    for stage in (1, 2, 3, 4):
        for j in (0, 1):
            name, stride = f"{base}.layer{stage}.{j}", 2 if stage > 1 and j == 0 else 1
            out = F.relu(bn_of(state, f"{name}.bn1", conv_of(state, f"{name}.conv1", x, stride)))
            out = bn_of(state, f"{name}.bn2", conv_of(state, f"{name}.conv2", out))
            if f"{name}.downsample.0.weight" in state:
                x = bn_of(state, f"{name}.downsample.1", conv_of(state, f"{name}.downsample.0", x, stride))
            x = F.relu(x + out)
    return linear_of(state, f"head_{head}_{network}.fc", x)


def openmixup_wrn28_8(state, x, network, head):
    """The first block's shortcut sees its activated input, the other stages' the raw one."""
    base = f"backbone_{network}"

    def act(name, x):
        return F.leaky_relu(bn_of(state, name, x, eps=1e-3), 0.1)

    x = conv_of(state, f"{base}.conv1", x)
    for stage in (1, 2, 3):
        for j in range(4):
            name, stride = f"{base}.block{stage}.layer.{j}", 2 if stage > 1 and j == 0 else 1
            out = act(f"{name}.bn1", x)
            if stage == 1 and j == 0:
                x = out
            out = conv_of(state, f"{name}.conv1", out, stride)
            out = conv_of(state, f"{name}.conv2", act(f"{name}.bn2", out))
            x = out + (conv_of(state, f"{name}.convShortcut", x, stride) if j == 0 else x)
    return linear_of(state, f"head_{head}_{network}.fc", act(f"{base}.bn1", x))
