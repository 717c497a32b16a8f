"""What fine-tuning adds to training: where the model comes from, its new heads, frozen layers, the members' loss."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from timm.models import parse_model_name, resolve_model_input_args
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from timm_mix.announced import checked_announcements
from timm_mix.hub import local_name
from timm_mix.models import reduce_members
from timm_mix.tasks import MemberTask, task_settings
from timm_mix.train.data.image_folder import find_unreadable, open_image_folder
from timm_mix.train.data.sources import FOLDER_NAMES
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.finetune.freezing import freeze, hold_in_eval
from timm_mix.train.finetune.settings import SUITED, FinetuneConfig, FinetuneSettings
from timm_mix.train.loop.build import Data, build_data, build_task, labelled_data
from timm_mix.train.loop.criterion import build_criterion
from timm_mix.train.loop.network import data_config_of
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ImageMode, ModelSettings
from timm_mix.train.settings.task import PLAIN, TaskSettings

__all__ = ["MembersTask", "make_task", "open_data", "prepare_model", "recalibrate", "settle"]


def settle(config: FinetuneConfig) -> FinetuneConfig:
    """The settings that follow from where the model comes from: weights, channels, image size, name of the run, and
    what a task starts with on weights that are good already.

    Raises:
        UsageError: no such model, folder or repository, or a model whose input is no image.

    >>> config = settle(FinetuneConfig.of(model="wrn28_10", data_dir="my/pets"))
    >>> config.run.experiment, config.model.pretrained  # no weights have this name
    ('wrn28_10_on_pets', False)
    """
    model = config.model
    source, name = _check_source(model.name)
    weights = model.pretrained and (source is not None or timm.is_model_pretrained(_weights_of(model, name)))
    settings: dict[str, Any] = {"pretrained": weights and model.initial_checkpoint is None}
    with user_errors(f"create model {model.name!r}"):
        asked = {"img_size": model.size} if model.size else {}
        args = {**model.model_kwargs, "in_chans": model.channels}
        wanted = resolve_model_input_args(model.name, asked, **args)
    channels = wanted.get("in_chans") or (wanted["pretrained_cfg"].get("input_size") or (3,))[0]
    if channels != 3 and model.channels is None:
        settings |= {name: getattr(model.sized(channels, None), name) for name in ("in_chans", "input_size")}
    settings["model_kwargs"] = _built_with(model, wanted)
    if weights or model.initial_checkpoint is not None:
        settings["mix"] = {**SUITED.get(config.task.name, {}), **config.task.mix}
    if config.run.experiment is None:
        data = Path(config.data.data_dir or config.data.dataset).resolve().name
        settings["experiment"] = _unused(Path(config.run.output), f"{_short(name)}_on_{data}", config.run.resume)
    return config.replace(**settings)


def _weights_of(model: ModelSettings, name: str) -> str:
    """The name whose weights the model starts from: of the generic models with members it is the backbone's."""
    if name not in ("mixmo", "splitnet"):
        return name
    default = inspect.signature(timm.models.model_entrypoint(name)).parameters["backbone"].default
    return model.model_kwargs.get("backbone", default)


def _built_with(model: ModelSettings, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the saved model was built with, as far as no flag says otherwise: the results then tell it whole."""
    of_flags = {"model_name", "pretrained_cfg", "pretrained_model_args", "num_classes", "in_chans"}
    of_flags |= {f"{name}_rate" for name in ("drop", "drop_path") if getattr(model, name) is not None}
    kept = {key: value for key, value in wanted.items() if key not in of_flags or key in model.model_kwargs}
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


def _unused(output: Path, name: str, resume: str | None) -> str:
    """The name, with the next number where a run has it already that is not to be resumed."""
    if resume is not None or not (output / name / "checkpoints").exists():
        return name
    return next(f"{name}_{i}" for i in itertools.count(2) if not (output / f"{name}_{i}").exists())


def open_data(images: DataSettings, model: ModelSettings, wanted: FinetuneSettings, seed: int) -> Data:
    """Training and validation images, every one of them readable; data sets that are no folders as train.py has them.

    Raises:
        UsageError: see `open_image_folder`; images that cannot be read, by name; fewer than two classes.

    >>> from PIL import Image
    >>> for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"):
    ...     Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (8, 8)).save(Path("pets", name))
    >>> data = open_data(DataSettings(data_dir="pets"), ModelSettings(), FinetuneSettings(val_fraction=0.5), seed=0)
    2 training and 3 validation images of 2 classes
    """
    if images.labels_csv is not None:
        data = labelled_data(images, model, val_fraction=wanted.val_fraction, seed=seed)
        return _checked(data, wanted, images.workers, model.image_mode)
    if images.dataset not in FOLDER_NAMES or str(images.data_dir).endswith(".tar") or images.class_map:
        if wanted.val_fraction is not None:
            raise UsageError(
                f"val_fraction is for a folder of images, got {images.dataset or images.data_dir}: drop it"
            )
        return build_data(images, model, seed)
    if not images.data_dir:
        raise UsageError("--data-dir is missing: a folder with train/ and val/, or with one folder of images per class")
    train, validation, left_out = open_image_folder(
        images.data_dir,
        train_split=images.train_split,
        val_split=images.val_split,
        val_fraction=wanted.val_fraction,
        seed=seed,
        mode=model.image_mode,
    )
    if model.num_classes not in (None, len(train.classes)):
        raise UsageError(f"the data have {len(train.classes)} classes, got --num-classes {model.num_classes}; drop it")
    if not len(validation):
        raise UsageError(f"{images.data_dir} holds no validation images: add some, or give a larger --val-fraction")
    data = _checked(
        Data(train, validation, train.classes, len(train.classes)), wanted, images.workers, model.image_mode
    )
    if left_out:
        endings = ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(5))
        _say(f"left out as no images: {endings}")
    return data


def _checked(data: Data, wanted: FinetuneSettings, threads: int, mode: ImageMode) -> Data:
    """Every image has been read, if that is wanted."""
    train: Any = data.train
    validation: Any = data.validation
    if wanted.check_images:
        _refuse_unreadable(train.files + validation.files, threads, mode)
    _say(f"{len(train):,} training and {len(validation):,} validation images of {data.num_classes} classes")
    return data


def _refuse_unreadable(files: list[Path], threads: int, mode: ImageMode) -> None:
    """Every process reads its share, all of them hear of every fault."""
    state = PartialState()
    faults = gather_object(find_unreadable(files[state.process_index :: state.num_processes], threads, mode))
    if faults:
        raise UsageError(faults[0] + (f" (and {len(faults) - 1} more such files)" if len(faults) > 1 else ""))


def prepare_model(wanted: FinetuneSettings, source: ModelSettings, model: nn.Module, data: Data) -> nn.Module:
    """New heads for the data's classes on every member, then what is frozen; in place.

    Raises:
        UsageError: heads that cannot be kept, stages that it has not.

    >>> source = ModelSettings(name="test_resnet")
    >>> model = timm.create_model("test_resnet", num_classes=2)
    >>> data = Data([], [], ["cat", "dog"], num_classes=2)
    >>> model = prepare_model(FinetuneSettings(linear_probe=True), source, model, data)
    test_resnet from random weights: 372,882 parameters, 194 of them learn
    """
    if source.pretrained or source.initial_checkpoint is not None:
        if wanted.keep_head:
            _check_kept_head(source, model, data)
        else:
            model.reset_classifier(data.num_classes)  # type: ignore[operator]
    elif wanted.keep_head:
        raise UsageError(f"keep_head needs weights, {source.name} starts from random ones: drop it")
    if wanted.recalibrate is not None:
        recalibrate(model, source, data.train, wanted.recalibrate)
    if wanted.linear_probe:
        freeze(model, "backbone")
        hold_in_eval(model)
    elif wanted.freeze is not None:
        freeze(model, wanted.freeze)
    _say(_summary(source, model))
    return model


def _check_kept_head(source: ModelSettings, model: Any, data: Data) -> None:
    """A head that goes on must know the data's classes, under the same names where it has any."""
    known = model.pretrained_cfg.get("num_classes")
    if source.initial_checkpoint is None and known != data.num_classes:
        raise UsageError(f"keep_head needs the {known} classes of {source.name}, got {data.num_classes}: drop it")
    names = model.pretrained_cfg.get("label_names")
    if names and data.names and list(names) != data.names:
        if len(names) != len(data.names):
            raise UsageError(f"keep_head needs a name for each class, {source.name} has {len(names)} names: drop it")
        other = next(pair for pair in zip(data.names, names, strict=True) if pair[0] != pair[1])
        raise UsageError(f"keep_head needs the classes of {source.name}, got {other[0]!r} for {other[1]!r}: drop it")


_BATCH = 64  # of the images that batch norms are measured on


def recalibrate(model: nn.Module, source: ModelSettings, images: Any, count: int) -> None:
    """Measure the statistics of all batch norms anew, on `count` of the images as evaluation shows them; in place.

    The same images for every seed and on every process.

    >>> model = timm.create_model("test_resnet", num_classes=5)
    >>> from timm_mix.train.data.digits import Digits
    >>> recalibrate(model, ModelSettings("test_resnet", img_size=32), Digits("train"), count=64)
    >>> bool((model.bn1.running_mean != 0).all())
    True
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    before = images.transform
    images.transform = timm.data.create_transform(**data_config_of(source, model), is_training=False)
    # as equal as can be: a last batch of one image would have no deviation
    batches = [part.tolist() for part in chosen.tensor_split(-(-len(chosen) // _BATCH))]
    try:
        with user_errors(f"measure batch norms on {len(chosen)} images (see --recalibrate)"):
            update_bn(DataLoader(images, batch_sampler=batches), model)
    finally:
        images.transform = before


def _summary(source: ModelSettings, model: nn.Module) -> str:
    total = sum(p.numel() for p in model.parameters())
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = "its weights" if source.pretrained else source.initial_checkpoint or "random weights"
    return f"{source.name} from {start}: {total:,} parameters" + (f", {free:,} of them learn" if free < total else "")


class MembersTask(MemberTask):
    """Every member learns the same images: the loss is the mean of the members' losses.

    For a MixMo all encoders see one image, as they do at test time. The loss of the ensemble's mean instead would let
    one member rest on what another has learned.

    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with loss: scalar.   output: [B, K], the ensemble.

    >>> model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=5)
    >>> task = MembersTask(model, nn.CrossEntropyLoss(), num_classes=5, verbose=False)
    >>> result = task(torch.rand(2, 3, 32, 32), torch.tensor([0, 4]))
    >>> result["loss"].shape, result["output"].shape
    (torch.Size([]), torch.Size([2, 5]))
    """

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        target = self._checked_target(input, target)
        logits = self.trainable_module(input, return_members=True)
        loss = torch.stack([self.label_loss(member, target) for member in logits.unbind(1)]).mean()
        self.step += 1
        return {"loss": loss, "output": reduce_members(logits, unwrap_model(self.trainable_module).ensemble)}


def make_task(
    wanted: TaskSettings,
    model: nn.Module,
    num_classes: int,
    *,
    seed: int,
    teacher: str | None = None,
    fed: ModelSettings | None = None,
    **more: Any,
) -> TrainingTask:
    """The recipe's task; plain training of a model with members is the MembersTask.

    Args:
        teacher: name of a fine-tuned model, for a task that takes one.
        fed: how the images are fed to the model, which the teacher must know.
    Raises:
        UsageError: a teacher for another task, of other classes, or that cannot be created.

    >>> models = [timm.create_model(name, depth=10, num_classes=5) for name in ("wrn16_2", "mixmo_wrn16_2_m2")]
    >>> length = {"epochs": 3, "steps_per_epoch": 7}
    >>> [type(make_task(TaskSettings(), model, 5, seed=0, **length)).__name__ for model in models]
    ['ClassificationTask', 'MembersTask']
    """
    if teacher is not None:
        if wanted.name == PLAIN or "teacher" not in task_settings(wanted.name):
            raise UsageError(f"teacher is for task cotraining, got task {wanted.name}: drop it, or change --task")
        more |= _taught_by(teacher, fed or ModelSettings(), model)
    if wanted.name != PLAIN or wanted.mix or not hasattr(model, "num_members"):
        return build_task(wanted, model, num_classes, seed=seed, **more)
    criterion = more.get("criterion") or build_criterion(wanted, num_classes)
    criterion = criterion.to(next(model.parameters()).device)
    return MembersTask(model, criterion, num_classes=num_classes, seed=seed, verbose=False)


def _taught_by(teacher: str, fed: ModelSettings, model: nn.Module) -> dict[str, Any]:
    """The task's settings of a teacher that takes the images as the model gets them."""
    with user_errors(f"create the teacher {teacher!r}"), checked_announcements():
        network = timm.create_model(local_name(teacher), pretrained=True).eval()
    data = data_config_of(fed, model)
    size = tuple(data["input_size"])
    with user_errors(f"show the teacher {teacher!r} images of {' x '.join(map(str, size))}"), torch.no_grad():
        network(torch.zeros(1, *size))
    return {"teacher": network, "mean": data["mean"], "std": data["std"]}


def _say(line: str) -> None:
    if PartialState().is_main_process:
        print(line, flush=True)
