"""The pictures of RecursiveMix's chain and AutoMix's masks: what is drawn is what the methods do."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_mix
from draw_automix import load_task, masks_of
from draw_automix import main as draw_automix
from draw_recursivemix import chain_of
from draw_recursivemix import main as draw_recursivemix
from timm_mix.lab.pictures.mix_plots import _nested
from timm_mix.train.checkpoints.content import VERSION, collect, read_checkpoint, write_checkpoint
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.config import Config

pytestmark = pytest.mark.slow

SMALL = {"model": "wrn16_2", "model_kwargs": {"depth": 10, "widen_factor": 1}, "dataset": "digits"}


@pytest.fixture
def chain():
    images = torch.rand(5, 2, 3, 40, 56)
    return chain_of(images, 1.0, "nearest", rng=np.random.default_rng(3)), images


def test_the_shares_of_a_chain_are_products_of_its_lams(chain):
    steps, _ = chain
    assert any(step.lam < 0.9 for step in steps)
    wanted = [1.0, 0, 0, 0, 0]
    for t, step in enumerate(steps[1:], 1):
        wanted = [step.lam * (i == t) + (1 - step.lam) * share for i, share in enumerate(wanted)]
        assert step.shares.tolist() == pytest.approx(wanted)


def test_outside_the_box_of_a_step_is_its_new_image(chain):
    steps, images = chain
    assert torch.equal(steps[0].mixed, images[0])
    for step, image in zip(steps, images, strict=True):
        top, bottom, left, right = step.box
        inside = torch.zeros(40, 56, dtype=torch.bool)
        inside[top:bottom, left:right] = step.lam < 1
        assert torch.equal(step.mixed[..., ~inside], image[..., ~inside])
        assert inside.float().mean() == pytest.approx(1 - step.lam)


def test_the_outlines_lie_where_the_earlier_inputs_are():
    """Each step shows one grey; a pixel's grey says which step it came in at."""
    greys = (torch.arange(4) / 8).view(4, 1, 1, 1, 1).expand(4, 1, 3, 256, 192)
    steps = chain_of(greys, 1.0, "nearest", rng=np.random.default_rng(7))
    outlines = _nested(steps, (256, 192))
    assert len(outlines) == 3
    wanted = torch.full((256, 192), 3)
    for source, (top, bottom, left, right) in outlines:
        wanted[round(top) : round(bottom), round(left) : round(right)] = source
    assert ((steps[-1].mixed[0, 0] * 8).round() == wanted).float().mean() > 0.99  # but for rounded edges


def test_nothing_is_outlined_behind_a_step_without_history(chain):
    steps, _ = chain
    whole = dataclasses.replace(steps[2], lam=1.0)
    assert [source for source, _ in _nested([*steps[:2], whole, steps[3]], (40, 56))] == [2]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_chain_is_drawn_from_real_images(tmp_path):
    arguments = ["--dataset", "digits", "--img-size", "16", "--steps", "3", "--places", "1"]
    for name, seed in (("a.png", "0"), ("b.png", "0"), ("c.png", "1")):
        draw_recursivemix([*arguments, "--seed", seed, "--output", str(tmp_path / name)])
    first, again, other = (pixels(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    assert first.std() > 10
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "1"], "--steps must be >= 2, --places >= 1, --img-size >= 8 and --seed >= 0, got 1, 2, 64 and 2"),
        (["--places", "999"], r"the picture needs 5994 validation images that can be picked, got \d+; ask for fewer"),
        (["--alpha", "2"], r"cannot draw the chain: alpha must be in \(0, 1\], got 2.0"),
    ],
)
def test_a_mistake_with_the_chain_is_one_line(tmp_path, arguments, line):
    with pytest.raises(UsageError, match=line):
        draw_recursivemix(["--dataset", "digits", "--output", str(tmp_path / "x.png"), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    """Of an AutoMix run that has not begun, its Mix Block's weights enlarged so that the masks are no flat grey."""

    def write(task="automix", **mix):
        mix = {"reduction": 2, **mix} if task == "automix" else {}
        config = Config.of(**SMALL, task=task, mix=mix, epochs=7)
        model = timm.create_model(config.model.name, num_classes=10, **config.model.model_kwargs)
        made = timm_mix.create_task("automix", model, num_classes=10, reduction=2, verbose=False)
        block = made.get_trainable_module().block
        torch.nn.init.normal_(block.value.weight)
        optimizer = torch.optim.SGD(made.get_trainable_module().parameters(), lr=0.1)
        about = {"config": config.flat(), "progress": {"epoch": 1}, "facts": {}, "version": VERSION}
        path = tmp_path / "last.pt"
        with path.open("w+b") as stream:
            write_checkpoint({**collect(made, optimizer, None, None, {}), **about}, stream)
        return path, made

    return write


def test_the_masks_are_those_of_the_checkpoints_mix_block(checkpoint):
    path, made = checkpoint()
    task = load_task(read_checkpoint(path), 10)
    made.follower.eval()
    images, partners = torch.rand(5, 3, 32, 32), np.array([3, 0, 4, 1, 2])
    for lam in (0.0, 0.3):
        masks = masks_of(task, images, partners, lam)
        with torch.no_grad():
            block = made.get_trainable_module().block
            wanted = block(made._features(images), torch.from_numpy(partners), lam, (32, 32))
        assert torch.equal(masks, wanted)
        torch.testing.assert_close(masks.sum(1), torch.ones(5, 1, 32, 32))
        assert masks.std() > 0.01


def test_masks_are_drawn_from_a_checkpoint(checkpoint, tmp_path):
    path, _ = checkpoint()
    draw_automix(["--resume", str(path), "--pairs", "2", "--output", str(tmp_path / "x.png")])
    assert pixels(tmp_path / "x.png").std() > 10


@pytest.mark.parametrize(
    ("task", "mix", "arguments", "line"),
    [
        ("recursivemix", {}, [], "--resume wants a checkpoint of task automix, got task recursivemix"),
        ("automix", {"reduction": 4}, [], "cannot load the checkpoint: .*size mismatch"),
        ("automix", {}, ["--pairs", "0"], "--pairs must be >= 1 and --seed >= 0, got 0 and 0"),
        ("automix", {}, ["--pairs", "999"], r"needs 1998 validation images that can be picked, got \d+; ask for fewer"),
        ("automix", {}, ["--dataset", "torch/none"], "torch/none"),
    ],
)
def test_a_mistake_with_the_masks_is_one_line(checkpoint, tmp_path, task, mix, arguments, line):
    path, _ = checkpoint(task, **mix)
    with pytest.raises(UsageError, match=line) as caught:
        draw_automix(["--resume", str(path), "--output", str(tmp_path / "x.png"), *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()


def test_without_a_checkpoint_the_digits_are_trained_first(checkpoint, tmp_path, monkeypatch):
    path, _ = checkpoint()
    calls = []
    monkeypatch.setattr("draw_automix.train", calls.append)
    (tmp_path / "output/wrn16_2_digits_automix/checkpoints").mkdir(parents=True)
    path.rename(tmp_path / "output/wrn16_2_digits_automix/checkpoints/last.pt")
    monkeypatch.chdir(tmp_path)
    draw_automix(["--pairs", "2", "--output", "x.png"])
    assert [call[1].rpartition("/")[2] for call in calls] == ["automix_wrn16_2.yaml"]
    assert (tmp_path / "x.png").is_file()
