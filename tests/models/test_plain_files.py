"""Networks with members from files and names of a plain network: every way of loading, and its mistakes."""

import logging

import pytest
import timm
import torch
from plain_nets import K, deviation, plain_net, written
from safetensors.torch import save_file
from support.networks import fixed_images
from torch import nn

from timm_mix.hub import save_pretrained
from timm_mix.models.mixmo import MixMo
from timm_mix.models.splitnet import SplitNet


@pytest.mark.parametrize("made", [MixMo, SplitNet])
def test_a_saved_network_loads_as_any_other(made, tmp_path):
    model = made.from_plain(plain_net("resnet18")).eval()
    folder = save_pretrained(model, tmp_path / "saved")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = fixed_images(2, 3, 64, 64)
    assert torch.equal(again(x), model(x))


# -- files and names


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
def test_checkpoint_path_takes_a_plain_file_and_one_of_ours(name, tmp_path):
    plain = plain_net("resnet18")
    model = timm.create_model(name, num_classes=K, checkpoint_path=written(plain, tmp_path / "plain.safetensors"))
    again = timm.create_model(name, num_classes=K, checkpoint_path=written(model, tmp_path / "ours.safetensors"))
    x = fixed_images(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))
    if name.startswith("mixmo"):
        assert deviation(model(x), plain(x)) <= 1e-5


@pytest.mark.parametrize("name", ["mixmo_resnet18_m2", "splitnet_resnet18_s2"])
def test_an_overlay_file_is_plain_or_ours(name, tmp_path):
    plain = written(plain_net("resnet18"), tmp_path / "plain.safetensors")
    kwargs = {"pretrained": True, "num_classes": K}
    model = timm.create_model(name, pretrained_cfg_overlay={"file": plain, "num_classes": K}, **kwargs)
    ours = written(model, tmp_path / "ours.safetensors")
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
    file = written(plain, tmp_path / "plain.safetensors")
    cfg = {"file": file, "hf_hub_id": None, "num_classes": K if not divide else 0}
    model = timm.create_model("splitnet_resnet18_s2", pretrained=True, divide=divide, pretrained_cfg_overlay=cfg)
    assert model.num_classes == classes
    if not divide:
        x = fixed_images(2, 3, 64, 64)
        assert deviation(model.eval()(x, return_members=True)[:, 1], plain(x)) <= 1e-5


def test_one_line_says_that_selected_parts_must_be_trained(tmp_path, caplog):
    file = written(plain_net("resnet18"), tmp_path / "plain.safetensors")
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
    file = written(plain, tmp_path / "plain.safetensors")
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
