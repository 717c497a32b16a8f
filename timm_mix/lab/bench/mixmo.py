"""Cases of MixMo: the training step, the masks' share of it, the mixing blocks, the number of members."""

import argparse
from functools import partial
from typing import Any

import numpy as np
import timm
import torch

import timm_mix
from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.mixmo import member_masks, plan_mixmo
from timm_mix.lab.bench.mask_twins import masks_one_by_one
from timm_mix.lab.bench.measure import Ratio, Run, compare, plain_step, small_images
from timm_mix.lab.bench.member_twins import training_step

__all__ = ["bench_blocks", "bench_masks", "bench_members", "bench_mixmo"]


def bench_mixmo(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Training step of MixMo with two members over the plain backbone's."""
    ratios = []
    for arch, batch in (("wrn16_2", args.batch), ("wrn28_10", max(2, args.batch // 8))):
        images, target = small_images(batch, device)
        mixed = timm.create_model(f"mixmo_{arch}_m2", num_classes=100).to(device)
        a = training_step(timm_mix.create_task("mixmo", mixed, None, num_classes=100), images, target)
        b = plain_step(arch, batch, device)
        name = f"training step, mixmo_{arch}_m2 over {arch}, batch {batch}"
        ratios.append(compare(name, a, b, args.pairs, device))
    return ratios


def bench_masks(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Drawing and filling the masks, as a share of the whole training step."""
    ratios = []
    for arch, batch in (("wrn16_2", args.batch), ("wrn28_10", max(2, args.batch // 8))):
        images, target = small_images(batch, device)
        model = timm.create_model(f"mixmo_{arch}_m2", num_classes=100).to(device)
        task: Any = timm_mix.create_task("mixmo", model, None, num_classes=100, block="cut", prob=1.0)
        step = training_step(task, images, target)
        name = f"masks over training step, mixmo_{arch}_m2, cut, batch {batch}"
        ratios.append(compare(name, _masks(task, images), step, args.pairs, device))
    return ratios


def bench_blocks(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """A loop over samples over the vectorised drawing and filling of a whole batch of masks, for every mixing block."""
    ratios = []
    for shape in ((16, 32, 32), (16, 112, 112)):
        for block in BLOCKS:
            rng = np.random.default_rng(0)
            kappa = rng.dirichlet([2.0, 2.0], size=256)[:, 0]
            twin = partial(masks_one_by_one, block, kappa, shape, rng)
            name = f"masks one by one over vectorised, {block}, B=256, C'={shape[0]}, {shape[1]}x{shape[2]}"
            ratios.append(compare(name, twin, partial(_draw_and_fill, block, shape, rng, device), args.pairs, device))
    return ratios


def _draw_and_fill(block: str, shape: tuple[int, int, int], rng: np.random.Generator, device: torch.device) -> object:
    return member_masks(plan_mixmo(256, 2, shape, rng=rng, block=block), device)


def bench_members(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Training step of MixMo with M members over two members."""
    ratios = []
    images, target = small_images(max(2, args.batch // 8), device)
    for members in (3, 4, 8):
        models = [
            timm.create_model("mixmo", backbone="wrn28_10", members=m, num_classes=100).to(device) for m in (members, 2)
        ]
        a, b = (training_step(timm_mix.create_task("mixmo", m, None, num_classes=100), images, target) for m in models)
        name = f"training step, {members} members over 2, wrn28_10, batch {len(images)}"
        ratios.append(compare(name, a, b, args.pairs, device))
    return ratios


def _masks(task: Any, images: torch.Tensor) -> Run:
    return lambda: member_masks(task.draw(images), images.device)
