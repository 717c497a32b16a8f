"""What the training tasks of this package share: the model in its seat, the clock, the generator, their state."""

import io
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.checks import check_count, check_images
from timm_mix.tasks.facts import Facts, Work
from timm_mix.tasks.losses import LabelLoss

__all__ = ["MemberTask", "MixingTask", "check_unwrapped", "names_without_decay"]

MANY_CHANNELS = 16
Criterion = Callable[[Tensor, Tensor], Tensor]


class MixingTask(TrainingTask):
    """A timm training task with a clock, a generator of its own, and the state of both.

    The clock counts calls, one per batch. `total_steps` and `steps_per_epoch` count the same; with an epoch's length
    the schedules are constant within an epoch, as the published runs have them. A task says in `facts` what the rest
    of the package must know of it, and in `work` what its step costs, if that is more than one pass of the network.

    Args:
        model: has `num_classes`; the task may ask for more.
        criterion: (logits [B, K], target) -> mean loss over the batch, or its sum; None is nn.CrossEntropyLoss().
            Any of torch's and timm's: `label_loss` brings it what it takes (see tasks/losses.py).
        num_classes: must be the model's.
        seed: with the rank it seeds the generator of all draws.
        total_steps: length of the training; None leaves schedules at their start.
        steps_per_epoch: length of an epoch.
        rank: of this process; None asks torch.distributed.
        off_epoch: the epoch, from 0, in which mixing ends; None: never. Needs steps_per_epoch. From then on a batch
            costs what it costs unmixed; the task says what that is.
    Raises:
        ValueError: a model without classes, another number of classes, a seed < 0, total_steps or steps_per_epoch < 1
            or an epoch longer than the training; a criterion that LabelLoss refuses; off_epoch < 0, without
            steps_per_epoch, or of a task whose facts do not say ends_mixing.

    >>> import timm
    >>> class Plain(MixingTask):
    ...     def forward(self, input, target):
    ...         self.step += 1
    ...         return {"loss": self.label_loss(self.trainable_module(input), target)}
    >>> model = timm.create_model("test_resnet", num_classes=5)
    >>> task = Plain(model, num_classes=5, total_steps=10, steps_per_epoch=5)
    >>> task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["loss"].shape
    torch.Size([])
    >>> task.step, task.epoch, task.progress
    (1, 0, 0.5)
    """

    facts: ClassVar[Facts] = Facts()
    weighs_samples: ClassVar[bool] = False  # the task asks for the losses of single samples

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion | None = None,
        *,
        num_classes: int,
        seed: int = 0,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        rank: int | None = None,
        off_epoch: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ):
        _check_clock(seed, total_steps, steps_per_epoch)
        self._check_off_epoch(off_epoch, steps_per_epoch)
        self._check_model(unwrap_model(model), num_classes)
        parameter = next(model.parameters())
        super().__init__(device=device or parameter.device, dtype=dtype or parameter.dtype, verbose=verbose)
        self.trainable_module = model
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.label_loss = LabelLoss(self.criterion, num_classes, each=self.weighs_samples)
        self.num_classes = num_classes
        self._channels = _channels_of(unwrap_model(model))
        self.seed = seed
        self.rank = _rank() if rank is None else rank
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.off_epoch = off_epoch
        self.step = 0
        self._evaluated: tuple[nn.Module, ...] = ()  # where that is no part of what is trained, or compiled; a tuple,
        # so that state_dict() holds no tensor twice
        self.rng = np.random.default_rng([seed, self.rank])

    @classmethod
    def work(cls, model: nn.Module, image: Tensor, settings: Mapping[str, Any]) -> Work:
        """What a step of this task costs for each image, to be counted on the meta device.

        Args:
            model: on the meta device, as is `image` [1, C, H, W].
            settings: of the task, as far as they are given.
        """
        return Work()

    def _check_model(self, model: nn.Module, num_classes: int) -> None:
        if model.num_classes < 1:
            raise ValueError(
                f"{type(self).__name__} needs a model with a classifier, got num_classes={model.num_classes}"
            )
        if model.num_classes != num_classes:
            raise ValueError(f"num_classes={num_classes}, but the model predicts {model.num_classes} classes")

    @classmethod
    def _check_off_epoch(cls, off_epoch: int | None, steps_per_epoch: int | None) -> None:
        check_count("off_epoch", off_epoch, least=0, optional=True)
        if off_epoch is None:
            return
        if not cls.facts.ends_mixing:
            raise ValueError(
                f"{cls.__name__} has no off_epoch, its facts do not say ends_mixing; drop off_epoch={off_epoch}"
            )
        if steps_per_epoch is None:
            raise ValueError(f"off_epoch={off_epoch} needs steps_per_epoch, the number of batches in an epoch")

    @property
    def mixes(self) -> bool:
        """Whether the running epoch is one in which batches are mixed."""
        return self.off_epoch is None or self.epoch < self.off_epoch

    @property
    def epoch(self) -> int:
        """The running epoch, from 0; the running step where no epoch length is known."""
        return self.step // (self.steps_per_epoch or 1)

    @property
    def progress(self) -> float:
        """Epochs begun over all epochs, in (0, 1]; 0 where the length of the training is not known."""
        if self.total_steps is None:
            return 0.0
        return min(1.0, (self.epoch + 1) * (self.steps_per_epoch or 1) / self.total_steps)

    def set_clock(self, *, total_steps: int | None = None, steps_per_epoch: int | None = None) -> None:
        """Lengths that were not known when the task was made; None keeps what there is.

        Raises:
            ValueError: as the constructor does.
        """
        total_steps = self.total_steps if total_steps is None else total_steps
        steps_per_epoch = self.steps_per_epoch if steps_per_epoch is None else steps_per_epoch
        _check_clock(self.seed, total_steps, steps_per_epoch)
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "MixingTask":
        """Wrap the model in DistributedDataParallel."""
        if self.device.type == "cpu":
            device_ids = None  # timm's script names its device whatever it is; DDP wants none for the CPU
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the model; before prepare_distributed."""
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self._evaluated = (self.trainable_module,)
        return self.trainable_module

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The model that is evaluated and saved, without what serves the training alone."""
        if module is None:
            if ema and hasattr(self, "eval_model_ema"):
                return self.eval_model_ema
            if self._evaluated and not ema:
                return self._evaluated[0]
            module = self.get_trainable_module(ema=ema)
        return None if module is None else self._without_extras(module)

    def _without_extras(self, module: nn.Module) -> nn.Module:
        """The model in what is trained; tasks that train more than the model say where it is."""
        return module

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The clock and the generator; loadable with weights_only=True."""
        return {} if ema else self._own_state()

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Continue where `state` was taken.

        timm's script saves rank 0's state alone: another rank that loads it starts a fresh generator, keyed by
        (seed, rank, step), rather than draw what rank 0 draws.
        """
        if not state or ema:
            return
        if not {"step", "rank", "rng"} <= set(state):
            raise ValueError(f"wanted the state of a {type(self).__name__} (step, rank, rng), got {', '.join(state)}")
        self._load_own_state(state)

    def get_extra_state(self) -> Tensor:
        """Clock, generator and what else no parameter holds, for frameworks that save `state_dict()`: bytes, [n] uint8.

        A tensor, because some of them write safetensors.
        """
        file = io.BytesIO()
        torch.save(self._own_state(), file)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue where the state was taken, as load_task_state does."""
        self._load_own_state(torch.load(io.BytesIO(state.cpu().numpy().tobytes()), weights_only=True))

    def _own_state(self) -> dict[str, Any]:
        """What no module holds; loadable with weights_only=True."""
        return {"step": self.step, "seed": self.seed, "rank": self.rank, "rng": self.rng.bit_generator.state}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.rng = np.random.default_rng([self.seed, self.rank, self.step])
        if state["rank"] == self.rank:
            self.rng.bit_generator.state = state["rng"]

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """Parameters to clip; `exclude_head` leaves out the classifiers of all members."""
        module = self.get_trainable_module()
        if not exclude_head:
            return module.parameters()
        heads = unwrap_model(module).get_classifier()
        heads = heads if isinstance(heads, tuple) else (heads,)
        left_out = {id(p) for head in heads for p in head.parameters()}
        return [p for p in module.parameters() if id(p) not in left_out]

    def _checked_target(self, input: Tensor, target: Tensor) -> Tensor:
        """[B] class indices as int64, or [B, K] soft labels as floating point; the images are looked at, too."""
        check_images(input, (4, 5), self._channels)
        if not len(input):
            raise ValueError("a batch must hold at least one image, got none")
        indices = target.ndim == 1 and not target.is_floating_point()
        soft = target.ndim == 2 and target.shape[1] == self.num_classes
        if target.shape[:1] != input.shape[:1] or not (indices or soft):
            raise ValueError(
                f"target must be [{input.shape[0]}] class indices or [{input.shape[0]}, {self.num_classes}] soft "
                f"labels, got {list(target.shape)} {str(target.dtype).removeprefix('torch.')}"
            )
        if indices:
            self.label_loss.check(target)
            return target.long()
        return target if target.is_floating_point() else target.float()


class MemberTask(MixingTask):
    """A training task over a model with members: it has `num_members` and takes `return_members=True`.

    Raises:
        ValueError: a model without members, and what MixingTask raises.

    >>> import timm
    >>> MemberTask(timm.create_model("test_resnet", num_classes=5), num_classes=5)
    Traceback (most recent call last):
    ValueError: MemberTask needs a model with members (mixmo_*, splitnet_*), got ResNet
    >>> MemberTask(timm.create_model("splitnet_wrn16_2_s2", num_classes=5, depth=10), num_classes=5).num_classes
    5
    """

    def _check_model(self, model: nn.Module, num_classes: int) -> None:
        if not hasattr(model, "num_members"):
            raise ValueError(
                f"{type(self).__name__} needs a model with members (mixmo_*, splitnet_*), got {type(model).__name__}"
            )
        super()._check_model(model, num_classes)


def check_unwrapped(model: nn.Module, task: str) -> None:
    """For tasks that train more than the model, and call more of it than forward().

    Raises:
        ValueError: a model in DistributedDataParallel.

    >>> check_unwrapped(nn.Linear(3, 5), "AutoMixTask")  # a bare model passes
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"{task} needs the bare model, got one in DistributedDataParallel: make the task first, then call "
            "task.prepare_distributed(), or task.trainable_module = accelerator.prepare(task.get_trainable_module())"
        )


def names_without_decay(model: nn.Module, prefix: str) -> set[str]:
    """What timm spares from weight decay in a model, by its names in a network that holds it under `prefix`.

    >>> import timm
    >>> "model.pos_embed" in names_without_decay(timm.create_model("test_vit"), "model")
    True
    """
    plain: Any = unwrap_model(model)
    return {f"{prefix}.{name}" for name in plain.no_weight_decay()} if hasattr(plain, "no_weight_decay") else set()


def _channels_of(model: Any) -> int | None:
    """Of the images that a model takes; None where its cfg does not name the convolution that they go into."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    name = names[0] if isinstance(names, tuple | list) and names else names
    try:
        first = model.get_submodule(name) if isinstance(name, str) and name else None
    except AttributeError:
        return None
    channels = getattr(first, "in_channels", None)
    # more than those of any image: the stem has rearranged the pixels
    return channels if isinstance(channels, int) and channels < MANY_CHANNELS else None


def _check_clock(seed: int, total_steps: int | None, steps_per_epoch: int | None) -> None:
    check_count("seed", seed, least=0)
    check_count("total_steps", total_steps, optional=True)
    check_count("steps_per_epoch", steps_per_epoch, optional=True)
    if total_steps is not None and steps_per_epoch is not None and steps_per_epoch > total_steps:
        raise ValueError(f"an epoch of {steps_per_epoch} steps is longer than the training, total_steps={total_steps}")


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
