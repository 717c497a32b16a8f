"""Training tasks: twins written in loops, training, state, distribution of the work."""

import io
import math

import numpy as np
import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn
from torch.nn import functional as F

import timm_mix
from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.mixmo import member_masks
from timm_mix.functional.msda import kept_labels, kept_pixels
from timm_mix.tasks import TASKS, task_settings

B, C, H, W, K = 5, 3, 32, 32, 13
SETTINGS = {"reduction": 4}  # of the tasks that have it
MORE = {"mixmo": {"members": 3}, "cotraining": {"divide": True}}  # than the tasks' own examples


def _example(task):
    own = TASKS[task].facts.example
    wrapped = {"backbone": "wrn16_2", **own.model_settings, **MORE.get(task, {})}
    return (own.model, wrapped) if own.model else ("wrn16_2", {})


MODELS = {task: _example(task) for task in TASKS}


def _model(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    model, settings = MODELS[name]
    return timm.create_model(model, num_classes=K, **{**settings, **kwargs})


def _task(name, model=None, criterion=None, **kwargs):
    settings = {key: value for key, value in SETTINGS.items() if key in task_settings(name)} | kwargs
    return timm_mix.create_task(name, model or _model(name), criterion, num_classes=K, **settings)


def _batch(batch=B, seed=1, size=(H, W)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, C, *size, generator=generator), torch.randint(K, (batch,), generator=generator)


def _soft_ce(z, y):
    """-sum_k y_k log softmax(z)_k of one sample, written out."""
    log_p = [zk - math.log(sum(math.exp(zj) for zj in z)) for zk in z]
    return -sum(yk * lk for yk, lk in zip(y, log_p, strict=True))


@pytest.mark.parametrize("settings", [{"block": "linear"}, {"block": "cut", "prob": 1.0, "r": 2.0}, {"mimo": True}])
@pytest.mark.parametrize("soft", [False, True])
def test_mixmo_loss_equals_a_loop_over_samples_and_members(settings, soft):
    model = _model("mixmo").eval()  # batch statistics would tie the samples together
    task = _task("mixmo", model, repetition=0.4, **settings)
    x, y = _batch()
    labels = torch.softmax(torch.randn(B, K), 1) if soft else y
    plan = task.draw(x)
    (masks, ratios), r = member_masks(plan), 1.0 if settings.get("mimo") else settings.get("r", 3.0)
    loss = 0.0
    with torch.no_grad():
        for b in range(B):
            encoded = [model.encoders[i](x[plan.images[b, i]][None]) for i in range(3)]
            mixed = 3 * sum(masks[b, i] * encoded[i] for i in range(3))
            weights = [float(ratios[b, i]) ** (1 / r) for i in range(3)]
            for i in range(3):
                z = model.heads[i](model.core(mixed))[0].tolist()
                label = labels[plan.images[b, i]]
                label = label.tolist() if soft else F.one_hot(label, K).tolist()
                loss += 3 * weights[i] / sum(weights) * _soft_ce(z, label) / B
        result = task(x, labels, plan=plan)
    assert float(result["loss"]) == pytest.approx(loss, rel=1e-5)
    assert result["output"].shape == (B, K)


@pytest.mark.parametrize("msda", ["cutmix", "mixup"])
def test_mixed_samples_inside_mixmo_equal_a_loop_over_samples_and_members(msda):
    model = _model("mixmo").eval()
    task = _task("mixmo", model, block="cut", prob=1.0, msda=msda, msda_prob=0.7)
    x, y = _batch()
    plan, inner = task.draw(x), task.draw_msda(x)
    masks, ratios = member_masks(plan)
    keep, lam = kept_labels(kept_pixels(inner), masks)
    loss = 0.0
    with torch.no_grad():
        for b in range(B):
            seen, labels = [], []
            for i in range(3):
                own, partner = plan.images[b, i], inner.partners[b, i]
                seen.append(x[own] * keep[b, i] + x[partner] * (1 - keep[b, i]))
                label = float(lam[b, i]) * F.one_hot(y[own], K) + (1 - float(lam[b, i])) * F.one_hot(y[partner], K)
                labels.append(label.tolist())
            mixed = 3 * sum(masks[b, i] * model.encoders[i](seen[i][None]) for i in range(3))
            weights = [float(ratios[b, i]) ** (1 / 3) for i in range(3)]
            for i in range(3):
                z = model.heads[i](model.core(mixed))[0].tolist()
                loss += 3 * weights[i] / sum(weights) * _soft_ce(z, labels[i]) / B
        result = task(x, y, plan=plan, msda=inner)
    assert (lam < 1).any()
    assert float(result["loss"]) == pytest.approx(loss, rel=1e-5)


def test_repetition_moves_in_a_line_and_then_stays():
    """rho is the share of the batch in which all members see one image."""
    settings = {"repetition": 1.0, "repetition_end": 0.25, "repetition_until": 0.5}
    task = _task("mixmo", total_steps=8, **settings)
    shares = []
    for task.step in range(8):
        images = task.draw(torch.zeros(40, C, H, W)).images
        shares.append((images[:, 0] == images[:, 1]).mean())
    # the others may meet by chance: one in forty
    np.testing.assert_allclose(shares, [1.0, 0.8, 0.6, 0.425, 0.25, 0.25, 0.25, 0.25], atol=0.08)


def test_without_the_length_of_the_training_repetition_stays_at_its_start():
    task = _task("mixmo", repetition=1.0, repetition_end=0.0)
    task.step = 100
    images = task.draw(torch.zeros(40, C, H, W)).images
    assert (images[:, 0] == images[:, 1]).all()


@pytest.mark.parametrize("block", BLOCKS)
def test_mixmo_trains_with_every_block(block):
    task = _task("mixmo", block=block, prob=1.0, msda="cutmix")
    task(*_batch())["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in task.get_trainable_module().parameters())


def test_cotraining_loss_equals_a_loop_over_samples_and_parts():
    model = _model("cotraining").eval()
    task = _task("cotraining", model, weight=0.5, warmup_epochs=4, steps_per_epoch=3)
    task.step = 7  # epoch 2 of 4
    views, y = torch.randn(B, 2, C, H, W), _batch()[1]
    loss = 0.0
    with torch.no_grad():
        for b in range(B):
            z = [model.subnets[i](views[b : b + 1, i])[0].tolist() for i in range(2)]
            loss += sum(_soft_ce(zi, F.one_hot(y[b], K).tolist()) for zi in z) / B
            p = [np.exp(zi) / np.exp(zi).sum() for zi in z]
            entropy = [-(q * np.log(q)).sum() for q in [*p, (p[0] + p[1]) / 2]]
            loss += 0.5 * 2 / 4 * (entropy[2] - (entropy[0] + entropy[1]) / 2) / B
        result = task(views, y)
    assert float(result["loss"]) == pytest.approx(loss, rel=1e-5)
    assert not result["ce"].requires_grad
    assert not result["cot"].requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_loss_on_one_batch_falls_by_half_in_under_50_steps(name):
    task = _task(name, total_steps=1000, seed=3, **({"block": "cut", "prob": 0.5} if name == "mixmo" else {}))
    x, y = _batch(8, size=(16, 16))
    optimizer = torch.optim.Adam(task.get_trainable_module().parameters(), lr=3e-3)
    losses = []
    for _ in range(49):
        result = task(x, y)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(result["loss"].item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses


@pytest.mark.parametrize("name", TASKS)
def test_a_loaded_state_continues_exactly(name):
    x, y = _batch()
    inner = {"block": "cow", "msda": "cutmix"} if name == "mixmo" else {}
    one = _task(name, total_steps=10, seed=5, **inner)
    for _ in range(3):
        one(x, y)
    file = io.BytesIO()
    torch.save(one.get_checkpoint_state(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    two = _task(name, _model(name, seed=9), total_steps=10, seed=6, **inner)
    two.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    one.get_trainable_module().eval(), two.get_trainable_module().eval()
    for _ in range(3):
        assert torch.equal(one(x, y)["loss"], two(x, y)["loss"])


def test_another_rank_that_loads_rank_zeros_state_draws_its_own():
    x, y = _batch()
    zero = _task("mixmo", rank=0)
    zero(x, y)
    one, again = (_task("mixmo", rank=1) for _ in range(2))
    one.load_task_state(zero.get_task_state())
    again.load_task_state(zero.get_task_state())
    drawn, zeros = one.draw(x), zero.draw(x)
    assert one.step == 1
    assert not np.array_equal(drawn.kappa, zeros.kappa)
    np.testing.assert_array_equal(drawn.kappa, again.draw(x).kappa)


def test_ranks_draw_differently_and_runs_alike():
    x, _ = _batch()
    assert not np.array_equal(_task("mixmo", rank=0).draw(x).kappa, _task("mixmo", rank=1).draw(x).kappa)
    np.testing.assert_array_equal(_task("mixmo", seed=3).draw(x).kappa, _task("mixmo", seed=3).draw(x).kappa)


def test_schedule_is_constant_within_an_epoch():
    task = _task("mixmo", total_steps=12, steps_per_epoch=3)
    progress = []
    for task.step in range(12):
        progress.append(round(task.progress, 6))
    assert progress == [0.25] * 3 + [0.5] * 3 + [0.75] * 3 + [1.0] * 3


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("name", TASKS)
def test_any_batch_size_is_accepted(name, batch):
    task = _task(name)
    task.get_trainable_module().train()
    assert torch.isfinite(task(*_batch(batch))["loss"])


@pytest.mark.parametrize("name", TASKS)
def test_the_callers_batch_is_not_written_to(name):
    x, y = _batch()
    before = x.clone(), y.clone()
    _task(name)(x, y)["loss"].backward()
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("name", TASKS)
def test_ema_and_evaluation_model_work_as_in_timms_tasks(name):
    task = _task(name)
    task.setup_ema(decay=0.5)
    before = [p.clone() for p in task.get_trainable_module(ema=True).parameters()]
    with torch.no_grad():
        for p in task.get_trainable_module().parameters():
            p.add_(1)
    task.update_ema()
    for old, new in zip(before, task.get_trainable_module(ema=True).parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)
    assert task.get_eval_model()(_batch()[0]).shape == (B, K)
    assert "state_dict_ema" in task.get_checkpoint_state(ema=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_compiled_model_gives_the_same_loss(name):
    x, y = _batch()
    plain, compiled = _task(name, seed=3), _task(name, seed=3)
    compiled.compile(backend="eager", fullgraph=True)
    assert plain(x, y)["loss"].item() == pytest.approx(compiled(x, y)["loss"].item(), rel=1e-5)
    assert not any("_orig_mod" in key for key in compiled.get_checkpoint_state()["state_dict"])


def test_the_criterion_is_used():
    x, y = _batch()
    plain = _task("mixmo", seed=3)(x, y)["loss"]
    assert _task("mixmo", criterion=LabelSmoothingCrossEntropy(0.5), seed=3)(x, y)["loss"] != plain


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "mixmoo",
            {},
            "task must be one of mixmo, cotraining, recursivemix, automix, manifoldmixup, "
            "got 'mixmoo'; did you mean mixmo",
        ),
        ("mixmo", {"alhpa": 1}, "task mixmo has no setting 'alhpa'; it has alpha, block"),
        ("mixmo", {"alpha": 0}, "alpha must be > 0 and finite, got 0"),
        ("mixmo", {"repetition": 1.5}, "repetition must be"),
        ("mixmo", {"repetition_end": -0.5}, "repetition_end must be .*got -0.5"),
        ("mixmo", {"repetition_until": 0}, "repetition_until must be .*got 0"),
        ("mixmo", {"repetition_until": 1.5}, "repetition_until must be .*got 1.5"),
        ("mixmo", {"msda": "cutout"}, "msda must be one of cutmix, mixup, got 'cutout'"),
        ("mixmo", {"r": 0.5}, "r must be >= 1"),
        ("mixmo", {"block": "cowl"}, "block must be one of linear, cut, .*got 'cowl'"),
        ("mixmo", {"total_steps": 0}, r"total_steps must be an integer >= 1 \(or None\), got 0"),
        ("mixmo", {"steps_per_epoch": True}, r"steps_per_epoch must be an integer >= 1 \(or None\), got True"),
        ("mixmo", {"total_steps": 5, "steps_per_epoch": 7}, "an epoch of 7 steps is longer than the training"),
        ("mixmo", {"seed": -1}, "seed must be an integer >= 0, got -1"),
        ("mixmo", {"r": float("nan")}, "r must be >= 1 .*got nan"),
        ("cotraining", {"weight": math.inf}, "weight must be >= 0 and finite, got inf"),
        ("cotraining", {"weight": -1}, "weight must be >= 0 and finite, got -1"),
        ("cotraining", {"warmup_epochs": 4}, "warmup_epochs=4 needs steps_per_epoch"),
    ],
)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.create_task(name, _model(name if name in TASKS else "mixmo"), None, num_classes=K, **settings)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("mixmo", "resnet18", r"MixMoTask needs a model with members \(mixmo_\*, splitnet_\*\), got ResNet"),
        ("mixmo", "splitnet_resnet18_s2", r"MixMoTask needs a mixmo_\* model, got SplitNet"),
        ("cotraining", "resnet18", "CoTrainingTask needs a model with members .* got ResNet"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(name, model, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.create_task(name, timm.create_model(model, num_classes=K), None, num_classes=K)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes=7, but the model predicts 13 classes"):
        timm_mix.create_task("mixmo", _model("mixmo"), None, num_classes=7)


@pytest.mark.parametrize("target", [torch.zeros(B + 1, dtype=torch.long), torch.zeros(B, K + 1), torch.zeros(B)])
@pytest.mark.parametrize("name", TASKS)
def test_targets_of_another_shape_are_refused(name, target):
    with pytest.raises(ValueError, match=r"target must be \[5\] class indices or \[5, 13\] soft labels, got \["):
        _task(name)(_batch()[0], target)


@pytest.mark.parametrize("name", TASKS)
def test_targets_of_any_integer_type_and_hard_one_hots_are_taken(name):
    x, y = _batch()
    expected = _task(name, seed=3)(x, y)["loss"]
    for target in (y.int(), y.to(torch.uint8), F.one_hot(y, K), F.one_hot(y, K).bool(), F.one_hot(y, K).half()):
        torch.testing.assert_close(_task(name, seed=3)(x, target)["loss"], expected)


def test_a_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"wanted the state of a MixMoTask \(step, rank, rng\), got foo"):
        _task("mixmo").load_task_state({"foo": 1})


@pytest.fixture
def alone():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["recursivemix", "automix"])
def test_a_task_around_more_than_the_model_wants_it_bare(alone, name):
    with pytest.raises(ValueError, match=r"needs the bare model, got one in DistributedDataParallel: make the task"):
        _task(name, nn.parallel.DistributedDataParallel(_model(name)))


def test_mixmo_mixes_images_and_nothing_else():
    with pytest.raises(ValueError, match=r"input must be a batch of images \[B, C, H, W\], got \[5, 3, 3, 32, 32\]"):
        _task("mixmo")(torch.zeros(B, 3, C, H, W), torch.zeros(B).long())


HEADS = {
    "mixmo": {f"heads.{i}" for i in range(3)},
    "cotraining": {f"subnets.{i}.fc" for i in range(2)},
    "recursivemix": {"model.fc", "region_head"},
    "automix": {"two.model.fc", "two.second"},
    "manifoldmixup": {"fc"},
}


@pytest.mark.parametrize("name", TASKS)
def test_clipping_without_the_heads_leaves_out_every_head(name):
    task = _task(name)
    names = {id(p): n for n, p in task.get_trainable_module().named_parameters()}
    clipped = {names[id(p)] for p in task.get_clip_parameters(exclude_head=True)}
    left_out = set(names.values()) - clipped
    assert left_out == {f"{head}.{kind}" for head in HEADS[name] for kind in ("weight", "bias")}
