"""The AutoMix and SAMix task: the published step written out, who gets gradients, the momentum copy."""

import copy
import io

import numpy as np
import pytest
import timm
import torch
from small_nets import NETS, K, batch, small_net
from torch import nn
from torch.nn import functional as F

import timm_mix
from timm_mix.functional.automix import AutoMixPlan, adjust_masks, constant_masks, mask_loss, mix_pairs
from timm_mix.tasks._two_heads import stage_of_reduction

OWN = ("wrn16_2", "preact_resnet18", "pyramidnet164", "resnet110", "wide_resnet16_8", "densenet161_cifar")
OWN += ("shake_resnet26_2x96d", "resnet18_cifar", "efficientnetb0_cifar", "resnexst50_4x16d")
P_MB, P_BB = np.array([3, 0, 4, 1, 2]), np.array([1, 2, 0, 4, 3])


def _plan(**changes):
    values = {"lam_mb": 0.3, "lam_bb": 0.6, "adjust": False, "switched_off": False, **changes}
    return AutoMixPlan(partners_mb=P_MB, partners_bb=P_BB, **values)


def _task(kind="resnet", model=None, **settings):
    return timm_mix.create_task("automix", model or small_net(kind), None, num_classes=K, **settings)


def _stirred(task):
    """Masks that differ from place to place, so that every term counts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in task.get_trainable_module().block.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return task


def _transcript(task, x, y, plan):
    """The published step, all losses in one graph; k's feature pass ends at the masks' stage."""
    net, k = copy.deepcopy(task.get_trainable_module()), copy.deepcopy(task.follower)
    with torch.no_grad():
        features = k.model.forward_intermediates(x, indices=[task.stage], intermediates_only=True, stop_early=True)[0]
    mb, bb = torch.from_numpy(P_MB), torch.from_numpy(P_BB)

    def mixup_ce(z, partners, lam):
        return lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[partners])

    masks = net.block(features, mb, plan.lam_mb, (64, 64))
    block = mixup_ce(k(mix_pairs(x, mb, masks), second=True), mb, plan.lam_mb)
    seen = net.block(features, bb, plan.lam_bb, (64, 64)).detach()
    if plan.adjust:
        seen = adjust_masks(seen, plan.lam_bb)
    if not 0.08 < plan.lam_bb < 0.92:
        seen = constant_masks(plan.lam_bb, seen)
    ce = F.cross_entropy(net.two(x), y)
    mixed = mixup_ce(net.two(mix_pairs(x, bb, seen), second=True), bb, plan.lam_bb)
    loss = ce + mixed + (block.detach() if plan.switched_off else block)
    return net, loss + task.mask_weight * mask_loss(masks, plan.lam_mb, task.variance)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    ("plan", "settings"),
    [
        (_plan(), {}),
        (_plan(lam_bb=0.05), {}),
        (_plan(adjust=True), {"block": "samix", "variance": True, "block_kwargs": {"k": -1}}),
    ],
    ids=["automix", "margin", "samix"],
)
def test_gradients_equal_those_of_the_published_step(kind, plan, settings):
    task = _stirred(_task(kind, **settings))
    x, y = batch()
    net, loss = _transcript(task, x, y, plan)
    loss.backward()
    result = task(x, y, plan)
    result["loss"].backward()
    torch.testing.assert_close(result["loss"], loss)
    ours = dict(task.get_trainable_module().named_parameters())
    assert max(float(p.grad.abs().max()) for n, p in ours.items() if n.startswith("block")) > 1e-5
    for name, theirs in net.named_parameters():
        scale = float(theirs.grad.abs().max()) + 1e-7
        assert float((ours[name].grad - theirs.grad).abs().max()) <= 1e-4 * scale + 1e-7, name


def test_a_switched_off_block_learns_from_the_mask_loss_alone():
    x, y = batch()
    one = _stirred(_task(mask_weight=0.0))
    one(x, y, _plan(switched_off=True))["loss"].backward()
    assert all(float(p.grad.abs().max()) == 0 for p in one.get_trainable_module().block.parameters())
    two = _stirred(_task(mask_weight=0.0))
    two(x, y, _plan())["loss"].backward()
    assert any(float(p.grad.abs().max()) > 0 for p in two.get_trainable_module().block.parameters())


@pytest.mark.parametrize("kind", NETS)
def test_the_mixup_loss_of_the_copy_reaches_the_mix_block_alone(kind):
    gradients = []
    for switched_off in (False, True):
        task = _stirred(_task(kind))
        task(*batch(), _plan(switched_off=switched_off))["loss"].backward()
        gradients.append({name: p.grad for name, p in task.get_trainable_module().named_parameters()})
        assert all(p.grad is None for p in task.follower.parameters())
    learned = {name for name, gradient in gradients[0].items() if not torch.equal(gradient, gradients[1][name])}
    assert learned == {name for name in gradients[0] if name.startswith("block.")}


def test_the_momentum_copy_gets_no_gradient_and_follows_once_per_update():
    task = _task(momentum=0.9, total_steps=100)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.5)
    before = [p.clone() for p in task.follower.parameters()]
    for _ in range(2):  # two batches are accumulated
        task(*batch())["loss"].backward()
    assert all(p.grad is None for p in task.follower.parameters())
    for old, new in zip(before, task.follower.parameters(), strict=True):
        assert torch.equal(old, new)
    optimizer.step()
    task.update_ema()
    task.update_ema()
    online = task.get_trainable_module().two
    for old, q, new in zip(before, online.parameters(), task.follower.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * q)
    after = [p.clone() for p in task.follower.parameters()]
    task(*batch())
    for old, new in zip(after, task.follower.parameters(), strict=True):
        assert torch.equal(old, new)


def test_the_copy_follows_without_the_call_too():
    task = _task(momentum=0.9)
    with torch.no_grad():
        task.get_trainable_module().two.second.bias.add_(1)
    task(*batch())
    torch.testing.assert_close(task.follower.second.bias, task.get_trainable_module().two.second.bias - 0.9)


def test_the_copy_follows_a_fused_optimizer():
    task = _task(momentum=0.5)
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=0.1, fused=True)
    before = [p.clone() for p in task.follower.parameters()]
    task(*batch())["loss"].backward()
    optimizer.step()
    for _ in range(2):
        task.update_ema()
    online = task.get_trainable_module().two
    for old, q, new in zip(before, online.parameters(), task.follower.parameters(), strict=True):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * q)


@pytest.mark.parametrize("block", ["automix", "samix"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_everything_new_has_the_models_type(dtype, block):
    task = _task(model=small_net("resnet").to(dtype), block=block)
    assert {p.dtype for p in task.get_trainable_module().parameters()} == {dtype}
    x, y = batch()
    loss = task(x.to(dtype), y)["loss"]
    assert torch.isfinite(loss)
    loss.backward()
    assert {p.grad.dtype for p in task.get_trainable_module().parameters()} == {dtype}


def test_the_copys_batch_statistics_are_its_own_also_after_an_evaluation():
    task = _task()
    task.get_eval_model().eval()
    task.get_trainable_module().train()
    before = task.get_eval_model().layer4[0].bn1.running_mean.clone()
    task(*batch())
    assert not torch.equal(task.get_eval_model().layer4[0].bn1.running_mean, before)


def test_the_rare_plain_pass_weighs_as_much_on_average():
    x, y = batch()
    task = _task(model=small_net("resnet").eval(), one_hot_prob=0.5)
    task.get_trainable_module().eval()
    terms = {round(float(task(x, y, _plan())["ce"]), 4) for _ in range(20)}
    assert len(terms) == 2
    assert min(terms) == 0
    with torch.no_grad():
        plain = float(F.cross_entropy(task.get_trainable_module().two(x), y))
    assert max(terms) == pytest.approx(2 * plain, rel=1e-3)


@pytest.mark.parametrize(("share", "shown"), [(0.01, 2), (0.4, 2), (0.41, 3), (1.0, 5)])
def test_q_sees_its_share_of_the_plain_batch(share, shown):
    x, y = batch()
    task = _task(model=small_net("resnet"), one_hot_share=share)
    task.get_trainable_module().eval()
    result = task(x, y, _plan())
    with torch.no_grad():
        plain = task.get_trainable_module().two(x[:shown])
    torch.testing.assert_close(result["ce"], F.cross_entropy(plain, y[:shown]))
    assert result["output"].shape == (5, K)
    result["loss"].backward()
    assert all(p.grad is not None for p in task.get_trainable_module().parameters())


def test_the_mixed_head_can_be_the_published_one_and_plain_images_left_out():
    x, y = batch()
    task = _task(model=small_net("resnet"), one_hot_prob=0, main_head="mix")
    result = task(x, y, _plan())
    assert (float(result["ce"]), result["output"].shape) == (0, (5, K))
    result["loss"].backward()
    two = task.get_trainable_module().two
    assert float(two.second.weight.grad.abs().max()) == 0
    assert float(two.model.get_classifier().weight.grad.abs().max()) > 0
    assert all(p.grad is not None for p in task.get_trainable_module().parameters())


def test_the_second_head_takes_what_the_published_one_does_not():
    x, y = batch()
    task = _task(model=small_net("resnet"), main_head="mix")
    task.get_trainable_module().eval()
    two = task.get_trainable_module().two
    torch.testing.assert_close(task(x, y, _plan())["ce"], F.cross_entropy(two(x, second=True), y))


@pytest.mark.parametrize("name", ["resnetv2_18", "dla34"])
def test_a_classifier_that_is_a_pointwise_convolution_is_a_linear_one(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=K)
    assert isinstance(model.get_classifier(), nn.Conv2d)
    task = _task(model=model)
    result = task(*batch(size=2))
    assert result["output"].shape == (2, K)
    result["loss"].backward()
    assert all(float(p.grad.abs().max()) > 0 for p in task.get_trainable_module().two.second.parameters())


def test_a_loaded_state_continues_exactly_and_the_file_is_a_plain_model():
    one = _task(seed=5, total_steps=20)
    optimizer = torch.optim.SGD(one.get_trainable_module().parameters(), lr=0.1)
    for i in range(2):
        one(*batch(seed=i))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        one.update_ema()
    file = io.BytesIO()
    torch.save(one.get_checkpoint_state(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert set(saved["state_dict"]) == set(small_net("resnet").state_dict())
    two = _task(model=small_net("resnet", seed=9), seed=6, total_steps=20)
    two.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    for i in range(2):
        assert torch.equal(one(*batch(seed=i))["loss"], two(*batch(seed=i))["loss"])


def test_plain_weights_start_both_networks():
    weights = small_net("resnet", seed=9).state_dict()
    task = _task()
    task.load_checkpoint_state(weights)
    for model in (task.get_eval_model(), task.get_trainable_module().two.model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[name])


def test_a_stage_is_found_by_its_reduction():
    assert stage_of_reduction(small_net("resnet"), 16) == (3, 24)
    assert stage_of_reduction(small_net("convnext"), 16) == (2, 24)
    assert stage_of_reduction(small_net("swin"), 16) == (2, 48)
    assert stage_of_reduction(small_net("vit", depth=5), 16) == (2, 24)  # one resolution throughout: the middle
    with pytest.raises(ValueError, match="reduction must be one of 2, 4, 8, 16, 32 for ResNet, got 5"):
        stage_of_reduction(small_net("resnet"), 5)


FITTING = {  # reduction and side of the network's own images: the stage that is taken without a reduction
    "16 where there is one": ("resnet18", {}, 16),
    "of 32 pixels, 8 x 8 places": ("resnet18_cifar", {}, 4),
    "the largest that there is": ("wrn16_2", {}, 4),
    "a patch of 14": ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2}, 14),
    "a patch of 32": ("vit_small_patch32_224", {"img_size": 64, "depth": 2}, 32),
}


@pytest.mark.parametrize(("name", "settings", "wanted"), FITTING.values(), ids=FITTING)
def test_without_a_reduction_a_stage_fits_by_itself(name, settings, wanted):
    model = timm.create_model(name, num_classes=K, **settings)
    assert stage_of_reduction(model) == stage_of_reduction(model, wanted)


def test_the_plainest_call_trains_a_network_of_32_pixels():
    result = _task(model=timm.create_model("wrn16_2", depth=10, num_classes=K))(*batch(2, pixels=(32, 48)))
    assert result["loss"].isfinite()


@pytest.mark.parametrize("name", OWN)
def test_each_of_our_own_networks_has_a_stage(name):
    model = timm.create_model(name, device="meta")
    index, _ = stage_of_reduction(model)
    side = min(model.pretrained_cfg["input_size"][1:])
    assert side // model.feature_info[index]["reduction"] >= 4  # so many places are left for a mask


def test_a_reduction_that_is_named_stays_strict():
    with pytest.raises(ValueError, match="reduction must be one of 1, 2, 4 for WideResNet, got 16"):
        _task(model=timm.create_model("wrn16_2", num_classes=K), reduction=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "mixblock"}, "block must be one of automix, samix, got 'mixblock'"),
        ({"block_kwargs": {"k": 1}}, "block automix has no setting 'k'; it has lam_channel, mode"),
        ({"block_kwargs": {"mode": "area"}}, "upsampling must be nearest or bilinear, got 'area'"),
        ({"block": "samix", "block_kwargs": {"mode": "area"}}, "upsampling must be nearest or bilinear, got 'area'"),
        ({"alpha": 0}, "alpha must be > 0 and finite, got 0"),
        ({"mask_weight": -1}, "mask_weight must be >= 0 and finite, got -1"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\], got 1.5"),
        ({"block_every": 0}, "block_every must be an integer >= 1, got 0"),
        ({"one_hot_prob": 0}, r"one_hot_prob must be in \(0, 1\], got 0"),
        ({"main_head": "both"}, "main_head must be one or mix, got 'both'"),
        ({"one_hot_share": 1.5}, r"one_hot_share must be in \(0, 1\], got 1.5"),
        ({"switch_off": 2}, r"switch_off must be in \[0, 1\], got 2"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _task(**settings)


def test_models_that_do_not_fit_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, K))
    model.num_classes = K
    with pytest.raises(ValueError, match="masks need a timm model with forward_intermediates, got Sequential"):
        _task(model=model)
    convolution = small_net("convnext")
    convolution.head.fc = nn.Sequential(nn.Linear(32, K))
    with pytest.raises(ValueError, match="the second head copies a linear classifier, but ConvNeXt has Sequential"):
        _task(model=convolution)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=K, depth=1, embed_dim=12, num_heads=2)
    with pytest.raises(ValueError, match=r"but VisionTransformerDistilled has 2 of them \(Linear, Linear\); choose"):
        _task(model=distilled)
