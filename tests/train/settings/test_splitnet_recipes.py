"""The recipes of SplitNet: what their headers state, and that they train as published (arXiv:2011.14660)."""

import dataclasses
import math
import re

import pytest
import timm
import torch
from support.recipe_files import DATA, OF_PAPERS, header, named
from support.settings import cost_of, loaders_of
from torch.utils.data import Dataset

import timm_mix.models  # noqa: F401
from timm_mix.train.cost import steps_per_epoch
from timm_mix.train.loop.build import Data, build_schedule
from timm_mix.train.loop.network import data_config_of
from timm_mix.train.settings.config import parse_config

pytestmark = pytest.mark.slow

OURS = [path for path in OF_PAPERS if path.stem.startswith("splitnet_")]
ON_CIFAR = [path for path in OURS if path.parent.name != "imagenet"]
ON_IMAGENET = [path for path in OURS if path.parent.name == "imagenet"]
BY_THREE = ("wide_resnet28_10", "wide_resnet40_10")  # the tables have them at S = 1, 2, 4
BY_TWO = ("wide_resnet16_8", "resnet110", "resnet164", "se_resnet110", "se_resnet164", "resnext29_16x64d")
LONG = ("wide_resnet40_10", "shake_resnet26_2x96d", "pyramidnet272", "densenet190")
# top-1 in % of the paper's tables, S = 1, 2, 4 (ImageNet: 1, 2)
PUBLISHED = {
    "cifar10/wide_resnet28_10": (97.59, 98.19, 98.32),
    "cifar100/wide_resnet28_10": (84.50, 85.52, 85.74),
    "cifar100/wide_resnet40_10": (84.44, 85.72, 86.04),
    "cifar100/wide_resnet40_10_e1800": (83.98, 85.91, 86.90),
    "cifar100/densenet190_e1800": (85.90, 87.36, 87.44),
    "cifar100/pyramidnet272_e1800": (88.98, 89.25, 89.46),
    "imagenet/wide_resnet50_2e": (80.66, 79.64),
    "imagenet/wide_resnet50_3e": (80.74, 81.42),
    "imagenet/resnext101e_64x4d": (81.57, 82.13),
    "imagenet/efficientnetb7": (81.83, 82.74),
}
WARM_UPS = {"se_resnet164": 30, "resnext29_16x64d": 30, **dict.fromkeys(LONG[1:], 0)}
RATES = {"shake_resnet26_2x96d": 0.2, "resnext29_16x64d": 0.05}
DECAYS = {**dict.fromkeys((*BY_THREE, "resnext29_16x64d"), 5e-4), "resnet50e": 5e-5, "efficientnetb7": 1e-5}


def taken_apart(path):
    """(architecture, S, epochs) of the file's name."""
    arch, split, long = re.fullmatch(r"splitnet_(\w+)_s(\d)(_e1800)?", path.stem).groups()
    return arch, int(split), 120 if path in ON_IMAGENET else 1800 if long else 300


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_there_is_a_recipe_for_every_network_and_division(dataset):
    rows = {
        *(f"splitnet_{arch}_s{split}" for arch in BY_THREE for split in (1, 2, 4)),
        *(f"splitnet_{arch}_s2" for arch in BY_TWO),
        *(f"splitnet_{arch}_s{split}_e1800" for arch in LONG for split in (1, 2, 4)),
    }
    assert {path.stem for path in OURS if path.parent.name == dataset} == rows


def test_every_published_figure_has_its_recipe():
    figures = {}
    for path in OURS:
        arch, split, epochs = taken_apart(path)
        row = f"{path.parent.name}/{arch}" + ("_e1800" if epochs == 1800 else "")
        index = (1, 2, 4).index(split)
        stated = header(path)["published"]
        if row in PUBLISHED:
            assert stated == f"{PUBLISHED[row][index]:.2f} % (paper's table)", path
            figures.setdefault(row, []).append(PUBLISHED[row][index])
        else:
            assert stated == "no figure at hand", path
    assert {row: tuple(found) for row, found in figures.items()} == PUBLISHED


@pytest.mark.parametrize("path", OURS, ids=named)
def test_a_header_states_command_division_and_source(path):
    stated, config = header(path), parse_config(["--config", str(path)])
    arch, split, epochs = taken_apart(path)
    assert stated["command"] == (
        f"python train_scripts/train.py --config train_scripts/recipes/{path.parent.name}/{path.name}"
    )
    title = stated["title"]
    assert title.startswith(f"SplitNet, S = {split}: " if split > 1 else "The undivided ")
    assert title.endswith(f"trained for {epochs} epochs (arXiv:2011.14660).")
    assert config.model.name == (f"splitnet_{arch}_s{split}" if split > 1 else arch)
    assert config.optimise.epochs == epochs


ratios = {}  # of a network's step: counting takes a second


@pytest.mark.parametrize("path", [path for path in OURS if path.parent.name != "cifar10"], ids=named)
def test_a_header_states_the_cost_that_train_prints(path):
    config = parse_config(["--config", str(path)])
    images, num_classes = DATA[path.parent.name]
    if config.model.name not in ratios:
        ratios[config.model.name] = cost_of(config, num_classes=num_classes, steps_per_epoch=1)
    steps = steps_per_epoch(config.data, images)
    cost = dataclasses.replace(ratios[config.model.name], steps_per_epoch=steps, epochs=config.optimise.epochs)
    assert header(path)["cost"] == str(cost)


@pytest.mark.parametrize("path", [path for path in OURS if path.parent.name == "cifar10"], ids=named)
def test_ten_classes_cost_what_a_hundred_do(path):
    assert header(path)["cost"] == header(path.parents[1] / "cifar100" / path.name)["cost"]


@pytest.mark.parametrize("path", OURS, ids=named)
def test_parts_are_co_trained_and_the_whole_is_not(path):
    config, (arch, split, epochs) = parse_config(["--config", str(path)]), taken_apart(path)
    mixup = 0.0 if arch == "efficientnetb7" else 0.2
    if split == 1:
        assert (config.task.name, config.task.mix, config.task.mixup, config.task.mixup_prob) == (
            "classification",
            {},
            mixup,
            1.0,
        )
        return
    assert config.task.name == "cotraining"
    assert config.task.mix.get("mixup", 0.0) == mixup
    assert config.task.mix["weight"] == 0.5
    assert config.task.mix["warmup_epochs"] == {300: 40, 1800: 80, 120: 60}[epochs]
    assert config.augment.views is None  # one per part
    wide = arch in ("wide_resnet50_2e", "wide_resnet50_3e") or (arch == "wide_resnet40_10" and epochs == 1800)
    assert config.optimise.divide_weight_decay == (wide or path.parent.name == "cifar10")


@pytest.mark.parametrize("path", OURS, ids=named)
def test_rate_decay_and_batch_are_the_published_ones(path):
    config, (arch, _, epochs) = parse_config(["--config", str(path)]), taken_apart(path)
    assert config.optimise.weight_decay == DECAYS.get(arch, 1e-4)
    assert config.optimise.no_decay == ("norm", "bias")
    assert config.optimise.amp
    assert config.data.batch_size == (128 if path in ON_CIFAR else 256)
    assert config.task.smoothing == (0.0 if path in ON_CIFAR else 0.1)
    if arch == "efficientnetb7":
        return
    assert (config.optimise.opt, config.optimise.momentum, config.optimise.lr) == ("sgd", 0.9, RATES.get(arch, 0.1))
    warm_up = 5 if path in ON_IMAGENET else WARM_UPS.get(arch, 60 if epochs == 1800 else 20)
    assert config.optimise.warmup_epochs == warm_up


def published_rate(config, floor, update, updates):
    """Linear from .005, then half a cosine over what is left, down to the floor."""
    warm_up, whole = config.optimise.warmup_epochs * updates, config.optimise.epochs * updates
    if update < warm_up:
        return 0.005 + (config.optimise.lr - 0.005) * update / warm_up
    return max(floor, config.optimise.lr * (1 + math.cos(math.pi * (update - warm_up) / (whole - warm_up))) / 2)


def rate_at(schedule, update):
    schedule.step_update(update)
    return schedule.optimizer.param_groups[0]["lr"]


def schedule_of(config, updates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimise.lr)
    schedule, epochs = build_schedule(config.optimise, optimizer, updates)
    assert epochs == config.optimise.epochs
    return schedule


@pytest.mark.parametrize("path", [path for path in OURS if "efficientnet" not in path.stem], ids=named)
def test_the_learning_rate_follows_the_published_curve(path):
    config, updates = parse_config(["--config", str(path)]), 3
    floor = 1e-4 if path in ON_CIFAR else 1e-5
    schedule = schedule_of(config, updates)
    whole = config.optimise.epochs * updates
    for update in (0, 1, 7, config.optimise.warmup_epochs * updates, whole // 2, whole - updates, whole - 1):
        assert rate_at(schedule, update) == pytest.approx(published_rate(config, floor, update, updates))
    assert rate_at(schedule, 0) == (0.005 if config.optimise.warmup_epochs else config.optimise.lr)
    assert rate_at(schedule, config.optimise.warmup_epochs * updates) == pytest.approx(config.optimise.lr)


@pytest.mark.parametrize("path", [path for path in OURS if "efficientnet" in path.stem], ids=named)
def test_efficientnet_falls_by_a_staircase(path):
    """RMSpropTF, .256 after 5 epochs from 1e-6, then x .97 every .8 epoch."""
    config = parse_config(["--config", str(path)])
    assert (config.optimise.opt, config.optimise.momentum, config.optimise.opt_eps, config.optimise.lr) == (
        "rmsproptf",
        0.9,
        1e-3,
        0.256,
    )
    schedule = schedule_of(config, 10)
    assert rate_at(schedule, 0) == pytest.approx(1e-6)
    assert rate_at(schedule, 25) == pytest.approx(1e-6 + (0.256 - 1e-6) / 2)
    for update in (50, 57, 58, 400, 1199):
        assert rate_at(schedule, update) == pytest.approx(0.256 * 0.97 ** ((update - 50) // 8))


class Images(Dataset):
    transform = None

    def __len__(self):
        return 512


def transforms_of(config, model):
    """What build_loaders gives the two splits, as text."""
    data = Data(Images(), Images(), None, 10)
    data_config = data_config_of(config.model, timm.create_model(model, device="meta"))
    loaders_of(config.replace(workers=0, pin_mem=False), data, data_config, views=2)
    assert data.train.transform.count == 2
    return repr(data.train.transform), repr(data.validation.transform)


@pytest.mark.parametrize("path", ON_CIFAR, ids=named)
def test_cifar_views_are_cropped_flipped_augmented_and_erased(path):
    config = parse_config(["--config", str(path)])
    ten = path.parent.name == "cifar10"
    steps, plain = transforms_of(config, "wrn16_2")
    mean, std = ("0.4914, 0.4822, 0.4465", "0.2023, 0.1994, 0.201") if ten else ("0.5071, 0.4865, 0.4409", "0.2673")
    assert re.search(
        r"RandomCrop\(size=\(32, 32\), padding=\[?4.*RandomHorizontalFlip\(p=0.5\).*AutoAugment\(.*CIFAR10.*"
        rf"Normalize\(mean=\[{mean}\], std=\[{std}.*RandomErasing\(p=0.5, "
        rf"scale=\[?\(?{'0.125, 0.2' if ten else '0.0625, 0.1'}[\])], ratio=\[?\(?0.99, 1.0[\])], value=\[?0.0",
        steps,
        re.DOTALL,
    ), steps
    assert "Random" not in plain


@pytest.mark.parametrize("path", ON_IMAGENET, ids=named)
def test_imagenet_views_are_resized_augmented_and_erased(path):
    config = parse_config(["--config", str(path)])
    steps, plain = transforms_of(config, "resnet18")
    size = config.model.img_size
    assert re.search(rf"size=\({size}, {size}\), scale=\(0.1, 1.0\).*interpolation=bicubic", steps)
    assert ("AutoAugment" if config.augment.aa == "original" else "RandAugment") in steps
    assert steps.index("Normalize") < steps.index("RandomErasing(p=0.5, mode=const")
    assert (config.augment.rescale, config.augment.reratio) == ((0.05, 0.12), (0.5, 1.5))
    assert f"Resize(size={int(1.15 * size)}, interpolation=bicubic" in plain
    assert f"CenterCrop(size=({size}, {size}))" in plain
