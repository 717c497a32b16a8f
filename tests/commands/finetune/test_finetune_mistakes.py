"""finetune.py answers every mistake in data, model or flags with one line, and writes nothing."""

import json
import re
import shutil
import sys

import pytest
import timm
from finetune_runs import NAMES, NET
from PIL import Image
from script_runs import SCRIPT, in_a_process

from timm_mix.hub import save_pretrained
from timm_mix.train.errors import UsageError


@pytest.fixture(scope="session")
def material(tmp_path_factory, digits):
    """What is wrong with images and models."""
    root = tmp_path_factory.mktemp("wrong")
    for name, counts in {"one class": (1, 0), "hole": (3, 1)}.items():
        for split in ("train", "val"):
            for i in range(counts[0]):
                folder = root / name / split / NAMES[i]
                folder.mkdir(parents=True)
                if not (split == "train" and i == counts[1] and i > 0):
                    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (root / "empty" / "train" / "ant").mkdir(parents=True)
    (root / "corrupt").mkdir()
    for split in ("train", "val"):
        (root / "corrupt" / split).symlink_to(digits / split)
    (root / "corrupt" / "train").unlink()
    shutil.copytree(digits / "train", root / "corrupt" / "train")
    (root / "corrupt" / "train" / "seven" / "bad.jpg").write_bytes(b"JFIF")
    for name in ("no model", "torn", "stranger", "run/model"):
        (root / name).mkdir(parents=True)
    torn = timm.create_model("wrn16_2", num_classes=3, **NET)
    save_pretrained(torn, root / "torn")
    save_pretrained(torn, root / "run" / "model")
    weights = root / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (root / "stranger" / "config.json").write_text('{"architecture": "resnet9000"}')
    (root / "bare").mkdir()
    (root / "bare" / "config.json").write_text((root / "torn" / "config.json").read_text())
    (root / "no json").mkdir()
    (root / "no json" / "config.json").write_text("{")
    save_pretrained(timm.create_model("wrn16_2", num_classes=3, in_chans=5, **NET), root / "five channels")
    for name, said in {"four": {"num_classes": 4}, "two names": {"label_names": NAMES[:2]}}.items():
        config = json.loads((save_pretrained(torn, root / name) / "config.json").read_text())
        (root / name / "config.json").write_text(json.dumps({**config, **said}))
    return root


MISTAKES = {
    "no model": (["--model", ""], "--model is missing: a model's name, local-dir:FOLDER or hf-hub:ORG/NAME"),
    "unknown name": (["--model", "resnet9000"], "no model is named 'resnet9000': see timm.list_models()"),
    "unknown tag": (["--model", "resnet18.mine"], "cannot create model 'resnet18.mine': .*mine"),
    "unknown source": (["--model", "ftp:me"], "cannot find model 'ftp:me': "),
    "no folder": (["--model", "local-dir:{root}/nowhere"], "wants a folder saved by .*nowhere is not there"),
    "a file": (["--model", "local-dir:{root}/torn/config.json"], "wants a folder saved by .*config.json is a file"),
    "no saved model": (
        ["--model", "local-dir:{root}/no model"],
        "wants a folder .*no model has no config.json$",
    ),
    "a run's folder": (["--model", "local-dir:{root}/run"], "has no config.json; did you mean local-dir:.*/run/model"),
    "a bare path": (["--model", "{root}/torn"], "did you mean local-dir:.*/torn"),
    "a bare run": (["--model", "{root}/run"], "did you mean local-dir:.*/run/model?"),
    "a checkpoint": (["--model", "{root}/torn/config.json"], "wants a name, .*config.json is a file; weights are for"),
    "no classifier": (["--model-kwargs", "features_only=True"], "features_only makes no classifier of .*; drop it"),
    "another's config": (["--model", "local-dir:{root}/stranger"], "cannot create model .*Unknown model .resnet9000"),
    "a torn config": (["--model", "local-dir:{root}/no json"], "cannot create model .*: "),
    "torn weights": (["--model", "local-dir:{root}/torn"], "cannot create model .*: "),
    "no weights": (["--model", "local-dir:{root}/bare"], "cannot create model .*: "),
    "weights of other classes than the config": (
        ["--model", "local-dir:{root}/four"],
        "model.safetensors does not fit its config.json: size mismatch for fc",
    ),
    "names of other classes": (
        ["--model", "local-dir:{root}/two names", "--keep-head"],
        "keep_head needs a name for each class, local-dir:.*two names has 2 names: drop it",
    ),
    "five channels": (
        ["--in-chans", "5"],
        "32 x 32 x 3, the network takes 5 channels",
    ),
    "a model of five channels": (
        ["--model", "local-dir:{root}/five channels"],
        "32 x 32 x 3, the network takes 5 channels",
    ),
    "a size that is too small": (
        ["--model", "mixmo", "--model-kwargs", "backbone=densenet121", "--no-pretrained", "--img-size", "8"],
        r"cannot run mixmo on images of 3 x 8 x 8 \(see --img-size, --input-size\): ",
    ),
    "no data": (["--data-dir", "{root}/nowhere"], "--data-dir wants a folder of images, .*nowhere is not there"),
    "no images": (["--data-dir", "{root}/empty"], "no folder of validation images|must hold one folder of images"),
    "one class": (["--data-dir", "{root}/one class"], "must hold at least two classes, it holds 'one' alone"),
    "a class without training images": (
        ["--data-dir", "{root}/hole"],
        "training images, 'seven' in .*hole/train",
    ),
    "a corrupt image": (["--data-dir", "{root}/corrupt"], "train/seven/bad.jpg is no image that can be read"),
    "too many held back": (["--val-fraction", "2"], "val_fraction must lie between 0 and 1, got 2.0"),
    "val_fraction of no folder": (["--dataset", "digits", "--val-fraction", "0.1"], "val_fraction is for a folder of"),
    "number of classes": (["--num-classes", "7"], "the data have 3 classes, got --num-classes 7; drop it"),
    "too many stages": (["--freeze", "9"], "freeze takes 1 to 4 stages of this model or backbone, got 9"),
    "no stages": (["--freeze", "0"], "freeze takes a number of stages >= 1 or backbone, got '0'"),
    "unknown stages": (["--freeze", "stem"], "freeze takes a number of stages >= 1 or backbone, got 'stem'"),
    "frozen twice": (["--freeze", "1", "--linear-probe"], "linear_probe freezes the whole backbone, got freeze=1"),
    "a probe with dropout": (["--linear-probe", "--drop", "0.5"], "the features of evaluation mode, got drop"),
    "layer decay": (["--layer-decay", "1.5"], r"layer_decay must lie in \(0, 1\], got 1.5"),
    "layer decay without a schedule": (["--layer-decay", "0.5", "--sched", "none"], "take --sched constant"),
    "settings of no task": (["--mix", "prob=1"], "task classification has no settings, got mix: prob"),
    "unknown flag": (["--frieze", "1"], "unrecognized arguments: --frieze 1"),
    "an odd batch with mixup": (
        ["--mixup", "1", "--batch-size", "5"],
        "need an even batch_size, got 5",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(name, finetune, material, tmp_path):
    flags, line = MISTAKES[name]
    with pytest.raises(UsageError, match=line) as caught:
        finetune("mixmo", *(flag.format(root=material) for flag in flags))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_the_script_a_mistake_is_one_line_and_status_two(sources, material):
    command = [sys.executable, str(SCRIPT.with_name("finetune.py")), "--cpu", "--workers", "0"]
    done = in_a_process(
        [*command, "--model", f"local-dir:{sources / 'mixmo'}", "--data-dir", str(material / "corrupt")]
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*bad.jpg is no image that can be read \(.*\): replace or remove it\n", done.stderr)
