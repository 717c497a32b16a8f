"""What is frozen stays: parameters, BatchNorm statistics, dropout; and what layer decay leaves of the learning rate."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

import timm_mix.models  # noqa: F401
from timm_mix.train.errors import UsageError
from timm_mix.train.finetune.freezing import freeze, hold_in_eval
from timm_mix.train.loop.build import build_optimizer, build_schedule
from timm_mix.train.settings.config import Config

SMALL = {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1, "num_classes": 5}
MODELS = {
    "plain": ("wrn16_2", {"depth": 10, "widen_factor": 1, "num_classes": 5}),
    "mixmo": ("mixmo", {**SMALL, "members": 2}),
    "splitnet": ("splitnet", {**SMALL, "split": 2, "divide": False}),
    "vit": ("test_vit", {"num_classes": 5, "img_size": 32}),
    "splitnet of vit": ("splitnet", {"backbone": "test_vit", "divide": False, "num_classes": 5, "img_size": 32}),
}
DEEP = [  # (model, its keyword arguments, whether timm's groups of it are a function)
    *((name, {}) for name in ("mixmo_preact_resnet18_m2", "mixmo_resnet50_m3", "mixmo_efficientnet_b0_m2")),
    *((name, {}) for name in ("mixmo_convnext_tiny_m2", "mixmo_swin_tiny_patch4_window7_224_m2")),
    *((name, {}) for name in ("splitnet_resnet50_s2", "splitnet_wrn28_10_s2", "splitnet_efficientnetb0_s2")),
    ("mixmo", {"backbone": "vit_tiny_patch16_224", "members": 3}),
    ("splitnet", {"backbone": "vit_tiny_patch16_224", "split": 2}),
    ("splitnet", {"backbone": "convnext_tiny", "split": 2}),
]


def build(name, **more):
    architecture, kwargs = MODELS[name]
    torch.manual_seed(0)
    return timm.create_model(architecture, **kwargs, **more)


def heads_of(model):
    heads = model.get_classifier()
    modules = heads if isinstance(heads, tuple) else (heads,)
    return {name for name, p in model.named_parameters() for h in modules for q in h.parameters() if p is q}


def learn(model, steps=2):
    """As the trainer does: train() before the epoch, then updates. Returns the names of what moved."""
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(Config.of(opt="momentum", lr=0.5, weight_decay=0.1).optimise, model)
    model.train()
    for step in range(steps):
        images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(step)) + 1
        nn.functional.cross_entropy(model(images), torch.arange(6) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_backbone_leaves_the_heads_of_all_members_to_learn(name):
    model = build(name)
    freeze(model, "backbone")
    assert learn(model) == heads_of(model)
    assert model.training


@pytest.mark.parametrize("name", MODELS)
def test_without_freezing_everything_learns(name):
    model = build(name)
    moved = learn(model)
    assert {key for key, _ in model.named_parameters()} <= moved
    assert {key for key in model.state_dict() if "running_mean" in key} <= moved


@pytest.mark.parametrize("name", MODELS)
def test_frozen_stages_and_their_statistics_stay_and_the_later_ones_learn(name):
    model = build(name)
    stage_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    freeze(model, "2")
    moved = learn(model)
    for key, stage in stage_of.items():
        assert (key in moved) == (stage >= 2), key
    for key in model.state_dict():  # the statistics go with the norm's own parameters
        if "running_" in key:
            assert (key in moved) == (f"{key.rpartition('.')[0]}.weight" in moved), key


def test_the_encoders_of_a_mixmo_are_its_first_stage():
    model = build("mixmo")
    freeze(model, "1")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if name.startswith("encoders.")} == {"encoders.0.weight", "encoders.1.weight"}
    assert not any("blocks" in name or name.startswith("heads") for name in frozen)


def test_a_norm_without_parameters_is_frozen_with_its_block():
    model = build("plain")
    for block in model.modules():
        for name, child in block.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(block, name, nn.BatchNorm2d(child.num_features, affine=False))
    freeze(model, "backbone")
    assert learn(model) == heads_of(model)


@pytest.mark.parametrize("name", ["plain", "mixmo", "splitnet", "vit"])
def test_a_linear_probe_sees_the_features_of_evaluation(name):
    model = build(name, **({"drop_path_rate": 0.5, "drop_rate": 0.5} if name == "vit" else {}))
    freeze(model, "backbone")
    hold_in_eval(model)
    assert learn(model) == heads_of(model)
    images = torch.randn(3, 3, 32, 32)
    in_training = model.train()(images)
    torch.testing.assert_close(in_training, model.eval()(images), rtol=0, atol=0)


def test_a_copy_of_a_frozen_model_is_frozen_by_itself():
    """The averaged weights live in a copy."""
    model = build("mixmo")
    freeze(model, "backbone")
    copied = copy.deepcopy(model)
    assert learn(copied) == heads_of(copied)
    held = [module for module in copied.modules() if "train" in vars(module)]
    assert held
    assert all(module.train.__self__ is module for module in held)


def test_a_frozen_mixmo_folds_to_the_same_logits():
    model = build("mixmo")
    freeze(model, "backbone")
    learn(model)
    images = torch.randn(2, 3, 32, 32)
    plain = model.eval().fold()
    torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "most"), [("plain", 4), ("mixmo", 4), ("splitnet", 4)])
def test_more_stages_than_there_are_is_one_line(name, most):
    model = build(name)
    freeze(model, str(most))
    with pytest.raises(UsageError, match=f"freeze takes 1 to {most} stages of this model or backbone, got {most + 1}"):
        freeze(model, str(most + 1))


@pytest.mark.parametrize(("name", "kwargs"), DEEP)
def test_layers_are_ordered_stem_core_heads_and_members_alike(name, kwargs):
    model = timm.create_model(name, device="meta", num_classes=5, **kwargs)
    for coarse in (False, True):
        layer_of = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        last = max(layer_of.values())
        assert {layer_of[key] for key in heads_of(model)} == {last}
        assert last >= 3
        encoders = {layer for key, layer in layer_of.items() if key.startswith("encoders.")}
        assert encoders <= {0}
        assert 0 < sum(layer == 0 for layer in layer_of.values()) < len(layer_of) / 2
        if hasattr(model, "subnets"):
            parts = [
                {key.split(".", 2)[2]: layer for key, layer in layer_of.items() if key.startswith(f"subnets.{i}.")}
                for i in range(model.num_members)
            ]
            assert all(part == parts[0] for part in parts)


@pytest.mark.parametrize("name", ["mixmo", "splitnet", "plain"])
@pytest.mark.parametrize("sched", ["cosine", "constant"])
def test_layer_decay_scales_the_rate_of_every_layer_by_its_distance_from_the_heads(name, sched):
    model = build(name)
    config = Config.of(lr=0.5, layer_decay=0.5, sched=sched, weight_decay=0.1)
    optimizer = build_optimizer(config.optimise, model)
    build_schedule(config.optimise, optimizer, 10)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layer_of = group_parameters(model, model.group_matcher(), reverse=True)
    last = max(layer_of.values())
    for key, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(0.5 * 0.5 ** (last - layer_of[key])), key
    assert {rate[id(model.get_parameter(key))] for key in heads_of(model)} == {0.5}


def test_layer_decay_and_freezing_go_together():
    model = build("mixmo")
    freeze(model, "2")
    optimizer = build_optimizer(Config.of(lr=0.5, layer_decay=0.5).optimise, model)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learning == {id(p) for p in model.parameters() if p.requires_grad}
