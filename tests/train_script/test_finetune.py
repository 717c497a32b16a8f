"""finetune.py: saved models on a folder of digits, new heads everywhere, frozen layers, a folder ready for the hub."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from script_runs import SCRIPT, TASKS, _stop, assert_equal_tensors, checkpoint, figures, in_a_process
from timm.models import group_parameters
from torch.nn import functional as F

from finetune import main
from timm_mix.hub import save_pretrained
from trainkit.digits import Digits
from trainkit.engine import Trainer
from trainkit.errors import UsageError
from trainkit.finetuning import FinetuneConfig, open_data
from trainkit.transforms import create_transform

NAMES = ["one", "seven", "three"]  # folders sort by name, not by digit
TRAIN, VALIDATION = 12, 5
NET = {"depth": 10, "widen_factor": 1}
SOURCES = {
    "plain": ("wrn16_2", {}),
    "mixmo": ("mixmo", {"backbone": "wrn16_2", "members": 2}),
    "splitnet": ("splitnet", {"backbone": "wrn16_2", "split": 2, "divide": False}),
    "other classes": ("mixmo", {"backbone": "wrn16_2", "members": 2}),
}
NO_STEP = ["--lr", "0", "--warmup-epochs", "0"]
FEED = {"input_size": (3, 24, 24), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.75}


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """train/ with 12 and val/ with 5 scans of each of three digits."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", TRAIN), ("val", VALIDATION)):
        scans = Digits(split)
        for name, digit in zip(NAMES, (1, 7, 3), strict=True):
            (root / split / name).mkdir(parents=True)
            for number in np.flatnonzero(scans.targets == digit)[:count]:
                scans[number][0].save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Saved models, with three classes of their own or with seven, fed in a way of their own."""
    root = tmp_path_factory.mktemp("sources")
    for seed, (name, (architecture, kwargs)) in enumerate(SOURCES.items()):
        torch.manual_seed(seed)
        count = 7 if name == "other classes" else 3
        model = timm.create_model(architecture, num_classes=count, **NET, **kwargs)
        labels = [f"old {i}" for i in range(count)]
        save_pretrained(model, root / name, label_names=labels, data_config=FEED)
        if name == "mixmo":
            save_pretrained(model.fold(), root / "folded", label_names=labels, data_config=FEED)
    return root


@pytest.fixture
def finetune(digits, sources, tmp_path):
    """Run main on the digits from a saved model."""

    def start(source, *flags, name="run", data=digits):
        where = ["--model", f"local-dir:{sources / source}", "--data-dir", str(data), "--workers", "0", "--cpu"]
        place = ["--output", str(tmp_path), "--experiment", name]
        try:
            return main([*where, *place, "--batch-size", "6", "--epochs", "1", "--lr", "0.05", *flags])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return start


def loaded(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def head_names(model):
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return {name for name, p in model.named_parameters() if any(p is q for head in heads for q in head.parameters())}


@pytest.mark.parametrize("source", ["plain", "folded", "mixmo", "splitnet", "other classes"])
def test_a_saved_model_learns_new_classes_and_the_result_loads(source, finetune, sources, digits, tmp_path, capsys):
    results = finetune(source)
    folder = tmp_path / "run" / "model"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"import timm, timm_mix; model = timm.create_model('local-dir:{folder}', pretrained=True)"
    )
    model, config = loaded(folder), config_of(folder)
    assert config["label_names"] == NAMES
    assert model.pretrained_cfg["label_names"] == NAMES
    assert "old" not in json.dumps(config)
    assert model.num_classes == 3
    assert all(model.get_parameter(name).shape[0] == 3 for name in head_names(model))
    for key, value in FEED.items():  # fed as the source was
        assert config["pretrained_cfg"][key] == pytest.approx(list(value) if isinstance(value, tuple) else value)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last"] == results["last"]
    assert results["config"]["freeze"] is None
    hits, count = 0, 0
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    for label, name in enumerate(NAMES):
        for file in sorted((digits / "val" / name).iterdir()):
            hits += int(model(transform(_opened(file))[None]).argmax()) == label
            count += 1
    assert results["last"]["ensemble"]["top1"] == pytest.approx(100 * hits / count)


def _opened(file):
    with Image.open(file) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("source", ["plain", "mixmo", "splitnet", "other classes"])
def test_without_a_step_the_body_is_the_sources_and_every_head_is_new(source, finetune, sources, tmp_path):
    finetune(source, *NO_STEP, "--freeze", "backbone")
    old, new = loaded(sources / source).state_dict(), loaded(tmp_path / "run" / "model")
    heads = head_names(new)
    assert len(heads) == 2 * getattr(new, "num_members", 1)
    for name, value in new.state_dict().items():
        same = old[name].shape == value.shape and torch.equal(old[name], value)
        assert same == (name not in heads), name
    weights = [new.get_parameter(name) for name in sorted(heads) if name.endswith("weight")]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize("source", ["plain", "mixmo", "splitnet"])
@pytest.mark.parametrize("flags", [["--freeze", "backbone"], ["--linear-probe"], ["--freeze", "2"]])
def test_what_is_frozen_stays_through_training(source, flags, finetune, sources, tmp_path):
    finetune(source, *flags, "--model-ema", "--epochs", "2", "--weight-decay", "0.5")
    old, model = loaded(sources / source).state_dict(), loaded(tmp_path / "run" / "model")
    stage_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    learned = {name for name, stage in stage_of.items() if stage >= 2} if "2" in flags else head_names(model)
    for key in ("state_dict", "state_dict_ema"):
        for name, value in checkpoint(tmp_path / "run")[key].items():
            gathered = name.replace("running_mean", "weight").replace("running_var", "weight")
            gathered = gathered.replace("num_batches_tracked", "weight")  # statistics go with their norm
            if not (key.endswith("ema") and "num_batches" in name):
                assert torch.equal(value, old[name]) == (gathered not in learned), (key, name)


def test_kept_heads_go_on_where_they_were(finetune, sources, digits, tmp_path):
    model = loaded(sources / "mixmo")
    save_pretrained(model, tmp_path / "same", label_names=NAMES, data_config=FEED)
    finetune("mixmo", "--model", f"local-dir:{tmp_path / 'same'}", "--keep-head", *NO_STEP, "--freeze", "backbone")
    assert_equal_tensors(loaded(tmp_path / "run" / "model").state_dict(), model.state_dict())


def test_heads_of_other_classes_cannot_be_kept(finetune):
    with pytest.raises(UsageError, match=r"keep_head needs the classes of .*, got 'one' for 'old 0': drop it"):
        finetune("mixmo", "--keep-head")
    with pytest.raises(UsageError, match=r"keep_head needs the 7 classes of .*, got 3: drop it"):
        finetune("other classes", "--keep-head")
    with pytest.raises(UsageError, match="keep_head needs weights, wrn16_2 starts from random ones: drop it"):
        finetune("plain", "--model", "wrn16_2", "--keep-head")


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("mixmo", ["--task", "mixmo", "--mix", "prob=0.5"]),
        ("splitnet", ["--task", "cotraining", "--mix", "weight=0.1"]),
    ],
)
def test_the_methods_own_tasks_fine_tune_too(source, flags, finetune, tmp_path):
    results = finetune(source, *flags)
    assert set(results["epochs"][0]["train"]) >= {"loss", "ce"}
    assert config_of(tmp_path / "run" / "model")["label_names"] == NAMES


@pytest.mark.parametrize("source", ["mixmo", "splitnet"])
def test_plain_fine_tuning_reports_the_mean_of_the_members_losses(source, finetune, sources, digits, tmp_path):
    """At a learning rate of 0 the loss of an epoch is that of the first weights; smoothing and mixing off."""
    flags = [*NO_STEP, "--linear-probe", "--aug", "none", "--batch-size", "36", "--smoothing", "0"]
    loss = finetune(source, *flags)["epochs"][0]["train"]["loss"]
    model = loaded(tmp_path / "run" / "model")
    config = timm.data.resolve_data_config({}, model=model)
    transform = create_transform("none", config, training=False)
    files = [file for name in NAMES for file in sorted((digits / "train" / name).iterdir())]
    target = torch.tensor([NAMES.index(file.parent.name) for file in files])
    logits = model(torch.stack([transform(_opened(file)) for file in files]), return_members=True)
    losses = [F.cross_entropy(logits[:, i], target).item() for i in range(2)]
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_smoothing_mixup_averaging_precision_and_layer_decay_are_those_of_training(finetune):
    flags = ["--mixup", "0.2", "--cutmix", "1", "--model-ema", "--amp", "--layer-decay", "0.7", "--clip-grad", "1"]
    results = finetune("mixmo", *flags, "--opt", "momentum", "--channels-last", "--aug", "small")
    assert {"eval", "eval_ema"} < set(results["epochs"][0])
    assert results["config"]["smoothing"] == 0.1
    assert results["config"]["opt"] == "momentum"


@pytest.mark.parametrize("place", ["after an epoch", "in an epoch"])
def test_a_resumed_fine_tuning_ends_like_an_uninterrupted_one(place, finetune, monkeypatch, tmp_path):
    flags = ["--epochs", "3", "--freeze", "1", "--layer-decay", "0.8", "--model-ema", "--model-ema-decay", "0.9"]
    flags += ["--resume", "auto"]
    whole = finetune("mixmo", *flags, name="whole")
    update = Trainer._update

    def until(trainer, group, number):
        return _stop() if number == 7 else update(trainer, group, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, *(("_report", _stop) if place == "after an epoch" else ("_update", until)))
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            finetune("mixmo", *flags)
    assert not (tmp_path / "run" / "model").exists()
    results = finetune("mixmo", *flags)
    assert [figures(row) for row in results["epochs"]] == [figures(row) for row in whole["epochs"]]
    assert_equal_tensors(*(loaded(tmp_path / name / "model").state_dict() for name in ("whole", "run")))


def test_a_run_resumed_with_other_frozen_stages_is_refused(finetune):
    finetune("mixmo", "--freeze", "1")
    with pytest.raises(UsageError, match=r"was made with freeze=1, got freeze=2; resume with the same, or start anew"):
        finetune("mixmo", "--freeze", "2", "--resume", "auto")
    finetune("mixmo", "--freeze", "1", "--resume", "auto", "--no-check-images")


def test_images_of_a_folder_may_be_held_in_memory(finetune):
    results = finetune("mixmo", "--device-loader", "--aug", "small")
    assert results["data"] == {"train_images": 36, "validation_images": 15, "classes": 3}


def test_a_name_without_weights_starts_from_random_ones_and_says_so(finetune, tmp_path, capsys):
    results = finetune("plain", *TASKS["classification"], "--img-size", "16")
    assert "wrn16_2 from random weights" in capsys.readouterr().out
    assert results["config"]["pretrained"] is False
    assert config_of(tmp_path / "run" / "model")["pretrained_cfg"]["input_size"] == [3, 16, 16]


def test_one_folder_of_classes_is_split(finetune, digits):
    results = finetune("plain", "--val-fraction", "0.25", data=digits / "train")
    assert results["data"] == {"train_images": 27, "validation_images": 9, "classes": 3}


def test_networks_of_one_channel_get_grey_images(finetune, tmp_path):
    model = timm.create_model("wrn16_2", num_classes=3, in_chans=1, **NET)
    grey = {"input_size": (1, 24, 24), "mean": (0.3,), "std": (0.2,)}
    save_pretrained(model, tmp_path / "grey", label_names=NAMES, data_config=grey)
    finetune("plain", "--model", f"local-dir:{tmp_path / 'grey'}")
    assert config_of(tmp_path / "run" / "model")["pretrained_cfg"]["mean"] == pytest.approx([0.3])
    finetune("mixmo", "--in-chans", "1", name="adapted")
    assert loaded(tmp_path / "adapted" / "model").encoders[1].weight.shape[1] == 1


def test_images_of_one_pixel_and_of_odd_shapes_train(finetune, tmp_path):
    for split in ("train", "val"):
        for name in NAMES:
            (tmp_path / "tiny" / split / name).mkdir(parents=True)
            for number, size in enumerate([(1, 1), (2, 300), (300, 2), (3, 5)]):
                Image.new("L", size, 9 * number).save(tmp_path / "tiny" / split / name / f"{number}.PNG", "PNG")
    for aug in ("imagenet", "small"):
        assert finetune("mixmo", "--aug", aug, data=tmp_path / "tiny")["data"]["train_images"] == 12


def test_a_model_with_a_fixed_size_takes_another_one_and_keeps_it(finetune, tmp_path):
    results = finetune("plain", "--model", "test_vit", "--no-pretrained", "--img-size", "48")
    assert results["config"]["model_kwargs"] == {"img_size": [48, 48]}
    assert config_of(tmp_path / "run" / "model")["pretrained_cfg"]["input_size"] == [3, 48, 48]
    model = loaded(tmp_path / "run" / "model")
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    finetune("plain", "--model", f"local-dir:{tmp_path / 'run' / 'model'}", "--img-size", "32", name="smaller")
    assert loaded(tmp_path / "smaller" / "model")(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_recipe_may_hold_the_settings_of_fine_tuning(finetune, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("freeze: backbone\nlr: 1.0e-3\nsmoothing: 0.2\n")
    config = finetune("plain", "--config", str(recipe), "--lr", "0.01")["config"]
    assert (config["freeze"], config["lr"], config["smoothing"]) == ("backbone", 0.01, 0.2)


def test_the_run_is_named_after_model_and_data(finetune, sources, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ["--model", f"local-dir:{sources / 'plain'}", "--data-dir", str(digits), "--workers", "0", "--cpu"]
    main([*where, "--epochs", "1", "--batch-size", "6"])
    assert (tmp_path / "output" / f"plain_on_{digits.name}" / "results.json").is_file()


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
    "another's config": (["--model", "local-dir:{root}/stranger"], "cannot create model .*Unknown model .resnet9000"),
    "a torn config": (["--model", "local-dir:{root}/no json"], "cannot create model .*: "),
    "torn weights": (["--model", "local-dir:{root}/torn"], "cannot create model .*: "),
    "no weights": (["--model", "local-dir:{root}/bare"], "cannot create model .*: "),
    "five channels": (["--in-chans", "5"], "images have 1 or 3 channels, --in-chans asks for 5: give --in-chans 3"),
    "a model of five channels": (
        ["--model", "local-dir:{root}/five channels"],
        "images have 1 or 3 channels, local-dir:.* asks for 5: give --in-chans 3",
    ),
    "a size that is too small": (
        ["--model", "mixmo", "--model-kwargs", "backbone=densenet121", "--img-size", "8"],
        r"cannot run mixmo on images of 8 pixels \(see --img-size\): ",
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


def test_from_the_script_a_mistake_is_one_line_and_status_two(sources, material):
    command = [sys.executable, str(SCRIPT.with_name("finetune.py")), "--cpu", "--workers", "0"]
    done = in_a_process(
        [*command, "--model", f"local-dir:{sources / 'mixmo'}", "--data-dir", str(material / "corrupt")]
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*bad.jpg is no image that can be read \(.*\): replace or remove it\n", done.stderr)


def test_the_defaults_stand_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for setting in ("--epochs EPOCHS (default: 10)", "--opt OPT (default: adamw)", "--lr LR (default: 0.0005)"):
        assert setting in told
    assert "--warmup-epochs WARMUP_EPOCHS (default: 1)" in told
    assert "mean of their members' losses" in told


def test_data_sets_that_are_no_folders_are_taken():
    data = open_data(FinetuneConfig(model="wrn16_2", dataset="digits"))
    assert (len(data.train), len(data.validation), data.num_classes) == (1437, 360, 10)
