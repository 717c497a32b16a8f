"""What one update of train.py computes, against loops written by hand: averaging, penalty, mixing, clipping, AMP."""

import math
import sys

import pytest
import timm
import torch
from accelerate import Accelerator
from script_runs import (
    PLAIN_SGD,
    SCRIPT,
    SIZE,
    TASKS,
    TRAIN,
    VIT,
    checkpoint,
    figures,
    in_a_process,
    reloaded,
    scored,
)
from support.equality import assert_equal_tensors
from timm.data import Mixup
from timm.task import ClassificationTask
from torch.nn import functional as F

from timm_mix.train import run as training
from timm_mix.train.data.sources import open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.views import EpochBatchSampler

pytestmark = pytest.mark.slow


def test_model_ema_publishes_the_average_over_all_updates(run, recorded, images, tmp_path):
    flags = ["--model-ema", "--model-ema-decay", "0.5", "--epochs", "2", "--grad-accum-steps", "3"]
    results = run("--task", "mixmo", *TASKS["mixmo"], *flags)
    assert len(recorded) == 4  # 4 batches an epoch, groups of 3 and 1
    average = recorded[0]
    for state in recorded[1:]:
        average = {name: (value + state[name]) / 2 for name, value in average.items()}
    published = reloaded(tmp_path / "run")
    for name, parameter in published.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name])
    saved = checkpoint(tmp_path / "run")
    assert_equal_tensors(published.state_dict(), saved["state_dict_ema"])
    assert_equal_tensors(saved["state_dict"], recorded[-1])
    top1, nll = scored(published, images)
    assert results["epochs"][-1]["eval_ema"]["ensemble"]["top1"] == pytest.approx(top1)
    assert results["epochs"][-1]["eval_ema"]["ensemble"]["nll"] == pytest.approx(nll, rel=1e-5)


def hand_written(images, lr, accum, batch=8, seed=42, l2=0.0):
    """One epoch of plain gradient descent, the gradient averaged over `accum` batches (fewer in the last group).

    Each update's loss has l2 * sum of squares of all parameters added, by autograd.
    """
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", img_size=SIZE, num_classes=3)
    dataset = open_dataset("", images, "train")
    dataset.transform = create_transform("none", model.pretrained_cfg | {"input_size": (3, SIZE, SIZE)}, training=False)
    batches = [[dataset[i] for i in indices] for indices in EpochBatchSampler(TRAIN, batch, seed=seed)]
    for first in range(0, len(batches), accum):
        group = batches[first : first + accum]
        model.zero_grad()
        for samples in group:
            x, y = torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])
            (F.cross_entropy(model(x), y) / len(group)).backward()
        (l2 * sum((parameter**2).sum() for parameter in model.parameters())).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accum", [1, 2, 3])  # 4 batches: the last group of 3 has one
def test_accumulated_batches_give_the_mean_gradient(accum, run, images, tmp_path):
    results = run(*VIT, *PLAIN_SGD, "--lr", "0.3", "--grad-accum-steps", str(accum))
    assert results["global_batch_size"] == 8 * accum
    trained = checkpoint(tmp_path / "run")["state_dict"]
    start, twin = hand_written(images, 0.0, accum), hand_written(images, 0.3, accum)
    moved = max((twin[name] - start[name]).abs().max() for name in twin)
    for name, parameter in twin.items():
        torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-5 * float(moved))


L2 = 0.05


def assert_penalised(folder, images, accum):
    """The weights are those of the hand-written loop with the penalty, which differ from those without."""
    trained = checkpoint(folder)["state_dict"]
    plain, twin = (hand_written(images, 0.3, accum, l2=l2) for l2 in (0.0, L2))
    moved = max((twin[name] - plain[name]).abs().max() for name in twin)
    for name, parameter in twin.items():
        torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-4 * float(moved))


@pytest.mark.parametrize("accum", [1, 3])
def test_the_l2_penalty_is_in_the_gradient_once_per_update(accum, run, images, tmp_path):
    run(*VIT, *PLAIN_SGD, "--lr", "0.3", "--grad-accum-steps", str(accum), "--l2-penalty", str(L2))
    assert_penalised(tmp_path / "run", images, accum)


def test_the_l2_penalty_does_not_depend_on_the_loss_scale(run, images, monkeypatch, tmp_path):
    original = training._accelerator

    def with_scaler(*settings):  # what float16 does on a GPU
        accelerator = original(*settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return accelerator

    monkeypatch.setattr(training, "_accelerator", with_scaler)
    unscale = lambda accelerator, optimizer: accelerator.scaler.unscale_(optimizer.optimizer)  # noqa: E731
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)
    flags = ["--lr", "0.3", "--l2-penalty", str(L2), "--clip-grad", "1e9"]  # one unscaling for both
    run(*VIT, *PLAIN_SGD, *flags)
    assert_penalised(tmp_path / "run", images, 1)


def test_the_l2_penalty_does_not_depend_on_the_number_of_processes(images, tmp_path):
    flags = [*VIT, *PLAIN_SGD, "--lr", "0.3", "--l2-penalty", str(L2), "--batch-size", "4", "--epochs", "1", "--cpu"]
    data = ["--data-dir", str(images), "--img-size", str(SIZE), "--workers", "0"]
    place = ["--output", str(tmp_path), "--experiment", "run"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = in_a_process([*launch, str(SCRIPT), *data, *place, *flags])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("predicted cost: ") == 1
    assert_penalised(tmp_path / "run", images, 1)


def test_the_l2_penalty_is_not_in_the_reported_loss(run):
    rows = [run(*VIT, *PLAIN_SGD, "--lr", "0", *flags)["epochs"][0] for flags in ([], ["--l2-penalty", "9"])]
    assert rows[0]["train"] == rows[1]["train"]


def test_the_l2_penalty_shrinks_what_the_loss_does_not_reach(run, tmp_path):
    flags = ["--batch-size", str(TRAIN), "--lr", "1", "--l2-penalty", "0.25"]
    run("--task", "mixmo", *TASKS["mixmo"], *PLAIN_SGD, *flags, name="shrunk")
    run("--task", "mixmo", *TASKS["mixmo"], *PLAIN_SGD, *flags[:-2], name="free")
    shrunk, free = (checkpoint(tmp_path / name)["state_dict"] for name in ("shrunk", "free"))
    torch.manual_seed(42)
    start = timm.create_model("mixmo", backbone="wrn16_2", depth=10, widen_factor=1, members=2, num_classes=3)
    for name, parameter in start.named_parameters():  # norm layers and biases, too
        torch.testing.assert_close(shrunk[name], free[name] - 0.5 * parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def mixed(monkeypatch):
    """Every call of timm's Mixup, and every batch that the task gets: (images, labels)."""
    given, returned, seen = [], [], []
    call, forward = Mixup.__call__, ClassificationTask.forward

    def spy(mixup, x, y):
        given.append((x.clone(), y.clone()))
        returned.append(call(mixup, x, y))
        return returned[-1]

    monkeypatch.setattr(Mixup, "__call__", spy)
    monkeypatch.setattr(ClassificationTask, "forward", lambda task, x, y: (seen.append((x, y)), forward(task, x, y))[1])
    return given, returned, seen


def test_mixup_adds_the_mirrored_batch_to_images_and_labels_alike(run, mixed):
    run(*TASKS["classification"], "--mixup", "1", "--smoothing", "0.3")
    given, returned, seen = mixed
    assert len(given) == len(seen) == TRAIN // 8
    for (x, y), (mixed_x, mixed_y), (task_x, task_y) in zip(given, returned, seen, strict=True):
        assert task_x is mixed_x
        assert task_y is mixed_y
        smooth = F.one_hot(y, 3) * 0.7 + 0.1
        other = (x - x.flip(0)).flatten()
        lam = float((mixed_x - x.flip(0)).flatten() @ other / (other @ other))
        torch.testing.assert_close(mixed_x, lam * x + (1 - lam) * x.flip(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(mixed_y, lam * smooth + (1 - lam) * smooth.flip(0), rtol=0, atol=1e-5)


def test_timms_mixup_ends_with_its_off_epoch(run, mixed):
    run(*TASKS["classification"], "--mixup", "1", "--smoothing", "0.3", "--epochs", "3", "--mixup-off-epoch", "1")
    alone = [torch.equal(x, mixed_x) for (x, _), (mixed_x, _) in zip(*mixed[:2], strict=True)]
    assert not any(alone[: TRAIN // 8])
    assert all(alone[TRAIN // 8 :])
    assert len(alone) == 3 * (TRAIN // 8)
    torch.testing.assert_close(mixed[1][-1][1], F.one_hot(mixed[0][-1][1], 3) * 0.7 + 0.1)


def test_cutmix_per_image_leaves_each_pixel_to_one_of_two_images(run, mixed):
    run(*TASKS["classification"], "--cutmix", "1", "--mixup-prob", "0.5", "--mixup-mode", "elem", "--padding", "0")
    kept = []
    for (x, y), (mixed_x, mixed_y) in zip(*mixed[:2], strict=True):
        mine, partner = (mixed_x == x).all(1), (mixed_x == x.flip(0)).all(1)
        assert (mine | partner).all()
        lam = mine.float().mean((1, 2))[:, None]
        torch.testing.assert_close(mixed_y, lam * F.one_hot(y, 3) + (1 - lam) * F.one_hot(y, 3).flip(0))
        kept += lam.flatten().tolist()
    assert 1 <= sum(lam == 1 for lam in kept) < len(kept) - 1  # some images are left alone, some are not
    assert len(set(kept)) > 5


def test_a_resumed_run_mixes_like_an_uninterrupted_one(run, interrupted, tmp_path):
    flags = [*TASKS["classification"], "--mixup", "1", "--cutmix", "1", "--epochs", "2", "--resume", "auto"]
    whole = run(*flags, name="whole")
    interrupted("in an epoch", *flags)
    assert [figures(row) for row in run(*flags)["epochs"]] == [figures(row) for row in whole["epochs"]]


@pytest.mark.parametrize(("mode", "bound"), [("norm", 2.0), ("value", math.inf)])
def test_clip_grad_bounds_an_update(mode, bound, run, tmp_path):
    flags = ["--batch-size", str(TRAIN), "--lr", "2", "--clip-grad", "1e-3", "--clip-mode", mode]
    run(*VIT, *PLAIN_SGD, *flags)
    trained = checkpoint(tmp_path / "run")["state_dict"]
    torch.manual_seed(42)
    start = timm.create_model("test_vit", img_size=SIZE, num_classes=3).state_dict()
    step = torch.cat([(trained[name] - start[name]).flatten() for name in start])
    assert float(torch.linalg.vector_norm(step, bound)) == pytest.approx(2e-3, rel=1e-3)


def test_amp_computes_in_bfloat16_and_keeps_float32_weights(run, images, monkeypatch, tmp_path):
    seen = set()
    conv = torch.nn.Conv2d.forward

    def spy(layer, x):
        out = conv(layer, x)
        if not x.is_meta and len(x) > 1:  # MixMo asks for the shape of its stem, and one black image is tried first
            seen.add((layer.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    results = run("--task", "mixmo", *TASKS["mixmo"], "--amp", "--model-ema", "--export", "best")
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    monkeypatch.undo()
    model = reloaded(tmp_path / "run")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    nll = results["last"]["ensemble"]["nll"]
    averaged = results["epochs"][0]["eval_ema"]["ensemble"]["nll"]
    assert math.isfinite(nll)
    assert scored(model, images)[1] == pytest.approx(averaged, rel=0.05)  # float32 against bfloat16
