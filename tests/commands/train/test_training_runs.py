"""train.py from end to end on tiny images: what a run writes, shows and schedules."""

import json
import math

import pytest
import timm
import torch
from script_runs import (
    NAMES,
    SCRIPT,
    SIZE,
    TASKS,
    TRAIN,
    VALIDATION,
    VIT,
    checkpoint,
    checkpoint_names,
    reloaded,
    scored,
)
from support.equality import assert_equal_tensors

from timm_mix.tasks import CoTrainingTask, MixMoTask
from timm_mix.train.loop.build import build_schedule
from timm_mix.train.settings.config import parse_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", TASKS)
def test_a_run_writes_results_checkpoints_and_a_model_that_timm_loads(task, run, images, tmp_path):
    returned = run("--task", task, *TASKS[task], "--epochs", "2", "--seed", "3")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"results.json", "checkpoints", "model"}
    assert checkpoint_names(folder) == {"last.pt", "best.pt", *(f"update_{TRAIN // 8 * n:09d}.pt" for n in (1, 2))}

    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["seed"] == results["config"]["seed"] == 3
    assert results["config"]["task"] == task
    assert results["hardware"]["processes"] == 1
    assert results["hardware"]["device"] == "cpu"
    assert results["versions"]["timm"] == timm.__version__
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["data"].items() >= {"train_images": TRAIN, "validation_images": VALIDATION, "classes": 3}.items()
    assert results["steps_per_epoch"] == TRAIN // 8
    assert results["global_batch_size"] == 8
    assert [row["epoch"] for row in results["epochs"]] == [0, 1]
    assert [row["lr"] for row in results["epochs"]] == pytest.approx([0.05, 0.025])  # cosine
    members = ["member_1"] if task in ("mixmo", "cotraining") else []
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
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimise.lr)
    schedule, epochs = build_schedule(config.optimise, optimizer, updates)
    assert epochs == 300
    for epoch in range(1, epochs + 1):  # counted from 1, as published
        base = config.optimise.lr * 0.1 ** sum(epoch >= start for start in (101, 201, 226))
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
        ("cifar10/splitnet_wide_resnet28_10_s4.yaml", [*TASKS["cotraining"], "--warmup-epochs", "0"]),
        ("cifar100/splitnet_wide_resnet28_10_s1.yaml", [*TASKS["classification"], "--warmup-epochs", "0"]),
        (
            "imagenet/splitnet_wide_resnet50_3e_s2.yaml",
            [*TASKS["cotraining"], "--aug", "imagenet", "--warmup-epochs", "0"],
        ),
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
    schedule, _ = build_schedule(parse_config(flags).optimise, optimizer, 7)
    rates = []
    for epoch in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1])


def test_a_schedule_on_updates_counts_updates_not_batches(run):
    flags = ["--sched-on-updates", "--epochs", "2", "--grad-accum-steps", "3", "--lr", "0.5"]
    assert [row["lr"] for row in run(*VIT, *flags)["epochs"]] == pytest.approx([0.5, 0.25])


def test_grey_images_train_a_model_with_one_channel(run, tmp_path):
    run("--task", "mixmo", *TASKS["mixmo"], "--in-chans", "1")
    assert reloaded(tmp_path / "run").encoders[0].weight.shape[1] == 1


def test_more_classes_than_the_data_have_are_accepted(run, tmp_path):
    run("--task", "mixmo", *TASKS["mixmo"], "--num-classes", "5")
    assert reloaded(tmp_path / "run").num_classes == 5
