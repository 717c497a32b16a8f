"""RecursiveMix's official checkpoints: names, places of every tensor, logits, the region head."""

from functools import partial

import pytest
import timm
import torch
from official_layers import meta
from official_loading import assert_refused, given_as
from official_plain_nets import learned, read_archs, recursivemix_densenet161, recursivemix_resnet18
from official_splitnet_nets import pyramidnet, random_state
from torch import nn

import timm_mix

pytestmark = pytest.mark.usefixtures("quiet")

ARCHS = read_archs("recursivemix")
NAMES = {
    "cifar_resnet18": "resnet18_cifar",
    "cifar_pyramidnet_200_240": "pyramidnet_200_240",
    "cifar_pyramidnet_164_270": "pyramidnet_164_270",
    "cifar_densenet161": "densenet161_cifar",
    "imagenet_resnet50": "resnet50",
}
_LAYER = "features.dense_block_layer_{}.bottle_neck_layer_{}.bottle_neck"
# arch -> (official key, ours), written by hand
PAIRS = {
    "cifar_resnet18": (
        ("conv1.0.weight", "conv1.weight"),
        ("conv1.1.running_var", "bn1.running_var"),
        ("conv2_x.1.residual_function.0.weight", "layer1.1.conv1.weight"),
        ("conv3_x.0.residual_function.1.bias", "layer2.0.bn1.bias"),
        ("conv3_x.0.residual_function.3.weight", "layer2.0.conv2.weight"),
        ("conv4_x.1.residual_function.4.num_batches_tracked", "layer3.1.bn2.num_batches_tracked"),
        ("conv5_x.0.shortcut.0.weight", "layer4.0.downsample.0.weight"),
        ("conv5_x.0.shortcut.1.running_mean", "layer4.0.downsample.1.running_mean"),
        ("fc.bias", "fc.bias"),
    ),
    "cifar_pyramidnet_200_240": (
        ("layer1.0.bn1.weight", "layer1.0.bn1.weight"),
        ("layer3.21.conv3.weight", "layer3.21.conv3.weight"),
        ("bn_final.bias", "bn_final.bias"),
        ("fc.weight", "fc.weight"),
    ),
    "cifar_densenet161": (
        ("conv1.weight", "features.conv0.weight"),
        (f"{_LAYER.format(0, 0)}.0.weight", "features.denseblock1.denselayer1.norm1.weight"),
        (f"{_LAYER.format(1, 11)}.2.weight", "features.denseblock2.denselayer12.conv1.weight"),
        (f"{_LAYER.format(2, 9)}.3.bias", "features.denseblock3.denselayer10.norm2.bias"),
        (
            "features.dense_block3.bottle_neck_layer_23.bottle_neck.5.weight",
            "features.denseblock4.denselayer24.conv2.weight",
        ),
        ("features.transition_layer_0.down_sample.0.bias", "features.transition1.norm.bias"),
        ("features.transition_layer_2.down_sample.1.weight", "features.transition3.conv.weight"),
        ("features.bn.running_mean", "features.norm5.running_mean"),
        ("linear.weight", "classifier.weight"),
    ),
    "imagenet_resnet50": (
        ("conv1.weight", "conv1.weight"),
        ("layer2.0.downsample.1.bias", "layer2.0.downsample.1.bias"),
        ("layer4.2.bn3.running_var", "layer4.2.bn3.running_var"),
        ("fc.weight", "fc.weight"),
    ),
}


def _checkpoint(state, prefix="module."):
    """What the published code saves."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 300, "state_dict": {f"{prefix}{k}": v for k, v in state.items()}, "optimizer": optimizer}


def _model(arch, **kwargs):
    name = timm_mix.official_model("recursivemix", arch)
    return timm.create_model(name, num_classes=ARCHS[arch]["num_classes"], device="meta", **kwargs)


def _empty(arch):
    """On the CPU, without the time for its own init."""
    return _model(arch).to_empty(device="cpu").double().eval()


def test_names_of_the_published_networks():
    assert {arch: timm_mix.official_model("recursivemix", arch) for arch in ARCHS} == NAMES


@pytest.mark.parametrize("arch", ARCHS)
def test_every_published_key_has_its_place_and_shape(arch, caplog):
    shapes, model = ARCHS[arch]["shapes"], _model(arch)
    own = model.state_dict()
    state = meta(shapes)
    seen = []
    model.load_state_dict = lambda renamed, strict: seen.append((renamed, strict))
    timm_mix.load_official(model, _checkpoint(state))
    [(renamed, strict)] = seen
    assert strict
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in own.items()}
    for theirs, ours in PAIRS.get(arch, ()):
        assert renamed[ours] is state[theirs], f"{theirs} is not in {ours}"
    used = {id(tensor) for tensor in renamed.values()}
    head = "linear_roi" if "densenet" in arch else "fc_roi"
    assert {key for key, tensor in state.items() if id(tensor) not in used} == {f"{head}.weight", f"{head}.bias"}
    [line] = caplog.messages
    assert line == (
        f"left out, because the region head serves in training only: module.{head}.weight, module.{head}.bias"
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_are_the_published_ones_without_the_region_head(arch):
    shapes, model = ARCHS[arch]["shapes"], _model(arch)
    head = sum(torch.Size(shape).numel() for key, shape in shapes.items() if "_roi." in key)
    assert learned(shapes) == ARCHS[arch]["params"]
    assert sum(p.numel() for p in model.parameters()) + head == ARCHS[arch]["params"]


FORWARD = {
    "cifar_resnet18": recursivemix_resnet18,
    "cifar_densenet161": recursivemix_densenet161,
    "cifar_pyramidnet_200_240": partial(pyramidnet, last_drop=0.0),  # no ShakeDrop
}


@pytest.mark.parametrize("arch", FORWARD)
def test_logits_of_a_converted_network_are_those_of_the_published_one(arch):
    state = random_state(ARCHS[arch]["shapes"])
    model = _empty(arch)
    assert timm_mix.load_official(model, _checkpoint(state)) is model
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        expected = FORWARD[arch](state, x)
        assert expected.std() > 0.1
        assert (model(x) - expected).abs().max() <= 1e-9 * expected.abs().max()
    own = model.state_dict()
    for theirs, ours in PAIRS[arch]:
        assert torch.equal(own[ours], state[theirs])


def _small(prefix=""):
    """One quick network of the same code, and its checkpoint."""
    return _empty("cifar_resnet18"), _checkpoint(random_state(ARCHS["cifar_resnet18"]["shapes"]), prefix)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["path", "state_dict"])
def test_all_forms_of_a_checkpoint_load_alike(form, prefix, tmp_path):
    model, source = _small(prefix)
    expected = source["state_dict"][f"{prefix}conv5_x.1.residual_function.3.weight"]
    timm_mix.load_official(nn.DataParallel(model), given_as(form, source, tmp_path))
    assert torch.equal(model.layer4[1].conv2.weight, expected)


def test_a_resnet18_that_was_trained_with_one_head_for_both_loads_in_silence(caplog):
    model, source = _small()
    state = {key: value for key, value in source["state_dict"].items() if "_roi" not in key}
    timm_mix.load_official(model, state)
    assert torch.equal(model.fc.bias, state["fc.bias"])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("fc.bias"), "fc.bias missing"),
        (lambda s: s.pop("conv3_x.0.shortcut.1.running_mean"), r"layer2\.0\.downsample\.1\.running_mean missing"),
        (lambda s: s.update({"fc_new.bias": torch.ones(100)}), r"fc_new\.bias unexpected"),
        (lambda s: s.update({"conv6_x.0.shortcut.0.weight": torch.ones(1)}), r"conv6_x\.0\.shortcut\.0.* unexpected"),
        (lambda s: s.update({"fc.bias": torch.ones(3)}), r"fc\.bias \(wanted \[100\], got \[3\]\)"),
        (lambda s: s.update({"module.fc.bias": torch.ones(100)}), r"'fc\.bias' twice, as 'fc.bias' and as 'module.fc"),
    ],
)
def test_a_mismatch_names_its_keys_and_leaves_the_model_alone(spoil, message):
    model, source = _small()
    spoil(source["state_dict"])
    assert_refused(model, source["state_dict"], message)


@pytest.mark.parametrize(
    ("arch", "name", "message"),
    [
        ("cifar_pyramidnet_164_270", "pyramidnet_200_240", r"layer1\.18\.bn1\.weight.* missing"),
        ("cifar_densenet161", "densenet161", r"features\.norm0\.weight.* missing"),
        ("cifar_resnet18", "resnet18", r"conv1\.0\.weight \(wanted \[64, 3, 7, 7\], got \[64, 3, 3, 3\]\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(arch, name, message):
    model = timm.create_model(name, num_classes=100, device="meta")
    with pytest.raises(ValueError, match=f"another network: .*{message}"):
        timm_mix.load_official(model, _checkpoint(meta(ARCHS[arch]["shapes"])))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("recursivemix", "resnet18_cifar"),
            "must be one of cifar_resnet18, cifar_pyramidnet_200_240, .*got 'resnet18_",
        ),
        (("recursivemix", "cifar_resnet18", 2), "members of cifar_resnet18 must be 1, got 2"),
    ],
)
def test_unknown_networks_are_refused_with_the_known_ones(args, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.official_model(*args)


@pytest.mark.parametrize("choice", [{"network": "k"}, {"head": "one"}])
def test_there_is_no_network_or_head_to_choose(choice):
    [(name, value)] = choice.items()
    message = (
        f"{name} must be left out for a checkpoint of source 'recursivemix', which holds one network, got '{value}'"
    )
    with pytest.raises(ValueError, match=message):
        timm_mix.load_official(_model("cifar_resnet18"), meta(ARCHS["cifar_resnet18"]["shapes"]), **choice)
