"""Several views of an image, and several copies of it in a batch, for any training loop.

`Views` makes a transform give V views of an image, `collate_views` puts them side by side in a batch, [B, V, C, H, W],
and `EpochBatchSampler` lists every image of a batch several times (batch repetition). A loop of your own:

>>> import timm, torch, timm_mix
>>> from torch.utils.data import DataLoader, Dataset
>>> from torchvision.transforms import v2
>>> from timm_mix.views import EpochBatchSampler, Views, collate_views
>>> class Noise(Dataset):
...     # eleven images and labels; any data set that takes a transform will do
...     def __init__(self, transform):
...         self.images, self.transform = torch.rand(11, 3, 16, 16), transform
...     def __len__(self):
...         return len(self.images)
...     def __getitem__(self, index):
...         return self.transform(self.images[index]), index % 5
>>> model = timm.create_model("splitnet_wrn16_2_s2", num_classes=5)
>>> augment = v2.Compose([v2.RandomCrop(16, padding=2), v2.RandomHorizontalFlip()])
>>> dataset = Noise(Views(augment, model.num_members))
>>> sampler = EpochBatchSampler(len(dataset), batch_size=6, repeats=2)
>>> loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_views)
>>> task = timm_mix.create_task("cotraining", model, torch.nn.CrossEntropyLoss(), num_classes=5)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> for epoch in range(2):
...     sampler.set_epoch(epoch)
...     for views, target in loader:
...         optimizer.zero_grad()
...         task(views, target)["loss"].backward()
...         optimizer.step()
>>> views.shape, target.shape
(torch.Size([6, 2, 3, 16, 16]), torch.Size([6]))
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, default_collate

__all__ = ["EpochBatchSampler", "Place", "Views", "collate_views"]


class Views:
    """Several views of one image, each from a call of its own to the transform.

    >>> crop = lambda image: image[..., :2]
    >>> Views(crop, 3)(torch.zeros(5, 7, 11)).shape
    torch.Size([3, 5, 7, 2])

    Args:
        transform: gives a tensor or an array [C, H, W], always of one shape.
        count: V, views of an image; co-training wants one per part, `model.num_members`.
        stack: False gives the tuple of the V views as the transform made them, the form that timm's loaders take.
    Shapes:
        Views(transform, V)(image): [V, C, H, W].
    Raises:
        ValueError: count < 1; on a call, views that are no arrays, or that differ in shape.
    """

    def __init__(self, transform: Callable[[Any], Any], count: int, *, stack: bool = True):
        _check_at_least(count=(count, 1))
        self.transform = transform
        self.count = count
        self.stack = stack

    def __call__(self, image: Any) -> Any:
        views = tuple(self.transform(image) for _ in range(self.count))
        return _stacked(views) if self.stack else views

    def __repr__(self) -> str:
        return f"Views({self.count} x {self.transform})"


def collate_views(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """A batch of samples with V views each: the collate_fn of a DataLoader.

    >>> views, target = collate_views([(torch.zeros(2, 3, 5, 7), 1), ((torch.zeros(3, 5, 7), torch.ones(3, 5, 7)), 4)])
    >>> views.shape, target
    (torch.Size([2, 2, 3, 5, 7]), tensor([1, 4]))

    Args:
        samples: (views, label); the views in one tensor [V, C, H, W] or a tuple of V images [C, H, W].
    Shapes: with B = len(samples)
        returns views [B, V, C, H, W] and target: [B] int64 for integer labels, [B, K] for labels [K].
    Raises:
        ValueError: images instead of views, or images that differ in shape or number of views.
    """
    views = _stacked([_stacked(views) if isinstance(views, tuple | list) else views for views, _ in samples])
    if views.ndim != 5:
        shape = list(views.shape[1:])
        raise ValueError(f"a sample must be views [V, C, H, W] and a label, got {shape}: wrap the transform in Views")
    return views, default_collate([label for _, label in samples])


class Place(NamedTuple):
    """One sample of an epoch.

    sample: its index in the dataset.   position: in the order of the epoch, over all processes.
    copy: which of its `repeats`.

    >>> Place(sample=7, position=0, copy=1)
    Place(sample=7, position=0, copy=1)
    """

    sample: int
    position: int
    copy: int


class EpochBatchSampler(Sampler[list[Any]]):
    """Batches of one epoch for one of `world_size` processes, with batch repetition.

    The order of an epoch is `np.random.default_rng([seed, epoch]).permutation(num_samples)`. Step k takes the next
    world_size * n entries of it, n = batch_size / repeats: this global batch holds the same images in the same order
    whatever the number of processes, as long as world_size * batch_size is the same. Rank r takes the r-th slice
    of n entries and lists it `repeats` times: x1 .. xn, x1 .. xn, ...; the dataset augments each copy on its own.
    With `repeats` = 1 the ranks' batches, one after the other, are the one-process batch; with more, the same images
    stand in the same multiplicity, but each rank keeps all copies of its own images.
    An epoch shows each image `repeats` times, in num_samples * repeats / (world_size * batch_size) steps.

    Args:
        batch_size: per process, copies included.
        repeats: how often each image stands in its batch (b of the MixMo paper).
        shuffle: False keeps the order of the dataset.
        weights: [num_samples], how often an image is drawn, relative to the others; an epoch then draws num_samples
            images with replacement, as torch's WeightedRandomSampler does. None: every image once.
        places: give a `Place` for every sample; False gives the index alone.
        drop_last: False adds a short last batch. No image is doubled to fill it: with `shuffle` and several processes
            up to world_size - 1 images are left out so that all ranks get equally many; without `shuffle` every image
            is kept and the ranks may differ by one, or have no last batch.
    Raises:
        ValueError: a setting is out of range, batch_size is not a multiple of repeats, drop_last leaves no batch, or
            weights that are negative, not finite, all 0, of another number or beside shuffle=False.
    Reference: Hoffer et al., "Augment your batch", CVPR 2020, arXiv:1901.09335; b in Rame et al., arXiv:2103.06132.

    >>> sampler = EpochBatchSampler(5, batch_size=4, repeats=2, shuffle=False)
    >>> list(sampler)  # the fifth image is left to another epoch's order
    [[0, 1, 0, 1], [2, 3, 2, 3]]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        weights: Sequence[float] | np.ndarray | None = None,
        drop_last: bool = True,
        places: bool = False,
    ):
        _check_at_least(num_samples=(num_samples, 1), batch_size=(batch_size, 1), repeats=(repeats, 1), seed=(seed, 0))
        _check_rank(rank, world_size)
        self.num_samples, self.batch_size, self.repeats, self.seed = num_samples, batch_size, repeats, seed
        self.rank, self.world_size, self.shuffle, self.drop_last = rank, world_size, shuffle, drop_last
        self.places = places
        self.shares = None if weights is None else _shares(np.asarray(weights, np.float64), num_samples, shuffle)
        self.epoch = 0
        self.start_batch = 0
        self._check_batch()

    @property
    def distinct(self) -> int:
        """Distinct images in a full batch of one process."""
        return self.batch_size // self.repeats

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, whatever `start_batch` is."""
        return self.num_samples // (self.distinct * self.world_size) + (len(self._last_slice()) > 0)

    def __iter__(self) -> Iterator[list[Any]]:
        order = self._order()
        stride = self.distinct * self.world_size
        for batch in range(self.start_batch, self.num_samples // stride):
            first = batch * stride + self.rank * self.distinct
            yield self._batch(order, range(first, first + self.distinct))
        last = self._last_slice()
        if last and self.start_batch < len(self):
            yield self._batch(order, last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws, counted from 0, and start it at its first batch."""
        _check_at_least(epoch=(epoch, 0))
        self.epoch = epoch
        self.start_batch = 0

    def set_start(self, batch: int) -> None:
        """Begin at this batch of the epoch, until the next `set_epoch`; the skipped batches cost nothing."""
        if not 0 <= batch <= len(self):
            raise ValueError(
                f"start batch must lie in 0..{len(self)}, the batches of an epoch, got {batch}: "
                "resume with the batch size and the data that the run began with"
            )
        self.start_batch = batch

    def _order(self) -> np.ndarray:
        """Returns: [num_samples] int64, the order of the current epoch."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.shares is not None:
            return rng.choice(self.num_samples, size=self.num_samples, p=self.shares)
        return rng.permutation(self.num_samples)

    def _batch(self, order: np.ndarray, positions: range) -> list[Any]:
        indices = order[positions.start : positions.stop].tolist()
        if not self.places:
            return indices * self.repeats
        once = list(zip(indices, positions, strict=True))
        return [Place(sample, position, copy) for copy in range(self.repeats) for sample, position in once]

    def _last_slice(self) -> range:
        """This rank's places, in the order of the epoch, of the short last batch; empty where there is none."""
        rest = self.num_samples % (self.distinct * self.world_size)
        if self.drop_last:
            return range(0)
        first = self.num_samples - rest
        share, extra = divmod(rest, self.world_size)
        if self.shuffle:
            extra = 0  # equal batches for all ranks: a training step is taken by all or by none
        start = first + self.rank * share + min(self.rank, extra)
        return range(start, start + share + (self.rank < extra))

    def _check_batch(self) -> None:
        if self.batch_size % self.repeats:
            below = self.batch_size - self.batch_size % self.repeats
            near = f"{below} or {below + self.repeats}" if below else f"{self.repeats}"
            raise ValueError(
                f"batch_size must be a multiple of repeats ({self.repeats}), got {self.batch_size}: take {near}"
            )
        needed = self.distinct * self.world_size
        if self.drop_last and self.num_samples < needed:
            raise ValueError(
                f"one step needs {needed} distinct images (batch_size {self.batch_size} / repeats {self.repeats} "
                f"* {self.world_size} processes), the dataset has {self.num_samples}: "
                "take a smaller batch_size, more repeats or fewer processes"
            )


def _shares(weights: np.ndarray, num_samples: int, shuffle: bool) -> np.ndarray:
    """Probabilities of the samples."""
    good = weights.shape == (num_samples,) and np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
    if not good or not shuffle:
        raise ValueError(
            f"weights must be {num_samples} numbers >= 0, not all 0, and are drawn by (shuffle=True), got "
            f"{list(weights.shape)} with shuffle={shuffle}"
        )
    return weights / weights.sum()


def _stacked(images: Sequence[Any]) -> Tensor:
    """Tensors or arrays of one shape along a new first axis."""
    try:
        return torch.stack([torch.as_tensor(image) for image in images])
    except (RuntimeError, TypeError, ValueError) as error:
        kinds = {str(list(image.shape)) if hasattr(image, "shape") else type(image).__name__ for image in images}
        raise ValueError(
            f"views must be tensors or arrays of one shape, got {', '.join(sorted(kinds))}: "
            "let the transform crop to one size and end with a tensor"
        ) from error


def _check_at_least(**settings: tuple[int, int]) -> None:
    """settings: name = (given, smallest allowed)."""
    for name, (given, smallest) in settings.items():
        if given < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {given}: raise it")


def _check_rank(rank: int, world_size: int) -> None:
    _check_at_least(world_size=(world_size, 1))
    if not 0 <= rank < world_size:
        raise ValueError(
            f"rank must lie in 0..{world_size - 1} for {world_size} processes, got {rank}: "
            "pass the RANK and WORLD_SIZE that the launcher sets"
        )
