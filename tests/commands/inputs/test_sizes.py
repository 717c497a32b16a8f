"""--img-size and --input-size reach the network and the images, in every script, and are remembered."""

import json

import pytest
import timm
import torch
from input_runs import CONV, NARROW, NETS, VIT

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.settings import Evaluated
from timm_mix.train.evaluate.subject import open_subject

QUICK = ("vit", "mixmo of a vit")
SOME = [net if net in QUICK else pytest.param(net, marks=pytest.mark.slow) for net in NETS]


def reloaded(scripts, name):
    return timm.create_model(f"local-dir:{scripts.out / name / 'model'}", pretrained=True)


@pytest.mark.parametrize("net", SOME)
def test_a_run_at_another_size_that_is_no_square_is_evaluated_without_flags(net, scripts):
    scripts.train("run", *NETS[net], "--input-size", "3", "32", "64")
    model = reloaded(scripts, "run")
    assert model(torch.rand(2, 3, 32, 64)).shape == (2, 2)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 64)
    figures = []
    for source in ("run/model", "run/checkpoints/last.pt"):
        results = scripts.validate(source)
        assert tuple(results["data"]["input_size"]) == (3, 32, 64)
        figures.append(results["figures"])
    assert figures[0] == figures[1]


# timm resamples position biases by its own interpolation, about which torch has two words to say
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")
@pytest.mark.parametrize("net", SOME)
def test_another_size_resamples_what_a_run_has_learnt(net, scripts):
    scripts.train("run", *NETS[net], "--img-size", "64")
    for source in ("run/model", "run/checkpoints/last.pt"):
        results = scripts.validate(source, "--input-size", "3", "64", "96")
        assert tuple(results["data"]["input_size"]) == (3, 64, 96)
    scripts.finetune("tuned", "--model", f"local-dir:{scripts.out}/run/model", "--img-size", "96")
    assert reloaded(scripts, "tuned")(torch.rand(1, 3, 96, 96)).shape == (1, 2)
    assert scripts.validate("tuned/checkpoints/last.pt")["data"]["input_size"][1:] == (96, 96)


def test_a_checkpoint_of_a_grid_that_is_no_square_is_resampled_from_that_grid(scripts):
    """2 x 8 tokens are as many as 4 x 4."""
    scripts.train("run", *NETS["vit"], "--input-size", "3", "32", "128")
    last = torch.load(scripts.out / "run/checkpoints/last.pt", weights_only=True)
    narrow = {"num_classes": 2, "img_size": (64, 64), "depth": 1, "embed_dim": 24, "num_heads": 2}
    source = timm.create_model(VIT, **{**narrow, "img_size": (32, 128)})
    source.load_state_dict(last["state_dict"])
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, (4, 4), (2, 8))
    given = Evaluated(name=VIT, checkpoint=str(scripts.out / "run/checkpoints/last.pt"), img_size=64)
    resized = open_subject(given, None).model
    assert torch.allclose(resized.pos_embed, wanted, atol=1e-6)
    assert not torch.allclose(resized.pos_embed, source.pos_embed)


def test_the_folder_of_a_run_says_its_size_to_timm_alone(scripts):
    scripts.train("run", *NETS["vit"], "--input-size", "3", "32", "64")
    config = json.loads((scripts.out / "run/model/config.json").read_text())
    assert config["model_args"]["img_size"] == [32, 64]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 64]


def test_a_resumed_run_goes_on_at_its_size(scripts):
    flags = [*NETS["mixmo of a vit"], "--img-size", "64"]
    scripts.train("run", *flags)
    with pytest.raises(UsageError, match=r"was made with img_size=64, got img_size=32"):
        scripts.train("run", *NETS["mixmo of a vit"], "--img-size", "32", "--resume", "auto")


def test_weights_of_a_file_are_fitted_to_size_and_channels(scripts, tmp_path):
    narrow = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    torch.save(timm.create_model(VIT, num_classes=2, img_size=64, **narrow).state_dict(), tmp_path / "plain.pth")
    start = ["--initial-checkpoint", str(tmp_path / "plain.pth"), "--input-size", "1", "32", "64"]
    for script in (scripts.train, scripts.finetune):
        for net in ("vit", "mixmo of a vit"):
            script(f"{script.__name__}_{net[:5]}", *NETS[net], *start)
    assert reloaded(scripts, "train_mixmo").in_chans == 1


TASKS = {
    "recursivemix": ["--task", "recursivemix"],
    "automix": ["--task", "automix"],
    "manifoldmixup": ["--task", "manifoldmixup"],
    "mixer": ["--mixer", "switch"],
    "resizemix": ["--mixer", "resizemix"],
    "timm's": ["--cutmix", "1", "--mixup", "0.2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["vit", "resnet", "swin"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_mixer_takes_images_that_are_no_squares(task, net, scripts):
    results = scripts.train("run", *NETS[net], *TASKS[task], "--input-size", "3", "64", "96")
    assert results["epochs"][-1]["train"]["loss"] > 0


def test_the_device_loader_takes_images_that_are_no_squares(scripts):
    small = ["--aug", "small", "--device-loader", "--reprob", "0.5"]
    scripts.train("run", *NETS["resnet"], *small, "--input-size", "3", "32", "64")
    assert tuple(scripts.validate("run/model")["data"]["input_size"]) == (3, 32, 64)


MISTAKES = {
    "two numbers": (["--input-size", "32", "64"], "input_size must be three numbers C H W, got 32 64"),
    "two sizes": (["--input-size", "3", "32", "64", "--img-size", "32"], "are one setting, got 32x32 and 32x64; drop"),
    "two numbers of channels": (["--input-size", "3", "32", "64", "--in-chans", "1"], "are one setting, got 1 and 3"),
    "a size of the network": (["--img-size", "32", "--model-kwargs", "img_size=64", *NARROW], "got 32x32 and 64x64"),
    "no size": (["--model-kwargs", "img_size=big", *NARROW], "must be one or two numbers >= 1, got 'big'"),
    "too small": (["--img-size", "8"], "cannot "),
}


@pytest.mark.parametrize(("flags", "line"), MISTAKES.values(), ids=MISTAKES)
def test_sizes_that_do_not_go_together_are_one_line(flags, line, scripts):
    with pytest.raises(UsageError, match=line):
        scripts.train("run", *NETS["vit"], *flags)


def test_the_images_follow_a_size_in_model_kwargs(scripts):
    flags = ["--model", "mixmo", "--model-kwargs", "backbone=test_vit", "img_size=64"]
    scripts.train("run", *flags)
    assert tuple(scripts.validate("run/model")["data"]["input_size"]) == (3, 64, 64)


def test_a_convolutional_network_is_not_told_the_size(scripts):
    scripts.train("run", "--model", "mixmo", "--model-kwargs", "backbone=resnet18", *CONV, "--img-size", "32")
    config = json.loads((scripts.out / "run/model/config.json").read_text())
    assert "img_size" not in config["model_args"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
