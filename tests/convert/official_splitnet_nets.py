"""SplitNet's published networks (Zhao et al., arXiv:2011.14660): their keys, and what each computes from those keys."""

import gzip
import json
import re
from pathlib import Path

import torch
from official_layers import bn_of, conv_of, linear_of, unpacked
from torch.nn import functional as F

_FILE = Path(__file__).with_name("official_splitnet_keys.json.gz")
ARCHS = json.loads(gzip.decompress(_FILE.read_bytes()))["archs"]


def part_shapes(arch):
    """key -> shape of one part, as the published code names it behind `models.<i>.`."""
    return unpacked(ARCHS[arch]["tensors"])


def random_state(shapes, seed=0):
    """One part's state_dict: random, of a size that keeps the signal alive; float64, so that no order of sums shows."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7 + seed)
        elif len(shape) == 1:
            state[key] = 0.5 + torch.rand(shape, generator=generator).double()
        else:
            fan_in = torch.Size(shape[1:]).numel()
            state[key] = torch.randn(shape, generator=generator).double() / fan_in**0.5
    return state


def checkpoint(*parts, prefix=""):
    """What the published code saves, after so many parts."""
    state = {f"{prefix}models.{i}.{key}": tensor for i, part in enumerate(parts) for key, tensor in part.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "epoch": 300,
        "arch": "resnet110",
        "state_dict": state,
        "best_acc1": torch.tensor(80.5),
        "optimizer": optimizer,
        "scaler": {"scale": 65536.0},
    }


def _blocks(state, stage):
    """Names of the blocks of `layer1`, `stage_1`, ..., in order."""
    count = 1 + max(int(match[1]) for key in state if (match := re.match(rf"{stage}\.(\d+)\.", key)))
    return [f"{stage}.{block}" for block in range(count)]


def _halve(x):
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def resnet(state, x):
    """ResNet, SENet and ResNeXSt, those for small images and for large ones; also ResNeSt behind its own stem."""
    squeezed = "layer0.conv1.weight" in state
    stem = [("layer0.conv1", "layer0.bn1"), ("layer0.conv2", "layer0.bn2"), ("layer0.conv3", "layer0.bn3")]
    stem = stem if squeezed else [("layer0.0", "layer0.1"), ("layer0.3", "layer0.4"), ("layer0.6", "layer0.7")]
    deep = f"{stem[2][0]}.weight" in state
    for i, (conv, bn) in enumerate(stem if deep else stem[:1]):
        x = F.relu(bn_of(state, bn, conv_of(state, conv, x, stride=2 if deep and i == 0 else 1)))
    if deep:
        x = F.max_pool2d(x, 3, 2, padding=0 if squeezed else 1, ceil_mode=squeezed)
    for stage in (1, 2, 3, 4) if deep else (1, 2, 3):
        for j, block in enumerate(_blocks(state, f"layer{stage}")):
            x = _residual(state, block, x, stride=2 if stage > 1 and j == 0 else 1)
    return linear_of(state, "last_linear" if squeezed else "fc", x)


def _residual(state, block, x, stride):
    shortcut = x
    for index in (0, 1):
        if f"{block}.downsample.{index}.weight" in state:  # before the convolution, index 1, lies a pool
            pooled = x if index == 0 else _halve(x)
            conv = conv_of(state, f"{block}.downsample.{index}", pooled, stride=1 if index else stride)
            shortcut = bn_of(state, f"{block}.downsample.{index + 1}", conv)
            break
    bottleneck = f"{block}.conv3.weight" in state
    out = conv_of(state, f"{block}.conv1", x, stride=1 if bottleneck else stride)
    out = F.relu(bn_of(state, f"{block}.bn1", out))
    if f"{block}.conv2.fc1.weight" in state:
        out = _split_attention(state, f"{block}.conv2", out)
        out = out if block.startswith("layer1.") else F.avg_pool2d(out, 3, stride, padding=1)
    else:
        out = bn_of(state, f"{block}.bn2", conv_of(state, f"{block}.conv2", out, stride=stride if bottleneck else 1))
    if bottleneck:
        out = bn_of(state, f"{block}.bn3", conv_of(state, f"{block}.conv3", F.relu(out)))
    if f"{block}.se_module.fc1.weight" in state:
        gate = F.relu(conv_of(state, f"{block}.se_module.fc1", out.mean((2, 3), keepdim=True)))
        out = out * conv_of(state, f"{block}.se_module.fc2", gate).sigmoid()
    return F.relu(out + shortcut)


def _split_attention(state, name, x):
    """Radix 2: two halves of the channels, weighed against each other by a softmax in every group."""
    groups = x.shape[1] // (2 * state[f"{name}.conv.weight"].shape[1])
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, padding=1, groups=2 * groups)
    x = F.relu(bn_of(state, f"{name}.bn0", x))
    halves = x.chunk(2, dim=1)
    gap = conv_of(state, f"{name}.fc1", sum(halves).mean((2, 3), keepdim=True))
    attention = conv_of(state, f"{name}.fc2", F.relu(bn_of(state, f"{name}.bn1", gap)))
    attention = attention.unflatten(1, (groups, 2, -1)).softmax(dim=2)
    return sum(half * attention[:, :, r].flatten(1, 2) for r, half in enumerate(halves))


def shake_shake(state, x):
    """In evaluation the two branches are averaged."""
    x = bn_of(state, "bn_1", conv_of(state, "conv_1", x))
    for stage in (1, 2, 3):
        for j, block in enumerate(_blocks(state, f"stage_{stage}")):
            stride = 2 if stage > 1 and j == 0 else 1
            out = 0
            for branch in ("branch1", "branch2"):
                h = conv_of(state, f"{block}.{branch}.1", F.relu(x), stride=stride)
                h = conv_of(state, f"{block}.{branch}.4", F.relu(bn_of(state, f"{block}.{branch}.2", h)))
                out = out + 0.5 * bn_of(state, f"{block}.{branch}.5", h)
            if j == 0:
                h = F.relu(x)
                here = conv_of(state, f"{block}.shortcut.conv1", h[..., ::stride, ::stride])
                shifted = F.pad(h, (-1, 1, -1, 1))[..., ::stride, ::stride]
                beside = conv_of(state, f"{block}.shortcut.conv2", shifted)
                x = bn_of(state, f"{block}.shortcut.bn", torch.cat([here, beside], 1))
            x = x + out
    return linear_of(state, "fc_out", F.relu(x))


def pyramidnet(state, x, last_drop):
    """In evaluation block j of n keeps 1 - last_drop * j / n of its branch."""
    x = bn_of(state, "bn1", conv_of(state, "conv1", x))
    blocks = [block for stage in (1, 2, 3) for block in _blocks(state, f"layer{stage}")]
    for j, block in enumerate(blocks, start=1):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        out = conv_of(state, f"{block}.conv1", bn_of(state, f"{block}.bn1", x))
        out = conv_of(state, f"{block}.conv2", F.relu(bn_of(state, f"{block}.bn2", out)), stride=stride)
        out = conv_of(state, f"{block}.conv3", F.relu(bn_of(state, f"{block}.bn3", out)))
        out = bn_of(state, f"{block}.bn4", out) * (1 - last_drop * j / len(blocks))
        x = x if stride == 1 else _halve(x)
        x = out + F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
    return linear_of(state, "fc", F.relu(bn_of(state, "bn_final", x)))


def densenet(state, x):
    x = F.relu(bn_of(state, "features.norm0", conv_of(state, "features.conv0", x)))
    for block in (1, 2, 3):
        for layer in range(1, 32):
            name = f"features.denseblock{block}.denselayer{layer}"
            out = conv_of(state, f"{name}.conv1", F.relu(bn_of(state, f"{name}.norm1", x)))
            out = conv_of(state, f"{name}.conv2", F.relu(bn_of(state, f"{name}.norm2", out)))
            x = torch.cat([x, out], 1)
        if block < 3:
            name = f"features.transition{block}"
            x = F.avg_pool2d(conv_of(state, f"{name}.conv", F.relu(bn_of(state, f"{name}.norm", x))), 2)
    return linear_of(state, "classifier", F.relu(bn_of(state, "features.norm_final", x)))


# the layers of one block, convolution and batch norm, or the two convolutions of its squeeze
_BY_NUMBER = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_se_reduce", "_se_expand"))
_BY_NUMBER += (("_project_conv", "_bn2"),)
_BY_STAGE = (("expansion.conv_block.conv", "expansion.conv_block.norm"),)
_BY_STAGE += (("depth_wise.conv_block.conv", "depth_wise.conv_block.norm"),)
_BY_STAGE += (("se_block.channel_se.linear1", "se_block.channel_se.linear2"), ("point_wise.conv", "point_wise.norm"))


def efficientnet_b0(state, x, strides):
    """Both variants; strides of the stem and of the seven stages. Numbered blocks pad as TensorFlow does ("same")."""
    numbered = "_conv_stem.weight" in state
    stem = ("_conv_stem", "_bn0") if numbered else ("mod1.conv_block.conv", "mod1.conv_block.norm")
    head = ("_conv_head", "_bn1") if numbered else ("last_feat.conv_block.conv", "last_feat.conv_block.norm")
    x = _conv_silu(state, *stem, x, strides[0], numbered)
    number = 0
    for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)):
        for j in range(count):
            name = f"_blocks.{number}" if numbered else f"mod{stage + 2}.block{j + 1}"
            layers = [(f"{name}.{a}", f"{name}.{b}") for a, b in (_BY_NUMBER if numbered else _BY_STAGE)]
            x = _inverted_residual(state, layers, x, strides[stage + 1] if j == 0 else 1, numbered)
            number += 1
    return linear_of(state, "_fc" if numbered else "classifier", _conv_silu(state, *head, x, 1, numbered))


def _conv_silu(state, conv, norm, x, stride, same):
    size, padding = state[f"{conv}.weight"].shape[-1], None
    if same:
        missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in (x.shape[3], x.shape[2])]
        x, padding = F.pad(x, [side for n in missing for side in (n // 2, n - n // 2)]), 0
    return F.silu(bn_of(state, norm, conv_of(state, conv, x, stride, padding), eps=1e-3))


def _inverted_residual(state, layers, x, stride, same):
    expand, depthwise, squeeze, project = layers
    out = _conv_silu(state, *expand, x, 1, same) if f"{expand[0]}.weight" in state else x
    out = _conv_silu(state, *depthwise, out, stride, same)
    gate = conv_of(state, squeeze[1], F.silu(conv_of(state, squeeze[0], out.mean((2, 3), keepdim=True))))
    out = bn_of(state, project[1], conv_of(state, project[0], out * gate.sigmoid()), eps=1e-3)
    return out + x if out.shape == x.shape else out
