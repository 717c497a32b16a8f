"""Co-training: its divergence, its shared mixup, its labels, separate training, state."""

import copy
import io
import math

import numpy as np
import pytest
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional as F

import timm_mix
from timm_mix.functional.plan import MixPlan
from timm_mix.functional.splitnet import jensen_shannon, pairwise_kl
from timm_mix.tasks import cotraining

B, S, C, H, W, K = 5, 2, 3, 16, 16, 13
PARTNER = np.array([2, 0, 4, 3, 1])
PLAN = MixPlan(PARTNER, np.full(B, 0.3))


class Parts(nn.Module):
    """S parts that are linear in their view, so that the twins below can be written by hand."""

    num_members, num_classes, ensemble = S, K, "logits"

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(S, K, C * H * W, generator=generator) / 30)
        self.seen = None

    def forward(self, x, return_members=False):
        self.seen = x
        views = x if x.ndim == 5 else x[:, None].expand(-1, S, -1, -1, -1)
        members = torch.einsum("bsd,skd->bsk", views.flatten(2), self.weight)
        return members if return_members else members.mean(1)


def _task(model=None, criterion=None, **kwargs):
    return timm_mix.create_task("cotraining", model or Parts(), criterion, num_classes=K, verbose=False, **kwargs)


def _batch(batch=B, views=True, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, S, C, H, W) if views else (batch, C, H, W)
    return torch.randn(shape, generator=generator), torch.randint(K, (batch,), generator=generator)


@pytest.mark.parametrize(("name", "function"), [("js", jensen_shannon), ("kl", pairwise_kl)])
def test_the_loss_is_the_sum_of_the_parts_losses_and_the_weighted_divergence(name, function):
    model, (x, y) = Parts(), _batch()
    result = _task(model, weight=0.7, divergence=name)(x, y)
    logits = model(x, return_members=True)
    ce = sum(F.cross_entropy(logits[:, i], y) for i in range(S))
    torch.testing.assert_close(result["loss"], ce + 0.7 * function(logits))
    torch.testing.assert_close(result["ce"], ce.detach())
    torch.testing.assert_close(result["cot"], function(logits).detach())
    torch.testing.assert_close(result["output"], logits.mean(1))


def test_the_divergences_differ():
    x, y = _batch()
    assert _task(divergence="js")(x, y)["cot"] != _task(divergence="kl")(x, y)["cot"]


def test_weight_zero_trains_each_part_as_if_alone(monkeypatch):
    monkeypatch.setattr(cotraining, "DIVERGENCES", {"js": lambda logits: pytest.fail("a divergence was computed")})
    model, (x, y) = Parts(), _batch()
    result = _task(model, weight=0.0)(x, y)
    result["loss"].backward()
    assert set(result) == {"loss", "output", "ce"}
    for i in range(S):
        alone = Parts()
        F.cross_entropy(alone(x, return_members=True)[:, i], y).backward()
        torch.testing.assert_close(model.weight.grad[i], alone.weight.grad[i])


@pytest.mark.parametrize("views", [True, False])
def test_every_part_mixes_its_own_view_with_the_same_partner_and_ratio(views):
    model, (x, y) = Parts(), _batch(views=views)
    _task(model, mixup=0.2)(x, y, plan=PLAN)
    assert model.seen.shape == x.shape
    for b in range(B):
        torch.testing.assert_close(model.seen[b], 0.3 * x[b] + 0.7 * x[PARTNER[b]])


@pytest.mark.parametrize(
    "criterion",
    [None, nn.CrossEntropyLoss(label_smoothing=0.1), LabelSmoothingCrossEntropy(0.1)],
    ids=["plain", "torch", "timm"],
)
def test_a_mixed_label_costs_what_its_soft_label_costs(criterion):
    x, y = _batch()
    task = _task(criterion=criterion, mixup=0.2, weight=0.0)
    logits = task.get_trainable_module()(torch.lerp(x[PARTNER], x, 0.3), return_members=True)
    smoothing = 0.0 if criterion is None else 0.1
    soft = 0.3 * F.one_hot(y, K) + 0.7 * F.one_hot(y[PARTNER], K)
    soft = (1 - smoothing) * soft + smoothing / K
    expected = -(soft[:, None] * logits.log_softmax(-1)).sum(-1).mean(0).sum()
    torch.testing.assert_close(task(x, y, plan=PLAN)["loss"], expected)


@pytest.mark.parametrize(
    "criterion", [None, nn.CrossEntropyLoss(label_smoothing=0.1), BinaryCrossEntropy(0.0), SoftTargetCrossEntropy()]
)
@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_one_hot_targets_count_as_class_indices(criterion, mixup):
    x, y = _batch()
    plan = PLAN if mixup else None
    losses = [_task(criterion=criterion, mixup=mixup)(x, target, plan=plan)["loss"] for target in (y, F.one_hot(y, K))]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("ensemble", ["logits", "softmax"])
def test_under_a_bce_the_parts_learn_from_their_own_logits_and_the_output_is_their_ensemble(ensemble):
    """A softmax ensemble's output is a logarithm of probabilities; its sigmoid must not enter the loss."""
    model, (x, y) = Parts(), _batch()
    model.ensemble = ensemble
    result = _task(model, criterion=BinaryCrossEntropy(0.1), weight=0.0)(x, y)
    logits = model(x, return_members=True).detach()
    labels = 0.9 * F.one_hot(y, K) + 0.1 / K
    wanted = sum(F.binary_cross_entropy_with_logits(logits[:, i], labels) for i in range(S))
    torch.testing.assert_close(result["loss"].detach(), wanted)
    torch.testing.assert_close(result["ce"], wanted)
    probabilities = logits.softmax(-1).mean(1) if ensemble == "softmax" else logits.mean(1).softmax(-1)
    torch.testing.assert_close(result["output"].detach().softmax(-1), probabilities)
    if ensemble == "softmax":
        torch.testing.assert_close(result["output"].detach().exp(), probabilities)
    else:
        torch.testing.assert_close(result["output"].detach(), logits.mean(1))


def test_lam_one_is_no_mixup():
    x, y = _batch()
    torch.testing.assert_close(_task(mixup=0.2)(x, y, plan=MixPlan(PARTNER, np.ones(B)))["loss"], _task()(x, y)["loss"])


def test_without_mixup_nothing_is_drawn():
    task = _task()
    before = copy.deepcopy(task.rng.bit_generator.state)
    task(*_batch())
    assert task.rng.bit_generator.state == before
    assert task.get_trainable_module().seen is not None


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("views", [True, False])
def test_mixup_takes_any_batch_size(batch, views):
    assert torch.isfinite(_task(mixup=0.2)(*_batch(batch, views))["loss"])


def test_mixup_does_not_write_into_the_callers_batch():
    x, y = _batch()
    before = x.clone(), y.clone()
    _task(mixup=0.2)(x, y)["loss"].backward()
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_draws_depend_on_seed_and_rank_alone():
    x, _ = _batch()
    lams = [_task(mixup=0.2, seed=seed, rank=rank).draw(x).lam[0] for seed, rank in [(0, 0), (0, 0), (1, 0), (0, 1)]]
    assert lams[0] == lams[1]
    assert len(set(lams)) == 3


def test_a_loaded_state_mixes_on_exactly():
    x, y = _batch()
    settings = {"mixup": 0.2, "warmup_epochs": 4, "steps_per_epoch": 2}
    one = _task(seed=5, **settings)
    for _ in range(3):
        one(x, y)
    file = io.BytesIO()
    torch.save(one.get_task_state(), file)
    file.seek(0)
    two = _task(seed=6, **settings)
    two.load_task_state(torch.load(file, weights_only=True))
    for _ in range(3):
        assert torch.equal(one(x, y)["loss"], two(x, y)["loss"])


def test_the_weight_grows_from_epoch_to_epoch_and_not_within_one():
    task = _task(weight=0.5, warmup_epochs=4, steps_per_epoch=3)
    x, y = _batch()
    weights = []
    for _ in range(15):
        result = task(x, y)
        weights.append(float((result["loss"].detach() - result["ce"]) / result["cot"]))
    assert weights == pytest.approx([0.005] * 3 + [0.125] * 3 + [0.25] * 3 + [0.375] * 3 + [0.5] * 3, rel=1e-3)


@pytest.mark.parametrize("divergence", ["js", "kl"])
def test_a_real_splitnet_trains_with_mixup_and_views(divergence):
    model = timm.create_model("splitnet", backbone="wrn16_2", depth=10, split=S, num_classes=K)
    task = _task(model, nn.CrossEntropyLoss(label_smoothing=0.1), mixup=0.2, divergence=divergence)
    with torch.autocast("cpu", torch.bfloat16):
        task(*_batch())["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "JS"}, "divergence must be one of js, kl, got 'JS'"),
        ({"mixup": -0.1}, "mixup must be >= 0 and finite, got -0.1"),
        ({"mixup": math.nan}, "mixup must be >= 0 and finite, got nan"),
        ({"mixup": True}, "mixup must be >= 0 and finite, got True"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _task(**settings)


# -- a teacher


class Teacher(nn.Module):
    num_classes = K

    def __init__(self):
        super().__init__()
        self.seen = None
        self.weight = nn.Parameter(torch.randn(K, C * H * W, generator=torch.Generator().manual_seed(9)) / 30)

    def forward(self, x):
        self.seen = x
        return x.flatten(1) @ self.weight.T


class FedParts(Parts):
    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.mark.parametrize("views", [True, False])
def test_every_part_learns_the_teachers_probabilities_for_its_own_view(views):
    model, teacher, (x, y) = FedParts(), Teacher(), _batch(views=views)
    teacher.pretrained_cfg = model.pretrained_cfg
    task = _task(model, weight=0.0, teacher=teacher, teacher_weight=0.7, temperature=2.0)
    result = task(x, y)
    logits, taught = model(x, return_members=True), 0.0
    for b in range(B):
        for i in range(S):
            wanted = F.softmax(teacher((x[b, i] if views else x[b])[None])[0] / 2, -1)
            given = F.log_softmax(logits[b, i] / 2, -1)
            taught += (wanted * (wanted.log() - given)).sum() * 4 / B
    torch.testing.assert_close(result["teacher"], taught.detach())
    ce = sum(F.cross_entropy(logits[:, i], y) for i in range(S))
    torch.testing.assert_close(result["loss"], ce + 0.7 * taught)


def test_the_teachers_loss_is_that_of_timm():
    """A part alone, against timm's LogitDistillationTask."""
    model, teacher, (x, y) = FedParts(), Teacher(), _batch(views=False)
    teacher.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}  # fed otherwise than the parts

    class Part(nn.Module):
        num_classes, in_chans, pretrained_cfg = K, C, model.pretrained_cfg

        def forward(self, x):
            return model(x, return_members=True)[:, 0]

    ours = _task(model, weight=0.0, teacher=teacher, temperature=3.0)(x, y)["teacher"]
    kwargs = {"criterion": nn.CrossEntropyLoss(), "distill_loss_weight": 1.0, "temperature": 3.0, "verbose": False}
    theirs = LogitDistillationTask(Part(), teacher, **kwargs)(x, y)["kd_loss"]
    second = model.weight.detach()[1].clone()
    with torch.no_grad():
        model.weight[0] = second
    theirs = theirs + LogitDistillationTask(Part(), teacher, **kwargs)(x, y)["kd_loss"]
    torch.testing.assert_close(ours, theirs.detach())


def test_the_teacher_stays_out_of_the_state_and_as_it_is():
    model, teacher = FedParts(), Teacher()
    teacher.pretrained_cfg = model.pretrained_cfg
    before = teacher.weight.clone()
    task = _task(model, teacher=teacher)
    task(*_batch())["loss"].backward()
    assert teacher.weight.grad is None
    assert teacher.training
    assert teacher.weight.requires_grad
    assert torch.equal(teacher.weight, before)
    assert task.state_dict().keys() == _task(FedParts()).state_dict().keys()
    assert {id(p) for p in task.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"teacher": nn.Linear(3, 5)},
            r"the teacher must predict the 13 classes that the parts learn, .* None: fine-tune",
        ),
        ({"teacher_weight": -1.0}, "teacher_weight must be >= 0 and finite, got -1.0"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _task(**settings)


@pytest.mark.parametrize("grey", [False, True])
def test_the_teacher_is_fed_by_how_the_images_were_normalised(grey):
    """Not by what the parts' cfg says, where the run has another normalisation; grey images have one number."""
    model, teacher, (x, y) = FedParts(), Teacher(), _batch(views=False)
    teacher.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    mean, std = ([0.0] * 3, [1.0] * 3) if not grey else ([0.5], [0.25])
    if grey:
        teacher.pretrained_cfg = {"mean": (0.2,), "std": (0.5,)}
    task = _task(model, weight=0.0, teacher=teacher, mean=mean, std=std)
    logits = model(x, return_members=True)
    own, wanted_std = (torch.tensor(teacher.pretrained_cfg[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = x * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    wanted = F.softmax(teacher((pixels - own) / wanted_std), -1)
    taught = sum((wanted * (wanted.log() - F.log_softmax(logits[:, i], -1))).sum(1).mean() for i in range(S))
    torch.testing.assert_close(task(x, y)["teacher"], taught.detach())
