"""Openmixup's checkpoints of AutoMix and SAMix: names, places of every tensor, logits, networks and heads to choose."""

import re

import pytest
import timm
import torch
from official_layers import meta
from official_loading import assert_refused, given_as
from official_plain_nets import learned, openmixup_resnet18, openmixup_wrn28_8, read_archs
from official_splitnet_nets import random_state
from torch import nn

import timm_mix

pytestmark = pytest.mark.usefixtures("quiet")

ARCHS = read_archs("openmixup")
NAMES = {
    "cifar100_resnet18_automix": "resnet18_cifar",
    "imagenet_resnet18_automix": "resnet18",
    "imagenet_resnet50_automix": "resnet50",
    "cifar100_wrn28_8_automix": "wrn28_8_openmixup",
    "cifar100_resnet18_samix": "resnet18_cifar",
}
CHOICES = [("k", "one"), ("k", "mix"), ("q", "one"), ("q", "mix")]
# arch -> (official key behind the backbone's name, ours), written by hand
PAIRS = {
    "cifar100_wrn28_8_automix": (
        ("conv1.bias", "conv1.bias"),
        ("block1.layer.0.convShortcut.weight", "layer1.0.shortcut.weight"),
        ("block1.layer.3.bn2.running_var", "layer1.3.bn2.running_var"),
        ("block2.layer.0.conv1.weight", "layer2.0.conv1.weight"),
        ("block3.layer.0.convShortcut.bias", "layer3.0.shortcut.bias"),
        ("block3.layer.2.conv2.bias", "layer3.2.conv2.bias"),
        ("bn1.num_batches_tracked", "bn1.num_batches_tracked"),
    ),
    "imagenet_resnet50_automix": (
        ("conv1.weight", "conv1.weight"),
        ("layer3.0.downsample.0.weight", "layer3.0.downsample.0.weight"),
        ("layer4.2.bn3.running_mean", "layer4.2.bn3.running_mean"),
    ),
}


def _checkpoint(state, prefix=""):
    """What openmixup saves."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    meta_data = {"epoch": 800, "iter": 400000, "mmcv_version": "1.6.0"}
    return {"meta": meta_data, "state_dict": {f"{prefix}{k}": v for k, v in state.items()}, "optimizer": optimizer}


def _model(arch, **kwargs):
    name = timm_mix.official_model("openmixup", arch)
    return timm.create_model(name, num_classes=ARCHS[arch]["num_classes"], device="meta", **kwargs)


def _empty(arch, **kwargs):
    """On the CPU, without the time for its own init."""
    return _model(arch, **kwargs).to_empty(device="cpu").double().eval()


def test_names_of_the_published_networks():
    assert {arch: timm_mix.official_model("openmixup", arch) for arch in ARCHS} == NAMES


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("network", "head"), CHOICES)
def test_every_key_of_a_network_and_head_has_its_place_and_shape(arch, network, head):
    model = _model(arch)
    own = model.state_dict()
    state = meta(ARCHS[arch]["shapes"])
    seen = []
    model.load_state_dict = lambda renamed, strict: seen.append((renamed, strict))
    timm_mix.load_official(model, _checkpoint(state), network=network, head=head)
    [(renamed, strict)] = seen
    assert strict
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in own.items()}
    for theirs, ours in PAIRS.get(arch, ()):
        assert renamed[ours] is state[f"backbone_{network}.{theirs}"], f"{theirs} is not in {ours}"
    assert renamed["fc.weight"] is state[f"head_{head}_{network}.fc.weight"]
    used = {id(tensor) for tensor in renamed.values()}
    chosen = (f"backbone_{network}.", f"head_{head}_{network}.")
    assert {key for key, tensor in state.items() if id(tensor) in used} == {k for k in state if k.startswith(chosen)}


# parameters of the Mix Block (published code); the rest are two networks with two heads each
MIX_BLOCK = {
    "cifar100_resnet18_automix": 33_153,
    "imagenet_resnet18_automix": 33_282,
    "imagenet_resnet50_automix": 526_338,
    "cifar100_wrn28_8_automix": 33_153,
    "cifar100_resnet18_samix": 164_480,
}


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_of_two_networks_and_the_mix_block_are_the_published_ones(arch):
    model = _model(arch)
    copy = sum(p.numel() for p in model.parameters()) + sum(p.numel() for p in model.fc.parameters())
    assert 2 * copy + MIX_BLOCK[arch] == ARCHS[arch]["params"]
    without_aliases = {k: s for k, s in ARCHS[arch]["shapes"].items() if not k.startswith(("backbone.", "head."))}
    assert learned(without_aliases) == ARCHS[arch]["params"]


def _state(arch, keep=lambda key: True):
    """A random checkpoint, whose copies differ and whose aliases are k and head_one_k."""
    shapes = {k: s for k, s in ARCHS[arch]["shapes"].items() if keep(k) and not k.startswith(("backbone.", "head."))}
    state = random_state(shapes)
    aliases = {"backbone_k.": "backbone.", "head_one_k.": "head."}
    return state | {
        key.replace(name, alias): value
        for key, value in state.items()
        for name, alias in aliases.items()
        if key.startswith(name)
    }


@pytest.mark.parametrize(
    ("arch", "forward", "choice"),
    [
        ("cifar100_resnet18_automix", openmixup_resnet18, {}),
        ("cifar100_resnet18_samix", openmixup_resnet18, {"network": "q", "head": "mix"}),
        ("cifar100_wrn28_8_automix", openmixup_wrn28_8, {}),
    ],
)
def test_logits_of_a_converted_network_are_those_of_the_published_one(arch, forward, choice):
    published = {"network": "k", "head": "one", **choice}
    other = "q" if published["network"] == "k" else "k"
    state = _state(arch, lambda key: not key.startswith(f"backbone_{other}."))  # takes time
    model = _empty(arch)
    assert timm_mix.load_official(model, _checkpoint(state), **choice) is model
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        expected = forward(state, x, **published)
        assert expected.std() > 0.1
        assert (model(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


SMALL = "cifar100_wrn28_8_automix"


def _small(prefix=""):
    """One block per stage."""
    state = _state(SMALL, lambda key: not re.search(r"layer\.[1-9]", key))
    return _empty(SMALL, depth=10), _checkpoint(state, prefix)


def test_without_a_choice_the_momentum_copy_with_the_head_of_plain_images_is_loaded():
    model, source = _small()
    state = source["state_dict"]
    timm_mix.load_official(model, source)
    assert torch.equal(model.layer2[0].conv1.weight, state["backbone_k.block2.layer.0.conv1.weight"])
    assert torch.equal(model.fc.bias, state["head_one_k.fc.bias"])


def test_network_and_head_are_chosen_apart():
    model, source = _small()
    state = source["state_dict"]
    timm_mix.load_official(model, source, network="q")
    assert torch.equal(model.bn1.running_var, state["backbone_q.bn1.running_var"])
    assert torch.equal(model.fc.bias, state["head_one_q.fc.bias"])
    timm_mix.load_official(model, source, head="mix")
    assert torch.equal(model.bn1.running_var, state["backbone_k.bn1.running_var"])
    assert torch.equal(model.fc.bias, state["head_mix_k.fc.bias"])


def test_the_log_says_what_is_loaded_and_what_is_left_out(caplog):
    model, source = _small()
    timm_mix.load_official(model, source)
    [line] = caplog.messages
    assert "left out, because only backbone_k and head_one_k are loaded: " in line
    assert "mix_block.value.weight" in line
    left_out = len(source["state_dict"]) - len(model.state_dict())
    assert f"and {left_out - 3} more" in line
    caplog.clear()
    timm_mix.load_official(model, source, network="q", head="mix")
    assert "only backbone_q and head_mix_q are loaded" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["path", "state_dict"])
def test_all_forms_of_a_checkpoint_load_alike(form, prefix, tmp_path):
    model, source = _small(prefix)
    expected = source["state_dict"][f"{prefix}backbone_k.block3.layer.0.bn2.running_mean"]
    timm_mix.load_official(nn.DataParallel(model), given_as(form, source, tmp_path))
    assert torch.equal(model.layer3[0].bn2.running_mean, expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("backbone_k.conv1.bias"), r"conv1\.bias missing"),
        (lambda s: s.pop("head_one_k.fc.bias"), r"fc\.bias missing"),
        (lambda s: s.update({"backbone_k.block4.layer.0.bn1.bias": torch.ones(1)}), r"block4\.layer.* unexpected"),
        (lambda s: s.update({"neck.weight": torch.ones(1)}), r"neck\.weight unexpected"),
        (lambda s: s.update({"head_one_k.fc.bias": torch.ones(3)}), r"k\.fc\.bias \(wanted \[100\], got \[3\]\)"),
        (lambda s: s.update({"module.backbone_k.conv1.bias": torch.ones(16)}), r"'conv1.bias' twice, as 'backbone_k"),
    ],
)
def test_a_mismatch_names_its_keys_and_leaves_the_model_alone(spoil, message):
    model, source = _small()
    spoil(source["state_dict"])
    assert_refused(model, source["state_dict"], message)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"network": "p"}, "network must be 'k' or 'q', got 'p'"),
        ({"network": ""}, "network must be 'k' or 'q', got ''"),
        ({"head": "two"}, "head must be 'one' or 'mix', got 'two'"),
    ],
)
def test_other_networks_and_heads_are_refused(choice, message):
    source = meta(ARCHS[SMALL]["shapes"])
    with pytest.raises(ValueError, match=message):
        timm_mix.load_official(_model(SMALL), source, **choice)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("openmixup", "resnet18"), "one of cifar100_resnet18_automix, cifar100_resnet18_samix, .*got 'resnet18'"),
        (("openmixup", "cifar100_resnet18_samix", 2), "members of cifar100_resnet18_samix must be 1, got 2"),
    ],
)
def test_unknown_networks_are_refused_with_the_known_ones(args, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.official_model(*args)
