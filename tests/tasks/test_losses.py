"""One law for losses: every task and mixer, every criterion of torch's and timm's, every kind of target."""

import dataclasses
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from small_nets import K, small_net
from timm.loss import (
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyBinaryCrossEntropy,
    PolyCrossEntropy,
    SoftTargetCrossEntropy,
    TwoWayLoss,
    ZlprLoss,
)
from torch import nn

import timm_mix
from timm_mix.mixers import MIXERS
from timm_mix.tasks.losses import LabelLoss
from timm_mix.tasks.mixer import MixerTask

B = 6
WEIGHT = torch.linspace(0.5, 4.0, K)
TARGETS = ("indices", "soft", "multi")
CRITERIA = {
    "ce": nn.CrossEntropyLoss(),
    "ce weight": nn.CrossEntropyLoss(WEIGHT),
    "ce smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "ce weight smoothing ignore": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, ignore_index=2),
    "ce sum": nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
    "nll": nn.NLLLoss(WEIGHT, ignore_index=2),
    "margin": nn.MultiMarginLoss(weight=WEIGHT),
    "smoothing": LabelSmoothingCrossEntropy(0.1),
    "soft target": SoftTargetCrossEntropy(),
    "asymmetric": AsymmetricLossSingleLabel(),
    "poly": PolyCrossEntropy(smoothing=0.1),
    "bce": BinaryCrossEntropy(0.1),
    "bce sum": BinaryCrossEntropy(0.1, sum_classes=True, weight=WEIGHT),
    "bce threshold": BinaryCrossEntropy(0.0, target_threshold=0.2),
    "bce dense": BinaryCrossEntropy(0.1, smooth_dense=True, pos_weight=WEIGHT),
    "logits": nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
    "soft margin": nn.MultiLabelSoftMarginLoss(WEIGHT),
    "asymmetric multi": AsymmetricLossMultiLabel(),
    "asymmetric multi sum": AsymmetricLossMultiLabel(reduction="sum"),
    "poly binary": PolyBinaryCrossEntropy(smoothing=0.1),
    "zlpr": ZlprLoss(),
    "balanced": DistributionBalancedLoss(torch.arange(1, K + 1), 40),
    "two way": TwoWayLoss(),
    "mse": nn.MSELoss(),
    "function": lambda z, y: F.cross_entropy(z, y),
}
OFTEN = ("ce weight smoothing ignore", "bce dense", "margin")  # one of each way into a criterion; the others are slow


def target_of(kind):
    generator = torch.Generator().manual_seed(3)
    if kind == "indices":
        return torch.tensor([2, 0, 5, 2, 11, K - 1])  # 2 is what some ignore
    if kind == "soft":
        return torch.rand(B, K, generator=generator).softmax(1)
    return torch.randint(2, (B, K), generator=generator).float()


def plain_cost(criterion, z, target):
    """criterion(z, target), with one-hot labels or class by class where that is no target of the criterion's."""
    kind = type(criterion)
    if not target.is_floating_point():
        try:
            return criterion(z, target)
        except (RuntimeError, ValueError, UserWarning):  # the last where torch broadcasts
            return criterion(z, F.one_hot(target, K).float())
    if kind is nn.CrossEntropyLoss and criterion.ignore_index >= 0:  # which torch does not take with soft labels
        criterion = nn.CrossEntropyLoss(criterion.weight, label_smoothing=criterion.label_smoothing)
    if kind is LabelSmoothingCrossEntropy:
        return nn.CrossEntropyLoss(label_smoothing=criterion.smoothing)(z, target)
    if kind in (AsymmetricLossSingleLabel, nn.MultiMarginLoss, nn.NLLLoss):
        weight = criterion.weight if kind is nn.NLLLoss else torch.ones(K)
        by_class = [[criterion(z[i : i + 1], torch.tensor([k])) for k in range(K)] for i in range(len(z))]
        table = torch.tensor([[float(x) for x in row] for row in by_class])
        if kind is nn.NLLLoss:  # the mean of one sample divides by its weight, and is NaN for an ignored label
            table = -(z * weight).detach()
        return (target * table).sum(1).mean()
    return criterion(z, target)


def unmixed(plan):
    """The plan, with every image its own partner."""
    return dataclasses.replace(plan, partner=np.arange(B), lam=np.ones(B), boxes=None)


def cost_of(name, criterion, images, target):
    """What a task says that an unmixed batch costs, and the logits that it saw, of every member [N][B, K]."""
    shared = {"num_classes": K, "verbose": False}
    if name == "cotraining":
        model = timm.create_model("splitnet_wrn16_2_s2", depth=10, num_classes=K).eval()
        task = timm_mix.create_task(name, model, criterion, mixup=0.2, weight=0.0, **shared)
        return task(images, target, unmixed(task.draw(images)))["loss"], model(images, return_members=True).unbind(1)
    if name == "mixmo":
        model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=K).eval()
        task = timm_mix.create_task(name, model, criterion, mimo=True, repetition=1.0, msda="mixup", **shared)
        msda = task.draw_msda(images)
        msda = dataclasses.replace(msda, lam=np.ones_like(msda.lam))
        plan = task.draw(images)
        plan = dataclasses.replace(plan, images=np.stack([np.arange(B)] * 2, 1))
        return task(images, target, plan, msda)["loss"], model(images, return_members=True).unbind(1)
    model = small_net("resnet").eval()
    if name == "manifoldmixup":
        task = timm_mix.create_task(name, model, criterion, **shared)
        return task(images, target, (2, unmixed(task.draw(images)[1])))["loss"], [model(images)]
    if name == "automix":
        task = timm_mix.create_task(name, model, criterion, main_head="mix", one_hot_prob=0.0, **shared)
        plan = dataclasses.replace(task.draw(images), partners_bb=np.arange(B))
        return task(images, target, plan)["mixed"], [model(images)]
    if name == "recursivemix":
        return timm_mix.create_task(name, model, criterion, **shared)(images, target)["loss"], [model(images)]
    mixer = timm_mix.create_mixer(name, num_classes=K, prob=0.0)
    return MixerTask(model, criterion, mixer=mixer, **shared)(images, target)["loss"], [model(images)]


@pytest.mark.parametrize(
    "criterion",
    [pytest.param(c, id=name, marks=[] if name in OFTEN else pytest.mark.slow) for name, c in CRITERIA.items()],
)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ["mixmo", "cotraining", "recursivemix", "automix", "manifoldmixup", *sorted(MIXERS)])
def test_an_unmixed_batch_costs_what_the_criterion_says(name, kind, criterion):
    if name == "mixmo" and type(criterion) is TwoWayLoss:
        with pytest.raises(ValueError, match="TwoWayLoss is neither the mean nor the sum of its samples' losses"):
            cost_of(name, criterion, torch.randn(B, 3, 16, 16), target_of(kind))
        return
    images, target = torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(0)), target_of(kind)
    with torch.no_grad():
        cost, outputs = cost_of(name, criterion, images, target)
        expected = sum(plain_cost(criterion, output, target) for output in outputs)
    torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ignored", [2, -100, 255])
def test_a_mixed_batch_divides_by_the_weights_of_its_labels(ignored):
    criterion = nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, ignore_index=ignored)
    z, target = torch.randn(B, K), target_of("indices")
    target = torch.where(target == 2, ignored, target)
    lam = torch.linspace(0.1, 0.9, B)
    loss = LabelLoss(criterion, K)
    rows = loss.labels(target).rows
    mixed = loss.labels(target)._replace(rows=lam[:, None] * rows + (1 - lam[:, None]) * rows.flip(0))
    total = weight = 0.0
    for i in range(B):
        for label, share in ((int(target[i]), lam[i]), (int(target[B - 1 - i]), 1 - lam[i])):
            if label != ignored:
                total += share * nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, reduction="sum")(
                    z[i : i + 1], torch.tensor([label])
                )
                weight += share * WEIGHT[label]
    torch.testing.assert_close(loss(z, mixed), total / weight)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_losses_of_members_and_samples_average_to_the_criterions(kind, criterion):
    if type(criterion) is TwoWayLoss:
        return
    loss, target = LabelLoss(criterion, K, each=True), target_of(kind)
    z = torch.randn(B // 2, 2, K, generator=torch.Generator().manual_seed(0))
    losses = loss.each(z, target.unflatten(0, (B // 2, 2)))
    expected = plain_cost(criterion, z.flatten(0, 1), target)
    torch.testing.assert_close(losses.sum(1).mean() if loss.adds else losses.mean(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "CrossEntropyLoss must return one number for a batch, got [3]; take"),
        (JsdCrossEntropy(), "JsdCrossEntropy is neither the mean nor the sum"),
        (nn.BCELoss(), "BCELoss takes neither class indices [B] nor labels [B, K]: "),
        (nn.CosineEmbeddingLoss(), "CosineEmbeddingLoss takes neither class indices [B] nor labels [B, K]: "),
    ],
)
def test_a_criterion_that_is_none_is_refused_before_the_first_step(criterion, message):
    with pytest.raises(ValueError, match=re.escape(f"criterion {message}")):
        timm_mix.create_task("recursivemix", small_net("resnet"), criterion, num_classes=K)


def test_signs_are_no_class_indices():
    loss = LabelLoss(nn.SoftMarginLoss(), K)
    signs = target_of("multi") * 2 - 1
    torch.testing.assert_close(loss(torch.zeros(B, K), signs), torch.tensor(2.0).log())
    with pytest.raises(ValueError, match=r"SoftMarginLoss wants -1 or 1 for every class, \[B, 13\], got class indices"):
        loss(torch.zeros(B, K), target_of("indices"))


@pytest.mark.parametrize("name", ["mixmo", "cotraining", "recursivemix", "automix", "manifoldmixup", *sorted(MIXERS)])
@pytest.mark.parametrize("label", [-1, -100, K])
def test_a_class_that_does_not_exist_is_one_line(name, label):
    images, target = torch.randn(B, 3, 32, 32), target_of("indices")
    target[3] = label
    if label == -100:  # what torch's cross-entropy ignores by itself
        assert torch.isfinite(cost_of(name, nn.CrossEntropyLoss(), images, target)[0])
    else:
        with pytest.raises(ValueError, match=f"class indices must be in 0 .. 12, got {label}"):
            cost_of(name, nn.CrossEntropyLoss(), images, target)


@pytest.mark.parametrize("divergence", ["js", "kl"])
def test_parts_under_a_sigmoid_diverge_class_by_class(divergence):
    model = timm.create_model("splitnet_wrn16_2_s2", depth=10, num_classes=K)
    logits = torch.randn(B, 1, K).expand(B, 2, K) + torch.tensor([0.0, 3.0]).view(1, 2, 1)  # by a constant
    found = {}
    for name in ("ce", "logits", "bce sum", "asymmetric multi sum"):
        task = timm_mix.create_task("cotraining", model, CRITERIA[name], num_classes=K, divergence=divergence)
        found[name] = float(task.losses(logits, target_of("multi"), epoch=0)["cot"])
    p = logits.sigmoid()
    answers = torch.stack([p, 1 - p], -1)  # [B, S, K, 2]
    if divergence == "js":
        mean = answers.mean(1, keepdim=True)
        expected = (answers * (answers / mean).log()).sum(-1).mean()
    else:
        one, two = answers.unbind(1)
        expected = ((one * (one / two).log()) + (two * (two / one).log())).sum(-1).mean()
    assert found["ce"] == pytest.approx(0.0, abs=1e-6)
    assert found["logits"] == pytest.approx(float(expected), rel=1e-4)
    assert found["bce sum"] == pytest.approx(K * float(expected), rel=1e-4)  # on the scale of its criterion
    assert found["asymmetric multi sum"] == pytest.approx(B * K * float(expected), rel=1e-4)


def test_the_consistency_under_a_sigmoid_is_that_of_every_class():
    task = timm_mix.create_task("recursivemix", small_net("resnet"), CRITERIA["logits"], num_classes=K, omega=1.0)
    images, target = torch.randn(B, 3, 32, 32), target_of("multi")
    task(images, target)
    old, plan = task.history["logits"], task.draw(images)
    region = torch.randn(B, K)
    expected = (1 - plan.lam) * F.binary_cross_entropy_with_logits(region, old.sigmoid())
    torch.testing.assert_close(task._consistency(region, plan), expected)


@pytest.mark.parametrize("name", ["mixmo", "cotraining", "recursivemix", "automix", "manifoldmixup", *sorted(MIXERS)])
def test_a_batch_without_images_is_one_line(name):
    model = timm.create_model("mixmo_wrn16_2_m2" if name == "mixmo" else "splitnet_wrn16_2_s2", depth=10, num_classes=K)
    model = model if name in ("mixmo", "cotraining") else small_net("resnet")
    if name in MIXERS:
        task = MixerTask(model, mixer=timm_mix.create_mixer(name, num_classes=K), num_classes=K, verbose=False)
    else:
        task = timm_mix.create_task(name, model, num_classes=K, verbose=False)
    with pytest.raises(ValueError, match="a batch must hold at least one image, got none"):
        task(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long))
