"""One training run, from its settings to the saved model."""

import dataclasses
import logging
from collections.abc import Callable
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
    data_config_of,
)
from timm_mix.train.loop.guards import check_classes
from timm_mix.train.loop.member_parallel import MemberParallel
from timm_mix.train.loop.parallel import DataParallel, join_after_restart
from timm_mix.train.loop.trackers import tracker_of
from timm_mix.train.loop.trainer import Trainer
from timm_mix.train.settings.config import Config


def run(config: Config, **parts: Any) -> dict[str, Any]:
    """Start accelerate and train; `parts` are the keywords of `train`."""
    with deterministic_algorithms(config.deterministic):
        accelerator = _accelerator(config)
        try:
            return train(config, accelerator, **parts)
        finally:
            accelerator.end_training()


def train(
    config: Config,
    accelerator: Accelerator,
    *,
    prepare_model: Callable[[nn.Module, Data], nn.Module] | None = None,
    open_data: Callable[[Config], Data] = build_data,
    make_task: Callable[..., TrainingTask] = build_task,
) -> dict[str, Any]:
    """Build the parts of a run, train, save the model.

    `prepare_model` changes the model that the recipe names (a new head, frozen layers) before anything else sees it;
    `open_data` and `make_task` stand for `build_data` and `build_task`.
    """
    _check_folder(config)
    parallel = MemberParallel(config, accelerator) if config.member_parallel else DataParallel(accelerator)
    torch.manual_seed(config.seed)
    data = open_data(config)
    parallel.check_data(data.train, data.validation)
    model = build_model(config, data.num_classes, **parallel.model_settings)
    if prepare_model is not None:
        model = prepare_model(model, data)
    check_classes(model, data.num_classes, training=data.train, validation=data.validation)
    data_config = data_config_of(config, model)
    model.to(accelerator.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    views = _views(model, config)
    if config.member_parallel:
        views = None  # a process makes the view of its own part alone
    share = (parallel.share, parallel.shares, accelerator.device)
    train_loader, eval_loader = build_loaders(config, data, data_config, views, *share)
    task = make_task(config, model, data.num_classes, len(train_loader), **parallel.task_settings)
    optimizer = build_optimizer(config, task.get_trainable_module())
    updates = -(-len(train_loader) // config.grad_accum_steps)
    schedule, epochs = build_schedule(config, optimizer, updates)
    about: dict[str, Any] = {
        "model": {"name": config.model, "parameters": parallel.parts * sum(p.numel() for p in model.parameters())},
        "data": {
            "train_images": len(data.train),  # type: ignore[arg-type]
            "validation_images": len(data.validation),  # type: ignore[arg-type]
            "classes": data.num_classes,
        },
        "steps_per_epoch": len(train_loader),
        "total_epochs": epochs,
        "global_batch_size": config.batch_size * parallel.shares * config.grad_accum_steps,
    }
    if accelerator.is_main_process:
        cost = predict_cost(config, num_classes=data.num_classes, steps_per_epoch=len(train_loader), epochs=epochs)
        about["predicted_cost"] = str(cost)
    loaders, mixup = (train_loader, eval_loader), build_mixup(config, data.num_classes)
    extra: dict[str, Any] = {"mixup": mixup, "parallel": parallel}
    trainer = Trainer(config, accelerator, task, optimizer, schedule, epochs, *loaders, about, **extra)
    results = trainer.run()
    if accelerator.is_main_process:
        save_pretrained(
            _published_model(config, trainer), config.folder / "model", label_names=data.names, data_config=data_config
        )
    accelerator.wait_for_everyone()
    return results


def _check_folder(config: Config) -> None:
    """What cannot be written at the end is an error now."""
    check_folder(config.folder)
    model = config.folder / "model"
    if model.exists() and not is_model_folder(model):
        raise UsageError(f"{model} exists and is not a saved model: give another --experiment or remove it")


def _views(model: Any, config: Config) -> int | None:
    """Views per image, None for one: some tasks show every member its own."""
    own = config.task in TASKS and TASKS[config.task].facts.member_views
    parts = getattr(model, "num_members", 1) if own else 1
    views = parts if config.views is None else config.views
    if views not in (1, parts):
        wanted = f"1 or {parts}, one per part" if parts > 1 else f"1 for task {config.task}"
        raise UsageError(f"views must be {wanted}, got {views}")
    return views if views > 1 else None


def _accelerator(config: Config) -> Accelerator:
    precision = {"bfloat16": "bf16", "float16": "fp16"}[config.amp_dtype] if config.amp else "no"
    if precision == "fp16" and (config.cpu or not torch.cuda.is_available()):
        raise UsageError("--amp-dtype float16 needs a GPU; take bfloat16 on the CPU")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with user_errors("start accelerate"):
        join_after_restart(config.cpu)
        tracker = tracker_of(config)
        return Accelerator(
            mixed_precision=precision, cpu=config.cpu, log_with=tracker, project_dir=config.folder if tracker else None
        )


def _published_model(config: Config, trainer: Trainer) -> nn.Module:
    """The model with the weights to publish: last or best epoch, averaged ones where there are."""
    key = "state_dict_ema" if config.model_ema else "state_dict"
    model = unwrap_model(trainer.task.get_eval_model())
    if config.member_parallel:  # here is one part of it
        fresh = dataclasses.replace(config, pretrained=False, initial_checkpoint=None)
        model = build_model(fresh, model.num_classes)
    model.load_state_dict(trainer.keeper.published(trainer.history)[key])
    return model
