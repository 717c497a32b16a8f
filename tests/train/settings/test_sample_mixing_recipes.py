"""The recipes of RecursiveMix, AutoMix and SAMix: what their headers state, and that they train as published."""

import dataclasses
import math
import re

import pytest
import timm
from support.recipe_files import DATA, OF_SAMPLE_MIXING, header, named
from support.settings import cost_of, loaders_of, task_of
from torch.utils.data import Dataset

import timm_mix.models  # noqa: F401
from timm_mix.tasks import AutoMixTask, RecursiveMixTask
from timm_mix.train.cost import steps_per_epoch
from timm_mix.train.loop.build import (
    Data,
    build_model,
    build_optimizer,
    build_schedule,
)
from timm_mix.train.loop.network import data_config_of
from timm_mix.train.settings.config import parse_config

pytestmark = pytest.mark.slow

LATE, LATEST = "(median of the last 10 epochs)", "(median of the last 5 epochs)"
# top-1 as the papers (arXiv:2203.06844, 2103.13027, 2111.15454) and their published code state it
PUBLISHED = {
    "cifar10/recursivemix_pyramidnet_200_240": "97.65 % (best epoch, mean of 3 runs), 97.41 % (last epoch)",
    "cifar100/recursivemix_resnet50": "about 3.2 points above plain training",
    "imagenet/recursivemix_resnet50_e300": "79.20 % (best epoch), 79.11 % (last epoch)",
    "imagenet/vanilla_resnet50_e300": "76.32 %",
    "imagenet/cutmix_resnet50_e300": "78.60 %",
    "imagenet/automix_resnet50_e100": f"77.91 % {LATEST}",
    "imagenet/vanilla_resnet50_e100": f"76.83 % {LATEST}",
    **{
        f"cifar100/{method}_resnet18_cifar_e{epochs}": f"{figure} % {LATE}"
        for method, figures in {
            "automix": ("80.12", "81.78", "82.04"),
            "samix": ("81.21", "81.97", "82.30"),
            "vanilla": ("76.42", "77.73", "78.04"),
            "cutmix": ("79.45", "79.58", "78.17"),
        }.items()
        for epochs, figure in zip((200, 400, 800), figures, strict=True)
    },
}
PAPERS = {"recursivemix": "arXiv:2203.06844", "automix": "arXiv:2103.13027", "samix": "arXiv:2111.15454"}
MIX_BLOCK = [path for path in OF_SAMPLE_MIXING if path.stem.startswith(("automix_", "samix_"))]
TRANSFORMERS = ("deit", "swin", "convnext")  # trained with AdamW
BY_SGD = [path for path in OF_SAMPLE_MIXING if not any(name in path.stem for name in TRANSFORMERS)]


def read(path):
    return parse_config(["--config", str(path)])


def recipe(name):
    return read(next(path for path in OF_SAMPLE_MIXING if named(path) == name))


def test_every_published_figure_has_its_recipe_and_no_other_is_stated():
    stated = {named(path): header(path)["published"] for path in OF_SAMPLE_MIXING}
    assert {name: figure for name, figure in stated.items() if figure != "no figure at hand"} == PUBLISHED


@pytest.mark.parametrize("path", OF_SAMPLE_MIXING, ids=named)
def test_a_header_states_command_method_and_source(path):
    stated, config = header(path), read(path)
    assert stated["command"] == (
        f"python train_scripts/train.py --config train_scripts/recipes/{path.parent.name}/{path.name}"
    )
    assert stated["measured"] == "not run here yet"
    assert config.run.experiment == f"{path.parent.name}_{path.stem}"
    method = path.stem.split("_")[0]
    task = {"vanilla": "classification", "cutmix": "classification", "samix": "automix"}.get(method, method)
    assert config.task.name == task
    assert PAPERS.get(method, "") in stated["title"]
    assert (config.task.cutmix, config.task.mixup, config.task.mixup_prob) == (
        1.0 if method == "cutmix" else 0.0,
        0.0,
        1.0,
    )
    if epochs := re.search(r"_e(\d+)$", path.stem):
        assert config.optimise.epochs == int(epochs[1])


ratios = {}  # of a step: counting takes a second


@pytest.mark.parametrize("path", OF_SAMPLE_MIXING, ids=named)
def test_a_header_states_the_cost_that_train_prints(path):
    config, (images, num_classes) = read(path), DATA[path.parent.name]
    key = (path.parent.name, config.model.name, str(config.model.model_kwargs), str(config.task.mix))
    if key not in ratios:
        ratios[key] = cost_of(config, num_classes=num_classes, steps_per_epoch=1)
    steps = steps_per_epoch(config.data, images)
    assert header(path)["cost"] == str(
        dataclasses.replace(ratios[key], steps_per_epoch=steps, epochs=config.optimise.epochs)
    )


@pytest.mark.parametrize("path", OF_SAMPLE_MIXING, ids=named)
def test_model_task_optimizer_and_schedule_can_be_made(path):
    config, (_, num_classes) = read(path), DATA[path.parent.name]
    task = task_of(config, build_model(config.model, num_classes, device="meta"), num_classes, steps_per_epoch=7)
    wanted = {"automix": AutoMixTask, "recursivemix": RecursiveMixTask}.get(config.task.name)
    assert wanted is None or type(task) is wanted
    optimizer = build_optimizer(config.optimise, task.get_trainable_module())
    assert build_schedule(config.optimise, optimizer, 7)[1] == config.optimise.epochs


@pytest.mark.parametrize("path", BY_SGD, ids=named)
def test_sgd_decays_everything_and_is_nesterovs_in_recursivemix_on_small_images(path):
    config = read(path)
    nesterov = PAPERS["recursivemix"] in header(path)["title"] and path.parent.name != "imagenet"
    assert (config.optimise.opt, config.optimise.momentum, config.optimise.no_decay) == (
        "sgd" if nesterov else "momentum",
        0.9,
        (),
    )
    assert config.optimise.weight_decay == (5e-4 if config.data.batch_size == 128 else 1e-4)


@pytest.mark.parametrize("path", MIX_BLOCK, ids=named)
def test_the_mix_block_is_the_published_one(path):
    config = read(path)
    mix, large = config.task.mix, path.parent.name == "imagenet"
    vit = any(name in path.stem for name in ("deit", "swin"))
    assert mix["reduction"] == (16 if large or vit else 2 if "wrn28_8" in path.stem else 4)
    assert (mix["alpha"], mix["mask_weight"], mix.get("mask_decay", False)) == (2.0, 0.1, large)
    assert mix["momentum"] == 0.999
    assert mix["momentum_warmup"] == (0.25 if vit else 0.1)
    by_name = 0.99996 if "convnext" in path.stem or (vit and not large) else 0.99999 if large else 0.999999
    assert mix["momentum_end"] == by_name
    assert mix.get("switch_off", 0.0) == (0.8 if large and any(n in path.stem for n in TRANSFORMERS) else 0.0)
    if path.stem.startswith("samix"):
        assert (mix["block"], mix["variance"], mix.get("mask_adjust", 0.0)) == ("samix", True, 0.0)
        assert mix["block_kwargs"] == {"k": -1 if large else 0.25, "drop": 0.1 if large else 0.0, "mode": "bilinear"}
    else:
        assert (mix["block"], mix["block_kwargs"]) == ("automix", {"lam_channel": large})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cifar100/automix_resnet18_cifar_e200", 33_153),
        ("imagenet/automix_resnet18_e100", 33_282),
        ("imagenet/automix_resnet50_e100", 526_338),
        ("cifar100/samix_resnet18_cifar_e800", 164_480),
        ("imagenet/samix_resnet50_e100", 2_624_000),
    ],
)
def test_a_recipes_mix_block_has_the_published_size(name, params):
    config = recipe(name)
    task = task_of(config, build_model(config.model, 7, device="meta"), 7, steps_per_epoch=7)
    assert sum(p.numel() for p in task.get_trainable_module().block.parameters()) == params


def rates(config, updates):
    """(network's, Mix Block's) learning rate of every update, as the trainer steps the schedule."""
    model = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=3)
    mix = {"reduction": 4} if config.task.name == "automix" else {}
    task = task_of(config.replace(mix=mix), model, 3, steps_per_epoch=updates)
    optimizer = build_optimizer(config.optimise, task.get_trainable_module())
    schedule, _ = build_schedule(config.optimise, optimizer, updates)
    found = []
    for epoch in range(config.optimise.epochs):
        for update in range(updates):
            groups = optimizer.param_groups
            found.append((groups[0]["lr"], groups[-1]["lr"]))
            schedule.step_update(num_updates=epoch * updates + update + 1)
        schedule.step(epoch + 1, 0.0)
    return found


def half_cosine(top, floor, share):
    return floor + (top - floor) * (1 + math.cos(math.pi * share)) / 2


def test_automix_on_imagenet_leaves_the_mix_block_a_floor():
    """ResNet-50: .1 -> 0, the Mix Block .1 -> .001."""
    found = rates(recipe("imagenet/automix_resnet50_e100"), 3)
    for update, (network, block) in enumerate(found):
        assert network == pytest.approx(half_cosine(0.1, 0.0, update / 300))
        assert block == pytest.approx(half_cosine(0.1, 0.001, update / 300))


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("automix_resnet18_cifar_e400", 0.05),
        ("samix_resnet18_cifar_e200", 0.05),
        ("automix_wrn28_8_openmixup_e400", 0.001),
        ("vanilla_resnet18_cifar_e200", 0.0),
    ],
)
def test_on_cifar_the_cosine_ends_at_the_floor_of_the_configuration(name, floor):
    config = recipe(f"cifar100/{name}")
    found = rates(config, 1)
    for update, both in enumerate(found):
        assert both == pytest.approx((half_cosine(0.1, floor, update / config.optimise.epochs),) * 2)


def test_recursivemix_on_cifar10_warms_up_by_sixths_and_falls_twice():
    for i, (rate, _) in enumerate(rates(recipe("cifar10/recursivemix_pyramidnet_200_240"), 2)):
        epoch = i // 2
        wanted = (epoch + 1) / 6 if epoch < 5 else 0.1 ** ((epoch >= 150) + (epoch >= 225))
        assert rate == pytest.approx(0.25 * wanted), epoch


@pytest.mark.parametrize("name", ["recursivemix", "vanilla", "cutmix"])
def test_recursivemix_on_imagenet_follows_a_cosine_per_epoch_under_the_warm_up(name):
    for i, (rate, _) in enumerate(rates(recipe(f"imagenet/{name}_resnet50_e300"), 2)):
        epoch = i // 2
        wanted = 0.2 * (epoch + 1) / 6 if epoch < 5 else half_cosine(0.2, 0.0, epoch / 300)
        assert rate == pytest.approx(wanted), epoch


class Images(Dataset):
    transform = None

    def __len__(self):
        return 8192


def transforms_of(config):
    data = Data(Images(), Images(), None, 10)
    data_config = data_config_of(config.model, build_model(config.model, 10, device="meta"))
    loaders_of(config.replace(workers=0, pin_mem=False), data, data_config)
    return repr(data.train.transform), repr(data.validation.transform)


@pytest.mark.parametrize("path", [path for path in BY_SGD if path.parent.name != "imagenet"], ids=named)
def test_small_images_are_cropped_and_flipped(path):
    """With the border mirrored in AutoMix's tables, with zeros in RecursiveMix's."""
    steps, plain = transforms_of(read(path))
    mode = "constant" if "arXiv:2203.06844" in header(path)["title"] else "reflect"
    size = 64 if path.parent.name == "tiny_imagenet" else 32
    crop = rf"RandomCrop\(size=\({size}, {size}\), padding=\[?4.*padding_mode={mode}\).*RandomHorizontalFlip\(p=0.5\)"
    assert re.search(crop, steps, re.DOTALL), steps
    mean, std = ("0.5", "0.5, 0.5, 0.5") if size == 64 else ("0.4914, 0.4822, 0.4465", "0.2023, 0.1994, 0.201")
    assert re.search(rf"Normalize\(mean=\[{mean}.*std=\[{std}\]", steps), steps
    assert "Random" not in plain


@pytest.mark.parametrize("path", [path for path in BY_SGD if path.parent.name == "imagenet"], ids=named)
def test_imagenet_images_are_tested_at_256_to_224(path):
    steps, plain = transforms_of(read(path))
    assert "Resize(size=256, interpolation=bicubic" in plain
    assert "CenterCrop(size=(224, 224))" in plain
    if path.stem.endswith("_e300"):  # RecursiveMix's table
        assert re.search(r"ColorJitter\(brightness=\(0.6, 1.4\), contrast=\(0.6, 1.4\), saturation=\(0.6, 1.4\)", steps)
        assert steps.index("ColorJitter") < steps.index("Lighting(std=0.1)") < steps.index("Normalize")
    else:
        assert "0.6" not in steps
        assert "Lighting" not in steps
