"""Several labels per image: a table, through train.py, finetune.py and validate.py to mAP and the classes' figures."""

import csv
import json
import sys

import numpy as np
import pytest
import timm
import torch
from finetune_runs import run_finetune, save_sources
from safetensors.torch import load_file
from script_runs import SCRIPT, TASKS, assert_same_run, checkpoint, fresh_accelerate, in_a_process
from sklearn.metrics import average_precision_score, f1_score
from support.trainer_runs import press_ctrl_c
from torch.nn import functional as F
from validate_runs import OLD_PYPARSING, evaluate, on_two_processes

from timm_mix.commands import train
from timm_mix.train.data.digits import Digits
from timm_mix.train.data.reading import decode
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.trainer import Trainer

pytestmark = [OLD_PYPARSING, pytest.mark.slow]

FACTS = {"even": lambda d: d % 2 == 0, "small": lambda d: d < 5, "prime": lambda d: d in (2, 3, 5, 7)}
CLASSES = sorted(FACTS)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """24 scans to train on and 12 to validate on, in one folder, with a table of what is true of each digit."""
    root = tmp_path_factory.mktemp("scans")
    lines = ["file,labels,split"]
    for split, count in (("train", 24), ("val", 12)):
        digits = Digits(split)
        for i in range(count):
            image, digit = digits[i]
            name = f"{split}_{i}.png"
            image.save(root / name)
            lines.append(f"{name},{';'.join(fact for fact, holds in FACTS.items() if holds(digit))},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def labelled(root):
    return ["--data-dir", str(root), "--labels-csv", str(root / "labels.csv")]


def run_train(root, output, *flags, task="classification"):
    kind = [] if "--mixer" in flags or task == "classification" else ["--task", task]
    how = ["--aug", "none", "--img-size", "16", "--batch-size", "8", "--workers", "0", "--cpu", "--seed", "1"]
    with fresh_accelerate():
        return train.main(
            [*TASKS[task], *kind, *labelled(root), *how, "--epochs", "1", "--output", str(output), *flags]
        )


@pytest.fixture(scope="module")
def trained(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    run_train(scans, output, "--experiment", "run", task="mixmo")
    return output / "run"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_several_labels(task, scans, tmp_path):
    run_train(scans, tmp_path, "--experiment", "run", task=task)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["multi_label"] is True
    assert results["data"]["classes"] == 3
    whole = results["last"]["ensemble"]
    assert set(whole) == {"map", "micro_f1", "macro_f1", "sample_f1", "bce", "count"}
    assert whole["count"] == 12
    assert np.isfinite(results["epochs"][0]["train"]["loss"])


MIXING = [["--mixup", "0.4"], ["--cutmix", "1"], ["--mixer", "resizemix"], ["--bce-sum", "--bce-loss"]]


@pytest.mark.parametrize("flags", MIXING)
def test_whatever_mixes_takes_several_labels(flags, scans, tmp_path):
    run_train(scans, tmp_path, "--experiment", "run", *flags, "--class-weights", "balanced")
    assert checkpoint(tmp_path / "run")["progress"]["history"][0]["eval"]["ensemble"]["count"] == 12


def test_the_loss_of_a_first_step_is_the_binary_cross_entropy(scans, tmp_path):
    run_train(scans, tmp_path, "--experiment", "run", "--lr", "0", "--batch-size", "24")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    model = timm.create_model(f"local-dir:{tmp_path}/run/model", pretrained=True).train()
    table = [line.split(",") for line in (scans / "labels.csv").read_text().splitlines()[1:25]]
    transform = create_transform("none", timm.data.resolve_data_config({}, model=model), training=False)
    images = torch.stack([transform(decode(scans / name, "RGB")) for name, _, _ in table])
    target = torch.tensor([[float(fact in labels.split(";")) for fact in CLASSES] for _, labels, _ in table])
    wanted = F.binary_cross_entropy_with_logits(model(images), target)
    assert results["epochs"][0]["train"]["loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(scans, tmp_path, monkeypatch):
    flags = ["--experiment", "run", "--mixup", "0.4", "--epochs", "2", "--class-weights", "balanced"]
    run_train(scans, tmp_path / "one", *flags)
    monkeypatch.setattr(Trainer, "_report", press_ctrl_c)  # behind the first epoch
    with pytest.raises(KeyboardInterrupt):
        run_train(scans, tmp_path / "two", *flags)
    monkeypatch.undo()
    assert checkpoint(tmp_path / "two" / "run")["progress"]["epoch"] == 1
    run_train(scans, tmp_path / "two", *flags, "--resume", "auto")
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")


def test_a_table_with_another_label_is_another_run(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_report", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_train(scans, tmp_path, "--experiment", "run", "--epochs", "2")
    monkeypatch.undo()
    other = tmp_path / "other.csv"
    first, second, *rest = (scans / "labels.csv").read_text().splitlines()
    other.write_text("\n".join([first, second.split(",")[0] + ",prime,train", *rest]) + "\n")
    flags = ["--experiment", "run", "--epochs", "2", "--resume", "auto", "--labels-csv", str(other)]
    with pytest.raises(UsageError, match="train_digest"):
        run_train(scans, tmp_path, *flags)


def test_two_processes_train_and_measure_all_images(scans, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    how = ["--aug", "none", "--img-size", "16", "--batch-size", "4", "--workers", "0", "--cpu", "--epochs", "1"]
    place = ["--output", str(tmp_path), "--experiment", "run"]
    done = in_a_process([*launch, *TASKS["classification"], *labelled(scans), *how, *place])
    assert done.returncode == 0, done.stderr
    whole = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["ensemble"]
    flags = ["--model", str(tmp_path / "run" / "model"), *labelled(scans), "--cpu", "--workers", "0", "--aug", "none"]
    evaluate(*flags, "--output", str(tmp_path / "out"))
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]["model"]
    assert measured == pytest.approx(whole, abs=1e-4)


def test_sampling_by_the_label_needs_one(scans, tmp_path):
    with pytest.raises(UsageError, match="--balanced-sampling is for one label per image"):
        run_train(scans, tmp_path, "--balanced-sampling")


def test_fine_tuning_holds_a_share_back_and_validation_measures_it(scans, tmp_path):
    sources = save_sources(tmp_path / "sources")
    table = scans / "unsplit.csv"
    rows = [line.rpartition(",")[0] for line in (scans / "labels.csv").read_text().splitlines()]
    table.write_text("\n".join(rows) + "\n")
    data = ["--labels-csv", str(table), "--val-fraction", "0.25", "--experiment", "run"]
    results = run_finetune(sources / "mixmo", scans, tmp_path, *data)
    flags = ["--model", str(tmp_path / "run" / "model"), "--data-dir", str(scans), "--cpu", "--workers", "0"]
    with pytest.raises(UsageError, match="the run held back a share of the table"):
        evaluate(*flags, "--output", str(tmp_path / "out"))
    evaluate(*flags, "--labels-csv", str(table), "--output", str(tmp_path / "out"))
    measured = json.loads((tmp_path / "out" / "results.json").read_text())
    assert measured["data"]["held_back"]["fraction"] == 0.25
    whole = results["last"]["ensemble"]
    assert measured["figures"]["ensemble_logits"]["map"] == pytest.approx(whole["map"], abs=1e-3)
    assert measured["data"]["images"] == whole["count"]


def test_figures_are_those_of_scikit_learn(scans, trained, tmp_path):
    flags = ["--model", str(trained / "model"), *labelled(scans), "--cpu", "--workers", "0", "--batch-size", "5"]
    evaluate(*flags, "--output", str(tmp_path), "--save-predictions", "--fold")
    results = json.loads((tmp_path / "results.json").read_text())
    saved = load_file(tmp_path / "predictions.safetensors")
    assert list(results["figures"]) == ["member_0", "member_1", "ensemble_logits", "folded"]
    members, target = saved["logits"][:, :2].double(), saved["target"]
    for name, z in {"member_0": members[:, 0], "ensemble_logits": members.mean(1)}.items():
        row = results["figures"][name]
        on = (z.float() >= 0).int()
        assert row["map"] == pytest.approx(100 * average_precision_score(target, z.float()), abs=1e-6)
        assert row["micro_f1"] == pytest.approx(100 * f1_score(target, on, average="micro", zero_division=0))
        assert row["macro_f1"] == pytest.approx(100 * f1_score(target, on, average="macro", zero_division=0))
        assert row["bce"] == pytest.approx(F.binary_cross_entropy_with_logits(z, target.double()).item(), rel=1e-5)
    rows = results["classes"]
    assert [row["class"] for row in rows] == CLASSES
    assert [row["images"] for row in rows] == target.sum(0).int().tolist()
    assert np.mean([row["ap"] for row in rows]) == pytest.approx(results["figures"]["ensemble_logits"]["map"], abs=1e-4)
    with (tmp_path / "classes.csv").open() as stream:
        assert [float(row["ap"]) for row in csv.DictReader(stream)] == [row["ap"] for row in rows]
    assert (tmp_path / "precision_recall.png").is_file()
    assert not (tmp_path / "reliability.png").exists()


def test_two_processes_measure_what_one_does(scans, trained, tmp_path):
    flags = ["--model", str(trained / "model"), *labelled(scans), "--cpu", "--workers", "0", "--batch-size", "5"]
    evaluate(*flags, "--output", str(tmp_path / "one"))
    done = on_two_processes(*flags, "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["figures"] == two["figures"]
    assert one["classes"] == two["classes"]


@pytest.mark.parametrize("flags", [["--robustness"], ["--corruptions", "jpeg"]])
def test_what_needs_one_label_says_so(flags, scans, trained, tmp_path):
    where = ["--model", str(trained / "model"), *labelled(scans), "--cpu", "--workers", "0"]
    with pytest.raises(UsageError, match="is for one label per image"):
        evaluate(*where, "--output", str(tmp_path), *flags)


def test_an_ensemble_of_probabilities_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match="several labels per image want an ensemble of logits"):
        run_train(scans, tmp_path, "--model-kwargs", *TASKS["mixmo"][3:-2], "ensemble=softmax", task="mixmo")
