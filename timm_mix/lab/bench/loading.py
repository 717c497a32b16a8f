"""Cases of the data path: the device loader against timm's loader and ours, and the trainer against a plain loop."""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import timm
import timm.data
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_mix.lab.bench.measure import Ratio, Run, compare
from timm_mix.train.data.device_loader import DeviceLoader, load_images
from timm_mix.train.data.device_transforms import Augmentation
from timm_mix.train.data.loaders import create_train_loader, open_dataset, start_epoch
from timm_mix.train.data.transforms import small_image_transform
from timm_mix.train.run import run
from timm_mix.train.settings.config import parse_config
from timm_mix.views import EpochBatchSampler

__all__ = ["bench_loading", "bench_trainer"]

IMAGES = 5120  # per epoch: starting the workers of ours hardly counts, timm's live on
SIZE, MEAN, STD = (32, 32), (0.5,) * 3, (0.25,) * 3
MODEL = "wrn16_2"


class _Slice(Dataset):
    """`count` images of a dataset, taken from its start again where it has fewer."""

    def __init__(self, dataset: Any, count: int):
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % len(self.dataset)]

    @property
    def transform(self) -> Callable[[Image.Image], Any] | None:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Callable[[Image.Image], Any] | None) -> None:
        self.dataset.transform = transform


def bench_loading(args: argparse.Namespace, device: torch.device) -> Iterator[Ratio]:
    """An epoch of augmented batches on the device: time of the CPU loaders over that of the device loader.

    The digits, and the images of 32 pixels below --data-dir if it is given. Pad, crop and flip on either side; timm's
    prefetcher is off, its workers live on from epoch to epoch.
    """
    workers = min(8, os.cpu_count() or 1)
    sources: list[tuple[str, str | None]] = [("digits", None)]
    if args.data_dir:
        sources.append(("", args.data_dir))
    for name, root in sources:
        for title, epoch in (("timm's create_loader", _timm_epoch), ("our CPU loader", _cpu_epoch)):
            theirs = epoch(_images(name, root), args.batch, workers, device)
            ours = _device_epoch(_images(name, root), args.batch, device)
            label = f"images/s, device loader over {title} with {workers} workers, {IMAGES} of {name or root}, 32x32"
            yield compare(f"{label}, batch {args.batch}", theirs, ours, args.pairs, device)


def bench_trainer(args: argparse.Namespace, device: torch.device) -> Iterator[Ratio]:
    """A training step of a plain PyTorch loop over one of train.py, on the digits, without augmentation.

    Both read the images in the main process through a DataLoader; in the second row train.py has its device loader.
    """
    plain = _PlainLoop(args.batch, device)
    for title, flags in {"train.py": [], "train.py --device-loader": ["--device-loader"]}.items():
        times = []
        label = f"steps/s, {title} over a plain loop, {MODEL}, batch {args.batch}, digits"
        for _ in tqdm(range(args.pairs + 1), desc=label, leave=False, disable=None):
            times.append((plain.step_seconds(), _trainer_step_seconds(flags, args.batch, device)))
        ratios = [a / b for a, b in times[1:]]
        medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
        yield Ratio(label, statistics.median(ratios), min(ratios), max(ratios), medians[0], medians[1], args.pairs)


def _images(name: str, root: str | None) -> Dataset:
    return _Slice(open_dataset(name, root, "train"), IMAGES)


def _timm_epoch(images: Any, batch: int, workers: int, device: torch.device) -> Run:
    how = {"is_training": True, "use_prefetcher": False, "num_workers": workers, "pin_memory": device.type == "cuda"}
    loader = timm.data.create_loader(images, (3, *SIZE), batch, **how)
    images.transform = small_image_transform(SIZE, MEAN, STD, training=True)  # in the place of timm's
    return partial(_read, loader, device)


def _cpu_epoch(images: Any, batch: int, workers: int, device: torch.device) -> Run:
    images.transform = small_image_transform(SIZE, MEAN, STD, training=True)
    loader = create_train_loader(images, batch_size=batch, workers=workers, pin_memory=device.type == "cuda")
    start_epoch(loader, 0, 0)
    return partial(_read, loader, device)


def _device_epoch(images: Any, batch: int, device: torch.device) -> Run:
    memory = load_images(images, SIZE, 3, device=device)
    loader = DeviceLoader(memory, EpochBatchSampler(len(memory), batch), MEAN, STD, settings=Augmentation())
    start_epoch(loader, 0, 0)
    return partial(_read, loader, device)


def _read(loader: Iterable[Any], device: torch.device) -> int:
    """Bring an epoch to the device; returns the number of its images."""
    count = 0
    for images, target in loader:
        images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        count += len(target)
    return count


class _PlainLoop:
    """What one would write by hand: a model, cross-entropy, SGD and a DataLoader."""

    def __init__(self, batch: int, device: torch.device):
        data: Any = open_dataset("digits", None, "train")
        data.transform = small_image_transform(SIZE, MEAN, STD, training=False)
        self.loader = DataLoader(data, batch, shuffle=True, drop_last=True)
        self.model = timm.create_model(MODEL, num_classes=10).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.device = device

    def step_seconds(self) -> float:
        """Mean time of a step over an epoch."""
        begun, criterion = time.perf_counter(), nn.CrossEntropyLoss()
        self.model.train()
        for images, target in self.loader:
            images, target = images.to(self.device), target.to(self.device)
            loss = criterion(self.model(images), target)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        loss.item()  # waits for the device
        return (time.perf_counter() - begun) / len(self.loader)


def _trainer_step_seconds(flags: list[str], batch: int, device: torch.device) -> float:
    """Mean time of a step over the second epoch of train.py; the first one allocates."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = ["--dataset", "digits", "--model", MODEL, "--aug", "none", "--batch-size", str(batch)]
        settings += ["--mean", *map(str, MEAN), "--std", *map(str, STD), "--output", folder, "--epochs", "2"]
        settings += ["--img-size", str(SIZE[0]), "--workers", "0"]
        results = run(parse_config([*settings, *flags, *(["--cpu"] if device.type == "cpu" else [])]))
    return results["epochs"][1]["train_seconds"] / results["steps_per_epoch"]
