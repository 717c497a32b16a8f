"""What scripts ask of a classifier and of features, asked of networks with members."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from timm_mix.models import flatten_members

K = 5
MODELS = {
    "mixmo": ("mixmo", {"backbone": "resnet18", "members": 3}),
    "mixmo over convnext": ("mixmo", {"backbone": "test_convnext", "members": 2}),
    "splitnet": ("splitnet", {"backbone": "resnet18", "split": 2}),
    "ensemble": ("splitnet", {"backbone": "test_vit", "split": 2, "divide": False}),
}


@pytest.fixture(params=MODELS)
def model(request):
    name, settings = MODELS[request.param]
    return timm.create_model(name, num_classes=K, **settings).eval()


def named_heads(model):
    names = model.get_classifier(name_only=True)
    return [model.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]


def test_a_classifier_has_sizes_and_a_name(model):
    heads = model.get_classifier()
    assert (heads.in_features, heads.out_features) == (heads[0].in_features, K)
    own = [head for found in named_heads(model) for head in (found if isinstance(found, nn.ModuleList) else [found])]
    assert [id(head) for head in own] == [id(head) for head in heads]
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model.get_classifier().out_features == 0


@pytest.mark.parametrize("name", ["fc", "head", "classifier"])
def test_a_head_that_is_not_there_cannot_be_replaced(model, name):
    with pytest.raises(AttributeError, match=f"has no classifier {name}, but one for each member"):
        setattr(model, name, nn.Linear(8, 7))
    model.fc = None  # no layer
    model.projection = nn.Linear(8, 7)  # no classifier
    assert model.projection.out_features == 7


@pytest.mark.parametrize("name", ["mixmo", "mixmo over convnext", "splitnet"])  # timm's own ViTs cannot be traced so
def test_torch_fx_traces_with_a_tracer_of_its_own(name):
    arch, settings = MODELS[name]
    model = timm.create_model(arch, num_classes=K, **settings).eval()
    images = torch.rand(2, 3, 64, 64)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images), model(images))
    views = torch.rand(2, model.num_members, 3, 64, 64)
    torch.testing.assert_close(traced(views), model(views))


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
def test_torchvision_extracts_the_modules_of_feature_info(name):
    model, images = timm.create_model(name, num_classes=K).eval(), torch.rand(2, 3, 64, 64)
    nodes = {info["module"]: str(i) for i, info in enumerate(model.feature_info)}
    found = create_feature_extractor(model, nodes)(images)
    parts = getattr(model, "subnets", [model])
    ours = model.forward_intermediates(images, intermediates_only=True)
    for level, own in zip(found.values(), ours, strict=True):  # of a SplitNet those of the first part
        torch.testing.assert_close(level, own[:, : own.shape[1] // len(parts)])


def test_flat_members_come_one_after_the_other():
    members = torch.arange(24.0).view(4, 2, 3)
    flat = flatten_members(members)
    assert flat.shape == (8, 3)
    torch.testing.assert_close(flat.unflatten(0, (2, 4)).transpose(0, 1), members)
