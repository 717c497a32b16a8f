"""MixMo over timm backbones: contract, arithmetic, fold."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from support.networks import fixed_images
from torch import nn

from timm_mix.functional.masks import linear_masks
from timm_mix.functional.mixmo import member_masks, plan_mixmo
from timm_mix.hub import save_pretrained

# One small model of each family that must train and fold.
FAMILIES = {
    "resnet": ("resnet18", {}),
    "resnetv2": ("resnetv2_50", {"layers": [1, 1, 1, 1], "channels": (32, 64, 128, 256)}),
    "resnext": ("resnext50_32x4d", {"layers": [1, 1, 1, 1]}),
    "wide_resnet": ("wide_resnet50_2", {"layers": [1, 1, 1, 1], "channels": (32, 64, 128, 256)}),
    "seresnet": ("seresnet18", {}),
    "efficientnet": ("efficientnet_b0", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "densenet": ("densenet121", {"block_config": (2, 2, 2, 2)}),
    "regnet": ("regnetx_002", {}),
    "convnext": ("convnext_atto", {}),
    "wrn": ("wrn16_2", {}),
    "preact_resnet": ("preact_resnet18", {"layers": (1, 1, 1, 1)}),
    "vgg_bn": ("vgg11_bn", {}),
    "convmixer": ("convmixer_768_32", {}),
    "vit": ("vit_tiny_patch16_224", {"depth": 2}),
    "deit": ("deit_tiny_patch16_224", {"depth": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}),
    "mlp-mixer": ("mixer_s32_224", {}),
}
QUICK = {"resnet", "wrn", "densenet", "convnext", "vit"}
families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
SIZE = {"convmixer": 28}  # 32 blocks of 768 channels: 4x4 places are enough
SMALL = {"img_size": 64}
K = 13


def _create(family, members=3, **kwargs):
    backbone, settings = FAMILIES[family]
    fixed = SMALL if family in ("vit", "deit", "mlp-mixer") else {}
    if family == "swin":
        fixed = {"img_size": 64, "window_size": 2}
    return timm.create_model(
        "mixmo", backbone=backbone, members=members, num_classes=K, **{**fixed, **settings, **kwargs}
    )


def _stirred(model):
    """Weights and statistics as after some training: nothing is zero or one by its initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.add_(0.1 * torch.randn(m.running_mean.shape, generator=generator))
                m.running_var.mul_(1 + torch.rand(m.running_var.shape, generator=generator))
    return model


@families
def test_folded_network_has_the_ensembles_logits(family):
    model = _stirred(_create(family)).eval()
    size = SIZE.get(family, 64)
    x = fixed_images(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)
        scale = logits.abs().max()
        assert (model.fold()(x) - logits).abs().max() <= 1e-5 * scale
        model, x = model.double(), x.double()
        assert (model.fold()(x) - model(x)).abs().max() <= 1e-10


@families
def test_folded_weights_load_strictly_into_the_plain_timm_model(family):
    backbone, settings = FAMILIES[family]
    model = _create(family)
    plain = timm.create_model(backbone, num_classes=K, **{**settings, **model.backbone_kwargs})
    plain.load_state_dict(model.fold().state_dict(), strict=True)
    assert not any(type(m).__module__.startswith("timm_mix.models.mixmo") for m in model.fold().modules())


@families
def test_training_step_reaches_every_parameter(family):
    model = _create(family).train()
    size = SIZE.get(family, 64)
    x = fixed_images(4, 3, 3, size, size)
    masks = linear_masks(torch.tensor([[0.2, 0.3, 0.5]]), model.stem_shape((size, size))[1:])
    logits = model(x, masks=masks, return_members=True)
    assert logits.shape == (4, 3, K)
    # mixers and ConvNeXts start with parts that are zero: stir them so that every gradient is there
    _stirred(model)(x, masks=masks, return_members=True).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_mixing_block_equals_the_formula():
    model = timm.create_model("mixmo", backbone="wrn16_2", members=3, num_classes=K).eval().double()
    x = fixed_images(5, 3, 3, 32, 32).double()
    shares = torch.rand(5, 3, 16, 32, 32, dtype=torch.float64)
    masks = shares / shares.sum(1, keepdim=True)
    mixed = 3 * sum(masks[:, i] * model.encoders[i](x[:, i]) for i in range(3))
    pooled = model.core(mixed)
    expected = torch.stack([head(pooled) for head in model.heads], 1)
    torch.testing.assert_close(model(x, masks=masks, return_members=True), expected)


def test_without_masks_the_encoders_are_summed():
    model = timm.create_model("mixmo", backbone="wrn16_2", members=3, num_classes=K).eval()
    x = fixed_images(5, 3, 32, 32)
    expected = sum(head(model.core(sum(c(x) for c in model.encoders))) for head in model.heads) / 3
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x, return_members=True).mean(1), expected)
    torch.testing.assert_close(model(x[:, None].expand(-1, 3, -1, -1, -1)), expected)


def test_equal_masks_equal_no_masks():
    model = timm.create_model("mixmo", backbone="wrn16_2", members=3, num_classes=K).eval()
    x = fixed_images(2, 3, 32, 32)
    masks = torch.full((1, 3, 1, 32, 32), 1 / 3)
    torch.testing.assert_close(model(x, masks=masks), model(x))


def test_softmax_ensemble_averages_probabilities():
    model = timm.create_model("mixmo", backbone="wrn16_2", members=3, num_classes=K, ensemble="softmax").eval()
    x = fixed_images(5, 3, 32, 32)
    expected = model(x, return_members=True).softmax(-1).mean(1)
    torch.testing.assert_close(model(x).softmax(-1), expected)


def test_encoders_and_heads_are_initialised_independently():
    model = timm.create_model("mixmo_resnet18_m2")
    assert not torch.equal(model.encoders[0].weight, model.encoders[1].weight)
    assert not torch.equal(model.heads[0].weight, model.heads[1].weight)
    std = [encoder.weight.std().item() for encoder in model.encoders]
    assert std[0] == pytest.approx(std[1], rel=0.05)


@pytest.mark.parametrize(
    ("members", "parameters"), [(1, 36_536_884), (2, 36_601_416), (3, 36_665_948), (4, 36_730_480)]
)
def test_parameters_over_wrn28_10_equal_the_published_code(members, parameters):
    model = timm.create_model("mixmo", backbone="wrn28_10", members=members, num_classes=100, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "size"), [("wrn16_2", 33), ("resnet18", 65), ("tf_efficientnet_b0", 65), ("convnext_atto", 67)]
)
def test_stem_shape_is_the_shape_of_the_encoders_output(name, size):
    model = timm.create_model("mixmo", backbone=name)
    assert model.stem_shape((size, size + 2)) == tuple(model.encoders[0](torch.zeros(1, 3, size, size + 2)).shape[1:])


PRECISION_NETS = ["mixmo_wrn16_2_m2", "mixmo_preact_resnet18_m2", "mixmo_resnet18_m2"]


@pytest.mark.parametrize("name", PRECISION_NETS)
def test_channels_last_and_bf16_autocast_agree_with_float32(name):
    model = _stirred(timm.create_model(name, num_classes=K)).eval()
    x = fixed_images(2, 2, 3, 64, 64)
    masks = linear_masks(torch.tensor([[0.3, 0.7]]), model.stem_shape((64, 64))[1:])
    with torch.no_grad():
        expected = model(x, masks=masks)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x, masks=masks), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x, masks=masks)
    assert (low.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_compiled_model_still_refuses_masks_of_another_shape():
    compiled = torch.compile(timm.create_model("mixmo_wrn16_2_m2"), backend="eager")
    masks = torch.full((2, 3, 1, 32, 32), 1 / 3)
    with torch.no_grad(), pytest.raises(ValueError, match=r"masks must be \[2 or 1, 2, 1 or 16, 32, 32\]"):
        compiled(fixed_images(2, 2, 3, 32, 32), masks=masks)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("block", ["linear", "cut", "noise", "channel"])
@pytest.mark.parametrize("name", PRECISION_NETS)
def test_compiles_as_one_graph_with_masks(name, block):
    model = timm.create_model(name, num_classes=K).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = fixed_images(3, 2, 3, 64, 64)
    plan = plan_mixmo(3, 2, model.stem_shape((64, 64)), rng=np.random.default_rng(0), block=block)
    masks, _ = member_masks(plan)
    torch.testing.assert_close(compiled(x, masks=masks, return_members=True), model(x, masks, True))
    torch.compiler.reset()


@pytest.mark.parametrize(("family", "pool"), [("resnet", "max"), ("vit", "avg"), ("swin", "max")])
def test_a_new_classifier_and_pooling_reach_fold_and_reload(family, pool, tmp_path):
    model = _stirred(_create(family)).eval()
    model.reset_classifier(7, pool)
    x = fixed_images(2, 3, 64, 64)
    assert model(x, return_members=True).shape == (2, 3, 7)
    torch.testing.assert_close(model.fold()(x), model(x), rtol=1e-4, atol=1e-5)
    if family != "vit":  # timm's own ViT builds another norm for 'avg' than reset_classifier leaves
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_saved_weights_adapt_to_another_image_size(family, tmp_path):
    model = _create(family).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=128).eval()
    plain = timm.create_model(FAMILIES[family][0], **{**FAMILIES[family][1], **model.backbone_kwargs, "img_size": 128})
    assert other.core.state_dict().keys() <= plain.state_dict().keys()
    assert other(fixed_images(1, 3, 128, 128)).shape == (1, K)
    for name, value in model.core.state_dict().items():
        if value.shape == other.core.state_dict()[name].shape and "relative_position_index" not in name:
            torch.testing.assert_close(other.core.state_dict()[name], value)


def test_folding_leaves_the_model_as_it_was():
    model = timm.create_model("mixmo_wrn16_2_m2", num_classes=K).train()
    before = copy.deepcopy(model.state_dict())
    folded = model.fold()
    assert folded.training
    for parameter in folded.parameters():
        parameter.data.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_generic_model_reloads_from_its_config(tmp_path):
    model = timm.create_model("mixmo", backbone="convnext_atto", members=3, num_classes=K).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = fixed_images(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_pretrained_weights_adapt_to_other_channels_and_classes(tmp_path):
    model = timm.create_model("mixmo_wrn16_2_m2", num_classes=10)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=7)
    assert other(fixed_images(2, 1, 32, 32), return_members=True).shape == (2, 2, 7)
    torch.testing.assert_close(other.encoders[1].weight, model.encoders[1].weight.sum(1, keepdim=True))


def test_parameter_groups_of_a_backbone_with_a_matching_function():
    model = timm.create_model("mixmo", backbone="inception_v3", device="meta")
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["encoders.0.weight"] == 0
    assert groups["heads.0.weight"] == max(groups.values())
    assert len(set(groups.values())) > 3


def test_parameter_groups_go_from_encoders_to_heads():
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("mixmo_convnext_tiny_m2")
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert scales["heads.0.weight"] == scales["heads.1.weight"] == 1
    assert scales["encoders.0.weight"] == scales["core.stem.1.weight"] == min(scales.values())
    assert scales["core.stages.3.blocks.0.mlp.fc1.weight"] > scales["core.stages.0.blocks.0.mlp.fc1.weight"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnett18"}, "backbone must be a model name that timm knows .*got 'resnett18'"),
        ({"members": 0}, "members must be an integer in 1..1024, got 0"),
        ({"members": 2.5}, "members must be an integer in 1..1024, got 2.5"),
        ({"members": True}, "members must be an integer in 1..1024, got True"),
        ({"backbone": 3}, "backbone must be a model name that timm knows .*got 3"),
        ({"backbone": "resnet18.nonsense"}, "backbone must be a model name that timm knows .*got 'resnet18.nonsense'"),
        ({"backbone": "efficientvit_m0"}, "removing 'head.linear' from efficientvit_m0 removes 'head.bn"),
        ({"backbone": "twins_svt_small"}, "twins_svt_small needs the image itself behind its first convolution"),
        ({"global_pool": ""}, "MixMo's heads need pooled features, got global_pool=''"),
        ({"features_only": True, "feature_cls": "hook"}, "need feature_cls='getter'"),
        ({"ensemble": "mean"}, "ensemble must be one of logits, softmax, max, got 'mean'"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "copies the one linear classifier, but deit_tiny_dist"),
        ({"backbone": "crossvit_9_240"}, "copies the one convolution that reads the image, but crossvit_9_240"),
        ({"backbone": "tresnet_m"}, "copies the one convolution that reads the image, but tresnet_m"),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("mixmo", device="meta", **kwargs)


@pytest.mark.parametrize("kwargs", [{"backbone": "wrn16_2"}, {"members": 3}])
def test_named_models_keep_their_backbone_and_members(kwargs):
    with pytest.raises(ValueError, match=r"mixmo_resnet18_m2 has a fixed .*create_model\('mixmo'"):
        timm.create_model("mixmo_resnet18_m2", device="meta", **kwargs)


def test_unknown_settings_of_the_backbone_are_refused():
    with pytest.raises(TypeError, match="widht"):
        timm.create_model("mixmo_wrn16_2_m2", widht=3)


@pytest.mark.parametrize("shape", [(2, 3, 3, 32, 32), (3, 32, 32)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"input must be \[B, C, H, W\] or \[B, 2, C, H, W\] .*got \["):
        timm.create_model("mixmo_wrn16_2_m2")(torch.zeros(shape))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.full((2, 2, 1, 16, 16), 0.5), r"masks must be \[2 or 1, 2, 1 or 16, 32, 32\].*got \[2, 2, 1, 16, 16\]"),
        (torch.full((2, 2, 1, 32, 32), 0.7), "masks must sum to 1 over the members"),
    ],
)
def test_wrong_masks_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("mixmo_wrn16_2_m2")(torch.zeros(2, 2, 3, 32, 32), masks=masks)


def test_fold_refuses_what_is_not_linear():
    with pytest.raises(ValueError, match=r"fold\(\) needs encoders that are linear.*got StdConv2d"):
        timm.create_model("mixmo", backbone="resnetv2_50x1_bit", device="meta").fold()
    with pytest.raises(ValueError, match=r"fold\(\) needs ensemble='logits'.*got 'softmax'"):
        timm.create_model("mixmo_wrn16_2_m2", ensemble="softmax").fold()


@pytest.mark.parametrize("name", ["mixmo", "splitnet"])
def test_a_config_cannot_make_its_reader_open_another_file(name, tmp_path):
    model = timm.create_model(name, backbone="wrn16_2", num_classes=3)
    save_pretrained(model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["model_args"]["checkpoint_path"] = str(tmp_path / "secret.pth")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"checkpoint_path is of the whole model, not of its backbone; got '.*secret"):
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
