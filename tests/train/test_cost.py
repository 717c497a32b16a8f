"""Predicted cost: iterations as the sampler counts them, FLOPs as counted by hand."""

import math

import pytest
import timm
import torch
from support.settings import cost_of
from torch.utils.flop_counter import FlopCounterMode

import timm_mix
from timm_mix.train.cost import Cost, _count_flops, steps_per_epoch
from timm_mix.train.settings.config import Config
from timm_mix.views import EpochBatchSampler

SMALL = {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1}


def relative(model, repeats=1, num_classes=11, **model_kwargs):
    config = Config.of(model=model, model_kwargs=model_kwargs, batch_repeats=repeats, epochs=7)
    return cost_of(config, num_classes=num_classes, steps_per_epoch=13).relative_time


@pytest.mark.parametrize(("batch", "repeats"), [(12, 1), (12, 2), (12, 4), (5, 1)])
@pytest.mark.parametrize("processes", [1, 3])
def test_steps_are_those_of_the_sampler(batch, repeats, processes):
    sampler = EpochBatchSampler(97, batch, repeats=repeats, world_size=processes)
    config = Config.of(batch_size=batch, batch_repeats=repeats)
    assert steps_per_epoch(config.data, 97, processes) == len(sampler)


def test_iterations_are_all_epochs_with_the_cool_down():
    cost = cost_of(Config.of(model="wrn16_2", epochs=7), num_classes=3, steps_per_epoch=13, epochs=9)
    assert (cost.iterations, cost.network, cost.relative_time) == (117, "wrn16_2", 1.0)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_a_plain_network_costs_its_copies(repeats):
    assert relative("wrn16_2", repeats) == repeats


@pytest.mark.parametrize("members", [1, 2, 5])
def test_members_cost_their_encoders_and_heads(members):
    """FLOPs by hand: 2 per multiply-add; backward repeats them for the weights and, behind the encoders, the input."""
    encoder = 2 * (3 * 9) * 16 * 32 * 32 * 2  # forward, weights
    head = 2 * 64 * 11 * 3  # forward, weights, input
    blocks = sum(
        2 * 3 * (9 * (i * o * size**2 + o * o * (size // stride) ** 2) + shortcut * i * o * (size // stride) ** 2)
        for i, o, size, stride, shortcut in [(16, 16, 32, 1, 0), (16, 32, 32, 2, 1), (32, 64, 16, 2, 1)]
    )
    wanted = (members * (encoder + head) + blocks) / (encoder + head + blocks)
    assert relative("mixmo", members=members, **SMALL) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "own"), [("mixmo", {"tags": 0.1, "ensemble": "max"}), ("splitnet", {"divide": True, "only_part": None})]
)
def test_what_is_for_the_members_alone_is_not_asked_of_the_plain_network(model, own):
    small = {"backbone": "wrn16_2", "depth": 10}
    assert relative(model, **small, **own) == relative(model, **small)


def test_copies_and_members_multiply():
    one, four = relative("mixmo", members=2, **SMALL), relative("mixmo", 4, members=2, **SMALL)
    assert four == 4 * one > 4


@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenetv3_small_100", "test_vit"])
def test_a_network_costs_three_forward_passes_but_for_the_gradient_of_the_image(name):
    """In groups, too: there torch's own formula counts the gradient of the weight too high."""
    model, image = timm.create_model(name, device="meta"), torch.empty(1, 3, 64, 64, device="meta")
    image = image if name != "test_vit" else torch.empty(1, 3, 160, 160, device="meta")
    forward = {}
    for layer in (None, model.pretrained_cfg["first_conv"]):
        with FlopCounterMode(display=False) as counter:
            model(image) if layer is None else model.get_submodule(layer)(image)
        forward[layer is None] = counter.get_total_flops()
    assert _count_flops(model, image) == 3 * forward[True] - forward[False]


def test_parts_cost_what_they_cost_one_by_one():
    forward = {}
    for name, kwargs in (("whole", {}), ("part", timm_mix.divide("resnext50_32x4d", 2))):
        with FlopCounterMode(display=False) as counter:
            timm.create_model("resnext50_32x4d", device="meta", **kwargs)(torch.empty(1, 3, 224, 224, device="meta"))
        forward[name] = counter.get_total_flops()
    found = relative("splitnet", backbone="resnext50_32x4d", split=2, num_classes=1000)
    assert found == pytest.approx(2 * forward["part"] / forward["whole"], rel=0.02)


def test_whole_networks_side_by_side_cost_their_number():
    assert relative("splitnet", split=3, divide=False, **SMALL) == pytest.approx(3)


def test_the_size_of_the_images_is_the_recipes():
    sizes = [
        cost_of(
            Config.of(model="mixmo", model_kwargs={**SMALL, "members": 2}, img_size=size),
            num_classes=11,
            steps_per_epoch=1,
        ).relative_time
        for size in (32, 16)
    ]
    assert sizes[0] != sizes[1]  # the heads weigh more in smaller images


def test_counting_builds_no_weights_and_draws_no_chance(monkeypatch):
    devices = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **kw: (devices.append(kw.get("device")), create(*a, **kw))[1])
    state = torch.get_rng_state()
    relative("mixmo_wrn16_2_m2")
    assert set(devices) == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_cannot_be_counted_is_said_so():
    cost = cost_of(Config.of(model="no_such_network", epochs=2), num_classes=3, steps_per_epoch=5)
    assert math.isnan(cost.relative_time)
    assert str(cost) == "10 iterations (5 per epoch), relative time unknown"


def test_the_line_names_iterations_time_and_network():
    assert str(Cost(3125, 300, "wrn28_10", 4.00024)) == (
        "937,500 iterations (3,125 per epoch), 4.00 x the time of plain wrn28_10"
    )


def test_automix_costs_its_passes():
    """q twice (6 units), k's forward and input gradient (2), and k's features up to the masks' stage, of 3 units."""
    exact, block = automix(reduction=2), block_by_hand() / plain_flops()
    assert 8 / 3 < exact < 3
    cheaper = automix(reduction=2, block_every=4, one_hot_prob=0.25)
    assert exact - cheaper == pytest.approx(0.75 + 2 / 3 * 3 / 4 + 3 * 3 / 4 * block, abs=1e-6)
    assert exact - automix(reduction=2, one_hot_share=0.5) == pytest.approx(0.5, abs=1e-6)
    assert exact - automix(reduction=2, switch_off=0.8) == pytest.approx(2 / 3 * 0.8, abs=1e-6)


def test_the_mix_block_runs_forward_twice_and_backward_once():
    """Its own share is what is left of two blocks that differ in one channel."""
    with_lam, without = automix(reduction=2), automix(reduction=2, block_kwargs={"lam_channel": False})
    difference = block_by_hand() - block_by_hand(lam_channel=0)
    assert with_lam - without == pytest.approx(4 * difference / plain_flops(), rel=1e-6)


def automix(**mix):
    config = Config.of(model="wrn16_2", task="automix", mix=mix)
    return cost_of(config, num_classes=10, steps_per_epoch=10).relative_time


def block_by_hand(lam_channel=1, channels=64, places=16 * 16):
    """Query of both images, value of one, attention and its sum, 2 FLOPs per multiply-add."""
    width = channels + lam_channel
    return 2 * places * (2 * width * (channels // 2) + width + places * (channels // 2) + places)


def plain_flops():
    return _count_flops(
        timm.create_model("wrn16_2", num_classes=10, device="meta"), torch.empty(1, 3, 32, 32, device="meta")
    )


@pytest.mark.parametrize("task", ["recursivemix", "manifoldmixup"])
def test_mixing_inputs_or_features_costs_nothing(task):
    config = Config.of(model="wrn16_2", task=task)
    assert cost_of(config, num_classes=10, steps_per_epoch=10).relative_time == 1.0


def test_counting_a_mix_block_draws_no_chance():
    state = torch.get_rng_state()
    assert automix(reduction=2, block="samix") > automix(reduction=2)
    assert torch.equal(torch.get_rng_state(), state)
