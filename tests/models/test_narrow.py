"""timm's networks in other widths."""

import math

import pytest
import timm
import torch
from torch import nn

FAMILIES = {
    "narrow_efficientnet": "efficientnet_b0",
    "narrow_mobilenetv3": "mobilenetv3_small_100",
    "narrow_vgg": "vgg11",
}


def test_full_width_is_timms_own_network():
    backbone = "mobilenetv3_small_100"  # all its widths are multiples of 4
    plain = timm.create_model(backbone, num_classes=11).eval()
    full = timm.create_model("narrow_mobilenetv3", backbone=backbone, width=1.0, num_classes=11).eval()
    full.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(full(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "backbone"), FAMILIES.items())
def test_every_side_but_image_and_classes_is_scaled_to_a_multiple_of_4(name, backbone):
    plain = timm.create_model(backbone, num_classes=11, device="meta")
    part = timm.create_model(name, backbone=backbone, width=0.6, num_classes=11, device="meta")
    assert plain.state_dict().keys() == part.state_dict().keys()
    for (key, whole), divided in zip(plain.named_parameters(), part.parameters(), strict=True):
        for side, (before, after) in enumerate(zip(whole.shape, divided.shape, strict=True)):
            kept = side >= 2 or before in (1, 3, 11)  # kernels, depthwise, the image's channels, the classes
            assert after == (before if kept else max(4, 4 * math.floor(before * 0.6 / 4 + 0.5))), key


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pool", ["avg", "catavgmax"])
def test_heads_fit_their_features_and_can_be_replaced(name, pool):
    kwargs = {"backbone": FAMILIES[name], "width": 0.3, "global_pool": pool}
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert timm.create_model(name, num_classes=0, **kwargs).eval()(x).shape == (2, model.head_hidden_size)


def test_initialisation_is_the_familys():
    torch.manual_seed(0)
    efficientnet, vgg = timm.create_model("narrow_efficientnet"), timm.create_model("narrow_vgg", width=0.2)
    for conv in (efficientnet.conv_head, vgg.pre_logits.fc1):
        fan_out = conv.out_channels * math.prod(conv.kernel_size)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert vgg.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    bounds = efficientnet.classifier.weight.abs().max().item() * math.sqrt(efficientnet.num_classes)
    assert bounds == pytest.approx(1, rel=0.01)
    for bn in efficientnet.modules():
        if isinstance(bn, nn.BatchNorm2d):
            assert (bn.weight.min(), bn.bias.abs().max(), bn.running_var.max(), bn.running_mean.max()) == (1, 0, 1, 0)
            assert bn.num_batches_tracked == 0


def test_device_and_dtype_are_honoured():
    kwargs = {"backbone": "mobilenetv3_small_100", "width": 0.5}
    assert {p.device.type for p in timm.create_model("narrow_mobilenetv3", device="meta", **kwargs).parameters()} == {
        "meta"
    }
    model = timm.create_model("narrow_mobilenetv3", dtype=torch.bfloat16, **kwargs)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.bfloat16)}


def test_backbone_and_width_are_saved(tmp_path):
    model = timm.create_model("narrow_mobilenetv3", backbone="mobilenetv3_small_075", width=0.4, num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("narrow_vgg", {"width": 0}, "width must be > 0 and <= 1, got 0"),
        ("narrow_vgg", {"width": 1.5}, "width must be > 0 and <= 1, got 1.5"),
        ("narrow_vgg", {"width": "half"}, "width must be > 0 and <= 1, got 'half'"),
        ("narrow_vgg", {"width": (0.5,)}, r"width must be > 0 and <= 1, got \(0.5,\)"),
        ("narrow_vgg", {"width": True}, "width must be > 0 and <= 1, got True"),
        ("narrow_vgg", {"backbone": "resnet18"}, "narrows timm's VGG, but 'resnet18' is a ResNet; .* such as 'vgg11'"),
        ("narrow_vgg", {"backbone": "vgg"}, "backbone must be a model name that timm knows"),
        ("narrow_vgg", {"backbone": "vgg11.no_such_tag"}, "backbone must be a model name that timm knows"),
        ("narrow_efficientnet", {"backbone": "efficientnet_b0_gn"}, r"bn1.weight \(GroupNormAct\) cannot be changed"),
        ("narrow_efficientnet", {"backbone": "efficientnet_b0_g16_evos"}, "groups of 16 channels, which do not divide"),
    ],
)
def test_wrong_settings_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, device="meta", **kwargs)
