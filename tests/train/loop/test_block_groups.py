"""The Mix Block's own parameter groups: what moves, what stays, and how both learning rates go."""

import math

import pytest
import timm

import timm_mix
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.build import build_optimizer, build_schedule
from timm_mix.train.settings.config import Config

OWN = {"block_lr": 0.3, "block_min_lr": 0.03, "block_momentum": 0.7}


def net():
    model = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=3)
    return timm_mix.create_task("automix", model, num_classes=3, reduction=4, verbose=False).get_trainable_module()


def config(**settings):
    return Config.of(**{"task": "automix", "lr": 0.1, "weight_decay": 0.2, "opt": "momentum", **OWN, **settings})


def of_name(optimizer, module, key):
    found = {id(p): group.get(key) for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in module.named_parameters()}


@pytest.mark.parametrize("no_decay", [None, ()])
def test_the_block_has_its_own_rate_and_momentum_and_keeps_its_decay(no_decay):
    module = net()
    plain = build_optimizer(
        config(block_lr=None, block_min_lr=None, block_momentum=None, no_decay=no_decay).optimise, module
    )
    own = build_optimizer(config(no_decay=no_decay).optimise, module)
    for name, rate in of_name(own, module, "lr").items():
        assert rate == (0.3 if name.startswith("block.") else 0.1), name
    for name, momentum in of_name(own, module, "momentum").items():
        assert momentum == (0.7 if name.startswith("block.") else 0.9), name
    assert of_name(own, module, "weight_decay") == of_name(plain, module, "weight_decay")


def test_every_parameter_is_in_one_group():
    module = net()
    ids = [id(p) for group in build_optimizer(config().optimise, module).param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())
    assert all(group["params"] for group in build_optimizer(config().optimise, module).param_groups)


def test_a_floor_alone_leaves_rate_and_momentum():
    module = net()
    optimizer = build_optimizer(config(block_lr=None, block_momentum=None).optimise, module)
    assert set(of_name(optimizer, module, "lr").values()) == {0.1}
    assert set(of_name(optimizer, module, "momentum").values()) == {0.9}


def test_the_scale_by_depth_is_the_networks_alone():
    module = net()
    scales = of_name(build_optimizer(config(layer_decay=0.5).optimise, module), module, "lr_scale")
    assert {scale for name, scale in scales.items() if name.startswith("block.")} == {None}
    assert all(scale is not None for name, scale in scales.items() if not name.startswith("block."))


def test_adam_has_no_momentum_for_the_block():
    with pytest.raises(UsageError, match="block_momentum needs an optimizer with momentum, got opt adamw; drop it"):
        build_optimizer(config(opt="adamw").optimise, net())


def rates(schedule, optimizer, module, updates, begin=0):
    """(network's, block's) learning rate of every update, as the trainer steps the schedule."""
    found = []
    for update in range(begin, updates):
        schedule.step_update(num_updates=update)
        rate = of_name(optimizer, module, "lr")
        found.append((rate["two.second.weight"], rate["block.query.weight"]))
    return found


def test_each_has_its_own_cosine():
    module, settings = net(), config(epochs=10, sched_on_updates=True, min_lr=0.01)
    optimizer = build_optimizer(settings.optimise, module)
    schedule, epochs = build_schedule(settings.optimise, optimizer, updates_per_epoch=7)
    assert epochs == 10
    for update, (network, block) in enumerate(rates(schedule, optimizer, module, 70)):
        share = (1 + math.cos(math.pi * update / 70)) / 2
        assert network == pytest.approx(0.01 + 0.09 * share)
        assert block == pytest.approx(0.03 + 0.27 * share)


def test_the_schedules_go_by_epochs_too():
    module, settings = net(), config(epochs=4)
    optimizer = build_optimizer(settings.optimise, module)
    schedule, _ = build_schedule(settings.optimise, optimizer, updates_per_epoch=7)
    schedule.step_update(num_updates=3)
    assert of_name(optimizer, module, "lr")["block.query.weight"] == 0.3
    schedule.step(2, 0.0)
    rate = of_name(optimizer, module, "lr")
    assert rate["two.second.weight"] == pytest.approx(0.05)
    assert rate["block.query.weight"] == pytest.approx(0.03 + 0.27 / 2)


def test_a_resumed_run_goes_on_in_the_same_groups():
    """Loading a state replaces the optimizer's groups; the schedules must find the new ones."""
    settings = config(epochs=3, sched_on_updates=True)
    modules, found = (net(), net()), []
    for module in modules:
        optimizer = build_optimizer(settings.optimise, module)
        schedule, _ = build_schedule(settings.optimise, optimizer, updates_per_epoch=5)
        found.append((schedule, optimizer))
    (schedule, optimizer), (fresh, resumed) = found
    whole = rates(schedule, optimizer, modules[0], 6) + rates(schedule, optimizer, modules[0], 15, begin=6)
    rates(schedule, optimizer, modules[0], 6)
    resumed.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(schedule.state_dict())
    assert rates(fresh, resumed, modules[1], 15, begin=6) == whole[6:]


def test_without_settings_there_is_one_schedule_of_timms():
    module, settings = net(), Config.of(task="automix")
    optimizer = build_optimizer(settings.optimise, module)
    schedule, _ = build_schedule(settings.optimise, optimizer, updates_per_epoch=5)
    assert schedule.optimizer is optimizer
    assert not any("mix_block" in group for group in optimizer.param_groups)
