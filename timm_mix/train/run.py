"""One training run, from its settings to the saved model."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from timm_mix.hub import is_model_folder, save_pretrained
from timm_mix.tasks import TASKS
from timm_mix.train.cost import predict_cost
from timm_mix.train.data.chance import deterministic_algorithms
from timm_mix.train.data.digest import digest_of
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import check_folder
from timm_mix.train.loop.build import (
    Data,
    build_data,
    build_loaders,
    build_mixup,
    build_model,
    build_optimizer,
    build_schedule,
    build_task,
    read_as,
)
from timm_mix.train.loop.criterion import build_criterion
from timm_mix.train.loop.guards import check_classes, check_sigmoids
from timm_mix.train.loop.member_parallel import MemberParallel
from timm_mix.train.loop.network import data_config_of, try_an_image
from timm_mix.train.loop.parallel import DataParallel, join_after_restart
from timm_mix.train.loop.trackers import tracker_of
from timm_mix.train.loop.trainer import Trainer
from timm_mix.train.settings.augment import AugmentSettings
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.optimise import OptimiseSettings
from timm_mix.train.settings.run import RunSettings
from timm_mix.train.settings.task import TaskSettings

__all__ = ["run", "train"]


def run(config: Config, **parts: Any) -> dict[str, Any]:
    """Start accelerate and train; `parts` are the keywords of `train`.

    >>> from PIL import Image
    >>> for name in ("train/cat/0.png", "train/dog/0.png", "val/cat/1.png", "val/dog/1.png"):
    ...     Path("pets", name).parent.mkdir(parents=True)
    ...     Image.new("RGB", (32, 32)).save(Path("pets", name))
    >>> short = {"epochs": 1, "batch_size": 2, "workers": 0, "cpu": True}
    >>> results = run(Config.of(data_dir="pets", model="test_resnet", img_size=32, experiment="my_run", **short))
    predicted cost: 1 iterations (1 per epoch), ...
    epoch 1/1  loss ... top-1 ...
    >>> timm.create_model("local-dir:output/my_run/model", pretrained=True).num_classes
    2
    """
    with deterministic_algorithms(config.run.deterministic):
        accelerator = _accelerator(config.optimise, config.run, config.folder)
        try:
            return train(config, accelerator, **parts)
        finally:
            accelerator.end_training()


def train(
    config: Config,
    accelerator: Accelerator,
    *,
    open_data: Callable[[], Data] | None = None,
    prepare_model: Callable[[nn.Module, Data], nn.Module] | None = None,
    make_model: Callable[..., nn.Module] = build_model,
    make_task: Callable[..., TrainingTask] = build_task,
) -> dict[str, Any]:
    """Build the parts of a run, train, save the model.

    `prepare_model` changes the model that the recipe names (a new head, frozen layers) before anything else sees it;
    `open_data`, `make_model` and `make_task` stand for `build_data`, `build_model` and `build_task`.

    >>> from PIL import Image
    >>> from timm_mix.train.data.image_folder import ImageFiles
    >>> Image.new("RGB", (32, 32)).save("grey.png")
    >>> splits = [ImageFiles([Path("grey.png")] * 2, np.array([0, 1]), ["cat", "dog"]) for split in ("train", "val")]
    >>> short = {"epochs": 1, "batch_size": 2, "workers": 0, "cpu": True}
    >>> config = Config.of(model="test_resnet", img_size=32, experiment="of_my_own_data", **short)
    >>> results = train(config, Accelerator(cpu=True), open_data=lambda: Data(*splits, ["cat", "dog"], num_classes=2))
    predicted cost: 1 iterations (1 per epoch), ...
    epoch 1/1  loss ... top-1 ...
    >>> results["last"]["ensemble"]["count"]
    2
    """
    _check_folder(config.folder)
    parallel = _parallel(config, accelerator)
    torch.manual_seed(config.run.seed)
    data = open_data() if open_data is not None else build_data(config.data, config.model, config.run.seed)
    parallel.check_data(data.train, data.validation)
    model = make_model(config.model, data.num_classes, **parallel.model_settings)
    if prepare_model is not None:
        model = prepare_model(model, data)
    check_classes(model, data.num_classes, training=data.train, validation=data.validation)
    if data.multi_label:
        _check_multi_label(config, model)
    data_config = data_config_of(config.model, model)
    read_as(data, data_config["input_size"][0])
    model.to(accelerator.device)
    try_an_image(config.model, model, data_config)
    if config.model.channels_last:
        model.to(memory_format=torch.channels_last)
    trainer = _trainer(config, accelerator, parallel, model, data, data_config, make_task)
    try:
        results = trainer.run()
        if accelerator.is_main_process:
            published = _published_model(config, trainer)
            about: dict[str, Any] = {"label_names": data.names, "multi_label": data.multi_label}
            save_pretrained(published, config.folder / "model", data_config=data_config, **about)
    finally:
        trainer.keeper.release()
    accelerator.wait_for_everyone()
    return results


def _parallel(config: Config, accelerator: Accelerator) -> DataParallel | MemberParallel:
    if config.run.member_parallel:
        return MemberParallel(config.model, accelerator, one_view=config.augment.views == 1)
    return DataParallel(accelerator)


def _trainer(
    config: Config,
    accelerator: Accelerator,
    parallel: DataParallel | MemberParallel,
    model: nn.Module,
    data: Data,
    data_config: dict[str, Any],
    make_task: Callable[..., TrainingTask],
) -> Trainer:
    """Loaders, task, optimizer and schedule, around a model that is ready."""
    views = _views(model, config.task, config.augment)
    place: dict[str, Any] = {"rank": parallel.share, "world_size": parallel.shares, "device": accelerator.device}
    # member-parallel a process makes the view of its own part alone
    place |= {"views": None if config.run.member_parallel else views, "channels_last": config.model.channels_last}
    loaders = build_loaders(config.data, config.augment, data, data_config, seed=config.run.seed, **place)
    steps = len(loaders[0])
    clock = {"epochs": config.optimise.epochs, "steps_per_epoch": steps, "seed": config.run.seed}
    criterion = build_criterion(config.task, data.num_classes, data.train)
    settings = {**clock, **parallel.task_settings, "criterion": criterion}
    task = make_task(config.task, model, data.num_classes, **settings)
    optimizer = build_optimizer(config.optimise, task.get_trainable_module())
    schedule, epochs = build_schedule(config.optimise, optimizer, -(-steps // config.optimise.grad_accum_steps))
    about = _about(config, parallel, model, data, steps, epochs)
    if accelerator.is_main_process:
        counts = {"num_classes": data.num_classes, "steps_per_epoch": steps, "epochs": epochs}
        about["predicted_cost"] = str(predict_cost(config.model, config.task, config.data, **counts))
    mixup = build_mixup(config.task, data.num_classes, data.multi_label)
    return Trainer(
        config, accelerator, task, optimizer, schedule, epochs, *loaders, about, mixup=mixup, parallel=parallel
    )


def _about(
    config: Config, parallel: DataParallel | MemberParallel, model: nn.Module, data: Data, steps: int, epochs: int
) -> dict[str, Any]:
    """What results.json says of model and data."""
    splits = {"train": data.train, "validation": data.validation}
    parameters = parallel.parts * sum(p.numel() for p in model.parameters())
    return {
        "model": {"name": config.model.name, "parameters": parameters},
        "data": {
            "train_images": len(data.train),  # type: ignore[arg-type]
            "validation_images": len(data.validation),  # type: ignore[arg-type]
            "classes": data.num_classes,
            **({"multi_label": True} if data.multi_label else {}),
            **{f"{name}_digest": digest for name, split in splits.items() if (digest := digest_of(split))},
        },
        "steps_per_epoch": steps,
        "total_epochs": epochs,
        "global_batch_size": config.data.batch_size * parallel.shares * config.optimise.grad_accum_steps,
    }


def _check_multi_label(config: Config, model: Any) -> None:
    """Several labels per image are questions of their own, whose logits are averaged over the members."""
    check_sigmoids(model, config.model.name)
    if config.run.member_parallel:
        raise UsageError("member_parallel is for one label per image, the table lists several: drop it")


def _check_folder(folder: Path) -> None:
    """What cannot be written at the end is an error now."""
    check_folder(folder)
    model = folder / "model"
    if model.exists() and not is_model_folder(model):
        raise UsageError(f"{model} exists and is not a saved model: give another --experiment or remove it")


def _views(model: Any, task: TaskSettings, augment: AugmentSettings) -> int | None:
    """Views per image, None for one: some tasks show every member its own."""
    own = task.name in TASKS and TASKS[task.name].facts.member_views
    parts = getattr(model, "num_members", 1) if own else 1
    views = parts if augment.views is None else augment.views
    if views not in (1, parts):
        wanted = f"1 or {parts}, one per part" if parts > 1 else f"1 for task {task.name}"
        raise UsageError(f"views must be {wanted}, got {views}")
    return views if views > 1 else None


def _accelerator(optimise: OptimiseSettings, how: RunSettings, folder: Path) -> Accelerator:
    precision = {"bfloat16": "bf16", "float16": "fp16"}[optimise.amp_dtype] if optimise.amp else "no"
    if precision == "fp16" and (how.cpu or not torch.cuda.is_available()):
        raise UsageError("--amp-dtype float16 needs a GPU; take bfloat16 on the CPU")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with user_errors("start accelerate"):
        join_after_restart(how.cpu)
        tracker = tracker_of(how.tracker, folder)
        place = folder if tracker else None
        return Accelerator(mixed_precision=precision, cpu=how.cpu, log_with=tracker, project_dir=place)


def _published_model(config: Config, trainer: Trainer) -> nn.Module:
    """The model with the weights to publish: last or best epoch, averaged ones where there are."""
    key = "state_dict_ema" if config.optimise.model_ema else "state_dict"
    model = unwrap_model(trainer.task.get_eval_model())
    if config.run.member_parallel:  # here is one part of it
        model = build_model(config.model.without_weights, model.num_classes)
    model.load_state_dict(trainer.keeper.published(trainer.history)[key])
    return model
