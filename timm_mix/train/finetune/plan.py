"""What fine-tuning adds to training: where the model comes from, its new heads, frozen layers, the members' loss."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from timm.loss import create_classification_loss
from timm.models import parse_model_name, resolve_model_input_args
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.models import reduce_members
from timm_mix.tasks import TASKS, MemberTask
from timm_mix.train.data.image_folder import find_unreadable, open_image_folder
from timm_mix.train.data.sources import FOLDER_NAMES
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.finetune.freezing import freeze, hold_in_eval
from timm_mix.train.loop.build import Data, build_data, build_task, data_config_of
from timm_mix.train.settings.config import Config

__all__ = ["FinetuneConfig", "MembersTask", "make_task", "open_data", "prepare_model", "settle"]


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """A training run with other defaults and a few settings more.

    A subclass, so that every setting of training is one here, and results and checkpoints hold all of them.
    """

    model: str = field(
        default="",
        metadata={"help": "a model's name, local-dir:FOLDER (saved by save_pretrained) or hf-hub:ORG/NAME"},
    )
    pretrained: bool = field(
        default=True, metadata={"help": "start from the model's weights where it has any (default: True)"}
    )
    task: str = field(
        default="classification",
        metadata={
            "help": "classification (default: all members see the same image, the mean of their losses), or "
            + ", ".join(TASKS)
        },
    )
    smoothing: float = 0.1
    batch_size: int = field(default=32, metadata={"help": "per process"})
    epochs: int = 10
    opt: str = "adamw"
    lr: float = 5e-4
    weight_decay: float = field(default=0.05, metadata={"help": "timm's: biases and norm layers are spared"})
    layer_decay: float | None = field(
        default=None, metadata={"help": "learning rate of a layer over that of the next one; 0.65 to 0.9 is usual"}
    )
    sched_on_updates: bool = True
    warmup_epochs: int = 1
    warmup_lr: float = 1e-6
    model_ema_decay: float = field(default=0.998, metadata={"help": "for runs of some thousand updates"})
    val_fraction: float | None = field(
        default=None, metadata={"help": "share of each class to hold back, where --data-dir has no validation folder"}
    )
    check_images: bool = field(default=True, metadata={"help": "read every image once before training (default: True)"})
    keep_head: bool = field(default=False, metadata={"help": "go on with the heads, on the very classes they know"})
    freeze: str | None = field(
        default=None, metadata={"help": "N: the first N stages, stem included; or backbone: everything but the heads"}
    )
    linear_probe: bool = field(
        default=False, metadata={"help": "train the heads alone, the model in evaluation mode; --lr 0.01 is usual"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise UsageError("--model is missing: a model's name, local-dir:FOLDER or hf-hub:ORG/NAME")
        if self.freeze is not None and self.freeze != "backbone" and not (self.freeze.isdecimal() and int(self.freeze)):
            raise UsageError(f"freeze takes a number of stages >= 1 or backbone, got {self.freeze!r}")
        if self.freeze is not None and self.linear_probe:
            raise UsageError(f"linear_probe freezes the whole backbone, got freeze={self.freeze} as well: drop one")
        if self.linear_probe and (self.drop or self.drop_path):
            raise UsageError("linear_probe trains on the features of evaluation mode, got drop or drop_path")
        if self.layer_decay is not None and not self.layer_decay <= 1:
            raise UsageError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.layer_decay is not None and self.sched == "none":
            raise UsageError("layer_decay acts through the schedule, got sched=none: take --sched constant")


def settle(config: FinetuneConfig) -> FinetuneConfig:
    """The settings that follow from where the model comes from: weights, channels, image size, name of the run.

    Raises:
        UsageError: no such model, folder or repository, or a model whose input is no image.
    """
    source, name = _check_source(config.model)
    weights = config.pretrained and (source is not None or timm.is_model_pretrained(name))
    settings: dict[str, Any] = {"pretrained": weights and config.initial_checkpoint is None}
    with user_errors(f"create model {config.model!r}"):
        asked = {"img_size": config.img_size} if config.img_size else {}
        wanted = resolve_model_input_args(config.model, asked, in_chans=config.in_chans, **config.model_kwargs)
    channels = wanted.get("in_chans") or (wanted["pretrained_cfg"].get("input_size") or (3,))[0]
    if channels not in (1, 3):
        given = "--in-chans" if config.in_chans else config.model
        raise UsageError(f"images have 1 or 3 channels, {given} asks for {channels}: give --in-chans 3")
    if channels == 1:
        settings["in_chans"] = 1
    settings["model_kwargs"] = _built_with(config, wanted)
    if config.experiment is None:
        settings["experiment"] = f"{_short(name)}_on_{Path(config.data_dir or config.dataset).resolve().name}"
    return dataclasses.replace(config, **settings)


def _built_with(config: FinetuneConfig, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the saved model was built with, as far as no flag says otherwise: the results then tell it whole."""
    of_flags = {"model_name", "pretrained_cfg", "pretrained_model_args", "num_classes", "in_chans"}
    of_flags |= {f"{name}_rate" for name in ("drop", "drop_path") if getattr(config, name) is not None}
    kept = {key: value for key, value in wanted.items() if key not in of_flags or key in config.model_kwargs}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _check_source(model: str) -> tuple[str | None, str]:
    """Where a model comes from and its name there, after a look at what lies on the disk."""
    wanted = "--model wants a name, local-dir:FOLDER or hf-hub:ORG/NAME"
    if Path(model).is_dir() and not timm.is_model(model):
        inner = Path(model) / "model"  # of a run
        hint = inner if (inner / "config.json").is_file() else model
        raise UsageError(f"{wanted}; did you mean local-dir:{hint}?")
    if Path(model).is_file():
        raise UsageError(f"{wanted}, {model} is a file; weights are for --initial-checkpoint, beside --model NAME")
    with user_errors(f"find model {model!r}"):
        source, name = parse_model_name(model)
    if source == "local-dir":
        wanted = "local-dir: wants a folder saved by save_pretrained (config.json, model.safetensors)"
        if not Path(name).is_dir():
            raise UsageError(f"{wanted}, {name} is {'a file' if Path(name).exists() else 'not there'}")
        if not (Path(name) / "config.json").is_file():
            inner = Path(name) / "model"
            hint = f"; did you mean local-dir:{inner}?" if (inner / "config.json").is_file() else ""
            raise UsageError(f"{wanted}, {name} has no config.json{hint}")
    elif source is None and not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"no model is named {name!r}: see timm.list_models(), or give a folder as local-dir:FOLDER")
    return source, name


def _short(name: str) -> str:
    """A run's name from a model's: the folder of a saved model is called model, the run's folder says more."""
    path = Path(name).resolve() if Path(name).is_dir() else Path(name)
    return path.parent.name if path.name == "model" else path.name


def open_data(config: FinetuneConfig) -> Data:
    """Training and validation images, every one of them readable; data sets that are no folders as train.py has them.

    Raises:
        UsageError: see `open_image_folder`; images that cannot be read, by name; fewer than two classes.
    """
    if config.dataset not in FOLDER_NAMES or str(config.data_dir).endswith(".tar") or config.class_map:
        if config.val_fraction is not None:
            raise UsageError(
                f"val_fraction is for a folder of images, got {config.dataset or config.data_dir}: drop it"
            )
        return build_data(config)
    if config.data_dir is None:
        raise UsageError("--data-dir is missing: a folder with train/ and val/, or with one folder of images per class")
    train, validation, left_out = open_image_folder(
        config.data_dir,
        train_split=config.train_split,
        val_split=config.val_split,
        val_fraction=config.val_fraction,
        seed=config.seed,
        mode="L" if config.in_chans == 1 else "RGB",
    )
    if config.num_classes not in (None, len(train.classes)):
        raise UsageError(f"the data have {len(train.classes)} classes, got --num-classes {config.num_classes}; drop it")
    if not len(validation):
        raise UsageError(f"{config.data_dir} holds no validation images: add some, or give a larger --val-fraction")
    if config.check_images:
        _refuse_unreadable(train.files + validation.files, config.workers)
    _say(f"{len(train):,} training and {len(validation):,} validation images of {len(train.classes)} classes")
    if left_out:
        endings = ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(5))
        _say(f"left out as no images: {endings}")
    return Data(train, validation, train.classes, len(train.classes))


def _refuse_unreadable(files: list[Path], threads: int) -> None:
    """Every process reads its share, all of them hear of every fault."""
    state = PartialState()
    faults = gather_object(find_unreadable(files[state.process_index :: state.num_processes], threads))
    if faults:
        raise UsageError(faults[0] + (f" (and {len(faults) - 1} more such files)" if len(faults) > 1 else ""))


def prepare_model(config: FinetuneConfig, model: nn.Module, data: Data) -> nn.Module:
    """New heads for the data's classes on every member, then what is frozen; in place.

    Raises:
        UsageError: the model does not take images of that size, heads that cannot be kept, stages that it has not.
    """
    _try_an_image(config, model)
    if config.pretrained or config.initial_checkpoint is not None:
        if config.keep_head:
            _check_kept_head(config, model, data)
        else:
            model.reset_classifier(data.num_classes)  # type: ignore[operator]
    elif config.keep_head:
        raise UsageError(f"keep_head needs weights, {config.model} starts from random ones: drop it")
    if config.linear_probe:
        freeze(model, "backbone")
        hold_in_eval(model)
    elif config.freeze is not None:
        freeze(model, config.freeze)
    _say(_summary(config, model))
    return model


def _try_an_image(config: FinetuneConfig, model: nn.Module) -> None:
    size = tuple(data_config_of(config, model)["input_size"])
    training = model.training
    with user_errors(f"run {config.model} on images of {size[-1]} pixels (see --img-size)"), torch.no_grad():
        model.eval()(torch.zeros(1, *size))
    model.train(training)


def _check_kept_head(config: FinetuneConfig, model: Any, data: Data) -> None:
    """A head that goes on must know the data's classes, under the same names where it has any."""
    known = model.pretrained_cfg.get("num_classes")
    if config.initial_checkpoint is None and known != data.num_classes:
        raise UsageError(f"keep_head needs the {known} classes of {config.model}, got {data.num_classes}: drop it")
    names = model.pretrained_cfg.get("label_names")
    if names and data.names and list(names) != data.names:
        other = next(pair for pair in zip(data.names, names, strict=True) if pair[0] != pair[1])
        raise UsageError(f"keep_head needs the classes of {config.model}, got {other[0]!r} for {other[1]!r}: drop it")


def _summary(config: FinetuneConfig, model: nn.Module) -> str:
    total = sum(p.numel() for p in model.parameters())
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = "its weights" if config.pretrained else config.initial_checkpoint or "random weights"
    return f"{config.model} from {start}: {total:,} parameters" + (f", {free:,} of them learn" if free < total else "")


class MembersTask(MemberTask):
    """Every member learns the same images: the loss is the mean of the members' losses.

    For a MixMo all encoders see one image, as they do at test time. The loss of the ensemble's mean instead would let
    one member rest on what another has learned.

    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with loss: scalar.   output: [B, K], the ensemble.
    """

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        target = self._checked_target(input, target)
        logits = self.trainable_module(input, return_members=True)
        loss = torch.stack([self.criterion(member.float(), target) for member in logits.unbind(1)]).mean()
        self.step += 1
        return {"loss": loss, "output": reduce_members(logits, unwrap_model(self.trainable_module).ensemble)}


def make_task(config: Config, model: nn.Module, num_classes: int, steps_per_epoch: int, **more: Any) -> TrainingTask:
    """The recipe's task; plain training of a model with members is the MembersTask."""
    if config.task != "classification" or config.mix or not hasattr(model, "num_members"):
        return build_task(config, model, num_classes, steps_per_epoch, **more)
    with user_errors("create the loss"):
        criterion = create_classification_loss(smoothing=config.smoothing, soft_targets=config.mixes_samples)
    return MembersTask(model, criterion, num_classes=num_classes, seed=config.seed, verbose=False)


def _say(line: str) -> None:
    if PartialState().is_main_process:
        print(line, flush=True)
