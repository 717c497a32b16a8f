"""What the published networks have in common: how their keys are packed, and layers computed from those keys."""

import torch
from torch.nn import functional as F

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def unpacked(tensors):
    """key -> shape, from lines 'key size,size'; a key that ends with .* is a whole batch norm."""
    shapes = {}
    for line in tensors:
        key, _, text = line.partition(" ")
        shape = [int(size) for size in text.split(",")]
        if key.endswith(".*"):
            shapes |= {f"{key[:-1]}{name}": shape if "num" not in name else [] for name in BATCH_NORM}
        else:
            shapes[key] = shape
    return shapes


def meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def conv_of(state, name, x, stride=1, padding=None):
    """The number of groups and the padding follow from the shapes."""
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, groups=x.shape[1] // weight.shape[1])


def bn_of(state, name, x, eps=1e-5):
    weight, bias, mean, var = (state[f"{name}.{part}"] for part in BATCH_NORM[:4])
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def linear_of(state, name, x):
    return F.linear(x.mean((2, 3)), state[f"{name}.weight"], state[f"{name}.bias"])
