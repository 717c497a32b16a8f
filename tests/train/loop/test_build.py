"""Parts of a run: what the optimizer decays, and how the learning rate goes."""

import math

import pytest
import timm
import torch
from support.settings import task_of

import timm_mix
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.build import build_optimizer, build_schedule
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.task import TaskSettings

SMALL = {"backbone": "wrn16_2", "depth": 10, "divide": False, "num_classes": 3, "device": "meta"}


def splitnet(split=2, **kwargs):
    return timm.create_model("splitnet", split=split, **{**SMALL, **kwargs})


def decays(config, model):
    """Name of every parameter -> its weight decay."""
    decay = {
        id(p): group["weight_decay"]
        for group in build_optimizer(config.optimise, model).param_groups
        for p in group["params"]
    }
    return {name: decay[id(p)] for name, p in model.named_parameters()}


def test_by_default_timms_rule_spares_what_has_one_dimension():
    model = splitnet()
    for name, decay in decays(Config.of(weight_decay=0.3), model).items():
        assert decay == (0.3 if model.get_parameter(name).ndim > 1 else 0.0), name


def test_by_name_batch_norms_named_bn_are_decayed_and_biases_are_not():
    """The published rule: no decay for names that hold "norm" or "bias"."""
    model = splitnet()
    found = decays(Config.of(weight_decay=0.3, no_decay=("norm", "bias")), model)
    for name, decay in found.items():
        assert decay == (0.0 if "norm" in name or "bias" in name else 0.3), name
    assert any(decay == 0.3 and model.get_parameter(name).ndim == 1 for name, decay in found.items())
    assert any(decay == 0.0 for decay in found.values())


def test_norms_that_are_named_norm_are_spared_by_name():
    found = decays(Config.of(weight_decay=0.3, no_decay=("norm",)), timm.create_model("densenet121", device="meta"))
    assert {decay for name, decay in found.items() if "norm" in name} == {0.0}
    assert {decay for name, decay in found.items() if "norm" not in name} == {0.3}


def test_no_words_spare_nothing():
    assert set(decays(Config.of(weight_decay=0.3, no_decay=()), splitnet()).values()) == {0.3}


def test_names_and_layer_decay_work_together():
    model = splitnet()
    config = Config.of(weight_decay=0.3, no_decay=("bias",), layer_decay=0.5)
    assert all(decay == (0.0 if "bias" in name else 0.3) for name, decay in decays(config, model).items())
    assert len({group["lr_scale"] for group in build_optimizer(config.optimise, model).param_groups}) > 2


@pytest.mark.parametrize("no_decay", [None, ("norm", "bias")])
@pytest.mark.parametrize(("split", "factor"), [(1, 1.0), (2, 0.6065), (4, 0.4724), (8, 0.4169)])
def test_weight_decay_of_the_parts_has_the_published_factor(split, factor, no_decay):
    config = Config.of(weight_decay=5e-4, divide_weight_decay=True, no_decay=no_decay)
    spared, decayed = sorted(set(decays(config, splitnet(split)).values()))
    assert spared == 0.0
    assert decayed == pytest.approx(5e-4 * factor, rel=1e-4)


@pytest.mark.parametrize("model", ["wrn16_2", "mixmo_wrn16_2_m2"])
def test_only_parts_have_a_divided_weight_decay(model):
    config = Config.of(model=model, divide_weight_decay=True)
    with pytest.raises(UsageError, match=rf"divide_weight_decay is for a splitnet_\* model, got {model}; drop it"):
        build_optimizer(config.optimise, timm.create_model(model, device="meta"))


def rates(config, updates):
    """The learning rate of every update, as the trainer steps the schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimise.lr)
    schedule, epochs = build_schedule(config.optimise, optimizer, updates)
    found = []
    for epoch in range(epochs):
        for update in range(updates):
            found.append(optimizer.param_groups[0]["lr"])
            schedule.step_update(epoch * updates + update + 1)
        schedule.step(epoch + 1)
    return found


@pytest.mark.parametrize("updates", [1, 7])
def test_after_the_warm_up_the_cosine_goes_from_the_whole_rate_to_the_floor(updates):
    config = Config.of(
        **{"lr": 0.1, "epochs": 300, "warmup_epochs": 20, "warmup_lr": 0.005, "min_lr": 1e-4},
        **{"sched_on_updates": True, "sched_after_warmup": True},
    )
    found = rates(config, updates)
    assert len(found) == 300 * updates
    warm = 20 * updates
    for i, rate in enumerate(found):
        if i < warm:
            wanted = 0.005 + 0.095 * i / warm
        else:
            wanted = 1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * (i - warm) / (280 * updates))) / 2
        assert rate == pytest.approx(wanted), i


def test_by_default_the_warm_up_covers_the_start_of_the_cosine():
    config = Config.of(lr=0.1, epochs=10, warmup_epochs=5, warmup_lr=0.0, sched_on_updates=True)
    assert rates(config, 1)[5] == pytest.approx(0.05)


def test_a_staircase_falls_every_fraction_of_an_epoch():
    """EfficientNet's: x .97 every .8 epoch."""
    config = Config.of(lr=1.0, epochs=4, sched="step", decay_rate=0.97, decay_epochs=0.8, sched_on_updates=True)
    assert rates(config, 10) == pytest.approx([0.97 ** (i // 8) for i in range(40)])


def mixer_task(**settings):
    config = Config.of(model="wrn16_2", mixer="resizemix", seed=5, epochs=3, **settings)
    model = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=3)
    return task_of(config, model, 3, steps_per_epoch=2)


BATCH = (torch.rand(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1]))


def test_a_mixer_mixes_every_batch_and_smooths_its_labels():
    task, seen = mixer_task(mix={"scope": [0.3, 0.4]}, smoothing=0.3), []
    task.trainable_module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    alike = timm_mix.create_mixer("resizemix", num_classes=3, seed=9, label_smoothing=0.3, scope=(0.3, 0.4))
    alike.rng.bit_generator.state = task.rng.bit_generator.state
    images, labels = alike(*BATCH)
    task.eval()
    result = task(*BATCH)
    assert torch.equal(seen[0], images)
    assert not torch.equal(images, BATCH[0])
    wanted = torch.nn.functional.cross_entropy(result["output"], labels)
    torch.testing.assert_close(result["loss"], wanted)


def test_a_resumed_mixer_draws_what_the_run_would_have_drawn():
    """The generator is in the task's state, and so in the checkpoint."""
    task, other, seen = mixer_task(), mixer_task(), []
    task(*BATCH)
    other.load_task_state(task.get_task_state())
    for one in (task, other):
        one.trainable_module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        one(*BATCH)
    assert torch.equal(seen[0], seen[1])


def test_a_mixer_ends_where_off_epoch_says():
    task, seen = mixer_task(mix={"off_epoch": 1}), []
    task.trainable_module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for _ in range(3):
        task(*BATCH)
    assert [torch.equal(images, BATCH[0]) for images in seen] == [False, False, True]


def test_a_setting_that_a_mixer_has_not_is_known_before_anything_is_built():
    with pytest.raises(UsageError, match=r"mixer resizemix has no setting 'scoop'; did you mean 'scope'\?"):
        TaskSettings(mixer="resizemix", mix={"scoop": 1})
    with pytest.raises(UsageError, match="task mixmo has no setting 'zzz'; it has alpha, block"):
        TaskSettings(name="mixmo", mix={"zzz": 1})


@pytest.mark.parametrize(
    ("mix", "line"),
    [
        ({"scope": [0.9, 0.1]}, "scope"),
        ({"off_epoch": -1}, "off_epoch must be an integer >= 0"),
    ],
)
def test_a_wrong_setting_of_a_mixer_is_one_line(mix, line):
    with pytest.raises(UsageError, match=f"cannot create task 'classification': .*{line}") as caught:
        mixer_task(mix=mix)
    assert "\n" not in str(caught.value)
