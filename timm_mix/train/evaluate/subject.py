"""What an evaluation needs: the images, the model with its weights, and how the model wants its images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.models import clean_state_dict, is_model_pretrained, load_state_dict
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import timm_mix  # noqa: F401  (registers the models)
from timm_mix.models.from_plain import is_plain
from timm_mix.train.checkpoints.content import read_checkpoint
from timm_mix.train.data.label_table import check_table, open_label_table
from timm_mix.train.data.loaders import class_names, open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.evaluate.held_back import held_back, open_held_back
from timm_mix.train.evaluate.settings import Evaluated, ImagesOf
from timm_mix.train.loop.build import build_model
from timm_mix.train.loop.network import data_config_of, fitted, try_an_image
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.model import ImageMode, ModelSettings, mode_of

__all__ = ["Subject", "fold", "open_images", "open_subject", "pixel_transform"]

_OWN_CONFIG = ("local-dir:", "hf-hub:", "hf_hub:")  # such a name brings the weights, too
_FROM_RUN = (
    *("model", "model_kwargs", "num_classes", "in_chans", "img_size", "input_size"),
    *("mean", "std", "interpolation", "crop_pct", "aug", "bn_momentum", "bn_eps"),
)


@dataclass(frozen=True)
class Subject:
    """A model with weights, and how it wants its images.

    settings: as a run of train.py would have them.
    data_config: what timm's resolve_data_config gives, with the settings on top.
    weights: where they come from.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5, in_chans=1), "grey")
    >>> subject = open_subject(Evaluated(name="grey"), None)
    >>> subject.architecture, subject.mode, subject.num_classes, subject.weights
    ('test_resnet', 'L', 5, 'grey')
    """

    model: nn.Module
    settings: Config
    data_config: dict[str, Any]
    num_classes: int
    weights: str

    @property
    def architecture(self) -> str:
        return str(self.model.pretrained_cfg.get("architecture") or self.settings.model.name)  # type: ignore[operator,union-attr]

    @property
    def mode(self) -> ImageMode:
        """How its images are read."""
        return mode_of(self.data_config["input_size"][0])


def open_images(images: ImagesOf, model: Evaluated) -> tuple[Dataset, list[str] | None]:
    """The images, and the names of their classes where the data set has them.

    Raises:
        UsageError: what `open_dataset` raises, a stream, no image, or a single class.

    >>> images, names = open_images(ImagesOf(dataset="digits"), Evaluated(name="resnet18"))
    >>> len(images), names[:3]
    (360, ['0', '1', '2'])
    """
    dataset = _open(images, model)
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"an evaluation reads its images by index, got the streamed data set {images.dataset!r}; take a folder, a "
            "tar, torch/ or hfds/ data set"
        )
    names = class_names(dataset)
    if len(dataset) < 2:  # type: ignore[arg-type]
        raise UsageError(
            f"an evaluation needs at least 2 images, got {len(dataset)}; give another --split"  # type: ignore[arg-type]
        )
    if names is not None and len(names) < 2:
        raise UsageError(
            f"an evaluation needs at least 2 classes, the data have 1 ({names[0]}); give all class folders"
        )
    return dataset, names


def _open(images: ImagesOf, model: Evaluated) -> Dataset:
    wanted = held_back(images, model)
    if wanted is not None:
        return open_held_back(images, wanted)
    if images.labels_csv is not None:
        check_table(images)
        return open_label_table(images.labels_csv, images.data_dir, images.split)
    shared: dict[str, Any] = {"class_map": images.class_map, "download": images.dataset_download}
    return open_dataset(images.dataset, images.data_dir, images.split, batch_size=images.batch_size, **shared)


def open_subject(wanted: Evaluated, names: list[str] | None) -> Subject:
    """The model of the command line with its weights; `names` are the data's classes.

    Raises:
        UsageError: no such model or file, no weights or none for its heads, or other classes than the data's.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> open_subject(Evaluated(name="my_model"), ["cat", "dog"])
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: model and data must have the same classes, local-dir:my_model has 5, the data ...
    """
    content = read_checkpoint(_existing(wanted.checkpoint)) if wanted.checkpoint else None
    settings = _settings(wanted, content)
    state, weights = _weights(wanted, content)
    classes = settings.model.num_classes
    if content is not None:
        known = _classes_of(settings.model, state)
        if known is not None and wanted.num_classes not in (None, known):
            raise UsageError(f"{weights} has {known} classes, got --num-classes {wanted.num_classes}; drop it")
        classes = known or classes
    elif classes is None and not settings.model.pretrained and names is not None:
        classes = len(names)
    model: Any = build_model(settings.model, classes)
    _load(model, state, wanted.checkpoint, None if content is None else _size_of_run(content))
    _check_heads(model, wanted, settings.model)
    _check_classes(model, names, settings.model.name)
    data_config = data_config_of(settings.model, model)
    try_an_image(settings.model, model, data_config)
    return Subject(model, settings, data_config, model.num_classes, weights)


def fold(subject: Subject) -> nn.Module:
    """The folded network.

    Raises:
        UsageError: the model has none.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=5), "mixmo")
    >>> fold(open_subject(Evaluated(name="mixmo"), None))(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 5])
    """
    if not hasattr(subject.model, "fold"):
        raise UsageError(f"--fold is for mixmo models, got {subject.settings.model.name}; drop it")
    with user_errors(f"fold {subject.settings.model.name}"):
        return subject.model.fold()  # type: ignore[operator]


def pixel_transform(subject: Subject) -> Callable[[Image.Image], Tensor]:
    """PIL image -> [C, H, W] in [0, 1]: the evaluation transform without its normalisation.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "resnet")
    >>> to_pixels = pixel_transform(open_subject(Evaluated(name="resnet"), None))
    >>> to_pixels(Image.new("RGB", (200, 200), "white")).unique()
    tensor([1.])
    """
    channels = subject.data_config["input_size"][0]
    plain = {**subject.data_config, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    return create_transform(subject.settings.augment.aug, plain, training=False)


def _settings(wanted: Evaluated, content: dict[str, Any] | None) -> Config:
    """The run's own settings where a checkpoint has them, with the command line's on top."""
    known = Config.settings()
    run = content["config"] if content is not None else {}
    settings = {name: run[name] for name in _FROM_RUN if name in run and name in known}
    name = wanted.name
    if (Path(name) / "model" / "config.json").is_file() and not (Path(name) / "config.json").exists():
        raise UsageError(f"--model wants a saved model's folder, {name} holds one: give {Path(name) / 'model'}")
    if name != wanted.checkpoint:
        if settings and settings.get("model") != name:
            settings.pop("model_kwargs", None)
        settings["model"] = f"local-dir:{name}" if Path(name).is_dir() else name
    settings["pretrained"] = content is None and (wanted.pretrained or _brings_weights(settings["model"]))
    settings["model_kwargs"] = {**settings.get("model_kwargs", {}), **wanted.model_kwargs}
    settings["initial_checkpoint"] = wanted.initial_checkpoint
    if wanted.num_classes is not None:
        settings["num_classes"] = wanted.num_classes
    given = wanted.like_training
    with user_errors("use the checkpoint's settings"):
        asked = ModelSettings(**{name: given.pop(name, None) for name in ("in_chans", "img_size", "input_size")})
        config = Config.of(**{**settings, **given})
        if asked.channels is None and asked.size is None:
            return config
        return replace(config, model=config.model.sized(asked.channels, asked.size))


def _weights(wanted: Evaluated, content: dict[str, Any] | None) -> tuple[dict[str, Tensor] | None, str]:
    """The state dict to load, and where the weights come from."""
    if content is not None:
        key = "state_dict_ema" if wanted.use_ema and "state_dict_ema" in content else "state_dict"
        return clean_state_dict(content[key]), f"{key} of {wanted.checkpoint}"
    if wanted.initial_checkpoint:
        return None, str(_existing(wanted.initial_checkpoint))
    if Path(wanted.name).is_dir() or _brings_weights(wanted.name):
        return None, wanted.name
    if wanted.pretrained:
        return None, "published"
    raise UsageError(
        f"{wanted.name} needs weights to evaluate: give --checkpoint, --initial-checkpoint or --pretrained, or "
        "--model with a saved model's folder or a checkpoint"
    )


def _brings_weights(name: str) -> bool:
    """A saved model, one on the Hub, or <architecture>.<tag>."""
    return name.startswith(_OWN_CONFIG) or ("." in name and is_model_pretrained(name))


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise UsageError(f"the weights must be a file, {file} is none; correct the path")
    return Path(file)


def _classes_of(settings: ModelSettings, state: dict[str, Tensor] | None) -> int | None:
    """The number of classes of a state dict, by the head's name in the model's pretrained_cfg."""
    with torch.device("meta"):
        model: Any = build_model(settings, None, device="meta")
    heads = model.pretrained_cfg.get("classifier") or ()
    head = heads if isinstance(heads, str) else next(iter(heads), "")
    weight = (state or {}).get(f"{head}.weight")
    return None if weight is None else len(weight)


def _size_of_run(content: dict[str, Any]) -> tuple[int, int] | None:
    run = content["config"]
    known = {name: run[name] for name in ("img_size", "input_size", "model_kwargs") if run.get(name) is not None}
    return ModelSettings(**known).size


def _load(
    model: nn.Module, state: dict[str, Tensor] | None, file: str | None, source: tuple[int, int] | None = None
) -> None:
    """`source`: (H, W) of the images that the weights were trained on."""
    if state is None:
        return
    missing, unexpected = sorted(set(model.state_dict()) - set(state)), sorted(set(state) - set(model.state_dict()))
    if missing or unexpected:
        odd = f"it lacks {missing[0]}" if missing else f"it has {unexpected[0]}, which the model lacks"
        raise UsageError(f"checkpoint {file} does not fit the model: {odd}; give the --model of its run")
    with user_errors(f"fit checkpoint {file} to the model's image size and channels"):
        state = fitted(model, state, source)
    for name, tensor in model.state_dict().items():
        if tensor.shape != state[name].shape:
            raise UsageError(
                f"checkpoint {file} does not fit the model: {name} is {list(state[name].shape)}, wanted "
                f"{list(tensor.shape)}; give the --model and --model-kwargs of its run"
            )
    model.load_state_dict(state)


def _check_heads(model: Any, wanted: Evaluated, settings: ModelSettings) -> None:
    """With another number of classes timm leaves the heads out, which stay random; so do those of divided parts."""
    if wanted.checkpoint:
        return
    if settings.initial_checkpoint is not None:
        plain = getattr(model, "divided", False) and is_plain(load_state_dict(settings.initial_checkpoint), model)
        weights, known = settings.initial_checkpoint, 0 if plain else model.num_classes
    else:
        weights, known = settings.name, model.pretrained_cfg.get("num_classes")
    if known == 0:
        raise UsageError(f"the weights of {weights} have no head for {settings.name}; fine-tune the model first")
    if known != model.num_classes:
        raise UsageError(
            f"the weights of {weights} are for {known} classes, the model has {model.num_classes}: its head would be "
            "random; drop --num-classes, or fine-tune the model first"
        )


def _check_classes(model: Any, names: list[str] | None, name: str) -> None:
    classes = model.num_classes
    if classes < 2:
        raise UsageError(f"an evaluation needs a classifier of at least 2 classes, {name} has {classes}")
    if names is None:
        return
    if classes != len(names):
        raise UsageError(
            f"model and data must have the same classes, {name} has {classes}, the data have {len(names)}; give its "
            "own data, or a --class-map"
        )
    own = model.pretrained_cfg.get("label_names")
    if own is not None and len(own) != classes:
        raise UsageError(
            f"{name} has {classes} classes and {len(own)} label_names for them; save it with as many names"
        )
    if own is not None and sorted(own) == sorted(names) and list(own) != list(names):
        raise UsageError(
            f"model and data number their classes differently, class 0 is {own[0]!r} and {names[0]!r}; give a "
            "--class-map in the model's order"
        )
