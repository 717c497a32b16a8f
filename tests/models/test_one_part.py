"""A SplitNet that holds one part alone: its part is that of the whole, and the others take no memory."""

import gc
import weakref

import pytest
import timm
import torch

from timm_mix.models import splitnet
from timm_mix.models.parts.one_part import Elsewhere

KWARGS = {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1, "split": 3, "num_classes": 7, "divide": False}


def _create(**kwargs):
    torch.manual_seed(5)
    return timm.create_model("splitnet", **{**KWARGS, **kwargs})


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_has_the_names_and_the_random_weights_that_it_has_in_the_whole(part):
    whole, one = _create(), _create(only_part=part)
    assert [name for name, _ in one.named_parameters()] == [
        name for name, _ in whole.named_parameters() if name.startswith(f"subnets.{part}.")
    ]
    for name, value in one.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert (one.num_members, one.num_features) == (whole.num_members, whole.num_features)


@pytest.mark.parametrize("part", [0, 2])
def test_a_part_takes_its_share_of_a_whole_state_dict(part):
    torch.manual_seed(6)
    whole, one = timm.create_model("splitnet", **KWARGS).eval(), _create(only_part=part).eval()
    one.load_state_dict(whole.state_dict())
    views = torch.randn(5, 3, 3, 16, 16)
    wanted = whole(views, return_members=True)[:, part]
    assert torch.equal(one(views), wanted)
    assert torch.equal(one(views[:, part]), wanted)  # the view alone
    assert torch.equal(one(views, return_members=True), wanted[:, None])


def test_a_foreign_state_dict_is_still_an_error():
    one = _create(only_part=1)
    state = _create().state_dict()
    del state["subnets.1.fc.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*subnets\.1\.fc\.bias"):
        one.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*head"):
        one.load_state_dict({**_create().state_dict(), "head": torch.zeros(1)})


def test_never_two_parts_are_in_memory_and_later_ones_are_not_built(monkeypatch):
    built, alive = [], []

    def build(*args, **kwargs):
        gc.collect()
        alive.append(sum(ref() is not None for ref in built))
        part = timm.create_model(args[0], **kwargs)
        built.append(weakref.ref(part))
        return part

    monkeypatch.setattr(splitnet, "build_backbone", build)
    model = _create(only_part=1)
    assert alive == [0, 0]
    assert [isinstance(part, Elsewhere) for part in model.subnets] == [True, False, True]


def test_settings_reach_the_part_that_is_here():
    model = _create(only_part=1)
    model.set_grad_checkpointing(True)
    assert model.subnets[1].grad_checkpointing
    model.reset_classifier(11)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 11)
    assert [sum(p.numel() for p in head.parameters()) for head in model.get_classifier()] == [0, 64 * 11 + 11, 0]
    assert model.group_matcher(coarse=True)["stem"] == r"^subnets\.\d+\.(?:conv1)"


def test_without_a_classifier_the_part_gives_its_features():
    model = _create(only_part=2, num_classes=0)
    assert model(torch.randn(2, 3, 16, 16), return_members=True).shape == (2, 64)


@pytest.mark.parametrize("part", [3, -1, 1.0, True])
def test_a_part_that_is_not_there_is_an_error(part):
    with pytest.raises(ValueError, match=rf"only_part must be an integer in 0\.\.2 for 3 parts, got {part}"):
        _create(only_part=part)


@pytest.mark.parametrize("name", ["splitnet", "splitnet_resnet18_s2"])
def test_one_part_has_no_features_of_the_whole(name):
    with pytest.raises(ValueError, match=r"only_part=0 has forward\(\) only: drop features_only, or take the whole"):
        timm.create_model(name, only_part=0, features_only=True, device="meta")


def test_a_part_elsewhere_cannot_be_run():
    with pytest.raises(RuntimeError, match="this part lies on another process"):
        _create(only_part=1).subnets[0](torch.randn(1, 3, 16, 16))
