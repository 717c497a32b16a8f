"""Every task from off_epoch on: a batch costs what it costs unmixed, nothing is drawn, and a resumed run knows it."""

import copy

import pytest
import timm
import torch
from small_nets import K
from task_matrix import ROWS, Row, batch_of, make_task, optimizer_of, train

import timm_mix
from timm_mix.mixers import MIXERS
from timm_mix.tasks import TASKS, CoTrainingTask, MixingTask
from timm_mix.tasks.mixer import MixerTask

COLUMN, STEPS = "resnet18_cifar", 2  # batches of an epoch
NAMES = [*ROWS, *(f"mixer {name}" for name in MIXERS)]
CLOCK = {"steps_per_epoch": STEPS, "off_epoch": 1}


def task_of(name, criterion=None, **settings):
    """A task over a small network whose weights are always the same; without dropout, BatchNorm as in training."""
    if name in ROWS:
        return make_task(name, COLUMN, criterion=criterion, **settings)
    network = make_task("manifoldmixup", COLUMN).get_eval_model()
    mixer = timm_mix.create_mixer(name.removeprefix("mixer "), num_classes=K)
    return MixerTask(network, criterion, mixer=mixer, num_classes=K, total_steps=20, verbose=False, **settings)


def unmixed(task, name, x, y, criterion):
    """What the batch costs by the criterion alone: of one network, or the sum of its members, with their divergence."""
    model = task.get_trainable_module()
    if isinstance(task, CoTrainingTask):
        return task.losses(model(x, return_members=True), y, task.epoch)["loss"]
    if name == "mixmo":
        return sum(criterion(logits, y) for logits in model(x, return_members=True).unbind(1))
    return criterion(getattr(getattr(model, "two", model), "model", model)(x), y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "criterion",
    [torch.nn.CrossEntropyLoss(weight=torch.arange(1.0, K + 1), label_smoothing=0.1), torch.nn.BCEWithLogitsLoss()],
)
def test_the_loss_is_that_of_the_unmixed_batch(name, criterion):
    task, (x, y) = task_of(name, criterion, **CLOCK), batch_of(COLUMN, 1)
    if isinstance(criterion, torch.nn.BCEWithLogitsLoss):
        y = torch.nn.functional.one_hot(y, K).float()
    for _ in range(STEPS):
        mixed = task(x, y)["loss"]
    assert task.mixes is False
    drawn = task.get_task_state()["rng"]
    for step in range(2):
        wanted = unmixed(task, name, x, y, criterion)
        result = task(x, y)
        torch.testing.assert_close(result["loss"], wanted)
        assert not torch.allclose(mixed, wanted, rtol=1e-5)
        assert task.step == STEPS + step + 1
    assert task.get_task_state()["rng"] == drawn


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_that_are_evaluated_go_on_learning_and_all_have_a_gradient(name):
    task, (x, y) = task_of(name, **CLOCK), batch_of(COLUMN, 1)
    task.step, module = STEPS, task.get_trainable_module()
    optimizer, learned = optimizer_of(task), set()
    for _ in range(3):  # the last BatchNorm of a block begins at 0, and what is before it waits for that
        task(x, y)["loss"].backward()
        assert all(p.grad is not None for p in module.parameters())
        learned |= {p for p in module.parameters() if p.grad.abs().max() > 0}
        optimizer.step()
        optimizer.zero_grad()
    assert learned >= set(task._without_extras(module).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("before", [1, STEPS, 3])
def test_a_resumed_task_goes_on_to_the_bit_over_the_end_of_mixing(name, before):
    batches = [batch_of(COLUMN, seed) for seed in range(4)]
    one, two = task_of(name, **CLOCK), task_of(name, **CLOCK)
    own, other = optimizer_of(one), optimizer_of(two)
    train(one, own, batches[:before])
    state = {name: value.clone() for name, value in one.state_dict().items()}
    two.load_state_dict(state)
    other.load_state_dict(copy.deepcopy(own.state_dict()))
    for loss, again in zip(train(one, own, batches[before:]), train(two, other, batches[before:]), strict=True):
        assert torch.equal(loss, again)
    for left, right in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_nothing_of_the_history_is_kept():
    task, batch = task_of("recursivemix", **CLOCK), batch_of(COLUMN, 1)
    task(*batch)
    assert task.history is not None
    task.step = STEPS
    task(*batch)
    assert task.history is None
    assert task.get_task_state()["history"] is None


def test_the_copy_goes_on_following_and_counting():
    """AutoMix's k, which is evaluated: by momentum, and with the statistics of plain images."""
    task, batch = task_of("automix", **CLOCK), batch_of(COLUMN, 1)
    task.step = STEPS
    before = {name: value.clone() for name, value in task.get_eval_model().state_dict().items()}
    train(task, optimizer_of(task), [batch])
    after = task.get_eval_model().state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed >= {name for name in before if name.endswith("running_mean") or name.startswith("fc.")}


def test_the_head_that_is_published_is_the_one_that_learns():
    for head in ("one", "mix"):
        task, batch = task_of("automix", main_head=head, **CLOCK), batch_of(COLUMN, 1)
        task.step = STEPS
        task(*batch)["loss"].backward()
        own, second = task.get_trainable_module().get_classifier()
        assert own.weight.grad.abs().max() > 0 == second.weight.grad.abs().max()


def test_off_epoch_0_never_mixes():
    task, (x, y) = task_of("recursivemix", steps_per_epoch=2, off_epoch=0), batch_of(COLUMN, 1)
    for _ in range(2):
        result = task(x, y)
        torch.testing.assert_close(result["loss"], torch.nn.functional.cross_entropy(result["output"], y))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"off_epoch": -1}, r"^off_epoch must be an integer >= 0 \(or None\), got -1$"),
        ({"off_epoch": True}, r"^off_epoch must be an integer >= 0 \(or None\), got True$"),
        ({"off_epoch": 2}, "^off_epoch=2 needs steps_per_epoch, the number of batches in an epoch$"),
    ],
)
def test_a_wrong_off_epoch_is_an_error(name, settings, reason):
    with pytest.raises(ValueError, match=reason):
        task_of(name, **settings)


def test_there_must_be_something_to_end():
    row = Row("cotraining", {}, ROWS["cotraining"].model)
    model = timm.create_model(row.model[0], backbone="wrn16_2", depth=10, num_classes=K, **row.model[1])
    with pytest.raises(ValueError, match="off_epoch=1 ends the mixup of the views, which is 0: set mixup, or drop it"):
        CoTrainingTask(model, num_classes=K, **CLOCK)


def test_a_task_that_does_not_ask_whether_it_mixes_has_no_off_epoch():
    class Own(MixingTask):
        def forward(self, input, target):
            return {"loss": self.label_loss(self.trainable_module(input), target)}

    model = timm.create_model("test_resnet", num_classes=K)
    assert Own(model, num_classes=K).mixes is True
    with pytest.raises(ValueError, match=r"^Own has no off_epoch, its facts do not say ends_mixing; drop off_epoch=1$"):
        Own(model, num_classes=K, **CLOCK)


def test_every_task_of_this_package_has_one():
    assert all(task.facts.ends_mixing for task in TASKS.values())
