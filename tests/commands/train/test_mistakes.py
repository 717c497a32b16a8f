"""train.py answers every mistake with one line on stderr and status 2, and writes nothing."""

import json
import re
import sys

import pytest
import torch
from PIL import Image
from script_runs import SCRIPT, SIZE, in_a_process

from timm_mix.train.checkpoints.content import VERSION, write_checkpoint
from timm_mix.train.settings.config import parse_config

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
    "one split twice": (["--val-split", "train"], "must be different images, both have"),
    "one class": (["--data-dir", "{root}/single"], "the data must have at least two classes, got 1"),
    "a class without images": (["--data-dir", "{root}/hole"], "every class needs training images, 'bee' in .*has none"),
    "no classifier": (["--model-kwargs", "features_only=True"], "features_only makes no classifier of mixmo; drop it"),
    "two means": (["--mean", "0.1", "0.2"], "mean must be one number, or 3 for the channels, got 2"),
    "a rate that is none": (["--lr", "nan"], "lr must be >= 0 and finite in float32, got nan"),
    "a huge seed": (["--seed", "9" * 30], r"seed must lie in \[0, 2\*\*63\), got 99"),
    "an output that cannot be written": (
        ["--output", "/proc"],
        "cannot write to /proc/mixmo .*: give another",
    ),
    "a checkpoint that is none": (["--resume", "{root}/key.yaml"], r"key.yaml \(no whole zip archive\); it is torn or"),
    "too few classes": (["--num-classes", "2"], "the data have 3 classes, got --num-classes 2"),
    "batch too large": (["--batch-size", "37"], "one step needs 37 distinct images .* the dataset has 36"),
    "odd repeats": (["--batch-repeats", "3"], r"batch_size must be a multiple of repeats \(3\), got 8"),
    "workers": (["--workers", "-1"], "workers must lie in 0..1024, got -1"),
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
    "nothing to end": (
        ["--task", "classification", "--mixup-off-epoch", "1"],
        "mixup_off_epoch ends what a task, mixer, mixup or cutmix mixes, got none; drop it",
    ),
    "two ends": (
        ["--mixup-off-epoch", "1", "--mix", "off_epoch=2"],
        "mixup_off_epoch and off_epoch of mix say the same",
    ),
    "negative end": (["--mixup-off-epoch", "-1"], "mixup_off_epoch must be >= 0, got -1"),
    "an end of no mixup": (
        [*COTRAINING, "--mixup-off-epoch", "1"],
        "cannot create task 'cotraining': off_epoch=1 ends the mixup of the views, which is 0",
    ),
    "negative penalty": (["--l2-penalty", "-1"], "l2_penalty must be >= 0 and finite in float32, got -1"),
    "views for mixmo": (["--views", "2"], "views"),
    "views of no part": ([*COTRAINING, "--views", "3"], "views"),
    "no views": ([*COTRAINING, "--views", "0"], "views must be .* 1, got 0"),
    "a part of no splitnet": (
        ["--task", "cotraining", "--mix", "weight=1", "--member-parallel"],
        r"member_parallel puts a part of a splitnet_\* model on each process, got mixmo",
    ),
    "parts on one process": (
        [*COTRAINING, "--member-parallel"],
        "cannot train member-parallel: .* 2 parts need a multiple of 2 processes, got 1: start 2",
    ),
    "parts of another task": (["--member-parallel"], "member_parallel is for task cotraining, got task mixmo; drop it"),
    "parts in float16": (
        [*COTRAINING, "--member-parallel", "--amp", "--amp-dtype", "float16"],
        "member_parallel needs amp_dtype bfloat16, got float16",
    ),
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
    "negative seed": (["--seed", "-1"], r"seed must lie in \[0, 2\*\*63\), got -1"),
    "missing weights": (["--initial-checkpoint", "{root}/no.pt"], "no.pt"),
    "output in a file": (["--output", "{root}/key.yaml"], "key.yaml"),
    "missing checkpoint": (
        ["--resume", "{root}/no.pt"],
        "--resume wants a checkpoint file or auto, .*no.pt is no file",
    ),
    "torn checkpoint": (["--resume", "{root}/torn.pt"], "cannot read checkpoint .*torn.pt .*; it is torn or not ours"),
    "checkpoint of another model": (["--resume", "{root}/other.pt"], "the checkpoint does not fit this recipe"),
    "checkpoint of an older version": (["--resume", "{root}/older.pt"], "older.pt has version 1, wanted 2; start anew"),
    "checkpoint of another recipe": (
        ["--resume", "{root}/longer.pt"],
        r"longer.pt was made with epochs=7, lr=0.7, got epochs=1, lr=0.05; resume with the same, or start anew \(--exp",
    ),
    "checkpoint of two processes": (
        ["--resume", "{root}/wider.pt"],
        "was made with 2 processes, got 1 processes; resume with",
    ),
    "checkpoint of other data": (
        ["--resume", "{root}/larger.pt"],
        "was made with 37 train_images, got 36 train_images; resume with",
    ),
    "no checkpoints": (["--checkpoint-hist", "0"], "checkpoint_hist must be >= 1, got 0"),
    "checkpoint interval": (["--checkpoint-interval", "0"], "checkpoint_interval must be >= 1, got 0"),
    "unknown tracker": (["--tracker", "paper"], "tracker must be one of tensorboard, wandb, csv, got 'paper'"),
    "best weights elsewhere": (["--resume", "{root}/other.pt", "--export", "best"], "--export best needs .*best.pt"),
    "model folder in use": (["--experiment", "taken"], "taken"),
}
GOOD = ["--task", "mixmo", "--model", "mixmo", "--model-kwargs", "backbone=wrn16_2", "--mix", "prob=0.5", "--cpu"]
SETTINGS = ["--img-size", str(SIZE), "--aug", "small", "--batch-size", "8", "--epochs", "1", "--workers", "0"]
# runs every case as the script would, in one process: importing torch and timm takes longer than all of them
DRIVER = """
import json, os, sys, tempfile
from timm_mix.commands.train import main
from timm_mix.train.errors import run_script

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
    for name in ("single/train/ant", "single/val/ant", "hole/train/ant", "hole/val/ant", "hole/train/bee"):
        (root / name).mkdir(parents=True)
        if "bee" not in name:
            Image.new("RGB", (SIZE, SIZE)).save(root / name / "0.png")
    (root / "key.yaml").write_text("epoch: 3\n")
    (root / "type.yaml").write_text("epochs: many\n")
    (root / "torn.yaml").write_text("mix: {alpha: \n")
    (root / "out" / "taken" / "model").mkdir(parents=True)
    (root / "out" / "taken" / "model" / "notes.txt").write_text("mine")
    config = parse_config([*GOOD, *SETTINGS]).flat()
    own = {"task_ema": {}, "buffers": {}, "sums": {}}
    states = {"version": VERSION, "state_dict": {"w": torch.zeros(3)}, "optimizer": {}, "schedule": None}
    states |= {
        "progress": {"history": [{}]},
        "scaler": None,
        "task_states": [{}],
        "own_states": [own],
        "facts": {},
        "config": config,
    }
    torch.save({**states, "version": 1}, root / "older.pt")
    made = {
        "other": {},
        "longer": {"config": {**config, "epochs": 7, "lr": 0.7}},
        "wider": {"facts": {"processes": 2}},
        "larger": {"facts": {"train_images": 37}},
    }
    for name, changed in made.items():
        with (root / f"{name}.pt").open("wb") as stream:
            write_checkpoint({**states, **changed}, stream)
    (root / "torn.pt").write_bytes((root / "other.pt").read_bytes()[:-99])
    return root


def mistaken(name, material, images):
    flags = [flag.format(root=material) for flag in MISTAKES[name][0]]
    return [*GOOD, *SETTINGS, "--data-dir", str(images), "--output", str(material / "out"), *flags]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown model", "torn checkpoint"])
def test_the_script_itself_ends_with_one_line_and_status_two(name, material, images):
    done = in_a_process([sys.executable, str(SCRIPT), *mistaken(name, material, images)])
    assert done.returncode == 2, done.stderr
    assert_one_error(done.stderr, MISTAKES[name][1])
    assert done.stdout == ""
