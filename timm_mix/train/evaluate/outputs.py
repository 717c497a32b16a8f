"""Per-sample outputs of a network over a data set, exact over processes.

Batches are cut by index and dealt to the processes whole: a batch holds the same images whatever the number of
processes, so that with as many threads each sample's output is the same to the last bit. No sample is padded or
doubled; every process gets all of them in the order of the data set.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from timm_mix.models import reduce_members
from timm_mix.train.data.reading import Unreadable, as_mode, read
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.settings.model import ImageMode

__all__ = ["Network", "PixelDataset", "collect", "create_accelerator", "create_loader"]


def create_accelerator(amp: bool, amp_dtype: str, cpu: bool) -> Accelerator:
    """Accelerate with the precision asked for.

    Raises:
        UsageError: float16 without a GPU, or what accelerate refuses.

    >>> create_accelerator(amp=True, amp_dtype="float16", cpu=True)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: --amp-dtype float16 needs a GPU; take bfloat16 on the CPU
    """
    if amp and amp_dtype == "float16" and (cpu or not torch.cuda.is_available()):
        raise UsageError("--amp-dtype float16 needs a GPU; take bfloat16 on the CPU")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with user_errors("start accelerate"):
        return Accelerator(mixed_precision={"bfloat16": "bf16", "float16": "fp16"}[amp_dtype] if amp else "no", cpu=cpu)


class Network:
    """A classifier, and its folded twin, on pixels in [0, 1].

    Attributes:
        names: of the predictors: member_0 ..., ensemble_logits, ensemble_softmax (and ensemble_max where the model
            joins its members so), folded; for a plain model the one name `model`.
        whole: the name of the model's own prediction among them.
    Args:
        multi_label: an image may have any number of labels; then there is no softmax over the classes.
    Shapes:
        outputs(pixels [B, C, H, W]): [B, P, K] float32 logits of the members, then of the folded network.
        predictor(outputs [n, P, K], name): [n, K] float64.

    >>> model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=5)
    >>> data_config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    >>> network = Network(model, data_config, create_accelerator(False, "bfloat16", cpu=True), folded=model.fold())
    >>> network.names
    ['member_0', 'member_1', 'ensemble_logits', 'ensemble_softmax', 'folded']
    >>> network.outputs(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        model: nn.Module,
        data_config: dict[str, Any],
        accelerator: Accelerator,
        *,
        folded: nn.Module | None = None,
        channels_last: bool = False,
        multi_label: bool = False,
    ):
        self.accelerator = accelerator
        self.multi_label = multi_label
        self.members: int | None = getattr(model, "num_members", None)
        self.model = self._ready(model, channels_last)
        self.folded = None if folded is None else self._ready(folded, channels_last)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (
            torch.tensor(data_config[key], device=accelerator.device)[:, None, None] for key in ("mean", "std")
        )
        own = getattr(model, "ensemble", "logits")
        self.whole = "model" if self.members is None else f"ensemble_{own}"
        self.modes = ["logits"] if multi_label else ["logits", "softmax", *(["max"] if own == "max" else [])]
        self.names = self._names()

    def _ready(self, net: nn.Module, channels_last: bool) -> nn.Module:
        net = net.to(self.accelerator.device).eval().requires_grad_(False)
        return net.to(memory_format=torch.channels_last) if channels_last else net

    def _names(self) -> list[str]:
        folded = ["folded"] * (self.folded is not None)
        if self.members is None:
            return ["model", *folded]
        return [*(f"member_{i}" for i in range(self.members)), *(f"ensemble_{mode}" for mode in self.modes), *folded]

    def normalised(self, pixels: Tensor) -> Tensor:
        return ((pixels - self.mean) / self.std).contiguous(memory_format=self.layout)

    @torch.no_grad()
    def outputs(self, pixels: Tensor) -> Tensor:
        images = self.normalised(pixels)
        with self.accelerator.autocast():
            nets = [self.model(images)[:, None] if self.members is None else self.model(images, return_members=True)]
            if self.folded is not None:
                nets.append(self.folded(images)[:, None])
        return torch.cat([logits.float() for logits in nets], dim=1)

    def predictor(self, outputs: Tensor, name: str) -> Tensor:
        kind, _, which = name.partition("_")
        if kind == "ensemble":
            return reduce_members(outputs[:, : self.members].double(), which)
        place = {"model": 0, "folded": -1}.get(kind)
        return outputs[:, int(which) if place is None else place].double()


class PixelDataset(Dataset):
    """Images as pixels in [0, 1] before normalisation, with label and index, perhaps corrupted.

    In the place of one that cannot be read stands an `Unreadable`.

    Args:
        source: a data set of PIL images and labels, a class or [K]; see `timm_mix.train.data.reading`.
        to_pixels: PIL image -> [C, H, W] in [0, 1].
        mode: PIL mode of the images, or their number of channels.
        corruption: (image [H, W, C] uint8, index) -> the same.

    >>> from PIL import Image
    >>> from torchvision.transforms.functional import to_tensor
    >>> pixels, label, index = PixelDataset([(Image.new("RGB", (4, 4), "white"), 7)], to_tensor)[0]
    >>> pixels.unique(), label, index
    (tensor([1.]), 7, 0)
    """

    def __init__(
        self,
        source: Dataset,
        to_pixels: Callable[[Any], Tensor],
        mode: ImageMode = "RGB",
        corruption: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ):
        self.source, self.to_pixels, self.mode, self.corruption = source, to_pixels, mode, corruption

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int] | Unreadable:
        sample = read(self.source, index)
        if isinstance(sample, Unreadable):
            return sample
        image, label = sample
        pixels = self.to_pixels(as_mode(image, self.mode))
        if self.corruption is not None:
            grid = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            pixels = torch.from_numpy(self.corruption(grid, index)).permute(2, 0, 1).float() / 255
        return pixels, (label if np.ndim(label) else int(label)), index


class WholeBatches(Sampler[list[int]]):
    """Batch b of the data set, in its order, goes to process b % world_size; the last batch may be short."""

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int):
        self.batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)][rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self.batches])


def create_loader(dataset: PixelDataset, batch_size: int, workers: int, accelerator: Accelerator) -> DataLoader:
    """Batches of (pixels [B, C, H, W], label [B], index [B]), or `Unreadable`.

    >>> from PIL import Image
    >>> from torchvision.transforms.functional import to_tensor
    >>> images = PixelDataset([(Image.new("RGB", (4, 4)), 0)] * 3, to_tensor)
    >>> loader = create_loader(images, 2, 0, create_accelerator(False, "bfloat16", cpu=True))
    >>> [index.tolist() for _, _, index in loader]
    [[0, 1], [2]]
    """
    return DataLoader(
        dataset,
        batch_sampler=WholeBatches(len(dataset), batch_size, accelerator.process_index, accelerator.num_processes),
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _collate(samples: list[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, Unreadable)), None) or default_collate(samples)


def collect(
    step: Callable[[Tensor, Tensor], Tensor], loader: DataLoader, accelerator: Accelerator, num_classes: int, what: str
) -> tuple[Tensor, Tensor]:
    """Run `step` over all batches of all processes; every process gets the results in the order of the data set.

    An error on one process is the same error on all, none is left waiting for another.

    Shapes: step(pixels [B, C, H, W], label [B]) -> [B, ...]; returns [n, ...] and the labels [n], on the CPU.
    Raises:
        UsageError: an unreadable image, a label outside the model's classes, an output that is not finite, no image.

    >>> from PIL import Image
    >>> from torchvision.transforms.functional import to_tensor
    >>> accelerator = create_accelerator(False, "bfloat16", cpu=True)
    >>> images = PixelDataset([(Image.new("L", (4, 4), level), 1) for level in (0, 255, 0)], to_tensor, "L")
    >>> loader = create_loader(images, 2, 0, accelerator)
    >>> collect(lambda pixels, label: pixels.mean((1, 2, 3)), loader, accelerator, num_classes=2, what="brightness")
    (tensor([0., 1., 0.]), tensor([1, 1, 1]))
    """
    error, parts = None, []
    try:
        for batch in tqdm(loader, desc=what, leave=False, disable=_quiet(accelerator), unit="batch"):
            parts.append(_run(step, batch, accelerator.device, num_classes))
    except UsageError as mistake:
        error = str(mistake)
    own = tuple(torch.cat(column) for column in zip(*parts, strict=True)) if parts and error is None else None
    gathered = gather_object([(error, own)])
    for other, _ in gathered:
        if other is not None:
            raise UsageError(other)
    shares = [share for _, share in gathered if share is not None]
    if not shares:
        raise UsageError("the evaluation set holds no image; give another --data-dir or --split")
    index, output, label = (torch.cat(column) for column in zip(*shares, strict=True))
    order = index.argsort()
    assert torch.equal(index[order], torch.arange(len(index))), "every sample once"
    return output[order], label[order]


def _run(step: Callable, batch: Any, device: torch.device, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(batch, Unreadable):
        raise UsageError(batch.fault)
    pixels, label, index = batch
    if label.ndim == 2 and label.shape[1] != num_classes:
        raise UsageError(f"the model has {num_classes} classes, the table {label.shape[1]}; give its data")
    for i, wanted in zip(index.tolist(), label.tolist() if label.ndim == 1 else (), strict=label.ndim == 1):
        if not 0 <= wanted < num_classes:
            raise UsageError(f"the model has {num_classes} classes, image number {i} has label {wanted}; give its data")
    with user_errors(f"run the model on images {list(pixels.shape[1:])}"):
        output = step(pixels.to(device, non_blocking=True), label.to(device, non_blocking=True)).cpu()
    bad = ~output.reshape(len(output), -1).isfinite().all(1)
    if bad.any():
        raise UsageError(
            f"the model's output for image number {int(index[bad][0])} is not finite; its weights are damaged, or they "
            "need a wider --amp-dtype"
        )
    return index, output, label


def _quiet(accelerator: Accelerator) -> bool | None:
    """tqdm: None shows a bar on a terminal only."""
    return None if accelerator.is_main_process else True
