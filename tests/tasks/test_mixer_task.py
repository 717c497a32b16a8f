"""The task that a mixer sits in, and what the tasks in timm's seat share with it."""

import pytest
import torch
from small_nets import K, batch, small_net
from torch.nn import functional as F

import timm_mix
from timm_mix.tasks.mixer import MixerTask


def _task(criterion=None, mixer="cutmix", mixer_settings=None, **settings):
    mixer = timm_mix.create_mixer(mixer, num_classes=K, **(mixer_settings or {}))
    model = small_net("resnet").eval()
    return MixerTask(model, criterion, mixer=mixer, num_classes=K, verbose=False, **settings)


def test_the_loss_is_that_of_the_mixed_batch():
    (x, y), task = batch(), _task(seed=3)
    twin = timm_mix.create_mixer("cutmix", num_classes=K)
    twin.rng.bit_generator.state = task.rng.bit_generator.state
    mixed, labels = twin(x, y)
    result = task(x, y)
    logits = task.get_eval_model()(mixed)
    torch.testing.assert_close(result["output"], logits)
    torch.testing.assert_close(result["loss"], -(labels * logits.log_softmax(1)).sum(1).mean())
    assert not torch.equal(mixed, x)


@pytest.mark.parametrize("mixer", ["mixup", "switch"])
def test_draws_are_those_of_seed_and_rank_and_go_on_from_the_state(mixer):
    (x, y), task = batch(), _task(mixer=mixer, seed=3)
    same, other, later = (_task(mixer=mixer, seed=3, rank=rank) for rank in (0, 1, 0))
    first = task(x, y)["loss"]
    assert torch.equal(same(x, y)["loss"], first)
    assert not torch.equal(other(x, y)["loss"], first)
    later.load_task_state(task.get_task_state())
    assert later.step == 1
    assert torch.equal(later(x, y)["loss"], task(x, y)["loss"])


def test_the_state_dict_alone_goes_on():
    one, two = _task(mixer="switch", seed=1), _task(mixer="switch", seed=2)
    one(*batch())
    state = one.state_dict()
    two.load_state_dict(state)
    assert two.step == 1
    assert torch.equal(one(*batch())["loss"], two(*batch())["loss"])


def test_the_state_of_another_rank_leaves_a_generator_of_its_own():
    (x, y), task = batch(), _task()
    task(x, y)
    other = _task(rank=1)
    other.load_task_state(task.get_task_state())
    assert other.step == 1
    assert other.mixer.rng.bit_generator.state != task.mixer.rng.bit_generator.state


def test_mixing_ends_with_off_epoch():
    (x, y), task = batch(), _task(off_epoch=1, steps_per_epoch=2)
    plain = F.cross_entropy(task.get_eval_model()(x), y)
    losses = [task(x, y)["loss"] for _ in range(4)]
    assert not any(torch.allclose(loss, plain) for loss in losses[:2])
    torch.testing.assert_close(losses[2:], [plain, plain])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"off_epoch": -1}, "off_epoch must be an integer >= 0 .or None., got -1"),
        ({"off_epoch": 1.5}, "off_epoch must be an integer >= 0 .or None., got 1.5"),
        ({"off_epoch": 1}, "off_epoch=1 needs steps_per_epoch"),
    ],
)
def test_a_wrong_off_epoch_is_an_error(settings, reason):
    with pytest.raises(ValueError, match=reason):
        _task(**settings)


def test_a_batch_that_is_none_of_images_is_an_error():
    x, y = batch()
    with pytest.raises(ValueError, match=r"input must be a batch of images \[B, C, H, W\], got \[5, 64, 64\]"):
        _task()(x[:, 0], y)


def test_the_clock_takes_what_becomes_known_later():
    task = _task()
    task.set_clock(steps_per_epoch=3)
    task.set_clock(total_steps=12)
    assert (task.steps_per_epoch, task.total_steps) == (3, 12)
    task.step = 6
    assert (task.epoch, task.progress) == (2, 0.75)


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ({"total_steps": 0}, r"total_steps must be an integer >= 1 \(or None\), got 0"),
        ({"steps_per_epoch": 2.0}, r"steps_per_epoch must be an integer >= 1 \(or None\), got 2.0"),
        ({"total_steps": 2}, "an epoch of 3 steps is longer than the training, total_steps=2"),
    ],
)
def test_a_wrong_clock_is_an_error_and_changes_nothing(lengths, reason):
    task = _task(steps_per_epoch=3)
    with pytest.raises(ValueError, match=reason):
        task.set_clock(**lengths)
    assert (task.steps_per_epoch, task.total_steps) == (3, None)
