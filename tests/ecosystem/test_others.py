"""segmentation_models_pytorch and torch_uncertainty with our networks."""

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
