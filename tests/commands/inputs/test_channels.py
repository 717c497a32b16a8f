"""Images of 1, 2, 4 and 13 channels through the scripts: bands of .npy and TIFF files, or one line."""

import numpy as np
import pytest
import timm
import torch
from input_runs import CONV, NETS, Scripts, write_images

from timm_mix.train.errors import UsageError

KINDS = {2: np.uint8, 4: np.uint16, 13: np.float32}


@pytest.fixture
def banded(request, tmp_path, scripts):
    """The scripts on images of as many channels as the test's parameter says."""
    channels = request.param
    return Scripts(write_images(tmp_path / "bands", channels, KINDS[channels]), tmp_path / "out"), channels


def reloaded(scripts, name):
    return timm.create_model(f"local-dir:{scripts.out / name / 'model'}", pretrained=True)


@pytest.mark.parametrize("banded", [13, *(pytest.param(c, marks=pytest.mark.slow) for c in (2, 4))], indirect=True)
@pytest.mark.parametrize("aug", ["imagenet", "small"])
def test_bands_are_learnt_evaluated_and_learnt_on(banded, aug):
    scripts, channels = banded
    scripts.train("run", *NETS["resnet"], "--input-size", str(channels), "32", "48", "--aug", aug, "--reprob", "0.5")
    results = scripts.validate("run/model", "--aug", aug)
    assert tuple(results["data"]["input_size"]) == (channels, 32, 48)
    assert len(results["data"]["mean"]) == channels
    assert scripts.validate("run/checkpoints/last.pt", "--robustness")["figures"] == results["figures"]
    scripts.finetune("tuned", "--model", f"local-dir:{scripts.out}/run/model")
    assert reloaded(scripts, "tuned").in_chans == channels


@pytest.mark.slow
@pytest.mark.parametrize("banded", KINDS, indirect=True)
@pytest.mark.parametrize("net", ["mixmo of a vit", "splitnet of a deit", "mixmo of a swin"])
def test_bands_are_learnt_by_networks_with_members(banded, net):
    scripts, channels = banded
    scripts.train("run", *NETS[net], "--in-chans", str(channels), "--img-size", "64")
    assert reloaded(scripts, "run")(torch.rand(1, channels, 64, 64)).shape == (1, 2)


@pytest.mark.parametrize("banded", [4], indirect=True)
def test_channels_in_model_kwargs_are_those_of_the_images(banded):
    scripts, channels = banded
    flags = ["--model", "resnet18", "--model-kwargs", *CONV, f"in_chans={channels}", "--img-size", "32"]
    scripts.train("run", *flags)
    assert reloaded(scripts, "run").in_chans == channels


def test_a_saved_grey_network_is_trained_on_in_grey_without_a_flag(scripts):
    scripts.train("run", *NETS["resnet"], "--in-chans", "1", "--img-size", "32")
    scripts.train("more", "--model", f"local-dir:{scripts.out}/run/model", "--pretrained")
    assert reloaded(scripts, "more").in_chans == 1
    assert scripts.validate("more/model")["data"]["input_size"][0] == 1


MISTAKES = {
    "other bands": (["--in-chans", "5"], "has the shape 40 x 56 x 4, the network takes 5 channels"),
    "none": ([], "an array of uint16, wanted uint8 for 1 or 3 channels"),
    "jitter": (["--in-chans", "4", "--color-jitter", "0.4"], "color_jitter is for images of 1 or 3 channels"),
    "policy": (["--in-chans", "4", "--aa", "rand-m9"], "auto_augment is for images of 1 or 3 channels"),
    "small policy": (["--in-chans", "4", "--aug", "small", "--aa", "cifar10"], "auto_augment is for images of 1 or 3"),
    "lighting": (["--in-chans", "4", "--lighting", "0.1"], "lighting is for images in colour, got 4 channels"),
    "device": (["--in-chans", "4", "--aug", "small", "--device-loader"], "device_loader keeps images of 1 or 3"),
    "mean": (
        ["--in-chans", "4", "--mean", "0.1", "0.2", "0.3"],
        "mean must be one number, or 4 for the channels, got 3",
    ),
}


@pytest.mark.parametrize("banded", [4], indirect=True)
@pytest.mark.parametrize(("flags", "line"), MISTAKES.values(), ids=MISTAKES)
def test_what_bands_cannot_have_is_one_line(banded, flags, line):
    with pytest.raises(UsageError, match=line):
        banded[0].train("run", *NETS["resnet"], "--img-size", "32", *flags)


@pytest.mark.parametrize("banded", [4], indirect=True)
def test_finetune_names_the_files_of_other_channels(banded):
    with pytest.raises(UsageError, match=r"cat/0.npy is no image .* takes 2 channels.* \(and 11 more such files\)"):
        banded[0].finetune("run", *NETS["resnet"], "--in-chans", "2", "--img-size", "32")


def test_pictures_are_no_bands(scripts):
    with pytest.raises(UsageError, match=r"png is no image .*40 x 56 x 3, the network takes 4 channels"):
        scripts.train("run", *NETS["resnet"], "--in-chans", "4", "--img-size", "32")
    with pytest.raises(UsageError, match="the digits have 1 or 3 channels, the network takes 4"):
        scripts.train("run", "--dataset", "digits", *NETS["resnet"], "--in-chans", "4", "--img-size", "32")


@pytest.mark.parametrize("banded", [4], indirect=True)
def test_corruptions_are_for_pictures(banded):
    scripts, _ = banded
    scripts.train("run", *NETS["resnet"], "--in-chans", "4", "--img-size", "32")
    with pytest.raises(UsageError, match="corruptions are for 1 or 3 channels, the model takes 4"):
        scripts.validate("run/model", "--corruptions", "jpeg")
