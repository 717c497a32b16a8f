"""DenseNet-BC for small images."""

import pytest
import timm
import torch
from support.networks import batch_norm
from timm.models.densenet import DenseNet
from torch import nn
from torch.nn import functional as F

import timm_mix

pytestmark = pytest.mark.slow


def test_logits_equal_those_of_timms_densenet_with_the_published_stem():
    model = timm.create_model("densenet190", **timm_mix.divide("densenet190", 16)).eval()
    twin = DenseNet(growth_rate=10, block_config=(31, 31, 31), num_classes=100)
    twin.features.conv0 = nn.Conv2d(3, 20, 3, 1, 1, bias=False)
    twin.features.pool0 = nn.Identity()
    twin.load_state_dict(dict(zip(twin.state_dict(), model.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(x)
        assert logits.std() > 1e-3
        assert (logits - twin.eval()(x)).abs().max() == 0


def _small(**kwargs):
    return timm.create_model("densenet190", growth_rate=6, block_config=(2, 3, 2), **kwargs)


def test_densenet161_cifar_has_the_published_number_of_parameters():
    """Published RecursiveMix code, 26,902,088 with a region head of 220,900."""
    model = timm.create_model("densenet161_cifar", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 26_902_088 - 220_900


def test_bare_densenets_activate_neither_the_stem_nor_the_transitions():
    model = timm.create_model("densenet161_cifar", growth_rate=6, block_config=(2, 1, 2, 1), num_classes=7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_()
    features = model.eval().features
    x = torch.randn(2, 3, 16, 16)
    h = F.conv2d(x, features.conv0.weight, padding=1)
    for block in (1, 2, 3, 4):
        for layer in features.get_submodule(f"denseblock{block}").values():
            new = F.conv2d(F.relu(batch_norm(layer.norm1, h)), layer.conv1.weight)
            new = F.conv2d(F.relu(batch_norm(layer.norm2, new)), layer.conv2.weight, padding=1)
            h = torch.cat([h, new], 1)
        if block < 4:
            transition = features.get_submodule(f"transition{block}")
            h = F.avg_pool2d(F.conv2d(batch_norm(transition.norm, h), transition.conv.weight), 2)
    h = F.relu(batch_norm(features.norm5, h)).mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(h, model.classifier.weight, model.classifier.bias))


def test_four_blocks_end_at_an_eighth():
    maps = timm.create_model("densenet161_cifar", growth_rate=6, block_config=(2, 1, 2, 1), features_only=True)
    assert maps.feature_info.channels() == [24, 18, 21, 16]
    assert maps.feature_info.reduction() == [1, 2, 4, 8]
    assert [f.shape[-1] for f in maps(torch.randn(1, 3, 32, 32))] == [32, 16, 8, 4]


def test_features_are_those_of_the_blocks():
    model = _small(features_only=True)
    assert model.feature_info.channels() == [24, 30, 27]
    assert model.feature_info.reduction() == [1, 2, 4]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 32, 32))] == [32, 16, 8]


def test_intermediates_end_with_the_features():
    model = _small().eval()
    x = torch.randn(2, 3, 32, 32)
    final, levels = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(levels[2], final)
    assert [f.shape[1] for f in levels] == [24, 30, 27]


def test_initialisation_is_as_published():
    model = timm.create_model("densenet190", growth_rate=20)
    last = model.features.denseblock3.denselayer31.conv1.weight
    for weight in (last, model.features.conv0.weight):
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1)
    assert not model.classifier.bias.any()


def test_a_growth_rate_below_one_is_refused():
    with pytest.raises(ValueError, match="growth_rate must be >= 1, got 0"):
        timm.create_model("densenet190", growth_rate=0)
