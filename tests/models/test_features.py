"""What `features_only` and `feature_info` promise to libraries that build on timm's networks."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import timm_mix  # noqa: F401

PAGE = Path(__file__).resolve().parents[2] / "docs" / "features.md"
# one of each family whose stem has the size of the first stage
PLAIN = {
    "wrn16_2": {"depth": 10},
    "wrn28_8_openmixup": {"depth": 10, "widen_factor": 1},
    "preact_resnet18": {"layers": (1, 1, 1, 1)},
    "pyramidnet164": {"depth": 11, "alpha": 6},
    "shake_resnet26_2x96d": {"depth": 8, "base_width": 4},
    "resnet110": {"layers": (1, 1, 1)},
    "resnet18_cifar": {"channels": (8, 16, 24, 40), "stem_width": 8},
    "densenet190": {"growth_rate": 4, "block_config": (1, 2, 1)},
    "densenet161_cifar": {"growth_rate": 4, "block_config": (1, 1, 2, 1)},
}
MEMBERS = {"mixmo": {"members": 2}, "splitnet": {"split": 2, "divide": False}}
NETS = {
    **{name: (name, kwargs) for name, kwargs in PLAIN.items()},
    **{
        f"{net} over {name}": (net, {"backbone": name, **MEMBERS[net], **PLAIN[name]})
        for net in MEMBERS
        for name in ("wrn16_2", "resnet18_cifar")
    },
}


@pytest.fixture(params=NETS)
def net(request):
    name, kwargs = NETS[request.param]
    return lambda **more: timm.create_model(name, num_classes=5, **kwargs, **more).eval()


@torch.no_grad()
def test_there_is_one_level_per_reduction(net):
    """segmentation_models_pytorch takes networks whose reductions are 1, 2, 4, ... or 2, 4, 8, ... or 4, 8, 16, ..."""
    model, images = net(), torch.rand(2, 3, 32, 32)
    reductions = [level["reduction"] for level in model.feature_info]
    assert reductions[0] in (1, 2)
    assert all(after == 2 * before for before, after in itertools.pairwise(reductions))
    features = net(features_only=True)
    assert features.feature_info.reduction() == reductions
    assert [tuple(level.shape[1:]) for level in features(images)] == [
        (level["num_chs"], 32 // level["reduction"], 32 // level["reduction"]) for level in model.feature_info
    ]


@torch.no_grad()
def test_levels_are_what_their_modules_give(net):
    model, images = net(), torch.rand(2, 3, 32, 32)
    seen = {}
    for i, level in enumerate(model.feature_info):
        model.get_submodule(level["module"]).register_forward_hook(
            lambda module, inputs, output, i=i: seen.__setitem__(i, output)
        )
    levels = model.forward_intermediates(images, intermediates_only=True)
    assert len(levels) == len(seen) == len(model.feature_info)
    for i, level in enumerate(levels):
        torch.testing.assert_close(level[:, : seen[i].shape[1]], seen[i])  # of a SplitNet the first part's


@torch.no_grad()
def test_pruned_networks_give_the_levels_that_are_left(net):
    whole, images = net(), torch.rand(2, 3, 32, 32)
    levels = whole.forward_intermediates(images, intermediates_only=True)
    for index in range(len(levels)):
        model = copy.deepcopy(whole)
        assert model.prune_intermediate_layers([index]) == [index]
        assert model.num_features == model.feature_info[index]["num_chs"]
        (level,) = model.forward_intermediates(images, indices=[index], intermediates_only=True)
        torch.testing.assert_close(level, levels[index])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in PLAIN if "densenet" not in name])
@pytest.mark.parametrize("folded", [False, True])
def test_torchvision_puts_a_pyramid_on_a_plain_or_folded_network(name, folded):
    kwargs = {"num_classes": 5, **PLAIN[name]}
    net = timm.create_model("mixmo", backbone=name, **kwargs).fold() if folded else timm.create_model(name, **kwargs)
    info, images = net.eval().feature_info, torch.rand(1, 3, 32, 32)
    names = {level["module"]: str(i) for i, level in enumerate(info)}
    found = BackboneWithFPN(net, names, [level["num_chs"] for level in info], 8).eval()
    assert list(found(images)) == [*names.values(), "pool"]
    for ours, theirs in zip(
        net.forward_intermediates(images, intermediates_only=True), found.body(images).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_page_on_features_runs_and_a_detector_takes_both_backbones():
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) == 3  # the last one is segmentation_models_pytorch's, which tests/ecosystem runs
    space = {"__name__": "features"}
    for snippet in snippets[:2]:
        exec(compile(snippet, PAGE.name, "exec"), space)
        _detects(space["backbone"])
    assert set(space["backbone"](torch.rand(1, 3, 32, 32))) == {"0", "1", "2", "pool"}
    _detects(space["PyramidBackbone"]("mixmo_wrn16_2_m2", out_channels=16))
    _detects(space["PyramidBackbone"]("densenet190", out_channels=16, growth_rate=4, block_config=(1, 1, 1)))


def _detects(backbone: nn.Module) -> None:
    anchors = AnchorGenerator(((8,), (16,), (24,), (32,)), ((1.0,),) * 4)
    detector = FasterRCNN(backbone, num_classes=3, rpn_anchor_generator=anchors, min_size=32, max_size=32)
    boxes = {"boxes": torch.tensor([[2.0, 2.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 32, 32)], [boxes])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.backbone.fpn.inner_blocks.parameters())
