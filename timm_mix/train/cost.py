"""What a recipe will cost: its iterations, and its time relative to plain training of the same network.

    iterations = epochs * steps per epoch,    steps per epoch = images // (processes * batch_size / b)
    time       = b * (FLOPs of a step / FLOPs of the plain network's step)

b is the number of copies of an image per batch, FLOPs those of forward and backward. The plain network trains with
b = 1 for as many epochs, with the same batch on the same machine. This is a prediction, not a measurement: FLOPs count
convolutions, matrix products and attention, but no elementwise work, and the time of loading images is not in it.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from timm_mix.models.mixmo import MixMo
from timm_mix.models.splitnet import SplitNet
from timm_mix.tasks import TASKS
from timm_mix.train.loop.network import data_config_of, input_args
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ModelSettings
from timm_mix.train.settings.task import TaskSettings

__all__ = ["Cost", "predict_cost", "steps_per_epoch"]

_OF_THE_WRAPPER = {  # the rest goes to the network itself
    *(name for made in (MixMo, SplitNet) for name in inspect.signature(made).parameters),
} - {"num_classes", "in_chans"}


@dataclass(frozen=True)
class Cost:
    """Predicted cost of a run; `network` is the plain one that `relative_time` compares with, nan if it is unknown.

    `batch_flops` are those of one training step, forward and backward.

    >>> print(Cost(steps_per_epoch=390, epochs=200, network="wrn16_2", relative_time=2.0))
    78,000 iterations (390 per epoch), 2.00 x the time of plain wrn16_2
    """

    steps_per_epoch: int
    epochs: int
    network: str
    relative_time: float
    batch_flops: float = math.nan

    @property
    def iterations(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def flops(self) -> float:
        """Of all training steps in one process."""
        return self.iterations * self.batch_flops

    def __str__(self) -> str:
        count = f"{self.iterations:,} iterations ({self.steps_per_epoch:,} per epoch)"
        if math.isnan(self.relative_time):
            return f"{count}, relative time unknown"
        return f"{count}, {self.relative_time:.2f} x the time of plain {self.network}"


def predict_cost(
    model: ModelSettings,
    task: TaskSettings,
    images: DataSettings,
    *,
    num_classes: int,
    steps_per_epoch: int,
    epochs: int,
) -> Cost:
    """Cost of a recipe.

    Args:
        num_classes: of the data.
        steps_per_epoch: batches, not updates; `steps_per_epoch` below where there is no loader to ask.
        epochs: with the schedule's cool-down.

    >>> length = {"num_classes": 10, "steps_per_epoch": 22, "epochs": 5}
    >>> cost = predict_cost(ModelSettings(), TaskSettings(name="mixmo"), DataSettings(batch_repeats=2), **length)
    >>> cost.network, cost.iterations, cost.relative_time > 2  # two copies of an image, and a second encoder
    ('wrn16_2', 110, True)
    """
    try:
        network, plain, ratio = _step_flops(model, task, num_classes)
    except Exception:  # a network that cannot be built or run without data must not keep anyone from training it
        network, plain, ratio = model.name, 0, math.nan
    flops = images.batch_size * ratio * plain
    return Cost(steps_per_epoch, epochs, network, images.batch_repeats * ratio, flops)


def steps_per_epoch(images: DataSettings, num_images: int, processes: int = 1) -> int:
    """Batches of an epoch: each shows batch_size / b images per process, and a short last one is left out.

    >>> steps_per_epoch(DataSettings(batch_size=64, batch_repeats=2), num_images=50_000)
    1562
    """
    return num_images // (processes * (images.batch_size // images.batch_repeats))


def _step_flops(wanted: ModelSettings, task: TaskSettings, num_classes: int) -> tuple[str, int, float]:
    """The plain network behind the model, its FLOPs for one image, and the model's step over the plain one's."""
    args = {**wanted.model_kwargs, **input_args(wanted, wanted.name)}
    model: Any = _on_meta(wanted.name, num_classes=num_classes, **args)
    name = getattr(model, "backbone", None)
    size = tuple(data_config_of(wanted, model)["input_size"])
    image = torch.empty(1, *size, device="meta")
    if not isinstance(name, str) or not hasattr(model, "num_members"):  # a plain network
        plain = _count_flops(model, image)
        return wanted.name, plain, _of_the_task(task, model, image, plain)
    kwargs = {key: value for key, value in args.items() if key not in _OF_THE_WRAPPER}
    plain = _count_flops(_on_meta(name, num_classes=num_classes, **kwargs), image)
    if isinstance(model, SplitNet):  # its parts are alike
        return name, plain, model.num_members * _count_flops(model.subnets[0], image) / plain
    members = image[:, None].expand(-1, model.num_members, -1, -1, -1)
    return name, plain, _count_flops(model, members, return_members=True) / plain


def _of_the_task(task: TaskSettings, model: Any, image: Tensor, plain: int) -> float:
    """What the task makes of the step of a plain network."""
    if task.name not in TASKS:
        return 1.0
    work = TASKS[task.name].work(model, image, task.mix)
    return work.passes + sum(times * _count_forward(run) for times, run in work.forwards) / plain


def _count_forward(run: Callable[[], Any]) -> int:
    # the meta device alone knows no autocast
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _on_meta(name: str, **kwargs: Any) -> nn.Module:
    """The network without its weights: it has shapes only and computes nothing."""
    return timm.create_model(name, device="meta", **kwargs).train()


def _count_flops(model: nn.Module, *inputs: Tensor, **kwargs: Any) -> int:
    """Forward and backward."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # counts for nothing, takes most of the time on meta
            module.forward = _nothing  # type: ignore[method-assign, assignment]
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        model(*inputs, **kwargs).sum().backward()
    return counter.get_total_flops()


def _nothing(x: Tensor) -> Tensor:
    return x


def _backward(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """The gradients of input and weight cost as much as the forward pass, each.

    torch's own formula forgets that the weight of a grouped convolution meets only its group's channels.
    """
    transposed, wanted = args[4], args[7]
    places = (x if transposed else grad)[2:]
    return 2 * grad[0] * math.prod(places) * math.prod(weight) * sum(wanted[:2])
