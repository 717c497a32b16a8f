"""train.py from end to end on tiny images: what a run writes, that it resumes exactly, and what it refuses."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from timm.data import Mixup
from timm.task import ClassificationTask
from torch.nn import functional as F

import train
from timm_mix.tasks import CoTrainingTask, MixMoTask
from train import main
from trainkit.build import build_schedule
from trainkit.config import parse_config
from trainkit.engine import Trainer
from trainkit.sampler import EpochBatchSampler
from trainkit.sources import open_dataset
from trainkit.transforms import create_transform

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SCRIPT = Path(__file__).parents[1] / "train_scripts" / "train.py"
NAMES = ["ant", "bee", "cat"]
TRAIN, VALIDATION = 36, 7
SIZE = 16
SMALL = ["backbone=wrn16_2", "depth=10", "widen_factor=1"]
TASKS = {
    "classification": ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1"],
    "mixmo": ["--model", "mixmo", "--model-kwargs", *SMALL, "members=2", "--mix", "prob=0.5"],
    "cotraining": ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10", "split=2"],
}
# no BatchNorm, one patch: gradients of samples do not mix
VIT = ["--model", "test_vit", "--model-kwargs", f"img_size={SIZE}", "--aug", "none"]
PLAIN_SGD = ["--opt", "momentum", "--momentum", "0", "--weight-decay", "0", "--sched", "none"]


@pytest.fixture(autouse=True)
def _no_accelerate_state():
    """accelerate keeps one state per process: leave none to the next test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """train/ with 36 and val/ with 7 noisy 16x16 images of three classes, each with a channel of its own."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, counts in {"train": (12, 12, 12), "val": (3, 2, 2)}.items():
        for label, (name, count) in enumerate(zip(NAMES, counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 130, (SIZE, SIZE, 3))
                pixels[..., label] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def run(images, tmp_path):
    """Run main on the images; the folder of the run is `tmp_path / name`."""

    def start(*flags, name="run"):
        data = ["--data-dir", str(images), "--img-size", str(SIZE), "--aug", "small", "--workers", "0"]
        place = ["--output", str(tmp_path), "--experiment", name, "--cpu"]
        try:
            return main([*data, *place, "--batch-size", "8", "--epochs", "1", *flags])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return start


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)


def reloaded(folder):
    return timm.create_model(f"local-dir:{folder}/model", pretrained=True).eval()


def figures(row):
    """A history row without what depends on the clock."""
    return {name: value for name, value in row.items() if name != "train_seconds"}


def assert_equal_tensors(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def scored(model, images):
    """Top-1 in per cent and NLL of a model over the validation images, image by image."""
    config = timm.data.resolve_data_config({}, model=model)
    transform = create_transform("none", config, training=False)
    hits, nll = 0, 0.0
    with torch.no_grad():
        for image, label in open_dataset("", images, "val"):
            log_p = F.log_softmax(model(transform(image)[None])[0].double(), 0)
            hits += int(log_p.argmax()) == label
            nll -= log_p[label].item()
    return 100 * hits / VALIDATION, nll / VALIDATION


@pytest.mark.parametrize("task", TASKS)
def test_a_run_writes_results_checkpoints_and_a_model_that_timm_loads(task, run, images, tmp_path):
    returned = run("--task", task, *TASKS[task], "--epochs", "2", "--seed", "3")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"results.json", "checkpoints", "model"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}

    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["seed"] == results["config"]["seed"] == 3
    assert results["config"]["task"] == task
    assert results["hardware"]["processes"] == 1
    assert results["hardware"]["device"] == "cpu"
    assert results["versions"]["timm"] == timm.__version__
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["data"] == {"train_images": TRAIN, "validation_images": VALIDATION, "classes": 3}
    assert results["steps_per_epoch"] == TRAIN // 8
    assert results["global_batch_size"] == 8
    assert [row["epoch"] for row in results["epochs"]] == [0, 1]
    assert [row["lr"] for row in results["epochs"]] == pytest.approx([0.05, 0.025])  # cosine
    members = [] if task == "classification" else ["member_1"]
    for row in results["epochs"]:
        assert list(row["eval"]) == ["member_0", *members, "ensemble"]
        assert {scores["count"] for scores in row["eval"].values()} == {VALIDATION}
        assert math.isfinite(row["train"]["loss"])
    assert results["last"] == {"epoch": 1, **results["epochs"][1]["eval"]}
    best = results["best"]["epoch"]
    assert results["best"]["ensemble"] == results["epochs"][best]["eval"]["ensemble"]

    model = reloaded(folder)
    assert results["model"] == {
        "name": TASKS[task][1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    assert_equal_tensors(model.state_dict(), checkpoint(folder)["state_dict"])
    top1, nll = scored(model, images)
    assert results["last"]["ensemble"]["top1"] == pytest.approx(top1)
    assert results["last"]["ensemble"]["nll"] == pytest.approx(nll, rel=1e-5)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["label_names"] == NAMES
    assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]


def test_a_named_model_reloads_with_the_trained_weights(run, images, tmp_path):
    run("--task", "mixmo", "--model", "mixmo_wrn16_2_m2")
    model = timm.create_model("mixmo_wrn16_2_m2", num_classes=3).eval()
    model.load_state_dict(checkpoint(tmp_path / "run")["state_dict"])
    x = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(reloaded(tmp_path / "run")(x), model(x))


def test_the_digits_need_no_folder(run, tmp_path):
    flags = ["--dataset", "digits", "--data-dir", str(tmp_path / "nowhere"), "--batch-size", "359"]
    results = run("--task", "mixmo", *TASKS["mixmo"], *flags)
    assert results["data"] == {"train_images": 1437, "validation_images": 360, "classes": 10}
    assert results["steps_per_epoch"] == 4
    assert results["last"]["ensemble"]["count"] == 360


def test_training_lowers_the_loss(run):
    rows = run("--task", "classification", *TASKS["classification"], "--epochs", "7", "--padding", "0")["epochs"]
    assert rows[-1]["train"]["loss"] < 0.5 * rows[0]["train"]["loss"]


def test_cotraining_shows_every_part_its_own_view(run, monkeypatch):
    seen = []
    forward = CoTrainingTask.forward
    monkeypatch.setattr(CoTrainingTask, "forward", lambda task, x, y: (seen.append(x), forward(task, x, y))[1])
    run("--task", "cotraining", *TASKS["cotraining"])
    assert {tuple(x.shape) for x in seen} == {(8, 2, 3, SIZE, SIZE)}
    differ = [not torch.equal(*views) for x in seen for views in x]
    assert sum(differ) > 0.9 * len(differ)


def test_views_one_shows_all_parts_the_same_image(run, monkeypatch):
    seen = []
    forward = CoTrainingTask.forward
    monkeypatch.setattr(CoTrainingTask, "forward", lambda task, x, y: (seen.append(x), forward(task, x, y))[1])
    run("--task", "cotraining", *TASKS["cotraining"], "--views", "1")
    assert {tuple(x.shape) for x in seen} == {(8, 3, SIZE, SIZE)}


def test_settings_of_the_task_reach_it(run, monkeypatch):
    seen = {}
    forward = MixMoTask.forward

    def spy(task, x, y):
        seen.update(task.settings, prob=task.prob, r=task.r, total_steps=task.total_steps)
        return forward(task, x, y)

    monkeypatch.setattr(MixMoTask, "forward", spy)
    run("--task", "mixmo", *TASKS["mixmo"], "--mix", "alpha=3", "r=5", "prob=0.25", "--epochs", "2")
    assert {name: seen[name] for name in ("alpha", "r", "prob", "total_steps")} == {
        **{"alpha": 3, "r": 5, "prob": 0.25},
        "total_steps": 2 * (TRAIN // 8),
    }


@pytest.fixture
def recorded(monkeypatch):
    """The model's state after every update."""
    states = []
    update = Trainer._update

    def spy(trainer, *args):
        sums = update(trainer, *args)
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return sums

    monkeypatch.setattr(Trainer, "_update", spy)
    return states


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
    original = train._accelerator

    def with_scaler(config):  # what float16 does on a GPU
        accelerator = original(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return accelerator

    monkeypatch.setattr(train, "_accelerator", with_scaler)
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


def test_the_predicted_cost_is_one_line_before_the_first_epoch(run, capsys):
    flags = ["--batch-repeats", "2", "--epochs", "3"]
    results = run("--task", "mixmo", *TASKS["mixmo"], *flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("predicted cost: 27 iterations (9 per epoch), 2.0")
    assert lines[0].endswith(" x the time of plain wrn16_2")
    assert lines[1].startswith("epoch 1/3 ")
    assert results["predicted_cost"] == lines[0].removeprefix("predicted cost: ")
    assert results["steps_per_epoch"] == 9


RECIPE = SCRIPT.parent / "recipes" / "cifar100" / "cut_mixmo_m2_b4.yaml"


@pytest.mark.parametrize("updates", [1, 7])
def test_the_published_schedule_warms_up_for_an_epoch_and_drops_at_the_start_of_epochs_101_201_226(updates):
    config = parse_config(["--config", str(RECIPE)])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule, epochs = build_schedule(config, optimizer, updates)
    assert epochs == 300
    for epoch in range(1, epochs + 1):  # counted from 1, as published
        base = config.lr * 0.1 ** sum(epoch >= start for start in (101, 201, 226))
        for update in range(updates):
            wanted = base * update / updates if epoch == 1 else base
            assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted), (epoch, update)
            schedule.step_update((epoch - 1) * updates + update + 1)
        schedule.step(epoch)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("cifar100/cutmix.yaml", TASKS["classification"]),
        ("cifar10/cut_mixmo_cutmix_m2_b4.yaml", TASKS["mixmo"][:-2]),
        ("tiny_imagenet/linear_mixmo_w1_m2_b4.yaml", TASKS["mixmo"][:-2]),
        ("imagenet/cut_mixmo_resnet50_m2.yaml", [*TASKS["mixmo"][:-2], "--aug", "imagenet", "--warmup-epochs", "0"]),
    ],
)
def test_a_published_recipe_runs_on_folders_of_images(recipe, flags, run):
    folders = ["--dataset", "folder", "--no-dataset-download", "--no-pin-mem", "--export", "last"]
    results = run("--config", str(RECIPE.parents[1] / recipe), *folders, *flags)
    assert results["last"]["ensemble"]["count"] == VALIDATION
    assert math.isfinite(results["epochs"][0]["train"]["loss"])


def test_milestones_by_epochs_keep_timms_meaning():
    flags = ["--sched", "multistep", "--decay-milestones", "3", "--epochs", "5", "--lr", "1"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, _ = build_schedule(parse_config(flags), optimizer, 7)
    rates = []
    for epoch in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1])


def test_a_schedule_on_updates_counts_updates_not_batches(run):
    flags = ["--sched-on-updates", "--epochs", "2", "--grad-accum-steps", "3", "--lr", "0.5"]
    assert [row["lr"] for row in run(*VIT, *flags)["epochs"]] == pytest.approx([0.5, 0.25])


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
        if not x.is_meta:  # MixMo asks for the shape of its stem
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


def _stop(*args):
    raise KeyboardInterrupt("stopped")


@pytest.fixture
def interrupted(run, monkeypatch):
    """Run and press Ctrl-C after the first epoch, or in the second update of the second."""
    update = Trainer._update

    def until(trainer, group, number):
        return _stop() if number == TRAIN // 8 + 1 else update(trainer, group, number)

    def start(place, *flags):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, *(("_report", _stop) if place == "after an epoch" else ("_update", until)))
            with pytest.raises(KeyboardInterrupt, match="stopped"):
                run(*flags)

    return start


@pytest.mark.parametrize(
    ("task", "workers", "place"),
    [
        ("mixmo", 0, "after an epoch"),
        ("mixmo", 2, "after an epoch"),
        ("mixmo", 0, "in an epoch"),
        ("cotraining", 0, "after an epoch"),
        ("classification", 2, "in an epoch"),
    ],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(task, workers, place, run, interrupted, tmp_path):
    # every source of chance: mixing, order, crops, flips, erasing, dropout
    flags = ["--task", task, *TASKS[task], "--drop", "0.3", "--reprob", "0.5", "--workers", str(workers)]
    flags += ["--epochs", "3", "--model-ema", "--model-ema-decay", "0.9", "--warmup-epochs", "1", "--resume", "auto"]
    whole = run(*flags, name="whole")
    interrupted(place, *flags)
    assert checkpoint(tmp_path / "run")["epoch"] == 0
    assert not (tmp_path / "run" / "model").exists()
    results = run(*flags)

    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert (results["last"], results["best"]) == (whole["last"], whole["best"])
    one, two = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    assert_equal_tensors(one["state_dict"], two["state_dict"])
    assert_equal_tensors(one["state_dict_ema"], two["state_dict_ema"])
    assert one["task_states"] == two["task_states"]
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    assert_equal_tensors(reloaded(tmp_path / "whole").state_dict(), reloaded(tmp_path / "run").state_dict())


def test_a_finished_run_that_is_resumed_trains_no_further(run, monkeypatch, tmp_path):
    flags = ["--task", "mixmo", *TASKS["mixmo"], "--resume", "auto"]
    first = run(*flags)
    weights = checkpoint(tmp_path / "run")["state_dict"]
    monkeypatch.setattr(Trainer, "_update", _stop)
    again = run(*flags)
    assert again["epochs"] == first["epochs"]
    assert_equal_tensors(reloaded(tmp_path / "run").state_dict(), weights)


def test_a_finished_checkpoint_of_another_folder_is_published(run, tmp_path):
    flags = ["--task", "mixmo", *TASKS["mixmo"]]
    run(*flags, name="first")
    run(*flags, "--resume", str(tmp_path / "first" / "checkpoints" / "last.pt"), name="second")
    weights = [reloaded(tmp_path / name).state_dict() for name in ("first", "second")]
    assert_equal_tensors(*weights)


def test_seeds_give_different_runs_and_one_seed_the_same(run):
    flags = ["--task", "mixmo", *TASKS["mixmo"]]
    losses = [run(*flags, "--seed", seed)["epochs"][0]["train"]["loss"] for seed in ("1", "1", "2")]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("tops", "best"), [((50.0, 80.0, 60.0), 1), ((50.0, 80.0, 80.0), None)])
def test_best_is_one_epoch_in_results_checkpoint_and_model(tops, best, run, recorded, monkeypatch, tmp_path):
    top = iter(tops)
    monkeypatch.setattr(
        Trainer, "_evaluate", lambda *_: {"ensemble": {"top1": next(top), "top5": 100.0, "nll": 1.0, "count": 7}}
    )
    results = run(*VIT, "--epochs", "3", "--export", "best")
    saved = checkpoint(tmp_path / "run", "best")
    assert results["best"]["epoch"] == saved["epoch"]
    assert best in (None, saved["epoch"])  # of two equal epochs either may be the best, but only one
    assert_equal_tensors(recorded[(saved["epoch"] + 1) * (TRAIN // 8) - 1], saved["state_dict"])
    assert_equal_tensors(reloaded(tmp_path / "run").state_dict(), saved["state_dict"])


def test_grey_images_train_a_model_with_one_channel(run, tmp_path):
    run("--task", "mixmo", *TASKS["mixmo"], "--in-chans", "1")
    assert reloaded(tmp_path / "run").encoders[0].weight.shape[1] == 1


def test_more_classes_than_the_data_have_are_accepted(run, tmp_path):
    run("--task", "mixmo", *TASKS["mixmo"], "--num-classes", "5")
    assert reloaded(tmp_path / "run").num_classes == 5


COTRAINING = ["--task", "cotraining", "--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "--mix", "weight=1"]
# name: (flags over those of a good run, line); {root} is a folder with the files of `material`
MISTAKES = {
    "unknown model": (["--model", "mixmo_wrn99"], "cannot create model 'mixmo_wrn99': Unknown model"),
    "unknown backbone": (["--model-kwargs", "backbone=resnet19"], "cannot create model 'mixmo': .*resnet19"),
    "unknown model setting": (["--model-kwargs", "members=2", "depht=10"], "cannot create model 'mixmo': .*depht"),
    "no members": (["--model-kwargs", "members=0"], "cannot create model 'mixmo': members must be .*got 0"),
    "half a member": (["--model-kwargs", "members=1.5"], "cannot create model 'mixmo': members must be .*got 1.5"),
    "S too large": (["--model", "splitnet", "--model-kwargs", "split=1000"], "cannot create model 'splitnet': .*1000"),
    "S zero": (["--model", "splitnet", "--model-kwargs", "split=0"], "cannot create model 'splitnet': .*0"),
    "unknown dataset": (["--dataset", "digit"], "a dataset is named digits, .* got 'digit'"),
    "no data folder": (["--data-dir", "{root}/nowhere"], "nowhere does not exist: correct the path"),
    "empty data folder": (["--data-dir", "{root}/empty"], "cannot be opened: Found 0 images"),
    "one split twice": (["--val-split", "train"], "must be different images, both are"),
    "too few classes": (["--num-classes", "2"], "the data have 3 classes, got --num-classes 2"),
    "batch too large": (["--batch-size", "37"], "one step needs 37 distinct images .* the dataset has 36"),
    "odd repeats": (["--batch-repeats", "3"], r"batch_size must be a multiple of repeats \(3\), got 8"),
    "workers": (["--workers", "-1"], "workers must be at least 0, got -1"),
    "unknown recipe key": (["--config", "{root}/key.yaml"], "unknown key 'epoch'; did you mean 'epochs'"),
    "wrong type": (["--config", "{root}/type.yaml"], "epochs must be a value of type int, got 'many'"),
    "torn recipe": (["--config", "{root}/torn.yaml"], "torn.yaml is not valid yaml"),
    "unknown flag": (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    "unknown task setting": (["--mix", "alhpa=1"], "task mixmo has no setting 'alhpa'"),
    "alpha": (["--mix", "alpha=0"], "cannot create task 'mixmo': alpha must be > 0.*, got 0"),
    "alpha of text": (["--mix", "alpha=much"], "cannot create task 'mixmo': "),
    "settings without a task": (["--task", "classification"], "task classification has no settings, got mix: prob"),
    "task without members": (
        ["--model", "wrn16_2", "--model-kwargs", "depth=10"],
        "cannot create task 'mixmo': .*members",
    ),
    "mixup of members": (["--mixup", "1"], "mixup and cutmix are for task classification, got task mixmo"),
    "mixup of an odd batch": (
        ["--task", "classification", "--cutmix", "1", "--batch-size", "9"],
        "mixup and cutmix need an even batch_size, got 9",
    ),
    "negative penalty": (["--l2-penalty", "-1"], "l2_penalty must be >= 0 and finite, got -1"),
    "views for mixmo": (["--views", "2"], "views"),
    "views of no part": ([*COTRAINING, "--views", "3"], "views"),
    "no views": ([*COTRAINING, "--views", "0"], "views must be .* 1, got 0"),
    "optimizer": (["--opt", "sdg"], "cannot create optimizer 'sdg'"),
    "schedule": (["--sched", "cosin"], "cannot create schedule 'cosin'"),
    "schedule without length": (["--sched", "step", "--decay-epochs", "0"], "decay_epochs"),
    "image size": (["--img-size", "0"], "img_size must be >= 1, got 0"),
    "channels": (["--in-chans", "0"], "in_chans must be >= 1, got 0"),
    "classes": (["--num-classes", "0"], "num_classes must be >= 1, got 0"),
    "validation batch": (["--validation-batch-size", "-1"], "validation_batch_size must be >= 1, got -1"),
    "log interval": (["--log-interval", "0"], "log_interval must be >= 1, got 0"),
    "dropout": (["--drop", "2"], "dropout|drop "),
    "standard deviation": (["--std", "0"], "std "),
    "padding": (["--padding", "-1"], "padding"),
    "half a range": (["--aug", "imagenet", "--scale", "0.5"], "scale"),
    "augmentation": (["--scale", "0.5", "1"], "the transform style 'small' has no option scale"),
    "float16": (["--amp", "--amp-dtype", "float16"], "--amp-dtype float16 needs a GPU; take bfloat16 on the CPU"),
    "negative seed": (["--seed", "-1"], "seed must be at least 0, got -1"),
    "missing weights": (["--initial-checkpoint", "{root}/no.pt"], "no.pt"),
    "output in a file": (["--output", "{root}/key.yaml"], "key.yaml"),
    "missing checkpoint": (
        ["--resume", "{root}/no.pt"],
        "--resume wants a checkpoint file or auto, .*no.pt is no file",
    ),
    "torn checkpoint": (["--resume", "{root}/torn.pt"], "cannot read checkpoint .*torn.pt .*; it is torn or not ours"),
    "checkpoint of another model": (["--resume", "{root}/other.pt"], "the checkpoint does not fit this recipe"),
    "checkpoint of a longer run": (["--resume", "{root}/longer.pt"], "longer.pt was made with epochs=7, got 1; resume"),
    "best weights elsewhere": (["--resume", "{root}/other.pt", "--export", "best"], "--export best needs .*best.pt"),
    "model folder in use": (["--experiment", "taken"], "taken"),
}
GOOD = ["--task", "mixmo", "--model", "mixmo", "--model-kwargs", "backbone=wrn16_2", "--mix", "prob=0.5", "--cpu"]
# runs every case as the script would, in one process: importing torch and timm takes longer than all of them
DRIVER = """
import json, os, sys, tempfile
from train import main
from trainkit.errors import run_script

found = {}
for name, argv in json.load(sys.stdin).items():
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        keep = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            run_script(lambda: main(argv))
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            print(f"Traceback: {error!r}", file=sys.stderr)
            status = 1
        finally:
            sys.stderr.flush()
            os.dup2(keep, 2)
        file.seek(0)
        found[name] = [status, file.read().decode()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    for split in ("train", "val"):
        (root / "empty" / split / "ant").mkdir(parents=True)
    (root / "key.yaml").write_text("epoch: 3\n")
    (root / "type.yaml").write_text("epochs: many\n")
    (root / "torn.yaml").write_text("mix: {alpha: \n")
    (root / "out" / "taken" / "model").mkdir(parents=True)
    (root / "out" / "taken" / "model" / "notes.txt").write_text("mine")
    states = {"state_dict": {"w": torch.zeros(3)}, "optimizer": {}, "schedule": None, "scaler": None}
    states.update({"version": 1, "epoch": 0, "history": [], "task_states": [{}]})
    torch.save({**states, "config": {"epochs": 1, "sched": "cosine"}}, root / "other.pt")
    torch.save({**states, "config": {"epochs": 7, "sched": "cosine"}}, root / "longer.pt")
    (root / "torn.pt").write_bytes((root / "other.pt").read_bytes()[:-99])
    return root


def mistaken(name, material, images):
    flags = [flag.format(root=material) for flag in MISTAKES[name][0]]
    where = ["--data-dir", str(images), "--img-size", str(SIZE), "--aug", "small", "--batch-size", "8"]
    return [*GOOD, *where, "--epochs", "1", "--workers", "0", "--output", str(material / "out"), *flags]


def in_a_process(command, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, **settings)


@pytest.fixture(scope="module")
def outcomes(material, images):
    """Exit status and stderr of every mistake."""
    cases = {name: mistaken(name, material, images) for name in MISTAKES}
    done = in_a_process([sys.executable, "-c", DRIVER], input=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_two(name, outcomes):
    status, stderr = outcomes[name]
    assert status == 2, stderr
    assert_one_error(stderr, MISTAKES[name][1])


def assert_one_error(stderr, line):
    assert stderr.startswith("error: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.endswith("\n")
    assert "Traceback" not in stderr
    assert re.search(line, stderr), stderr


def test_mistakes_write_nothing(outcomes, material):
    written = sorted(str(path.relative_to(material)) for path in (material / "out").rglob("*"))
    assert written == ["out/taken", "out/taken/model", "out/taken/model/notes.txt"]


def test_a_torn_checkpoint_stays_as_it_is(outcomes, material):
    assert (material / "torn.pt").read_bytes() == (material / "other.pt").read_bytes()[:-99]


@pytest.mark.parametrize("name", ["unknown model", "torn checkpoint"])
def test_the_script_itself_ends_with_one_line_and_status_two(name, material, images):
    done = in_a_process([sys.executable, str(SCRIPT), *mistaken(name, material, images)])
    assert done.returncode == 2, done.stderr
    assert_one_error(done.stderr, MISTAKES[name][1])
    assert done.stdout == ""
