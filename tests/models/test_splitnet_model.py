"""SplitNet: division, views, ensembles."""

import pytest
import timm
import torch
from support.networks import fixed_images

import timm_mix

K, S = 13, 2
HEADS = ("fc", "head", "head_dist")  # as wrn16_2 and DeiT call them


def _create(name="splitnet", **kwargs):
    return timm.create_model(name, num_classes=K, **kwargs)


def _count(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device="meta", **kwargs).parameters())


def test_resnet50_in_two_parts_has_the_published_size():
    assert _count("splitnet_resnet50_s2") == 25_082_064
    assert _count("resnet50") == 25_557_032


@pytest.mark.parametrize(
    ("arch", "split", "kwargs"),
    [
        ("resnet50", 2, {"channels": (44, 88, 176, 352)}),
        ("resnet50.a1_in1k", 4, {"channels": (32, 64, 128, 256)}),
        ("seresnet50", 8, {"channels": (24, 48, 96, 192)}),
        ("resnet50d", 2, {"channels": (44, 88, 176, 352), "stem_width": 22}),
        ("resnet50s", 4, {"channels": (32, 64, 128, 256), "stem_width": 32}),
        ("wide_resnet50_2", 2, {"base_width": 64}),
        ("wide_resnet50_2", 4, {"channels": (32, 64, 128, 256)}),
        ("wide_resnet101_2", 2, {"channels": (44, 88, 176, 352)}),
        ("resnext101_64x4d", 8, {"cardinality": 8}),
        ("seresnext50_32x4d", 2, {"cardinality": 16}),
        ("wrn28_10", 2, {"widen_factor": 7}),
        ("wrn28_10", 8, {"widen_factor": 3}),
        ("resnet50", 1, {}),
    ],
)
def test_division_follows_the_published_rules(arch, split, kwargs):
    assert timm_mix.divide(arch, split) == kwargs
    timm.create_model(arch.split(".")[0], device="meta", **kwargs)


@pytest.mark.parametrize(
    ("arch", "split", "message"),
    [
        ("resnet50", 3, "resnet50 divides into S = 2, 4 or 8 parts, got S = 3"),
        ("resnext50_32x4d", 3, "S must divide 32, got S = 3"),
        ("resnet50", 0, "split must be an integer >= 1, got 0"),
        ("mixer_b16_224", 2, "no division rule for 'mixer_b16_224'"),
        ("wrn16_1", 2, "wrn16_1 is too narrow to divide"),
    ],
)
def test_what_cannot_be_divided_is_refused(arch, split, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.divide(arch, split)


def test_every_part_sees_its_own_view():
    model = _create("splitnet_wrn28_10_s4").eval()
    views = fixed_images(3, 4, 3, 32, 32)
    expected = torch.stack([subnet(views[:, i]) for i, subnet in enumerate(model.subnets)], 1)
    torch.testing.assert_close(model(views, return_members=True), expected)
    torch.testing.assert_close(model(views), expected.mean(1))


@pytest.mark.parametrize("ensemble", ["logits", "softmax", "max"])
def test_ensembles_equal_their_definition(ensemble):
    model = _create(backbone="resnet18", split=S, ensemble=ensemble).eval()
    x = fixed_images(3, 3, 64, 64)
    members = torch.stack([subnet(x) for subnet in model.subnets], 1)
    torch.testing.assert_close(model(x, return_members=True), members)
    out = model(x)
    if ensemble == "logits":
        torch.testing.assert_close(out, members.mean(1))
    elif ensemble == "max":
        torch.testing.assert_close(out, members.max(1).values)
    else:
        torch.testing.assert_close(out.softmax(-1), members.softmax(-1).mean(1))


def test_parts_are_initialised_independently():
    model = _create("splitnet_resnet18_s2")
    assert not torch.equal(model.subnets[0].conv1.weight, model.subnets[1].conv1.weight)


def test_features_lie_side_by_side_on_the_channel_axis():
    model = _create("splitnet_resnet18_s2").eval()
    x = fixed_images(2, 3, 64, 64)
    features = model.forward_features(x)
    torch.testing.assert_close(features, torch.cat([s.forward_features(x) for s in model.subnets], 1))
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert features.shape[1] == model.num_features == 2 * 352


def test_every_part_has_the_features_of_its_own_view():
    model = _create("splitnet_resnet18_s2").eval()
    views = fixed_images(2, S, 3, 64, 64)
    features = model.forward_features(views)
    own = [part.forward_features(views[:, i]) for i, part in enumerate(model.subnets)]
    torch.testing.assert_close(features, torch.cat(own, 1))
    torch.testing.assert_close(model.forward_head(features), model(views))
    first = model.forward_features(views[:, 0])
    assert torch.equal(features[:, :352], first[:, :352])
    assert not torch.allclose(features[:, 352:], first[:, 352:])


@pytest.mark.parametrize("given", [None, 0.0, 0.37])
def test_the_users_drop_rate_wins_over_the_divisions_own(given):
    own = 0.2 / 2**0.5  # the whole network's over sqrt(S)
    assert timm_mix.divide("efficientnetb0", 2)["drop_rate"] == pytest.approx(own)
    model = _create("splitnet_efficientnetb0_s2", device="meta", **({} if given is None else {"drop_rate": given}))
    for part in model.subnets:
        assert part.drop_rate == pytest.approx(own if given is None else given)


@pytest.mark.parametrize(
    "backbone", ["mixer_s32_224", "levit_128s", "pvt_v2_b0", "nest_tiny_jx", "swin_tiny_patch4_window7_224"]
)
def test_features_of_any_family_lie_on_their_own_channel_axis(backbone):
    model = _create(backbone=backbone, split=2, divide=False, device="meta").eval()
    x = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    one = model.subnets[0].forward_features(x)
    features = model.forward_features(x)
    grown = [i for i, (a, b) in enumerate(zip(one.shape, features.shape, strict=True)) if a != b]
    assert [features.shape[i] for i in grown] == [model.num_features]
    assert model.forward_head(features).shape == (1, K)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_without_head_and_pooling_the_features_stay_as_they_are(backbone):
    model = _create(backbone=backbone, split=2, device="meta").eval()
    model.reset_classifier(0, "")
    x = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert model(x).shape == model.forward_head(features).shape == features.shape


def test_intermediate_tokens_lie_side_by_side_with_their_prefixes():
    model = _create(backbone="vit_tiny_patch16_224", split=2, divide=False, depth=2, img_size=64)
    levels = model.forward_intermediates(
        fixed_images(1, 3, 64, 64), output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    assert [tuple(t.shape) for t in levels[0]] == [(1, 16, 384), (1, 1, 384)]


@pytest.mark.parametrize("only", [False, True])
def test_intermediates_come_as_a_dict_on_request(only):
    model = _create(backbone="vit_tiny_patch16_224", split=2, divide=False, depth=2, img_size=64).eval()
    x, kwargs = fixed_images(1, 3, 64, 64), {"return_prefix_tokens": True, "intermediates_only": only}
    whole = model.forward_intermediates(x, output_dict=True, **kwargs)
    plain = model.forward_intermediates(x, **kwargs)
    levels = plain if only else plain[1]
    assert all(map(torch.equal, whole["image_intermediates"], [level for level, _ in levels]))
    assert all(map(torch.equal, whole["image_intermediates_prefix"], [prefix for _, prefix in levels]))
    assert ("image_features" in whole) is not only
    if not only:
        torch.testing.assert_close(whole["image_features"], plain[0], rtol=0, atol=0)


@pytest.mark.parametrize("backbone", ["wrn16_2", "deit_tiny_distilled_patch16_224"])
def test_the_classifier_is_a_module_that_holds_every_parts_heads(backbone):
    model = _create(backbone=backbone, split=S, device="meta")
    heads = [getattr(part, name) for part in model.subnets for name in HEADS if hasattr(part, name)]
    wanted = {id(parameter) for head in heads for parameter in head.parameters()}
    assert {id(parameter) for parameter in model.get_classifier().parameters()} == wanted
    assert len(model.get_classifier()) == S


def test_named_models_keep_their_division():
    with pytest.raises(ValueError, match="splitnet_resnet18_s2 has a fixed split"):
        timm.create_model("splitnet_resnet18_s2", split=4, device="meta")


def test_a_new_pooling_is_saved(tmp_path):
    model = _create("splitnet_resnet18_s2").eval()
    model.reset_classifier(7, "max")
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = fixed_images(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_undivided_parts_make_a_deep_ensemble_of_any_family():
    model = _create(backbone="vit_tiny_patch16_224", split=3, divide=False, depth=2, img_size=64).eval()
    x = fixed_images(2, 3, 64, 64)
    torch.testing.assert_close(model(x), sum(s(x) for s in model.subnets) / 3)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))


def test_generic_model_reloads_from_its_config(tmp_path):
    model = _create(backbone="resnet18", split=4, ensemble="max").eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = fixed_images(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet50", "split": 3}, "resnet50 divides into S = 2, 4 or 8 parts, got S = 3"),
        ({"backbone": "mixer_b16_224"}, "no division rule for 'mixer_b16_224'.*divide=False"),
        ({"backbone": "resnet"}, "backbone must be a model name that timm knows"),
        ({"backbone": "resnet50.no_such_tag"}, "backbone must be a model name that timm knows"),
        ({"split": 0}, "split must be an integer in 1..1024, got 0"),
        ({"split": True}, "split must be an integer in 1..1024, got True"),
        ({"features_only": True, "feature_cls": "fx"}, "need feature_cls='getter'"),
        ({"ensemble": "mean"}, "ensemble must be one of logits, softmax, max, got 'mean'"),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("splitnet", device="meta", **kwargs)


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"input must be \[B, C, H, W\] or \[B, 2, C, H, W\]"):
        _create("splitnet_resnet18_s2")(torch.zeros(1, 3, 3, 64, 64))
