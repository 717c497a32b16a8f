"""Per-sample outputs: every image once, in order, by name of the predictor, or one line."""

from itertools import chain

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from support.image_files import write_images

from timm_mix.metrics import calibration_bins, calibration_error
from timm_mix.train.data.sources import open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.corruptions import Corruption
from timm_mix.train.evaluate.outputs import (
    Network,
    PixelDataset,
    Unreadable,
    WholeBatches,
    collect,
    create_accelerator,
    create_loader,
)
from timm_mix.train.evaluate.robustness import fgsm, fgsm_scores, figures_of, sample_scores

B, K = 5, 7
CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
TO_PIXELS = create_transform("none", {**CONFIG, "mean": (0,) * 3, "std": (1,) * 3}, training=False)
SMALL = {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1, "num_classes": K}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), {"ant": 4, "bee": 3})


def _model(name="mixmo", **more):
    torch.manual_seed(0)
    kwargs = SMALL if name in ("mixmo", "splitnet") else {k: v for k, v in SMALL.items() if k != "backbone"}
    return timm.create_model(name, **{**kwargs, **more})


def _network(accelerator, name="mixmo", fold=False, **more):
    model = _model(name, **more)
    return Network(model, CONFIG, accelerator, folded=model.fold() if fold else None)


def _pixels(seed=0):
    return torch.rand(B, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "more", "names", "whole"),
    [
        ("wrn16_2", {}, ["model"], "model"),
        ("mixmo", {}, ["member_0", "member_1", "ensemble_logits", "ensemble_softmax"], "ensemble_logits"),
        (
            "splitnet",
            {"ensemble": "max"},
            ["member_0", "member_1", "ensemble_logits", "ensemble_softmax", "ensemble_max"],
            "ensemble_max",
        ),
    ],
)
def test_the_models_own_prediction_is_among_the_predictors(name, more, names, whole, accelerator):
    network = _network(accelerator, name, **more)
    assert (network.names, network.whole) == (names, whole)
    mean, std = (torch.tensor(CONFIG[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        wanted = network.model((_pixels() - mean) / std)
    found = network.predictor(network.outputs(_pixels()), whole)
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), wanted, atol=1e-6)


def test_members_ensembles_and_folded_are_what_their_names_say(accelerator):
    network = _network(accelerator, fold=True)
    outputs = network.outputs(_pixels())
    members = outputs[:, :2].double().numpy()
    assert network.names[-1] == "folded"
    assert np.array_equal(network.predictor(outputs, "member_1"), members[:, 1])
    assert np.allclose(network.predictor(outputs, "ensemble_logits"), members.mean(1))
    p = np.exp(members) / np.exp(members).sum(-1, keepdims=True)
    assert np.allclose(network.predictor(outputs, "ensemble_softmax").exp(), p.mean(1))
    folded = network.predictor(outputs, "folded")
    assert np.allclose(folded, members.mean(1), atol=1e-5)
    assert torch.equal(folded.float(), outputs[:, 2])


@pytest.mark.parametrize(("count", "batch_size", "world_size"), [(7, 3, 2), (7, 3, 5), (6, 3, 1), (1, 3, 2)])
def test_processes_share_the_batches_of_one_process(count, batch_size, world_size):
    alone = list(WholeBatches(count, batch_size, 0, 1))
    assert [*chain(*alone)] == [*range(count)]
    shares = [list(WholeBatches(count, batch_size, rank, world_size)) for rank in range(world_size)]
    assert [len(WholeBatches(count, batch_size, rank, world_size)) for rank in range(world_size)] == [*map(len, shares)]
    assert sorted(chain(*shares)) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_outputs_come_in_the_order_of_the_data_set(workers, images, accelerator):
    data = PixelDataset(open_dataset("", images, "validation"), TO_PIXELS)
    loader = create_loader(data, 3, workers, accelerator)
    levels, labels = collect(lambda pixels, _: 255 * pixels.mean((1, 2, 3)), loader, accelerator, 2, "read")
    assert levels.tolist() == pytest.approx(range(7), abs=1e-3)  # write_images numbers its images
    assert labels.tolist() == [0] * 4 + [1] * 3


def test_pixels_normalise_to_what_training_sees(images, accelerator):
    source = open_dataset("", images, "validation")
    pixels, label, index = PixelDataset(source, TO_PIXELS)[5]
    assert (label, index) == (1, 5)
    source.transform = create_transform("none", CONFIG, training=False)
    assert torch.equal(_network(accelerator).normalised(pixels[None])[0], source[5][0])


def test_a_corrupted_image_is_that_of_its_index(images):
    source = open_dataset("", images, "validation")
    clean = PixelDataset(source, TO_PIXELS)[5][0]
    corruption = Corruption("impulse_noise", 5)
    found = PixelDataset(source, TO_PIXELS, corruption=corruption)[5][0]
    wanted = corruption((255 * clean).round().to(torch.uint8).permute(1, 2, 0).numpy(), 5)
    assert torch.equal((255 * found).round(), torch.from_numpy(wanted).permute(2, 0, 1).float())
    assert not torch.equal(found, clean)


def test_grey_images_are_read_for_a_grey_network(images):
    to_pixels = create_transform("none", {**CONFIG, "mean": (0,), "std": (1,)}, training=False)
    assert PixelDataset(open_dataset("", images, "validation"), to_pixels, "L")[0][0].shape == (1, 16, 16)


@pytest.mark.parametrize("torn", [False, True])
def test_an_unreadable_image_is_named_and_not_replaced(torn, tmp_path):
    write_images(tmp_path, {"ant": 2, "bee": 2})
    file = tmp_path / "ant" / "1.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:900] if torn else b"no image")
    data = PixelDataset(open_dataset("", tmp_path, "validation"), TO_PIXELS)
    assert isinstance(data[1], Unreadable)
    assert not isinstance(data[0], Unreadable)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_line(workers, tmp_path, accelerator):
    write_images(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / "bee" / "0.png").write_bytes(b"no image")
    loader = create_loader(PixelDataset(open_dataset("", tmp_path, "validation"), TO_PIXELS), 2, workers, accelerator)
    with pytest.raises(UsageError, match=r"bee/0\.png is no image that can be read \(no .*\): replace or remove it$"):
        collect(lambda pixels, _: pixels, loader, accelerator, 2, "read")


def _raise(pixels, _):
    raise RuntimeError("expected 4 channels,\ngot 3")


STEPS = {
    "class": (lambda pixels, _: pixels, 1, "the model has 1 classes, image number 4 has label 1; give its data"),
    "not finite": (
        lambda pixels, label: torch.where(label == 1, torch.nan, 0.0),
        2,
        "the model's output for image number 4 is not finite; its weights are damaged",
    ),
    "shape": (_raise, 2, r"cannot run the model on images \[3, 16, 16\]: expected 4 channels, got 3"),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_goes_wrong_in_a_batch_is_one_line(name, images, accelerator):
    step, classes, line = STEPS[name]
    loader = create_loader(PixelDataset(open_dataset("", images, "validation"), TO_PIXELS), 3, 0, accelerator)
    with pytest.raises(UsageError, match=line):
        collect(step, loader, accelerator, classes, "read")


def test_no_image_is_one_line(accelerator):
    with pytest.raises(UsageError, match="the evaluation set holds no image; give another"):
        collect(
            lambda pixels, _: pixels, create_loader(PixelDataset([], TO_PIXELS), 3, 0, accelerator), accelerator, 2, ""
        )


def test_float16_without_a_gpu_is_one_line():
    with pytest.raises(UsageError, match="--amp-dtype float16 needs a GPU; take bfloat16 on the CPU"):
        create_accelerator(True, "float16", cpu=True)


class _Linear(torch.nn.Module):
    """Logits that are linear in the mean colour."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight.T


def test_fgsm_steps_up_the_gradient_of_a_linear_model(accelerator):
    weight = torch.randn(K, 3, generator=torch.Generator().manual_seed(1))
    network = Network(_Linear(weight), CONFIG, accelerator)
    pixels, label = _pixels(), torch.arange(B)
    kept = pixels.clone()
    mean, std = (torch.tensor(CONFIG[key]) for key in ("mean", "std"))
    p = (((pixels.mean((2, 3)) - mean) / std) @ weight.T).softmax(-1)
    p[torch.arange(B), label] -= 1
    up = (p @ weight).sign()[:, :, None, None]  # d NLL / d colour, std > 0
    for epsilon, attacked in zip((0.0, 0.03, 0.3), fgsm(network, pixels, label, (0.0, 0.03, 0.3)), strict=True):
        assert torch.allclose(attacked, (pixels + epsilon * up).clamp(0, 1))
        assert not attacked.requires_grad
    assert torch.equal(pixels, kept)


def test_an_attack_of_size_zero_changes_no_figure_and_a_larger_one_raises_the_nll(accelerator):
    network = _network(accelerator, fold=True)
    label = torch.arange(B)
    clean, scores = sample_scores(network, _pixels(), label), fgsm_scores(network, _pixels(), label, (0, 1 / 255))
    assert scores.shape == (B, 2, len(network.names), 3)
    assert torch.equal(scores[:, 0], clean)
    assert (scores[:, 1, :, 1] > clean[..., 1]).all()  # of members, ensembles and folded network alike


def test_figures_of_samples_are_means_in_the_units_they_name(accelerator):
    network = _network(accelerator)
    label = torch.tensor([0, 0, 1, 2, 6])
    figures = figures_of(sample_scores(network, _pixels(), label), network.names)
    outputs = network.outputs(_pixels())
    for name in network.names:
        logits = network.predictor(outputs, name).numpy()
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert figures[name]["top1"] == pytest.approx(100 * np.mean(p.argmax(1) == label.numpy()))
        assert figures[name]["nll"] == pytest.approx(-np.log(p[np.arange(B), label]).mean())
        bins = calibration_bins(torch.tensor(p.max(1)), torch.tensor(p.argmax(1) == label.numpy()))
        assert figures[name]["ece"] == pytest.approx(calibration_error(bins))
