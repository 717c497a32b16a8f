"""From settings to the parts of a run: data, model, task, optimizer, schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.optim._optim_factory import optimizer_kwargs
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, TrainingTask
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import timm_mix
from timm_mix.announced import checked_announcements
from timm_mix.functional.splitnet import divided_weight_decay
from timm_mix.hub import local_name
from timm_mix.mixers import create_mixer
from timm_mix.models import set_batch_norm
from timm_mix.models.splitnet import SplitNet
from timm_mix.tasks.mixer import MixerTask
from timm_mix.train.data.device_loader import create_device_loaders, device_augmentation
from timm_mix.train.data.label_table import check_table, open_labelled
from timm_mix.train.data.labels import balanced_weights, is_multi_label
from timm_mix.train.data.loaders import check_splits, class_names, create_eval_loader, create_train_loader, open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import check_archive
from timm_mix.train.loop.block_groups import BlockSchedule, GroupsOf, own_block_group
from timm_mix.train.loop.criterion import build_criterion
from timm_mix.train.loop.floor import FlooredSchedule
from timm_mix.train.loop.network import batch_norm_args, input_args, load_file
from timm_mix.train.memory import check_images, check_network
from timm_mix.train.settings.augment import AugmentSettings
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ModelSettings, mode_of
from timm_mix.train.settings.optimise import OptimiseSettings
from timm_mix.train.settings.task import PLAIN, TaskSettings
from timm_mix.views import Views

__all__ = [
    "Data",
    "build_data",
    "build_loaders",
    "build_mixup",
    "build_model",
    "build_optimizer",
    "build_schedule",
    "build_task",
    "labelled_data",
    "read_as",
]


@dataclass(frozen=True)
class Data:
    """Both splits and what they say of themselves.

    >>> from timm_mix.train.data.digits import Digits
    >>> data = Data(Digits("train"), Digits("validation"), names=None, num_classes=10)
    >>> len(data.train), len(data.validation)
    (1437, 360)
    """

    train: Dataset
    validation: Dataset
    names: list[str] | None
    num_classes: int

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return is_multi_label(self.train)


def build_data(images: DataSettings, model: ModelSettings, seed: int) -> Data:
    """Open both splits; the number of classes is the recipe's, else the data's.

    >>> data = build_data(DataSettings(dataset="digits"), ModelSettings(), seed=42)
    >>> len(data.train), len(data.validation), data.num_classes
    (1437, 360, 10)
    """
    if images.labels_csv is not None:
        return labelled_data(images, model)
    shared: dict[str, Any] = {
        "class_map": images.class_map,
        "download": images.dataset_download,
        "batch_size": images.batch_size,
        "seed": seed,
        "input_img_mode": model.image_mode,
    }
    train = open_dataset(images.dataset, images.data_dir, images.train_split, is_training=True, **shared)
    validation = open_dataset(images.dataset, images.data_dir, images.val_split, **shared)
    check_splits(train, validation)
    names = class_names(train)
    num_classes = model.num_classes or (len(names) if names else None)
    if num_classes is None:
        raise UsageError(f"dataset {images.dataset!r} does not say how many classes it has; give --num-classes")
    if num_classes < 2:
        raise UsageError(f"the data must have at least two classes, got {num_classes}; give the folders of all classes")
    if names and len(names) > num_classes:
        raise UsageError(f"the data have {len(names)} classes, got --num-classes {num_classes}; raise it or drop it")
    return Data(train, validation, names if names and len(names) == num_classes else None, num_classes)


def labelled_data(images: DataSettings, model: ModelSettings, **held_back: Any) -> Data:
    """Both splits of a table of labels.

    >>> from PIL import Image
    >>> Image.new("RGB", (8, 8)).save("0.png"); Image.new("RGB", (8, 8)).save("1.png")
    >>> table = "file,labels,split\\n0.png,sea;sand,train\\n1.png,sea,validation\\n"
    >>> written = Path("labels.csv").write_text(table)
    >>> data = labelled_data(DataSettings(data_dir=".", labels_csv="labels.csv"), ModelSettings())
    >>> data.names, data.multi_label
    (['sand', 'sea'], True)
    """
    check_table(images)
    splits: dict[str, Any] = {
        "train_split": images.train_split,
        "val_split": images.val_split,
        "mode": model.image_mode,
    }
    train, validation = open_labelled(images.labels_csv or "", images.data_dir, **splits, **held_back)
    known = len(train.classes)
    if model.num_classes not in (None, known):
        raise UsageError(f"the table has {known} classes, got --num-classes {model.num_classes}; drop it")
    return Data(train, validation, train.classes, known)


def read_as(data: Data, channels: int) -> None:
    """Let both splits give images of as many channels as the network takes; in place.

    Raises:
        UsageError: a stream, which was opened for others.

    >>> from timm_mix.train.data.digits import Digits
    >>> data = Data(Digits("train"), Digits("validation"), names=None, num_classes=10)
    >>> read_as(data, channels=1)
    >>> data.train[0][0].mode
    'L'
    """
    for split in (data.train, data.validation):
        if hasattr(split, "mode"):
            split.mode = mode_of(channels)
        elif isinstance(split, IterableDataset) and getattr(split, "opened_as", mode_of(channels)) != mode_of(channels):
            raise UsageError(f"the network takes {channels} channels, a stream must know it first: give --in-chans")


def build_model(wanted: ModelSettings, num_classes: int | None, **more: Any) -> nn.Module:
    """timm.create_model with the settings of the recipe, and `more`; an error is one line.

    On the meta device (`device="meta"`) no weights are loaded.

    >>> wanted = ModelSettings(name="splitnet_wrn16_2_s2", model_kwargs={"depth": 10}, drop=0.1)
    >>> build_model(wanted, num_classes=5)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    if more.get("device") == "meta":
        wanted = wanted.without_weights
    kwargs: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_rate": wanted.drop,
        "drop_path_rate": wanted.drop_path,
        **wanted.model_kwargs,
        **more,
    }
    if "device" in wanted.model_kwargs:
        raise UsageError("model_kwargs takes no device, a run chooses it (see --cpu); drop it")
    if wanted.initial_checkpoint is not None and not Path(wanted.initial_checkpoint).is_file():
        raise UsageError(f"--initial-checkpoint wants a file of weights, {wanted.initial_checkpoint} is no file")
    if wanted.initial_checkpoint is not None:
        check_archive(wanted.initial_checkpoint)
    with user_errors(f"create model {wanted.name!r}"), checked_announcements():
        name = local_name(wanted.name)  # what comes from the Hub is checked before it is built
        known, unknown = batch_norm_args(wanted, name)
        kwargs |= input_args(wanted, name) | known
        if more.get("device") == "meta":
            return timm.create_model(name, **kwargs)
        if wanted.model_kwargs.get("features_only"):
            raise UsageError(f"features_only makes no classifier of {wanted.name}; drop it")
        if wanted.model_kwargs or (num_classes or 0) > 100_000:  # else it is a size that someone has had
            check_network(build_model(wanted, num_classes, **{**more, "device": "meta"}), wanted.name)
        model = set_batch_norm(timm.create_model(name, pretrained=wanted.pretrained, **kwargs), **unknown)
        if wanted.initial_checkpoint is not None:
            load_file(model, wanted.initial_checkpoint)
        if wanted.grad_checkpointing:
            model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    return model


def build_loaders(
    images: DataSettings,
    augment: AugmentSettings,
    data: Data,
    data_config: dict[str, Any],
    *,
    seed: int,
    views: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> tuple[Any, Any]:
    """Training and validation loaders of one process: DataLoader, or DeviceLoader with the images on `device`.

    >>> images, wanted = DataSettings(dataset="digits", workers=0), ModelSettings(name="wrn16_2")
    >>> from timm_mix.train.loop.network import data_config_of
    >>> data_config = data_config_of(wanted, build_model(wanted, num_classes=10))
    >>> data = build_data(images, wanted, seed=42)
    >>> train, validation = build_loaders(images, AugmentSettings(aug="small"), data, data_config, seed=42, views=2)
    >>> [next(iter(loader))[0].shape for loader in (train, validation)]
    [torch.Size([64, 2, 3, 32, 32]), torch.Size([64, 3, 32, 32])]
    """
    options = _augmentation(augment)
    count = images.batch_size * (views or 1)
    check_images(
        count, data_config["input_size"], "lower --batch-size, --img-size or --padding", padding=augment.padding or 0
    )
    shared: dict[str, Any] = {"rank": rank, "world_size": world_size}
    weights = balanced_weights(data.train, data.num_classes) if images.balanced_sampling else None
    if images.device_loader:
        shared |= {"weights": weights, "views": views, "device": device, "channels_last": channels_last, "seed": seed}
        style = device_augmentation(augment.aug, options)
        return create_device_loaders(images, style, data.train, data.validation, data_config, **shared)
    transform = create_transform(augment.aug, data_config, training=True, **options)
    data.train.transform = Views(transform, views) if views else transform  # type: ignore[attr-defined]
    data.validation.transform = create_transform(augment.aug, data_config, training=False)  # type: ignore[attr-defined]
    shared |= {"workers": images.workers, "pin_memory": images.pin_mem}
    train = create_train_loader(
        data.train, batch_size=images.batch_size, repeats=images.batch_repeats, seed=seed, weights=weights, **shared
    )
    batch_size = images.validation_batch_size or images.batch_size
    return train, create_eval_loader(data.validation, batch_size=batch_size, **shared)


def _augmentation(augment: AugmentSettings) -> dict[str, Any]:
    """Under the names of our transforms; those of random erasing are timm's."""
    own = ("padding", "pad_mode", "lighting", "hflip", "vflip", "aa", "scale", "ratio", "color_jitter")
    erasing = ("prob", "mode", "count", "scale", "ratio")
    return {
        **{name: getattr(augment, name) for name in own},
        **{f"re_{name}": getattr(augment, f"re{name}") for name in erasing},
    }


def build_task(
    wanted: TaskSettings,
    model: nn.Module,
    num_classes: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    seed: int,
    criterion: nn.Module | None = None,
    **settings: Any,
) -> TrainingTask:
    """The training task of the recipe, on the model's device; `settings` are those that no recipe holds.

    Args:
        criterion: see `build_criterion`, which makes it where it is None.

    >>> model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=5)
    >>> wanted = TaskSettings(name="mixmo", smoothing=0.1)
    >>> task = build_task(wanted, model, num_classes=5, epochs=3, steps_per_epoch=7, seed=42)
    >>> sorted(task(torch.rand(2, 3, 32, 32), torch.tensor([0, 4])))
    ['ce', 'loss', 'output']
    """
    clock = {"steps_per_epoch": steps_per_epoch, "total_steps": epochs * steps_per_epoch}
    with user_errors(f"create task {wanted.name!r}"):
        criterion = build_criterion(wanted, num_classes) if criterion is None else criterion
        criterion = criterion.to(next(model.parameters()).device)
        if wanted.mixer is not None:
            return _mixer_task(wanted, model, criterion, num_classes, seed, clock)
        if wanted.name == PLAIN:
            return ClassificationTask(model, criterion, device=next(model.parameters()).device, verbose=False)
        settings = {**clock, "verbose": False, **settings, **wanted.off_epoch, **wanted.mix}
        return timm_mix.create_task(wanted.name, model, criterion, num_classes=num_classes, seed=seed, **settings)


def _mixer_task(
    wanted: TaskSettings, model: nn.Module, criterion: nn.Module, num_classes: int, seed: int, clock: dict[str, int]
) -> MixerTask:
    """Plain classification of what a mixer makes of the batches."""
    settings = {**wanted.off_epoch, **wanted.mix}
    off_epoch = settings.pop("off_epoch", None)
    shared: dict[str, Any] = {"num_classes": num_classes, "seed": seed}
    mixer = create_mixer(wanted.mixer or "", **shared, **settings)
    shared |= {"mixer": mixer, "off_epoch": off_epoch, "verbose": False, **clock}
    return MixerTask(model, criterion, **shared)


def build_mixup(wanted: TaskSettings, num_classes: int, multi_label: bool = False) -> Mixup | None:
    """timm's mixup and CutMix of the baselines, which then smooths the labels, too; None where the recipe has none.

    >>> mixup = build_mixup(TaskSettings(cutmix=1.0), num_classes=5)
    >>> images, target = mixup(torch.rand(2, 3, 8, 8), torch.tensor([0, 4]))
    >>> target.shape, target.sum(1)
    (torch.Size([2, 5]), tensor([1., 1.]))
    """
    if not wanted.mixes_samples:
        return None
    return Mixup(
        mixup_alpha=wanted.mixup,
        cutmix_alpha=wanted.cutmix,
        prob=wanted.mixup_prob,
        switch_prob=wanted.mixup_switch_prob,
        mode=wanted.mixup_mode,
        label_smoothing=wanted.smoothing,
        num_classes=num_classes,
        multi_label=multi_label,
    )


def build_optimizer(wanted: OptimiseSettings, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer and parameter groups, with the weight decay of the parts and the names that it spares.

    A Mix Block gets groups of its own where the recipe has settings for it.

    >>> model = timm.create_model("wrn16_2", depth=10, num_classes=5)
    >>> optimizer = build_optimizer(OptimiseSettings(opt="adamw", weight_decay=0.05), model)
    >>> [group["weight_decay"] for group in optimizer.param_groups]  # norm layers and biases, the rest
    [0.0, 0.05]
    """
    settings = optimizer_kwargs(wanted)
    if wanted.divide_weight_decay:
        if not isinstance(model, SplitNet):
            name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
            raise UsageError(f"divide_weight_decay is for a splitnet_* model, got {name}; drop it")
        settings["weight_decay"] = divided_weight_decay(wanted.weight_decay, model.num_members)
    if wanted.no_decay is not None:
        settings["param_group_fn"] = _groups_by_name(wanted, settings["weight_decay"])
    with user_errors(f"create optimizer {wanted.opt!r}"):
        optimizer = create_optimizer_v2(model, **settings)
        own_block_group(wanted, optimizer, model)
    return optimizer


def _groups_by_name(wanted: OptimiseSettings, weight_decay: float) -> Callable[[nn.Module], list[dict[str, Any]]]:
    """timm's parameter groups, where a name decides about the decay and not the number of dimensions."""
    settings: dict[str, Any] = {
        "weight_decay": weight_decay,
        "no_weight_decay_list": tuple(f"*{word}*" for word in wanted.no_decay or ()),
        "weight_decay_exclude_1d": False,
    }
    if wanted.layer_decay is not None:
        return partial(param_groups_layer_decay, layer_decay=wanted.layer_decay, **settings)
    return partial(param_groups_weight_decay, **settings)


def build_schedule(
    wanted: OptimiseSettings, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Any, int]:
    """timm's scheduler and the number of epochs with its cool-down; the recipe's epochs where there is none.

    >>> optimizer = torch.optim.SGD([torch.zeros(3)], lr=0.1)
    >>> wanted = OptimiseSettings(lr=0.1, epochs=10, cooldown_epochs=2, sched="cosine")
    >>> schedule, epochs = build_schedule(wanted, optimizer, updates_per_epoch=7)
    >>> schedule.step(5)
    >>> epochs, round(optimizer.param_groups[0]["lr"], 4)
    (12, 0.05)
    """
    with user_errors(f"create schedule {wanted.sched!r}"):
        if wanted.block_min_lr is None:
            schedule, epochs = _schedule(wanted, optimizer, updates_per_epoch, wanted.min_lr)
            if schedule is not None and wanted.lr_floor is not None:
                schedule = FlooredSchedule(schedule, wanted.lr_floor)
            return schedule, epochs
        network, epochs = _schedule(wanted, GroupsOf(optimizer, block=False), updates_per_epoch, wanted.min_lr)
        block, _ = _schedule(wanted, GroupsOf(optimizer, block=True), updates_per_epoch, wanted.block_min_lr)
    return BlockSchedule(network, block), epochs


def _schedule(wanted: OptimiseSettings, optimizer: Any, updates_per_epoch: int, min_lr: float) -> tuple[Any, int]:
    settings = {**scheduler_kwargs(wanted), "min_lr": min_lr}
    if wanted.sched_after_warmup:  # timm counts such epochs on top of the warm-up
        settings |= {"num_epochs": wanted.epochs - wanted.warmup_epochs, "warmup_prefix": True}
    schedule, epochs = create_scheduler_v2(optimizer, updates_per_epoch=updates_per_epoch, **settings)
    if isinstance(schedule, MultiStepLRScheduler) and wanted.sched_on_updates:
        # timm lets milestone m act at index m - 1, here the last update of an epoch: wait for the next epoch's first
        schedule.decay_t = [update + 1 for update in schedule.decay_t]
    return schedule, epochs
