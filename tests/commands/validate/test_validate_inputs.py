"""validate.py: the models and checkpoints that it takes, what it leaves alone, and its answers to mistakes."""

import json
import math
import re
import shutil
import sys

import pytest
import timm
import torch
from PIL import Image
from script_runs import NAMES, SIZE, SMALL, in_a_process, scored
from validate_runs import OLD_PYPARSING, VALIDATE, WHOLE, evaluate, flags_of, on_two_processes, save_model

from timm_mix.train.checkpoints.content import VERSION, write_checkpoint
from timm_mix.train.errors import UsageError

pytestmark = [OLD_PYPARSING, pytest.mark.slow]


@pytest.mark.parametrize("name", ["wrn16_2", "splitnet"])
def test_plain_and_divided_models_are_evaluated(name, images, tmp_path, capsys):
    more = {"backbone": "wrn16_2", "split": 2, "ensemble": "max"} if name == "splitnet" else {}
    folder = save_model(tmp_path / "model", name, **more)
    content = evaluate(*flags_of(folder, images, tmp_path / "out"))
    whole = content["model"]["prediction"]
    assert whole == ("ensemble_max" if more else "model")
    assert ("diversity" in content) == bool(more)
    top1, nll = scored(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), images)
    assert content["figures"][whole]["nll"] == pytest.approx(nll, rel=1e-4)
    assert f"{top1:.2f}" in capsys.readouterr().out
    assert {"reliability.png", "members.png", "risk_coverage.png"} < {p.name for p in (tmp_path / "out").iterdir()}


@pytest.fixture
def trained(run, tmp_path):
    flags = [
        "--model",
        "mixmo",
        "--model-kwargs",
        *SMALL,
        "members=2",
        "--task",
        "mixmo",
        "--mean",
        "0.3",
        "0.4",
        "0.5",
    ]
    row = run(*flags, "--model-ema", "--model-ema-decay", "0.5")["epochs"][-1]
    return tmp_path / "run" / "checkpoints" / "last.pt", row


def _close(found, reported):
    assert found["top1"] == pytest.approx(reported["top1"])
    assert found["nll"] == pytest.approx(reported["nll"], rel=1e-5)


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_scores_as_its_training_run_reported(ema, trained, images, tmp_path):
    """The checkpoint knows its model, the model's settings and how the images were fed."""
    file, row = trained
    flags = ["--data-dir", str(images), "--workers", "0", "--cpu", "--output", str(tmp_path / "out")]
    flags = ["--model", str(file), *flags, *([] if ema else ["--no-use-ema"])]
    content = evaluate(*flags)
    assert content["data"]["mean"] == (0.3, 0.4, 0.5)
    reported = row["eval_ema" if ema else "eval"]
    for name in ("member_0", "member_1"):
        _close(content["figures"][name], reported[name])
    _close(content["figures"][WHOLE], reported["ensemble"])
    named = ["--model", "mixmo", "--checkpoint", str(file), *flags[2:]]
    assert evaluate(*named)["figures"] == content["figures"]


def test_a_run_that_held_images_back_is_evaluated_on_these(finetune, digits, tmp_path, capsys):
    """By the results.json beside the model; a model alone needs the flags."""
    flags = ["--aug", "imagenet", "--seed", "7"]
    row = finetune("mixmo", *flags, "--val-fraction", "0.25", data=digits / "train")["epochs"][-1]
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    held_back = {"fraction": 0.25, "seed": 7, "train_split": "train"}
    given = ["--val-fraction", "0.25", "--val-seed", "7"]
    for model, more in (("run/model", []), ("run/checkpoints/last.pt", []), ("alone", given)):
        where = flags_of(tmp_path / model, digits / "train", tmp_path / "out")
        content = evaluate(*where, "--aug", "imagenet", *more)
        assert (content["data"]["images"], content["data"]["held_back"]) == (9, held_back)
        _close(content["figures"][WHOLE], row["eval"]["ensemble"])
        assert "9 images, 3 classes (of a split by val_fraction 0.25, seed 7)" in capsys.readouterr().out
    where = flags_of(tmp_path / "run" / "model", digits / "train", tmp_path / "out")
    assert evaluate(*where, "--split", "train")["data"]["images"] == 27
    other = flags_of(tmp_path / "run" / "model", digits / "val", tmp_path / "out")
    assert evaluate(*other)["data"]["held_back"] is None
    with pytest.raises(UsageError, match=r"split must be one of train, .*, got 'vall'"):
        evaluate(*where, "--split", "vall")
    with pytest.raises(UsageError, match=r"val_fraction must lie between 0 and 1, got 0\.0"):
        evaluate(*where, "--val-fraction", "0")


def test_an_evaluation_may_be_repeated_but_replaces_no_training_results(trained, saved, images, tmp_path):
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(UsageError, match=r"results.json is not that of an evaluation .*: give another --output"):
        evaluate(*flags_of(saved, images, tmp_path / "run"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert evaluate(*flags_of(saved, images, tmp_path / "new"))["kind"] == "validation"
    assert evaluate(*flags_of(saved, images, tmp_path / "new"))["kind"] == "validation"


def test_an_image_that_one_process_cannot_read_ends_both_with_one_line(saved, broken_images, tmp_path):
    """The second process reads it; the first one reports it and waits for nobody."""
    done = on_two_processes(*flags_of(saved, broken_images, tmp_path / "out"))
    assert done.returncode != 0
    assert (
        len(
            re.findall(
                r"^error: .*bee/1\.png is no image that can be read \(.*\): replace or remove it$", done.stderr, re.M
            )
        )
        == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def broken_images(tmp_path_factory):
    """ant: images 0 to 2, the first batch; bee: 3 to 5, the second one, with a torn image."""
    root = tmp_path_factory.mktemp("broken")
    for name in NAMES:
        (root / "val" / name).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((SIZE, SIZE), 50).convert("RGB").save(root / "val" / name / f"{number}.png")
    file = root / "val" / "bee" / "1.png"
    file.write_bytes(file.read_bytes()[:300])
    return root


# name: (flags over those of a good run, line); {root} is a folder with the files of `material`
MISTAKES = {
    "no such model": (["--model", "mixmo_wrn99", "--pretrained"], "cannot create model 'mixmo_wrn99': Unknown model"),
    "no such folder": (["--model", "local-dir:{root}/nowhere"], "cannot create model 'local-dir:.*nowhere'"),
    "no weights": (["--model", "wrn16_2"], "wrn16_2 needs weights to evaluate: give --checkpoint"),
    "published weights that are not": (["--model", "wrn28_2", "--pretrained"], "cannot create model 'wrn28_2'"),
    "no such checkpoint": (["--model", "wrn16_2", "--checkpoint", "{root}/no.pt"], "must be a file, .*no.pt is none"),
    "torn checkpoint": (["--model", "{root}/torn.pt"], "cannot read checkpoint .*torn.pt"),
    "checkpoint of another model": (
        ["--checkpoint", "{root}/other.pt", "--model", "wrn16_2"],
        "does not fit the model",
    ),
    "two sources of weights": (
        ["--model", "wrn16_2", "--checkpoint", "a", "--initial-checkpoint", "b"],
        "weights come from --checkpoint or --initial-checkpoint, got both",
    ),
    "another number of classes": (
        ["--model", "{root}/four"],
        "same classes, local-dir:.*four has 4, the data have 3",
    ),
    "another order of classes": (["--model", "{root}/order"], "class 0 is 'cat' and 'ant'; give a --class-map"),
    "classes that the weights of a folder are not for": (
        ["--model", "{root}/four", "--num-classes", "3"],
        "local-dir:.*four are for 4 classes, the model has 3: its head would be random",
    ),
    "classes that the weights of a name are not for": (
        ["--model", "wrn16_2.mixmo_m2_digits", "--model-kwargs", "num_classes=3"],
        "mixmo_m2_digits are for 10 classes, the model has 3: its head would be random",
    ),
    "classes that published weights are not for": (
        ["--model", "mixmo_wrn16_2_m2", "--pretrained", "--num-classes", "3"],
        "are for 100 classes, the model has 3: its head would be random",
    ),
    "a config of other classes than the weights": (
        ["--model", "{root}/contradiction"],
        "contradicts itself: num_classes is 4, the network has 3 classes; save it again",
    ),
    "names of other classes": (["--model", "{root}/names"], "names has 3 classes and 2 label_names for them; save it"),
    "parts of a plain network": (
        [
            "--model",
            "splitnet",
            "--model-kwargs",
            "backbone=wrn16_2",
            "depth=10",
            "--initial-checkpoint",
            "{root}/w.pth",
        ],
        "the weights of .*w.pth have no head for splitnet; fine-tune the model first",
    ),
    "parts of a published network": (
        ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2.mixmo_m2_digits", "--pretrained"],
        "have no head for splitnet; fine-tune the model first",
    ),
    "a file of other classes": (
        [
            "--model",
            "wrn16_2",
            "--model-kwargs",
            "depth=10",
            "--initial-checkpoint",
            "{root}/w.pth",
            "--num-classes",
            "3",
        ],
        "size mismatch for fc.weight",
    ),
    "logits that are not finite": (["--model", "{root}/huge"], "the model's output for image number 0 is not finite"),
    "weights that are not finite": (["--model", "{root}/nan"], "hold values that are no numbers .heads.0.bias."),
    "empty folder": (["--data-dir", "{root}/empty"], "cannot be opened: Found 0 images"),
    "no data folder": (["--data-dir", "{root}/nowhere"], "nowhere does not exist: correct the path"),
    "no such split": (["--split", "tset"], "must hold the split 'tset', it holds train, val"),
    "one class": (["--data-dir", "{root}/one"], r"needs at least 2 classes, the data have 1 \(ant\)"),
    "one image": (["--data-dir", "{root}/single"], "needs at least 2 images, got 1; give another --split"),
    "torn image": (["--data-dir", "{broken}"], r"bee/1.png is no image that can be read \(.*\): replace or remove it"),
    "fold of a plain model": (
        ["--model", "{root}/plain", "--fold"],
        "--fold is for mixmo models, got .*plain; drop",
    ),
    "fold of probabilities": (
        ["--model", "{root}/softmax", "--fold"],
        "cannot fold .* needs ensemble='logits'",
    ),
    "corruption": (["--corruptions", "snow"], "a corruption is one of all, .*, got 'snow'"),
    "two sources of corruptions": (
        ["--corruptions", "jpeg", "--corruptions-dir", "{root}"],
        "corruptions are made by --corruptions or read by --corruptions-dir, got both",
    ),
    "no ready corruptions": (["--corruptions-dir", "{root}/empty"], "wants a folder with labels.npy"),
    "a run's folder": (
        ["--model", "{root}/of a run"],
        "wants a saved model's folder, .*of a run holds one: give .*model",
    ),
    "a split of no folder": (
        ["--dataset", "digits", "--val-fraction", "0.2"],
        "val_fraction is for a folder of images",
    ),
    "a split of a whole data set": (
        ["--val-fraction", "0.2"],
        "val holds the validation images, got --val-fraction 0.2",
    ),
    "a seed of no split": (["--val-seed", "3"], "val_seed goes with val_fraction, got 3 alone"),
    "eps": (["--eps", "-1"], r"eps must lie in \[0, 255\], got -1"),
    "batch size": (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
    "workers": (["--workers", "-1"], "workers must lie in 0..1024, got -1"),
    "unknown flag": (["--batchsize", "3"], "unrecognized arguments: --batchsize 3; see"),
    "no model": (None, "--model is missing: a saved model's folder, hf-hub:ID, a checkpoint, or a timm name"),
    "model setting": (["--model-kwargs", "depth"], "--model-kwargs takes key=value pairs, got 'depth'"),
    "float16": (["--amp", "--amp-dtype", "float16"], "--amp-dtype float16 needs a GPU"),
    "output in a file": (["--output", "{root}/torn.pt"], "cannot be made, .*torn.pt is a file: give another --output"),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory, broken_images):
    root = tmp_path_factory.mktemp("material")
    (root / "empty" / "val" / "ant").mkdir(parents=True)
    for folder, names, count in (("one", ["ant"], 2), ("single", ["ant"], 1)):
        for name in names:
            (root / folder / "val" / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (SIZE, SIZE)).save(root / folder / "val" / name / f"{number}.png")
    save_model(root / "four", classes=[*NAMES, "dog"])
    save_model(root / "order", classes=NAMES[::-1])
    save_model(root / "nan", weights=math.nan)
    save_model(root / "huge", weights=3e38)
    save_model(root / "plain", "wrn16_2")
    save_model(root / "of a run" / "model")
    for folder, said in (("contradiction", {"num_classes": 4}), ("names", {"label_names": NAMES[:2]})):
        config = json.loads((save_model(root / folder, "wrn16_2") / "config.json").read_text())
        config = {**config, "model_args": {**config["model_args"], "num_classes": 3}, **said}
        (root / folder / "config.json").write_text(json.dumps(config))
    torch.save(timm.create_model("wrn16_2", depth=10, num_classes=4).state_dict(), root / "w.pth")
    config = json.loads((save_model(root / "softmax") / "config.json").read_text())
    config["model_args"]["ensemble"] = "softmax"
    (root / "softmax" / "config.json").write_text(json.dumps(config))
    unread = ("progress", "facts", "task_states", "own_states", "optimizer", "schedule", "scaler")
    content = {**dict.fromkeys(unread), "version": VERSION, "config": {}, "state_dict": {"w": torch.zeros(3)}}
    with (root / "other.pt").open("wb") as stream:
        write_checkpoint(content, stream)
    (root / "torn.pt").write_bytes((root / "other.pt").read_bytes()[:-99])
    return root


def _mistaken(name, material, broken, saved, images):
    flags = MISTAKES[name][0]
    if flags is None:
        return []
    flags = [flag.format(root=material, broken=broken) for flag in flags]
    return [*flags_of(saved, images, material / "out"), *flags]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(name, material, broken_images, saved, images):
    with pytest.raises(UsageError, match=MISTAKES[name][1]) as caught:
        evaluate(*_mistaken(name, material, broken_images, saved, images))
    assert "\n" not in str(caught.value)
    assert not (material / "out").exists()


def test_the_script_itself_ends_with_one_line_and_status_two(material, broken_images, saved, images):
    flags = _mistaken("torn image", material, broken_images, saved, images)
    done = in_a_process([sys.executable, str(VALIDATE), *flags])
    assert done.returncode == 2, done.stderr
    assert "is no image that can be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
