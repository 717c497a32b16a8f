"""Small images held in memory as bytes, and loaders that augment whole batches on the device: `--device-loader`.

A set is decoded once, resized as data/transforms.py does if the sizes differ, and stays on the device; a batch is
then a gather and some arithmetic there, with no worker process. What a batch draws depends on (seed, epoch, step, rank)
alone: a run that resumes at any step goes on exactly, and skips nothing one by one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, IterableDataset
from torchvision.transforms import v2

from timm_mix.train.data.device_transforms import NO_AUGMENTATION, Augmentation, cut_views, erase, plan_views, to_device
from timm_mix.train.data.loaders import create_eval_loader
from timm_mix.train.data.reading import FaultyBatch
from timm_mix.train.data.sampler import ShardSampler
from timm_mix.train.data.transforms import ResizeIfNeeded
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.memory import machine_memory
from timm_mix.train.settings.data import DataSettings
from timm_mix.views import EpochBatchSampler

__all__ = ["DeviceLoader", "ImageMemory", "create_device_loaders", "device_augmentation", "load_images"]

MEMORY_SHARE = 0.25  # of the memory, for one split: the other split, the network and its activations need theirs
STREAM = 2  # last word of every key: no other generator of a run is seeded with these words


@dataclass(frozen=True)
class ImageMemory:
    """N images of one size, and their labels.

    Shapes: with H, W = size
        pixels: [1 + N * H * W, C] uint8 on the device, a black pixel first (see `cut_views`).
        target: [N] int64, or [N, K] float32, on the host.

    >>> memory = ImageMemory(torch.zeros(1 + 5 * 4 * 4, 3, dtype=torch.uint8), np.arange(5), (4, 4))
    >>> len(memory), memory.shape
    (5, (3, 4, 4))
    """

    pixels: Tensor
    target: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.target)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        return self.pixels.shape[1], *self.size


def load_images(
    dataset: Dataset,
    size: tuple[int, int],
    channels: int,
    *,
    interpolation: str = "bicubic",
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> ImageMemory:
    """Decode a whole dataset of PIL images; its `transform` is None afterwards.

    Args:
        dataset: map-style, from `timm_mix.train.data.sources.open_dataset`.
        size: H and W; an image of another size is resized to it, the aspect not kept.
        channels: what the network takes; grey images are repeated.
        interpolation: of the resize, by timm's names.
        workers: processes that decode.
    Raises:
        UsageError: a streamed dataset, more channels than the network takes, more than MEMORY_SHARE of the memory, an
            image that cannot be read.

    >>> from timm_mix.train.data.digits import Digits
    >>> memory = load_images(Digits("validation"), (32, 32), channels=3)
    >>> len(memory), memory.pixels.shape
    (360, torch.Size([368641, 3]))
    """
    if isinstance(dataset, IterableDataset):
        raise UsageError("device_loader needs data that can be read by index, got a streamed dataset: drop it")
    dataset.transform = v2.Compose([ResizeIfNeeded(size, interpolation), v2.PILToTensor()])  # type: ignore[attr-defined]
    if channels not in (1, 3):
        raise UsageError(f"device_loader keeps images of 1 or 3 channels, the network takes {channels}: drop it")
    device, count = torch.device(device), len(dataset)  # type: ignore[arg-type]
    found = len(dataset[0][0]) if count else channels
    if found not in (1, channels):
        raise UsageError(f"the network takes {channels} channels, the images have {found}: correct in_chans")
    _check_memory(count, (channels, *size), device)
    pixels = torch.zeros(1 + count * size[0] * size[1], channels, dtype=torch.uint8)
    targets = [np.zeros(0, np.int64)] if not count else []
    images, done = pixels[1:].view(count, *size, channels), 0
    for read in create_eval_loader(dataset, batch_size=256, workers=workers):
        if isinstance(read, FaultyBatch):
            raise UsageError(read.fault)
        batch, labels = read
        images[done : done + len(batch)] = batch.permute(0, 2, 3, 1)
        targets.append(labels.numpy())
        done += len(batch)
    dataset.transform = None  # type: ignore[attr-defined]
    return ImageMemory(pixels.to(device), np.concatenate(targets), size)


class DeviceLoader:
    """Batches of an `ImageMemory`, augmented and normalised on its device.

    Args:
        batch_sampler: gives the indices of every batch; a training loader's is an `EpochBatchSampler`.
        mean, std: of each channel, for values in [0, 1].
        settings: the augmentation; without, the images are normalised and no more.
        views: views per image, each with draws of its own; None gives one, without an axis for it.
        channels_last: memory format of the images; several views are contiguous.
    Shapes:
        iteration gives images [B, C, H, W] or [B, views, C, H, W] float32 and target [B] int64.

    >>> memory = ImageMemory(torch.zeros(1 + 5 * 4 * 4, 3, dtype=torch.uint8), np.arange(5), (4, 4))
    >>> loader = DeviceLoader(memory, EpochBatchSampler(5, 2), mean=(0.5,) * 3, std=(0.25,) * 3, views=2)
    >>> images, target = next(iter(loader))
    >>> images.shape, images.unique()  # black ones, normalised
    (torch.Size([2, 2, 3, 4, 4]), tensor([-2.]))
    """

    def __init__(
        self,
        memory: ImageMemory,
        batch_sampler: EpochBatchSampler | BatchSampler,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        settings: Augmentation = NO_AUGMENTATION,
        views: int | None = None,
        channels_last: bool = False,
    ):
        self.memory, self.batch_sampler, self.settings, self.views = memory, batch_sampler, settings, views
        self.format = torch.channels_last if channels_last and views is None else torch.contiguous_format
        # as large as an image: two numbers per channel would be broadcast pixel by pixel, which is slow channels last
        self._mean, self._std = (self._spread(values) for values in (mean, std))
        self._seed = self._rank = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, first = (getattr(self.batch_sampler, name, 0) for name in ("epoch", "start_batch"))
        for step, indices in enumerate(self.batch_sampler, first):
            yield self._batch(np.asarray(indices), np.random.default_rng([self._seed, epoch, step, self._rank, STREAM]))

    def start(self, epoch: int, seed: int, rank: int = 0, first_batch: int = 0) -> None:
        """Make the next iteration that of an epoch from a batch on; the batches before it cost nothing."""
        assert isinstance(self.batch_sampler, EpochBatchSampler)
        with user_errors("start there in the training images"):
            self.batch_sampler.set_epoch(epoch)
            self.batch_sampler.set_start(first_batch)
        self._seed, self._rank = seed, rank

    def _batch(self, index: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        target = to_device(self.memory.target[index], self.memory.pixels.device)
        index = index.repeat(self.views or 1)
        plan = plan_views(len(index), self.memory.shape, self.settings, rng=rng)
        cut = cut_views(self.memory.pixels, self.memory.size, index, plan, self.settings)
        # the steps of torchvision's ToDtype and Normalize in their order: the same floats to the bit
        images = cut.contiguous(memory_format=self.format).float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        images = erase(images, plan)
        return (images if self.views is None else images.unflatten(0, (-1, self.views))), target

    def _spread(self, values: tuple[float, ...]) -> Tensor:
        channels = torch.tensor(values, dtype=torch.float32, device=self.memory.pixels.device)
        return channels.view(1, -1, 1, 1).expand(1, *self.memory.shape).contiguous(memory_format=self.format)


def create_device_loaders(
    images: DataSettings,
    augmentation: Augmentation,
    train: Dataset,
    validation: Dataset,
    data_config: Mapping[str, Any],
    *,
    seed: int,
    views: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    weights: Any = None,
) -> tuple[DeviceLoader, DeviceLoader]:
    """Training and evaluation loaders of one process, as `timm_mix.train.loop.build.build_loaders` asks for them.

    >>> from timm_mix.train.data.digits import Digits
    >>> data_config = timm.data.resolve_data_config({"input_size": (3, 32, 32)})
    >>> sets = Digits("train"), Digits("validation")
    >>> train, validation = create_device_loaders(DataSettings(workers=0), NO_AUGMENTATION, *sets, data_config, seed=0)
    >>> len(train), len(validation)  # batches of 64
    (22, 6)
    """
    sharing: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size}
    with user_errors("make batches of the training images"):
        sharing["weights"] = weights
        sampler = EpochBatchSampler(len(train), images.batch_size, repeats=images.batch_repeats, **sharing)  # type: ignore[arg-type]
    mean, std, (channels, *size) = (data_config[name] for name in ("mean", "std", "input_size"))
    how: dict[str, Any] = {"interpolation": data_config["interpolation"], "device": device, "workers": images.workers}
    memories = [load_images(dataset, tuple(size), channels, **how) for dataset in (train, validation)]
    shard = ShardSampler(len(memories[1]), rank, world_size)
    batches = BatchSampler(shard, images.validation_batch_size or images.batch_size, drop_last=False)
    form: Any = {"channels_last": channels_last}
    return (
        DeviceLoader(memories[0], sampler, mean, std, settings=augmentation, views=views, **form),
        DeviceLoader(memories[1], batches, mean, std, **form),
    )


def device_augmentation(style: str, options: Mapping[str, Any]) -> Augmentation:
    """The settings of a style of `timm_mix.train.data.transforms`, of what the device can do.

    Args:
        style: "small" or "none".
        options: under the names of `Augmentation`; None stands for the default.
    Raises:
        UsageError: another style, or an option that the device does not have.

    >>> device_augmentation("small", {"padding": 2, "hflip": None}).padding
    2
    >>> device_augmentation("small", {"aa": "cifar10"})
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: device_loader has no option aa (got 'cifar10'), aug small has padding, ...
    """
    if style not in ("small", "none"):
        raise UsageError(f"device_loader is for aug small or none, got {style}: drop device_loader, or take aug small")
    given = {name: value for name, value in options.items() if value is not None}
    known = [spec.name for spec in fields(Augmentation)] if style == "small" else []
    for name, value in given.items():
        if name not in known:
            has = f"aug {style} has {', '.join(known) or 'no options'} there"
            raise UsageError(f"device_loader has no option {name} (got {value!r}), {has}: drop it, or device_loader")
    return Augmentation(**given) if style == "small" else NO_AUGMENTATION


def _check_memory(count: int, shape: tuple[int, ...], device: torch.device) -> None:
    """Decoded on the host and kept on the device, the set must fit both; a machine's processes share its memory."""
    memory = machine_memory()
    if device.type == "cuda":
        memory = min(memory, torch.cuda.get_device_properties(device).total_memory)
    wanted, limit = count * math.prod(shape), MEMORY_SHARE * memory
    if wanted > limit:
        raise UsageError(
            f"device_loader keeps a split in {MEMORY_SHARE:.0%} of a process' memory, {limit / 2**30:.1f} GiB, {count} "
            f"images of {'x'.join(map(str, shape))} take {wanted / 2**30:.1f} GiB: drop device_loader"
        )
