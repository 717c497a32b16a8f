"""From settings to the parts of a run: data, model, task, optimizer, schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup, resolve_data_config
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.optim._optim_factory import optimizer_kwargs
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, TrainingTask
from torch import nn
from torch.utils.data import Dataset

import timm_mix
from timm_mix.functional.splitnet import divided_weight_decay
from timm_mix.hub import local_name
from timm_mix.mixers import create_mixer
from timm_mix.models.splitnet import SplitNet
from timm_mix.tasks.mixer import MixerTask
from timm_mix.train.data.device_loader import create_device_loaders
from timm_mix.train.data.loaders import check_splits, class_names, create_eval_loader, create_train_loader, open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.loop.block_groups import BlockSchedule, GroupsOf, own_block_group
from timm_mix.train.settings.config import Config
from timm_mix.views import Views

__all__ = [
    "Data",
    "build_data",
    "build_mixup",
    "build_model",
    "build_optimizer",
    "build_schedule",
    "build_task",
    "data_config_of",
]


@dataclass(frozen=True)
class Data:
    """Both splits and what they say of themselves."""

    train: Dataset
    validation: Dataset
    names: list[str] | None
    num_classes: int


def build_data(config: Config) -> Data:
    """Open both splits; the number of classes is the recipe's, else the data's."""
    shared: dict[str, Any] = {
        "class_map": config.class_map,
        "download": config.dataset_download,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "input_img_mode": "L" if config.in_chans == 1 else "RGB",
    }
    train = open_dataset(config.dataset, config.data_dir, config.train_split, is_training=True, **shared)
    validation = open_dataset(config.dataset, config.data_dir, config.val_split, **shared)
    check_splits(train, validation)
    names = class_names(train)
    num_classes = config.num_classes or (len(names) if names else None)
    if num_classes is None:
        raise UsageError(f"dataset {config.dataset!r} does not say how many classes it has; give --num-classes")
    if num_classes < 2:
        raise UsageError(f"the data must have at least two classes, got {num_classes}; give the folders of all classes")
    if names and len(names) > num_classes:
        raise UsageError(f"the data have {len(names)} classes, got --num-classes {num_classes}; raise it or drop it")
    return Data(train, validation, names if names and len(names) == num_classes else None, num_classes)


def build_model(config: Config, num_classes: int | None, **more: Any) -> nn.Module:
    """timm.create_model with the settings of the recipe, and `more`; an error is one line.

    On the meta device (`device="meta"`) no weights are loaded.
    """
    kwargs: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": config.in_chans,
        "drop_rate": config.drop,
        "drop_path_rate": config.drop_path,
        **config.model_kwargs,
        **more,
    }
    if config.initial_checkpoint is not None and not Path(config.initial_checkpoint).is_file():
        raise UsageError(f"--initial-checkpoint wants a file of weights, {config.initial_checkpoint} is no file")
    with user_errors(f"create model {config.model!r}"):
        name = local_name(config.model)  # what comes from the Hub is checked before it is built
        if more.get("device") == "meta":
            return timm.create_model(name, **kwargs)
        if config.model_kwargs.get("features_only"):
            raise UsageError(f"features_only makes no classifier of {config.model}; drop it")
        model = timm.create_model(
            name, pretrained=config.pretrained, checkpoint_path=config.initial_checkpoint, **kwargs
        )
        if config.grad_checkpointing:
            model.set_grad_checkpointing(enable=True)
    return model


def data_config_of(config: Config, model: nn.Module) -> dict[str, Any]:
    """timm's data config of the model, with the recipe's settings on top."""
    wanted = ("in_chans", "img_size", "mean", "std", "interpolation", "crop_pct")
    args = {name: getattr(config, name) for name in wanted if getattr(config, name) is not None}
    channels = config.in_chans or (getattr(model, "pretrained_cfg", {}).get("input_size") or (3,))[0]
    for name in ("mean", "std"):
        if name in args and len(args[name]) not in (1, channels):
            raise UsageError(f"{name} must be one number, or {channels} for the channels, got {len(args[name])}")
    with user_errors("resolve the data settings"):
        data_config = resolve_data_config(args, model=model)
    if config.in_chans is not None:  # timm takes the channels of the weights' own images before those of the model
        data_config["input_size"] = (config.in_chans, *data_config["input_size"][1:])
    for name in ("mean", "std"):
        if config.in_chans == 1:  # grey images: the colours' mean
            data_config[name] = (sum(data_config[name]) / len(data_config[name]),)
    return data_config


def build_loaders(
    config: Config,
    data: Data,
    data_config: dict[str, Any],
    views: int | None,
    rank: int,
    world_size: int,
    device: torch.device | str = "cpu",
) -> tuple[Any, Any]:
    """Training and validation loaders of one process: DataLoader, or DeviceLoader with the images on `device`."""
    options = {
        **{"padding": config.padding, "pad_mode": config.pad_mode, "lighting": config.lighting},
        **{"hflip": config.hflip, "vflip": config.vflip, "aa": config.aa},
        **{"scale": config.scale, "ratio": config.ratio, "color_jitter": config.color_jitter},
        **{"re_prob": config.reprob, "re_mode": config.remode, "re_count": config.recount},
        **{"re_scale": config.rescale, "re_ratio": config.reratio},
    }
    if config.device_loader:
        sharing: dict[str, Any] = {"views": views, "rank": rank, "world_size": world_size, "device": device}
        return create_device_loaders(config, data.train, data.validation, data_config, options, **sharing)
    transform = create_transform(config.aug, data_config, training=True, **options)
    data.train.transform = Views(transform, views) if views else transform  # type: ignore[attr-defined]
    data.validation.transform = create_transform(config.aug, data_config, training=False)  # type: ignore[attr-defined]
    shared: dict[str, Any] = {
        "rank": rank,
        "world_size": world_size,
        "workers": config.workers,
        "pin_memory": config.pin_mem,
    }
    train = create_train_loader(
        data.train, batch_size=config.batch_size, repeats=config.batch_repeats, seed=config.seed, **shared
    )
    batch_size = config.validation_batch_size or config.batch_size
    return train, create_eval_loader(data.validation, batch_size=batch_size, **shared)


def build_task(
    config: Config, model: nn.Module, num_classes: int, steps_per_epoch: int, **settings: Any
) -> TrainingTask:
    """The training task of the recipe, on the model's device; `settings` are those that no recipe holds."""
    with user_errors(f"create task {config.task!r}"):
        criterion = create_classification_loss(smoothing=config.smoothing, soft_targets=config.mixes_samples)
        if config.mixer is not None:
            return _mixer_task(config, model, num_classes, steps_per_epoch)
        if config.task == "classification":
            if config.mix:
                raise UsageError(f"task classification has no settings, got mix: {', '.join(config.mix)}; drop them")
            return ClassificationTask(model, criterion, device=next(model.parameters()).device, verbose=False)
        return timm_mix.create_task(
            config.task,
            model,
            criterion,
            num_classes=num_classes,
            seed=config.seed,
            total_steps=config.epochs * steps_per_epoch,
            **{"steps_per_epoch": steps_per_epoch, "verbose": False, **settings, **config.mix},
        )


def _mixer_task(config: Config, model: nn.Module, num_classes: int, steps_per_epoch: int) -> MixerTask:
    """Plain classification of what a mixer makes of the batches; the mixer smooths the labels."""
    settings = dict(config.mix)
    clock = {"steps_per_epoch": steps_per_epoch, "total_steps": config.epochs * steps_per_epoch}
    off_epoch = settings.pop("off_epoch", None)
    mixer = create_mixer(
        config.mixer or "", num_classes=num_classes, seed=config.seed, label_smoothing=config.smoothing, **settings
    )
    task_settings: dict[str, Any] = {"mixer": mixer, "off_epoch": off_epoch, "verbose": False, **clock}
    return MixerTask(model, nn.CrossEntropyLoss(), num_classes=num_classes, seed=config.seed, **task_settings)


def build_mixup(config: Config, num_classes: int) -> Mixup | None:
    """timm's mixup and CutMix of the baselines, which then smooths the labels, too; None where the recipe has none."""
    if not config.mixes_samples:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer and parameter groups, with the weight decay of the parts and the names that it spares.

    A Mix Block gets groups of its own where the recipe has settings for it.
    """
    settings = optimizer_kwargs(config)
    if config.divide_weight_decay:
        if not isinstance(model, SplitNet):
            raise UsageError(f"divide_weight_decay is for a splitnet_* model, got {config.model}; drop it")
        settings["weight_decay"] = divided_weight_decay(config.weight_decay, model.num_members)
    if config.no_decay is not None:
        settings["param_group_fn"] = _groups_by_name(config, settings["weight_decay"])
    with user_errors(f"create optimizer {config.opt!r}"):
        optimizer = create_optimizer_v2(model, **settings)
        own_block_group(config, optimizer, model)
    return optimizer


def _groups_by_name(config: Config, weight_decay: float) -> Callable[[nn.Module], list[dict[str, Any]]]:
    """timm's parameter groups, where a name decides about the decay and not the number of dimensions."""
    settings: dict[str, Any] = {
        "weight_decay": weight_decay,
        "no_weight_decay_list": tuple(f"*{word}*" for word in config.no_decay or ()),
        "weight_decay_exclude_1d": False,
    }
    if config.layer_decay is not None:
        return partial(param_groups_layer_decay, layer_decay=config.layer_decay, **settings)
    return partial(param_groups_weight_decay, **settings)


def build_schedule(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Any, int]:
    """timm's scheduler and the number of epochs with its cool-down; the recipe's epochs where there is none."""
    with user_errors(f"create schedule {config.sched!r}"):
        if config.block_min_lr is None:
            return _schedule(config, optimizer, updates_per_epoch, config.min_lr)
        network, epochs = _schedule(config, GroupsOf(optimizer, block=False), updates_per_epoch, config.min_lr)
        block, _ = _schedule(config, GroupsOf(optimizer, block=True), updates_per_epoch, config.block_min_lr)
    return BlockSchedule(network, block), epochs


def _schedule(config: Config, optimizer: Any, updates_per_epoch: int, min_lr: float) -> tuple[Any, int]:
    settings = {**scheduler_kwargs(config), "min_lr": min_lr}
    if config.sched_after_warmup:  # timm counts such epochs on top of the warm-up
        settings |= {"num_epochs": config.epochs - config.warmup_epochs, "warmup_prefix": True}
    schedule, epochs = create_scheduler_v2(optimizer, updates_per_epoch=updates_per_epoch, **settings)
    if isinstance(schedule, MultiStepLRScheduler) and config.sched_on_updates:
        # timm lets milestone m act at index m - 1, here the last update of an epoch: wait for the next epoch's first
        schedule.decay_t = [update + 1 for update in schedule.decay_t]
    return schedule, epochs
