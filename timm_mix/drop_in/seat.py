"""What drop_in puts behind the names that timm's train script imports, while that script runs."""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.loss import JsdCrossEntropy
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.mixers import MIXERS, create_mixer, mixer_settings
from timm_mix.tasks import TASKS, MixingTask, create_task, task_settings
from timm_mix.tasks.mixer import MixerTask
from timm_mix.views import Views, collate_views

__all__ = ["DropInError", "Order", "Seat", "one_line"]

TESTED = "1.0.31"
# settings of the tasks and mixers that the script's own arguments decide
TAKEN = {"num_classes", "total_steps", "steps_per_epoch", "rank", "device", "dtype", "verbose", "label_smoothing"}
MIXES = "timm's mixup and CutMix do not go together with {name}, which mixes itself: drop --mixup, --cutmix and such"
OTHER = "timm's {refused} and {name} want the same seat: drop one of the two"
REFUSED = {
    "timm.data.Mixup": MIXES,
    "timm.data.FastCollateMixup": MIXES,
    "timm.data.create_naflex_loader": "timm's NaFlex loader gives no plain images, which {name} needs: drop one",
    "timm.task.MultiLabelClassificationTask": OTHER,
    "timm.task.LogitDistillationTask": OTHER,
    "timm.task.FeatureDistillationTask": OTHER,
    "timm.task.TokenDistillationTask": OTHER,
}
_logger = logging.getLogger("timm_mix.drop_in")


class DropInError(Exception):
    """A mistake of the user, in one line.

    >>> Order(task="mixmoo")
    Traceback (most recent call last):
        ...
    timm_mix.drop_in.seat.DropInError: task must be one of ..., got 'mixmoo'; did you mean mixmo?
    """


@dataclass(frozen=True)
class Order:
    """What the command line asks for: a task, a mixer, or neither, and the settings of it.

    imports: modules that have been imported for it, as children of the script will do.

    Raises:
        DropInError: a task, mixer or setting that there is not, or a mixer's setting outside its range.

    >>> order = Order(mixer="resizemix", settings={"prob": 0.5})
    >>> order.name, type(order.create_mixer(num_classes=5)).__name__
    ('mixer resizemix', 'ResizeMix')
    """

    task: str | None = None
    mixer: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        with one_line():
            for name, registry in ((self.task, TASKS), (self.mixer, MIXERS)):
                if name is not None:
                    registry.find(name)
        known = self._known()
        for setting in self.settings:
            if setting not in known:
                raise DropInError(
                    f"{self.name} has no setting {setting!r}; it has {', '.join(sorted(known)) or 'none'}"
                )
        views = self.settings.get("views")
        if views is not None and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
            raise DropInError(f"views must be an integer >= 1, got {views!r}")
        if self.mixer is not None:
            with one_line():
                self.create_mixer(num_classes=2)  # a wrong setting is an error now, not after the data is read

    def _known(self) -> set[str]:
        if self.task is not None:
            return (task_settings(self.task) | ({"views"} if self.member_views else set())) - TAKEN
        if self.mixer is not None:
            return mixer_settings(self.mixer) | {"seed", "prob", "off_epoch"}
        return set()

    @property
    def member_views(self) -> bool:
        """Whether every member is shown its own view of an image."""
        return self.task is not None and TASKS[self.task].facts.member_views

    @property
    def name(self) -> str:
        if self.task is not None:
            return f"task {self.task}"
        return "a run without --task or --mixer" if self.mixer is None else f"mixer {self.mixer}"

    def create_mixer(self, num_classes: int) -> Any:
        assert self.mixer is not None
        own = {key: value for key, value in self.settings.items() if key != "off_epoch"}
        return create_mixer(self.mixer, num_classes=num_classes, **own)


class Seat:
    """The place of timm's ClassificationTask in one run of the script.

    timm's script makes its loaders, then its task, then its schedule, and only then trains: from the training loader
    the seat learns the batches per epoch, from the schedule the epochs, from its data config its --mixup-off-epoch.

    Attributes:
        task: what sits there; None until the script asks for it.
        views: of every image in the training batches.

    >>> from timm.models import create_model
    >>> with Seat(Order(mixer="resizemix")).taken() as seat:
    ...     model = create_model("test_resnet", num_classes=5)
    ...     task = timm.task.ClassificationTask(model, nn.CrossEntropyLoss(), device=torch.device("cpu"))
    >>> type(task).__name__, task is seat.task
    ('MixerTask', True)
    """

    def __init__(self, order: Order):
        self.order = order
        self.task: MixingTask | None = None
        self.views = 1
        self.steps_per_epoch: int | None = None
        self.epochs: int | None = None
        self._members: int | None = None
        self._off_epoch: int | None = None  # the script's --mixup-off-epoch

    @contextmanager
    def taken(self) -> Iterator["Seat"]:
        """Exchange the names; on leaving, all are as they were.

        Raises:
            DropInError: a timm without one of the names.
        """
        changes = self._changes() if self.order.task or self.order.mixer else {}
        before = {path: _look_up(path) for path in changes}
        try:
            for path, change in changes.items():
                _put(path, change(before[path]))
            yield self
        finally:
            for path, original in before.items():
                _put(path, original)

    def check_taken(self) -> None:
        """Raises: DropInError: the script trains without timm's ClassificationTask."""
        if self.task is None and (self.order.task or self.order.mixer):
            raise DropInError(
                f"{self.order.name} found no seat, the script made no timm.task.ClassificationTask before its "
                f"schedule: take the train.py of timm {TESTED}"
            )

    def _changes(self) -> dict[str, Callable[[Any], Any]]:
        """What becomes of each name: path -> (original -> replacement)."""
        changes: dict[str, Callable[[Any], Any]] = {
            "timm.task.ClassificationTask": self._classification_task,
            "timm.data.resolve_data_config": self._resolve_data_config,
            "timm.data.create_loader": self._create_loader,
            "timm.scheduler.create_scheduler_v2": self._create_scheduler,
        }
        if self.order.member_views:
            changes |= {"timm.models.create_model": self._create_model, "timm.create_model": self._create_model}
        for path, reason in REFUSED.items():
            if _look_up(path, None) is not None:  # a timm without it cannot ask for it
                message = reason.format(refused=path.rpartition(".")[2], name=self.order.name)
                changes[path] = functools.partial(_refusal, message)
        return changes

    def _classification_task(self, original: Any) -> Any:
        seat = self

        class ClassificationTask(original):
            def __new__(cls, *args: Any, **kwargs: Any) -> Any:
                if cls is not ClassificationTask:  # a task of the script's own
                    return super().__new__(cls)
                return seat._create_task(original(*args, **kwargs))

        return ClassificationTask

    def _create_task(self, plain: Any) -> MixingTask:
        """Ours, from what timm's task made of the script's arguments."""
        model, criterion = plain.get_trainable_module(), plain.criterion
        if isinstance(criterion, JsdCrossEntropy):
            raise DropInError(f"timm's JSD loss does not go together with {self.order.name}: drop --jsd-loss")
        settings = {key: value for key, value in self.order.settings.items() if key != "views"}
        settings |= {} if self._off_epoch is None else {"off_epoch": self._off_epoch}
        # torch was seeded by the script, from its --seed
        common = {"seed": settings.pop("seed", torch.initial_seed()), "steps_per_epoch": self.steps_per_epoch}
        common |= {"device": plain.device, "dtype": plain.dtype, "verbose": plain.verbose}
        num_classes = getattr(unwrap_model(model), "num_classes", None)
        if not isinstance(num_classes, int):
            raise DropInError(f"{self.order.name} needs a timm model with num_classes, got {type(model).__name__}")
        with one_line():
            if self.order.task is not None:
                task = create_task(self.order.task, model, criterion, num_classes=num_classes, **common, **settings)
            else:
                mixer, off = self.order.create_mixer(num_classes), settings.get("off_epoch")
                task = MixerTask(model, criterion, mixer=mixer, off_epoch=off, num_classes=num_classes, **common)
            _check_soft_labels(task)
        self.task = task
        self.task.register_forward_pre_hook(self._unfold_views, with_kwargs=True)
        self._set_clock()
        return self.task

    def _create_model(self, original: Any) -> Any:
        @functools.wraps(original)
        def create_model(*args: Any, **kwargs: Any) -> nn.Module:
            model = original(*args, **kwargs)
            self._members = getattr(model, "num_members", None)
            return model

        return create_model

    def _resolve_data_config(self, original: Any) -> Any:
        """timm's script hands it all of its arguments, those of its yaml file among them, before it makes the task."""

        @functools.wraps(original)
        def resolve_data_config(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs.get("args")
            off = given.get("mixup_off_epoch") if isinstance(given, Mapping) else None
            if off and "off_epoch" in self.order.settings:
                raise DropInError("timm's --mixup-off-epoch and off_epoch of --mix say the same: drop one of the two")
            self._off_epoch = off or None
            return original(*args, **kwargs)

        return resolve_data_config

    def _create_loader(self, original: Any) -> Any:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def create_loader(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            if not bound.arguments.get("is_training"):
                return original(*args, **kwargs)
            self.views = self._wanted_views()
            if self.views > 1:
                _check_loader(bound.arguments)
                if not bound.arguments["use_prefetcher"]:
                    bound.arguments["collate_fn"] = _collate_in_turn  # timm's own, with the prefetcher, does the same
            loader = original(*bound.args, **bound.kwargs)
            if self.views > 1:
                loader.dataset.transform = Views(loader.dataset.transform, self.views, stack=False)
            self.steps_per_epoch = _length(loader)
            self._set_clock()
            return loader

        return create_loader

    def _wanted_views(self) -> int:
        """Some tasks show every member of the network a view of its own, unless they are told otherwise."""
        if not self.order.member_views:
            return 1
        members = self._members or 1
        views = self.order.settings.get("views", members)
        if views not in (1, members):
            raise DropInError(f"views must be 1 or {members}, one per part of the model, got {views}")
        return views

    def _create_scheduler(self, original: Any) -> Any:
        @functools.wraps(original)
        def create_scheduler_v2(*args: Any, **kwargs: Any) -> Any:
            self.check_taken()
            scheduler, self.epochs = original(*args, **kwargs)
            self._set_clock()
            return scheduler, self.epochs

        return create_scheduler_v2

    def _set_clock(self) -> None:
        """Tell the task what is known by now."""
        if self.task is None or self.steps_per_epoch is None:
            return
        total = None if self.epochs is None else int(self.epochs) * self.steps_per_epoch
        with one_line():
            self.task.set_clock(total_steps=total, steps_per_epoch=self.steps_per_epoch)
        if total is not None and self.task.rank == 0:
            views = f", views of an image: {self.views}" if self.views > 1 else ""
            what = f"{self.order.name}, epochs: {self.epochs}, batches in each: {self.steps_per_epoch}{views}"
            _logger.info(what)

    def _unfold_views(self, task: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """[V * B, C, H, W], one view of all samples after another, becomes [B, V, C, H, W]."""
        if self.views == 1:
            return None
        batch = dict(zip(("input", "target"), args, strict=False)) | kwargs
        views = batch["input"].unflatten(0, (self.views, -1)).transpose(0, 1)
        return (views, batch["target"][: len(views)]), {}


def _collate_in_turn(samples: list[tuple[tuple[Tensor, ...], Any]]) -> tuple[Tensor, Tensor]:
    """A batch of V views each, one view of all samples after another: [V * B, C, H, W] and [V * B]."""
    views, target = collate_views(samples)
    return views.transpose(0, 1).flatten(0, 1), target.repeat(views.shape[1])


def _check_loader(arguments: dict[str, Any]) -> None:
    """What timm's loader cannot do to several views at a time."""
    for name, flag in (("num_aug_splits", "--aug-splits"), ("re_split", "--resplit")):
        if arguments.get(name):
            raise DropInError(f"timm's {flag} and the members' views both split the batch: drop {flag}")
    if arguments.get("input_size_choices") is not None:
        raise DropInError("the members' views need one image size, the script schedules several: drop one of the two")
    if arguments.get("collate_fn") is not None:
        raise DropInError("the members' views are collated here, the script has a collate_fn of its own: drop it")


def _check_soft_labels(task: MixingTask) -> None:
    """A criterion that takes class indices only is an error now, not in the first step."""
    if not task.facts.soft_labels:
        return
    logits = torch.zeros(2, task.num_classes, device=task.device)
    try:
        task.criterion(logits, torch.full_like(logits, 1 / task.num_classes))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        name = type(task.criterion).__name__
        raise ValueError(f"mixed labels need a criterion that takes soft ones, got {name}: {error}") from error


def _length(loader: Any) -> int | None:
    """Batches in an epoch; None where nobody knows."""
    try:
        return len(loader) or None
    except TypeError:
        return None


_MISSING: Any = object()


def _look_up(path: str, default: Any = _MISSING) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        if default is not _MISSING:
            return default
        raise DropInError(f"timm {timm.__version__} has no {path}; known to work: timm {TESTED}") from None


def _put(path: str, value: Any) -> None:
    module, _, name = path.rpartition(".")
    setattr(importlib.import_module(module), name, value)


def _refusal(message: str, original: Any) -> Any:
    """Stands for `original` and says why it cannot be had."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DropInError(message)

    if not isinstance(original, type):
        return refuse
    return type(original.__name__, (original,), {"__new__": refuse})  # isinstance goes on working


@contextmanager
def one_line() -> Iterator[None]:
    """What a task or mixer says to a wrong model or setting, as a DropInError.

    >>> with one_line():
    ...     raise ValueError("alpha must be > 0")
    Traceback (most recent call last):
    timm_mix.drop_in.seat.DropInError: alpha must be > 0
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise DropInError(" ".join(str(error).split())) from error
