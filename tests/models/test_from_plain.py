"""Networks with members that start from one plain network: exact for MixMo, from files and names; mistakes."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.networks import fixed_images
from timm.models import group_parameters
from torch import nn

from timm_mix.hub import save_pretrained
from timm_mix.models.mixmo import MixMo
from timm_mix.models.splitnet import SplitNet

K = 7
ONE_BLOCK = {"layers": (1, 1, 1, 1)}
NARROW = {**ONE_BLOCK, "channels": (32, 64, 128, 256)}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 64, "window_size": 2}
FAMILIES = {
    "resnet18": {},
    "resnet18d": {},
    "resnetv2_50": NARROW,
    "resnext50_32x4d": ONE_BLOCK,
    "wide_resnet50_2": NARROW,
    "seresnet18": {},
    "skresnet18": {},
    "resnet50_gn": ONE_BLOCK,
    "wrn16_2": {},
    "preact_resnet18": ONE_BLOCK,
    "efficientnet_b0": {},
    "tf_efficientnet_lite0": {},
    "tf_efficientnetv2_b0": {},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "mnasnet_small": {},
    "mixnet_s": {},
    "rexnet_100": {},
    "ghostnet_050": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "dla34": {},
    "cspresnet50": {},
    "hrnet_w18_small": {},
    "ese_vovnet19b_dw": {},
    "hgnetv2_b0": {},
    "gernet_s": {},
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "inception_next_atto": {},
    "starnet_s050": {},
    "poolformer_s12": {},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "mixer_s32_224": {"img_size": 64},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "deit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "beit_base_patch16_224": {"depth": 1, "img_size": 64},
    "swin_tiny_patch4_window7_224": SWIN,
}
QUICK = {"resnet18d", "wrn16_2", "mobilenetv3_small_050", "densenet121", "convnext_atto", "vit_tiny_patch16_224"}
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


def plain_net(name, num_classes=K, **kwargs):
    """With statistics of images and with heads that are not zero, as after training."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **FAMILIES.get(name, {}), **kwargs).train()
    with torch.no_grad():
        model(torch.cat([images(model)] * 4) + 0.1)
        for value in (*model.get_classifier().parameters(), *(p for p in model.parameters() if p.ndim < 2)):
            value.add_(0.1 * torch.randn(value.shape))
    return model.eval()


def images(model, size=64):
    return fixed_images(2, model.in_chans, *(min(size, side) for side in model.pretrained_cfg["input_size"][1:]))


def deviation(values, wanted):
    """The largest difference over the largest value."""
    return ((values - wanted).abs().max() / wanted.abs().max()).item()


@families
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"])
@torch.no_grad()
def test_ensemble_and_fold_are_the_plain_network(name, dtype, tolerance):
    plain = plain_net(name).to(dtype)
    model = MixMo.from_plain(plain, 3, noise=0.3, tags=0.2)
    x = images(plain).to(dtype)
    wanted = plain(x)
    assert 0.01 < wanted.abs().max() < 1e4
    assert deviation(model(x), wanted) <= tolerance
    assert deviation(model(x, return_members=True)[:, 2], wanted) <= tolerance
    folded, state = model.fold(), plain.state_dict()
    assert deviation(folded(x), wanted) <= tolerance
    assert folded.state_dict().keys() == state.keys()
    for key, value in folded.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_without_noise_the_fold_has_the_weights_themselves():
    plain = plain_net("resnet18")
    for key, value in MixMo.from_plain(plain, 2).fold().state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("name", sorted(QUICK))
@torch.no_grad()
def test_at_other_classes_and_channels_the_features_are_those_of_timm(name, tmp_path):
    save_file(plain_net(name).state_dict(), tmp_path / "plain.safetensors")
    overlay = {"file": str(tmp_path / "plain.safetensors"), "num_classes": K}
    kwargs = {**FAMILIES[name], "pretrained": True, "num_classes": 5, "in_chans": 1}
    plain = timm.create_model(name, pretrained_cfg_overlay=overlay, **kwargs).eval()
    model = timm.create_model("mixmo", backbone=name, members=3, pretrained_cfg_overlay=overlay, **kwargs).eval()
    x = images(plain)
    assert deviation(model.forward_features(x), plain.forward_features(x)) <= 1e-5
    assert model(x).shape == (2, 5)


@torch.no_grad()
def test_another_image_size_is_adapted_as_timm_does(tmp_path):
    save_file(plain_net("vit_tiny_patch16_224").state_dict(), tmp_path / "plain.safetensors")
    overlay = {"file": str(tmp_path / "plain.safetensors"), "num_classes": K, "input_size": (3, 64, 64)}
    kwargs = {"pretrained": True, "num_classes": K, "depth": 2, "img_size": 96, "pretrained_cfg_overlay": overlay}
    plain = timm.create_model("vit_tiny_patch16_224", **kwargs).eval()
    model = timm.create_model("mixmo", backbone="vit_tiny_patch16_224", **kwargs).eval()
    x = fixed_images(2, 3, 96, 96)
    assert deviation(model(x), plain(x)) <= 1e-5


def test_the_members_differ_by_noise_and_tags_that_vanish_in_sum():
    plain = plain_net("wrn16_2")
    model = MixMo.from_plain(plain, 3, noise=0.5, tags=0.2, seed=1)
    weights = torch.stack([encoder.weight for encoder in model.encoders]).detach()
    torch.testing.assert_close(weights.sum(0), plain.conv1.weight.detach())
    apart = (weights - plain.conv1.weight.detach() / 3).std() / (plain.conv1.weight / 3).std()
    assert 0.45 < apart < 0.55
    torch.testing.assert_close(model.tags.sum(0), torch.zeros(16), atol=1e-6, rtol=0)
    again = MixMo.from_plain(plain, 3, noise=0.5, tags=0.2, seed=1)
    other = MixMo.from_plain(plain, 3, noise=0.5, tags=0.2, seed=2)
    assert torch.equal(model.encoders[0].weight, again.encoders[0].weight)
    assert not torch.equal(model.encoders[0].weight, other.encoders[0].weight)
    assert not torch.equal(model.tags, other.tags)


def test_tags_tell_whose_place_it_is_and_stay_zero_in_sum_when_trained():
    plain = plain_net("wrn16_2")
    x = fixed_images(2, 2, 3, 32, 32)
    masks = torch.zeros(1, 2, 1, 32, 32)
    masks[:, 0, :, :20], masks[:, 1, :, 20:] = 1, 1
    without, model = MixMo.from_plain(plain, 2), MixMo.from_plain(plain, 2, tags=0.2)
    difference = model.encode(x, masks) - without.encode(x, masks)
    for part, member in ((slice(0, 20), 0), (slice(20, 32), 1)):
        wanted = 2 * model.tags[member][None, :, None, None].expand_as(difference[:, :, part])
        torch.testing.assert_close(difference[:, :, part], wanted)
    model.encode(x, masks).square().sum().backward()
    with torch.no_grad():
        model.tags -= 0.1 * model.tags.grad + 1.0
        assert deviation(model(x[:, 0]), plain(x[:, 0])) <= 1e-5


def test_the_training_input_under_masks_is_cutmix_of_features_at_the_plain_scale():
    plain = plain_net("wrn16_2")
    x = fixed_images(2, 2, 3, 32, 32)
    masks = torch.zeros(1, 2, 1, 32, 32)
    masks[:, 0, :, :20], masks[:, 1, :, 20:] = 1, 1
    mixed = MixMo.from_plain(plain, 2).encode(x, masks)
    torch.testing.assert_close(mixed[:, :, :20], plain.conv1(x[:, 0])[:, :, :20])
    torch.testing.assert_close(mixed[:, :, 20:], plain.conv1(x[:, 1])[:, :, 20:])


def test_what_the_network_was_built_with_goes_on():
    plain = timm.create_model("resnet18", num_classes=3, in_chans=4, global_pool="max", drop_rate=0.3, act_layer="silu")
    plain.pretrained_cfg["mean"] = (0.1,) * 4
    model = MixMo.from_plain(plain.train(), 2, ensemble="softmax")
    assert (model.num_classes, model.in_chans, model.training, model.ensemble) == (3, 4, True, "softmax")
    assert model.pretrained_cfg["mean"] == (0.1,) * 4
    assert isinstance(model.core.act1, nn.SiLU)
    assert model.core.drop_rate == 0.3
    assert isinstance(SplitNet.from_plain(plain).subnets[1].act1, nn.SiLU)


@pytest.mark.parametrize("made", [MixMo, SplitNet])
def test_a_saved_network_loads_as_any_other(made, tmp_path):
    model = made.from_plain(plain_net("resnet18")).eval()
    folder = save_pretrained(model, tmp_path / "saved")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = fixed_images(2, 3, 64, 64)
    assert torch.equal(again(x), model(x))


# -- files and names


def _file(model, path):
    save_file(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
def test_checkpoint_path_takes_a_plain_file_and_one_of_ours(name, tmp_path):
    plain = plain_net("resnet18")
    model = timm.create_model(name, num_classes=K, checkpoint_path=_file(plain, tmp_path / "plain.safetensors"))
    again = timm.create_model(name, num_classes=K, checkpoint_path=_file(model, tmp_path / "ours.safetensors"))
    x = fixed_images(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))
    if name.startswith("mixmo"):
        assert deviation(model(x), plain(x)) <= 1e-5


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
def test_an_overlay_file_is_plain_or_ours(name, tmp_path):
    plain = _file(plain_net("resnet18"), tmp_path / "plain.safetensors")
    kwargs = {"pretrained": True, "num_classes": K}
    model = timm.create_model(name, pretrained_cfg_overlay={"file": plain, "num_classes": K}, **kwargs)
    ours = _file(model, tmp_path / "ours.safetensors")
    again = timm.create_model(name, pretrained_cfg_overlay={"file": ours, "num_classes": K}, **kwargs)
    x = fixed_images(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_every_tag_of_the_backbone_is_one_of_the_model():
    tags = {name.partition(".")[2] for name in timm.list_pretrained("resnet50.*")}
    assert len(tags) > 10
    for name in ("mixmo_resnet50_m3", "splitnet_resnet50_s4"):
        assert {name.partition(".")[2] for name in timm.list_pretrained(f"{name}.*")} == tags
        assert timm.get_pretrained_cfg(name).tag == timm.get_pretrained_cfg("resnet50").tag
    cfg, source = (
        timm.get_pretrained_cfg(f"{name}.fb_ssl_yfcc100m_ft_in1k") for name in ("mixmo_resnet50_m2", "resnet50")
    )
    for key in ("hf_hub_id", "mean", "std", "interpolation", "crop_pct", "license", "num_classes", "input_size"):
        assert getattr(cfg, key) == getattr(source, key), key


def test_weights_of_our_own_come_first():
    assert timm.get_pretrained_cfg("mixmo_wrn16_2_m2").tag == "cifar100"
    assert timm.get_pretrained_cfg("splitnet_wrn16_2_s2").num_classes == 100


def test_a_model_without_weights_stays_what_it_was():
    for name in ("mixmo_resnet18_m2", "splitnet_resnet18_s2"):
        assert timm.create_model(name, device="meta").num_classes == 1000


@pytest.mark.parametrize(("divide", "classes"), [(True, 0), (False, K)])
def test_selected_parts_know_no_classes_and_whole_ones_do(divide, classes, tmp_path, monkeypatch):
    plain = plain_net("resnet18")
    file = _file(plain, tmp_path / "plain.safetensors")
    cfg = {"file": file, "hf_hub_id": None, "num_classes": K if not divide else 0}
    model = timm.create_model("splitnet_resnet18_s2", pretrained=True, divide=divide, pretrained_cfg_overlay=cfg)
    assert model.num_classes == classes
    if not divide:
        x = fixed_images(2, 3, 64, 64)
        assert deviation(model.eval()(x, return_members=True)[:, 1], plain(x)) <= 1e-5


def test_one_line_says_that_selected_parts_must_be_trained(tmp_path, caplog):
    file = _file(plain_net("resnet18"), tmp_path / "plain.safetensors")
    with caplog.at_level(logging.WARNING):
        timm.create_model("splitnet_resnet18_s2", num_classes=K, checkpoint_path=file)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "2 parts start from selected channels of resnet18, with new heads: train them before use"


# -- mistakes


def _spoilt(kind, path):
    model = plain_net("resnet18")
    state = model.state_dict()
    if kind == "another width":
        state = timm.create_model("resnet18", channels=(32, 64, 128, 256), num_classes=K).state_dict()
    elif kind == "another architecture":
        state = plain_net("vit_tiny_patch16_224").state_dict()
    elif kind == "half of it":
        state = dict(list(state.items())[:40])
    elif kind == "not finite":
        state["layer3.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    elif kind == "nothing known":
        state = {"a.weight": torch.zeros(2)}
    save_file(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another width", r"^these weights are not those of resnet18: size mismatch for .*shape"),
        ("another architecture", r"^these weights are not those of resnet18: Missing key.*conv1.weight"),
        ("half of it", r"^these weights are not those of resnet18: Missing key.*layer"),
        ("not finite", r"^the weights for resnet18 hold values that are no numbers \(layer3.0.conv1.weight\); take"),
        ("nothing known", r"^these weights are not those of resnet18: Missing key"),
    ],
)
@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
@pytest.mark.parametrize("way", ["checkpoint_path", "overlay"])
def test_a_file_of_something_else_is_one_line(kind, message, name, way, tmp_path):
    file = _spoilt(kind, tmp_path / "spoilt.safetensors")
    kwargs = {"checkpoint_path": file}
    if way == "overlay":
        kwargs = {"pretrained": True, "pretrained_cfg_overlay": {"file": file, "num_classes": K}}
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model(name, num_classes=K, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixMo.from_plain(nn.Linear(3, 5)), "from_plain needs a whole model of timm.create_model, got Linear"),
        (lambda: MixMo.from_plain(timm.create_model("mixmo_resnet18_m2")), "from_plain needs a plain network"),
        (lambda: MixMo.from_plain(timm.create_model("nf_resnet26")), "linear in its weight, got ScaledStdConv2d"),
        (lambda: MixMo.from_plain(timm.create_model("repvgg_a0")), "copies the one convolution that reads the image"),
        (lambda: MixMo.from_plain(plain_net("resnet18"), noise=-1), "noise must be >= 0 and finite, got -1"),
        (lambda: MixMo.from_plain(plain_net("resnet18"), tags=-1), "tags must be >= 0 and finite, got -1"),
        (lambda: MixMo.from_plain(plain_net("resnet18"), 0), "members must be"),
        (lambda: SplitNet.from_plain(plain_net("resnet18"), 3), "divides into S = 2, 4 or 8 parts, got S = 3"),
        (lambda: SplitNet.from_plain(plain_net("resnet18"), selection="best"), "selection must be one of uniform"),
        (lambda: SplitNet.from_plain(plain_net("mixer_s32_224")), "no division rule for"),
    ],
)
def test_what_cannot_start_so_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixmo", "splitnet"])
def test_a_backbones_tag_is_used_or_an_error(name):
    with pytest.raises(ValueError, match=r"backbone='resnet18.a1_in1k' names pretrained weights, .*pretrained=True"):
        timm.create_model(name, backbone="resnet18.a1_in1k")
    with pytest.raises(ValueError, match=r"backbone must be a model name that timm knows .*'resnet18.nope'"):
        timm.create_model(name, backbone="resnet18.nope", pretrained=True)
    with pytest.raises(RuntimeError, match=r"No pretrained weights exist for"):
        timm.create_model(name, backbone="wrn28_10", pretrained=True)


def test_tags_are_learnt_with_the_encoders_and_do_not_decay():
    model = MixMo.from_plain(plain_net("resnet18d"), 2, tags=0.1)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["tags"] == layers["encoders.0.weight"]
    assert "tags" in model.no_weight_decay()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, but timm's suite asks for it
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
def test_a_model_with_tags_scripts_and_compiles_with_masks():
    model = MixMo.from_plain(plain_net("wrn16_2"), 2, tags=0.1)
    x, masks = fixed_images(2, 2, 3, 32, 32), torch.zeros(1, 2, 1, 32, 32)
    masks[:, 0, :, :20], masks[:, 1, :, 20:] = 1, 1
    wanted = model(x, masks=masks)
    torch.testing.assert_close(torch.jit.script(model)(x, masks), wanted)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x, masks=masks), wanted)


# -- members of their own, other ways of loading, networks that are not what their name says


NET = {"backbone": "wrn16_2", "depth": 10}


def _from_file(name, file, classes, **kwargs):
    """pretrained=True from a file of this number of classes."""
    overlay = {"file": str(file), "num_classes": classes}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_members_share_no_memory_even_when_tensors_are_assigned():
    plain = plain_net("wrn16_2")
    for model in (
        timm.create_model("mixmo", backbone="wrn16_2", num_classes=K),
        timm.create_model("splitnet", backbone="wrn16_2", num_classes=K, divide=False),
    ):
        model.load_state_dict(plain.state_dict(), assign=True)
        places = [value.data_ptr() for value in (*model.state_dict().values(), *plain.state_dict().values())]
        assert len(set(places)) == len(places)


def test_a_network_of_other_widths_is_not_divided(tmp_path):
    plain = timm.create_model("resnet18", channels=(32, 64, 128, 256), num_classes=K)
    message = r"^resnet18 is divided by its channels, from a plain network without channels of its own; take "
    with pytest.raises(ValueError, match=message):
        SplitNet.from_plain(plain)
    file = _file(plain, tmp_path / "plain.safetensors")
    kwargs = {"backbone": "resnet18", "channels": (32, 64, 128, 256), "num_classes": K}
    with pytest.raises(ValueError, match=message):
        timm.create_model("splitnet", checkpoint_path=file, **kwargs)
    assert SplitNet.from_plain(plain, divide=False).eval()(fixed_images(2, 3, 32, 32)).shape == (2, K)
    assert MixMo.from_plain(plain).eval()(fixed_images(2, 3, 32, 32)).shape == (2, K)


def test_what_an_entrypoint_made_alone_is_refused_because_nobody_noted_how():
    with pytest.raises(ValueError, match=r"needs a whole model .*, got ResNet"):
        MixMo.from_plain(timm.models.resnet.resnet18(num_classes=K, act_layer=nn.SiLU))


@pytest.mark.parametrize("made", [MixMo, SplitNet])
def test_the_class_itself_takes_no_tag(made):
    with pytest.raises(ValueError, match=r"a tag names weights, which the backbone 'resnet18.a1_in1k'"):
        made("resnet18.a1_in1k")


def test_compiled_networks_are_taken_and_changed_ones_are_one_line():
    plain = plain_net("wrn16_2")
    x = fixed_images(2, 3, 32, 32)
    assert deviation(MixMo.from_plain(torch.compile(plain)).eval()(x), plain(x)) <= 1e-5
    plain.prune_intermediate_layers([0])
    with pytest.raises(ValueError, match=r"^the network is not the one that its name builds: Missing key.*$"):
        MixMo.from_plain(plain)


@pytest.mark.parametrize("spoil", ["fewer members", "truncated", "not finite"])
@pytest.mark.parametrize("net", ["mixmo", "splitnet"])
def test_a_file_of_ours_with_other_classes_is_whole_or_an_error(net, spoil, tmp_path):
    count = "members" if net == "mixmo" else "split"
    state = timm.create_model(net, num_classes=5, **{**NET, count: 2}).state_dict()
    message = r"^the weights for (mixmo|splitnet) lack (encoders.2.weight|subnets.2.conv1.weight); take a file"
    if spoil == "truncated":
        state, message = dict(list(state.items())[:10]), r"^the weights for (mixmo|splitnet) lack .*; take a file"
    if spoil == "not finite":
        next(iter(state.values())).view(-1)[0] = float("nan")
        message = r"^the weights for (mixmo|splitnet) hold values that are no numbers"
    save_file(state, tmp_path / "ours.safetensors")
    kwargs = {**NET, count: 3 if spoil == "fewer members" else 2, "num_classes": K}
    with pytest.raises(ValueError, match=message):
        _from_file(net, tmp_path / "ours.safetensors", 5, **kwargs)


def test_tags_are_as_large_beside_loaded_filters_as_beside_their_own(tmp_path):
    file = _file(plain_net("wrn16_2"), tmp_path / "plain.safetensors")
    torch.manual_seed(0)
    loaded = timm.create_model("mixmo", backbone="wrn16_2", tags=0.1, num_classes=K, checkpoint_path=file)
    started = MixMo.from_plain(plain_net("wrn16_2"), 2, tags=0.1)
    for model in (loaded, started):
        norms = model.encoders[0].weight.flatten(1).norm(dim=1)
        assert 0.05 < ((model.tags / norms) ** 2).mean().sqrt() < 0.2
        torch.testing.assert_close(model.tags.sum(0), torch.zeros(16), atol=1e-6, rtol=0)


def test_on_the_meta_device_noise_and_tags_cost_nothing():
    plain = timm.create_model("wrn16_2", device="meta")
    assert MixMo.from_plain(plain, 2, noise=0.1, tags=0.1).tags.is_meta
    assert timm.create_model("mixmo", backbone="wrn16_2", tags=0.1, device="meta").tags.is_meta


def test_a_loose_load_says_what_was_missing_as_torch_does():
    state = plain_net("wrn16_2").state_dict()
    state.pop("fc.weight")
    model = timm.create_model("mixmo", backbone="wrn16_2", num_classes=K, tags=0.1)
    result = model.load_state_dict(state, strict=False)
    assert "core.layer1.0.conv1.weight" in result.missing_keys
    assert "layer1.0.conv1.weight" in result.unexpected_keys
    assert model.load_state_dict({"tags": model.tags.detach()}, strict=False).unexpected_keys == []
    assert model.load_state_dict({}, strict=False).unexpected_keys == []


@pytest.mark.parametrize("state", [[1, 2], {1: torch.zeros(1)}, {"conv1.weight": 3}, "abc"])
def test_what_is_no_state_dict_is_refused_as_torch_does(state):
    model = timm.create_model("mixmo", backbone="wrn16_2")
    with pytest.raises((TypeError, RuntimeError, AttributeError)) as theirs:
        nn.Linear(3, 5).load_state_dict(state)
    with pytest.raises(type(theirs.value)):
        model.load_state_dict(state)


def test_older_names_of_keys_are_those_that_timm_knows_at_any_number_of_classes(tmp_path):
    plain = plain_net("convnext_atto", num_classes=11)
    names = [
        *((f"stages.{i}.downsample.", f"downsample_layers.{i}.") for i in range(1, 4)),
        *(("stem.", "downsample_layers.0."), ("head.norm.", "norm."), ("head.fc.", "head."), (".blocks.", ".")),
        *((".conv_dw.", ".dwconv."), (".mlp.fc1.", ".pwconv1."), (".mlp.fc2.", ".pwconv2.")),
    ]
    state = {}
    for key, value in plain.state_dict().items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        state[key] = value
    save_file(state, tmp_path / "older.safetensors")
    model = _from_file("mixmo", tmp_path / "older.safetensors", 11, backbone="convnext_atto", num_classes=11).eval()
    x = fixed_images(2, 3, 64, 64)
    assert deviation(model(x), plain(x)) <= 1e-5


def test_a_new_head_leaves_the_names_of_the_old_classes_behind():
    plain = timm.create_model("resnet18", num_classes=2)
    plain.pretrained_cfg.update(num_classes=2, label_names=["cat", "dog"])
    assert MixMo.from_plain(plain).pretrained_cfg["label_names"] == ["cat", "dog"]
    plain.reset_classifier(3)
    model = MixMo.from_plain(plain)
    assert model.pretrained_cfg.get("label_names") is None
    assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (3, 3)
