"""The faster depthwise weight gradient equals torch's."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_mix.lab import depthwise


def gradients(conv2d, image, weight, **settings):
    image, weight = image.clone().requires_grad_(), weight.clone().requires_grad_()
    image.retain_grad()
    output = conv2d(image.contiguous(memory_format=torch.channels_last), weight, **settings)
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output, image.grad, weight.grad


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (3, 2, 0), ((3, 1), (1, 2), (1, 0))])
def test_value_and_gradients_are_torchs(size, kernel, stride, padding, monkeypatch):
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    size = max(size, 3) if padding == 0 else size
    generator = torch.Generator().manual_seed(size)
    image = torch.randn(3, 6, size, size, generator=generator)
    weight = torch.randn(6, 1, height, width, generator=generator)
    settings = {"stride": stride, "padding": padding, "groups": 6}
    taken = []
    apply = depthwise._SmallMaps.apply
    monkeypatch.setattr(depthwise._SmallMaps, "apply", lambda *args: taken.append(args) or apply(*args))
    ours, theirs = (
        gradients(depthwise.conv2d, image, weight, **settings),
        gradients(F.conv2d, image, weight, **settings),
    )
    assert len(taken) == 1  # the map is small
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "weight", "settings"),
    [
        ((2, 6, 12, 12), (6, 1, 3, 3), {"padding": 1, "groups": 6}),  # large
        ((2, 6, 4, 4), (8, 6, 3, 3), {"padding": 1}),  # one group
        ((2, 6, 4, 4), (12, 1, 3, 3), {"padding": 1, "groups": 6}),  # two filters for a channel
        ((2, 6, 4, 4), (6, 1, 3, 3), {"padding": "same", "groups": 6}),
        ((2, 6, 8, 8), (6, 1, 3, 3), {"padding": 1, "groups": 6, "dilation": 2}),
    ],
)
def test_everything_else_is_left_to_torch(shape, weight, settings, monkeypatch):
    monkeypatch.setattr(depthwise._SmallMaps, "apply", None)
    image, weight = torch.randn(shape), torch.randn(weight)
    for a, b in zip(
        gradients(depthwise.conv2d, image, weight, **settings),
        gradients(F.conv2d, image, weight, **settings),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


NETWORK = """
import sys, timm, torch
if "fast" in sys.argv:
    import timm_mix.lab.fast_depthwise
    from timm_mix.lab import depthwise
    apply, taken = depthwise._SmallMaps.apply, []
    depthwise._SmallMaps.apply = lambda *args: taken.append(1) or apply(*args)
torch.manual_seed(0)
model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval().to(memory_format=torch.channels_last)
image = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
model(image).square().sum().backward()
assert "fast" not in sys.argv or len(taken) == 9, len(taken)  # the maps of the others are large
print(*(float(p.grad.double().norm()) for p in model.parameters()))
"""


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, and still used
@pytest.mark.parametrize("settings", [{"padding_mode": "reflect"}, {"padding": "same"}, {"padding": 1, "groups": 6}])
def test_a_changed_convolution_can_be_scripted_and_traced(settings, monkeypatch):
    layer, image = nn.Conv2d(6, 6, 3, **{"padding": 1, **settings}), torch.randn(2, 6, 5, 5)
    wanted = layer(image)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", depthwise._conv_forward)
    for changed in (layer, torch.jit.script(layer), torch.jit.trace(layer, image)):
        torch.testing.assert_close(changed(image), wanted, rtol=0, atol=0)


def test_torch_is_unchanged_where_nobody_asked():
    assert nn.Conv2d._conv_forward.__module__ == "torch.nn.modules.conv"


@pytest.mark.slow
def test_a_network_has_the_same_gradients_after_the_import():
    plain, fast = (
        [float(word) for word in subprocess.check_output([sys.executable, "-c", NETWORK, how], text=True).split()]
        for how in ("plain", "fast")
    )
    assert len(plain) == len(list(timm.create_model("tf_efficientnet_lite0").parameters()))
    assert fast == pytest.approx(plain, rel=1e-3, abs=1e-9)
