"""What the benchmark compares are ways to the same numbers."""

import pytest
import timm
import torch

from timm_mix.lab.bench.ways import grouped, ways


def _create(**kwargs):
    model = timm.create_model("splitnet", num_classes=7, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("backbone", ["wrn16_2", "resnext50_32x4d", "seresnet50"])
@torch.inference_mode()
def test_every_way_returns_the_same_member_logits(backbone):
    model = _create(backbone=backbone, split=2)
    known = ways(model, model.subnets[0])
    del known["undivided"]
    x = torch.randn(3, 3, 32, 32)
    expected = model(x, return_members=True)
    for name, way in known.items():
        torch.testing.assert_close(way(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=name)


def test_grouping_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="grouped knows convolutions, batch norm and linear layers, got LayerNorm"):
        grouped(_create(backbone="convnext_atto", split=2, divide=False))
