"""RecursiveMix's chain on real images: what six steps make of a few places of the batch, and of their labels.

Each step pastes the last step's input, smaller, into a box of the new images; the first step has no history. No
network takes part: the picture shows the inputs. The boxes are drawn as in training.

python train_scripts/draw_recursivemix.py --data-dir data/tin20 --val-split val [--output FILE.png]
python train_scripts/draw_recursivemix.py --dataset digits
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timm_mix.functional.recursivemix import (
    MODES,
    RecursiveMixPlan,
    paste_history,
    plan_recursivemix,
    recursive_targets,
)
from timm_mix.lab.pictures.mix_plots import ChainStep, draw_images, plot_recursive_chain
from timm_mix.train.errors import UsageError, run_script, user_errors
from timm_mix.train.loop.build import build_data
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ModelSettings
from timm_mix.train.settings.text import Parser


def chain_of(images: Tensor, alpha: float, resize: str, *, rng: np.random.Generator) -> list[ChainStep]:
    """The steps of a chain.

    Shapes: images [n, B, C, H, W], what comes in at every step; labels are the steps themselves.
    """
    count, height, width = len(images), images.shape[-2], images.shape[-1]
    mixed, shares = images[0], torch.eye(count)[:1]
    steps = [ChainStep(images[0], mixed, (0, height, 0, width), 1.0, shares[0])]
    for t in range(1, count):
        plan: RecursiveMixPlan = plan_recursivemix((height, width), alpha, rng=rng)
        mixed = paste_history(images[t], mixed, plan, resize)
        shares = recursive_targets(torch.eye(count)[t : t + 1], shares, plan)
        steps.append(ChainStep(images[t], mixed, plan.box, plan.lam, shares[0]))
    return steps


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("output/recursivemix.png"))
    parser.add_argument("--dataset", default="", help="as train.py: '' for a folder, digits, torch/...")
    parser.add_argument("--data-dir")
    parser.add_argument("--val-split", default="validation")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--places", type=int, default=2, help="places of the batch, one block of rows each")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--resize", default="nearest", choices=MODES)
    parser.add_argument("--seed", type=int, default=2, help="default: one whose six boxes are all large enough to see")
    args = parser.parse_args(argv)
    if args.steps < 2 or args.places < 1 or args.img_size < 8 or args.seed < 0:
        raise UsageError(
            "--steps must be >= 2, --places >= 1, --img-size >= 8 and --seed >= 0, got "
            f"{args.steps}, {args.places}, {args.img_size} and {args.seed}"
        )
    rng = np.random.default_rng(args.seed)
    where = DataSettings(dataset=args.dataset, data_dir=args.data_dir, val_split=args.val_split)
    data = build_data(where, ModelSettings(), args.seed)
    shape = (3, args.img_size, args.img_size)
    plain = {"input_size": shape, "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}
    images = draw_images(data, "none", plain, args.steps * args.places, rng)
    with user_errors("draw the chain"):
        steps = chain_of(images.unflatten(0, (args.steps, args.places)), args.alpha, args.resize, rng=rng)
    name = args.data_dir or args.dataset
    title = (
        f"RecursiveMix (alpha = {args.alpha:g}), images of {name}: a step's colour frames its image and fills its share"
    )
    plot_recursive_chain(args.output, steps, title)
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_script(main)
