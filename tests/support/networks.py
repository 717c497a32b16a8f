"""What tests of networks share: fixed images, layers that are not at their start, counts, gradients."""

import torch
from torch import nn
from torch.nn import functional as F


def fixed_images(*shape):
    """The same normal noise at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def batch_norm(norm, x):
    """What a BatchNorm computes in evaluation, without the activation that some have in them."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def stirred(model):
    """The model in evaluation, with BatchNorms that are no identities."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_()
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def assert_checkpointing_keeps_the_gradients(model, x):
    """Activations computed again must meet the same chance as in the first pass."""
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(5)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
