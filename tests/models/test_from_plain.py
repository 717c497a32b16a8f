"""MixMo that starts from one plain network is that network: ensemble, fold, features; noise and tags."""

import pytest
import timm
import torch
from plain_nets import FAMILIES, QUICK, K, deviation, families, images, plain_net, written
from safetensors.torch import save_file
from support.networks import fixed_images
from timm.models import group_parameters
from torch import nn

from timm_mix.models.mixmo import MixMo
from timm_mix.models.splitnet import SplitNet


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


def test_tags_are_as_large_beside_loaded_filters_as_beside_their_own(tmp_path):
    file = written(plain_net("wrn16_2"), tmp_path / "plain.safetensors")
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
