"""finetune.py: saved models on a folder of digits, new heads everywhere, frozen layers, a folder ready for the hub."""

import json
import re

import pytest
import timm
import torch
from finetune_runs import FEED, NAMES, NET, loaded
from PIL import Image
from script_runs import TASKS, checkpoint, figures
from support.equality import assert_equal_tensors
from support.trainer_runs import press_ctrl_c
from timm.models import group_parameters
from torch.nn import functional as F

from timm_mix.commands.finetune import main
from timm_mix.hub import save_pretrained
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError
from timm_mix.train.finetune.plan import open_data
from timm_mix.train.finetune.settings import FinetuneConfig
from timm_mix.train.loop.trainer import Trainer

pytestmark = pytest.mark.slow

NO_STEP = ["--lr", "0", "--warmup-epochs", "0"]


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
    with pytest.raises(UsageError, match="keep_head needs weights, wrn16_4 starts from random ones: drop it"):
        finetune("plain", "--model", "wrn16_4", "--keep-head")


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
        return press_ctrl_c() if number == 7 else update(trainer, group, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, *(("_report", press_ctrl_c) if place == "after an epoch" else ("_update", until)))
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
    assert results["data"].items() >= {"train_images": 36, "validation_images": 15, "classes": 3}.items()


def test_a_name_without_weights_starts_from_random_ones_and_says_so(finetune, tmp_path, capsys):
    results = finetune("plain", *TASKS["classification"], "--model", "wrn16_4", "--img-size", "16")
    assert "wrn16_4 from random weights" in capsys.readouterr().out
    assert results["config"]["pretrained"] is False
    assert config_of(tmp_path / "run" / "model")["pretrained_cfg"]["input_size"] == [3, 16, 16]


def test_one_folder_of_classes_is_split(finetune, digits):
    results = finetune("plain", "--val-fraction", "0.25", data=digits / "train")
    assert results["data"].items() >= {"train_images": 27, "validation_images": 9, "classes": 3}.items()


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


def test_the_defaults_stand_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "mean of their members' losses" in told
    told = told.partition("data:")[2]  # the list of flags
    for flag, default in (
        ("--epochs INT", 10),
        ("--opt STR", "adamw"),
        ("--lr FLOAT", 0.0005),
        ("--warmup-epochs INT", 1),
    ):
        assert re.search(rf"{flag} (?:(?! --).)*\(default: {default}\)", told), flag


def test_data_sets_that_are_no_folders_are_taken():
    config = FinetuneConfig.of(model="wrn16_2", dataset="digits")
    data = open_data(config.data, config.model, config.finetune, config.run.seed)
    assert (len(data.train), len(data.validation), data.num_classes) == (1437, 360, 10)
