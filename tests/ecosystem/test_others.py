"""segmentation_models_pytorch and torch_uncertainty with our networks."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_mix  # noqa: F401
from timm_mix.models import flatten_members

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2", "mixmo_convnext_tiny_m2"])
def test_an_encoder_of_segmentation_models(name):
    import segmentation_models_pytorch as smp

    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3)
    images = torch.rand(2, 3, 64, 64)
    masks = model(images)
    assert masks.shape == (2, 3, 64, 64)
    masks.mean().backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *(("wrn16_2", 2), ("mixmo_wrn16_2_m2", 2), ("splitnet_wrn16_2_s2", 2), ("resnet110", 2), ("pyramidnet164", 2)),
        *(("shake_resnet26_2x96d", 2), ("resnet18_cifar", 3), ("densenet161_cifar", 3), ("preact_resnet18", 4)),
        ("efficientnetb0_cifar", 2),
    ],
)
@torch.no_grad()
def test_networks_for_small_images_are_encoders_by_the_number_of_their_levels(name, depth):
    import segmentation_models_pytorch as smp

    widths = (16, 12, 8, 4)[:depth]
    model = smp.Unet(f"tu-{name}", encoder_weights=None, encoder_depth=depth, decoder_channels=widths, classes=3).eval()
    images = torch.rand(1, 3, 32, 32)
    assert model(images).shape == (1, 3, 32, 32)
    levels = timm.create_model(name).feature_info
    own = [level["num_chs"] for level in levels]
    assert model.encoder.out_channels == (own if levels[0]["reduction"] == 1 else [3, *own])


def test_the_page_on_features_runs():
    page = Path(__file__).resolve().parents[2] / "docs" / "features.md"
    *_, snippet = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    space = {}
    exec(compile(snippet, page.name, "exec"), space)
    assert space["model"](torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


class Flat(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return flatten_members(self.model(images, return_members=True))


def test_an_ensemble_of_torch_uncertainty():
    from torch_uncertainty.routines import ClassificationRoutine

    model = timm.create_model("splitnet_resnet18_s2", num_classes=5).eval()
    images, target = torch.rand(6, 3, 64, 64), torch.arange(6) % 5
    routine = ClassificationRoutine(Flat(model), num_classes=5, loss=nn.CrossEntropyLoss(), is_ensemble=True).eval()
    with torch.no_grad():
        routine.validation_step((images, target))
        probabilities = model(images, return_members=True).softmax(-1).mean(1)
    expected = nn.functional.nll_loss(probabilities.log(), target)
    found = {name.rpartition("/")[2]: float(value) for name, value in routine.val_cls_metrics.compute().items()}
    assert found["NLL"] == pytest.approx(float(expected), rel=1e-4)
    assert found["Acc"] == pytest.approx(float((probabilities.argmax(1) == target).float().mean()))
