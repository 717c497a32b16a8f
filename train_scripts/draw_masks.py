"""One page of all mixing blocks: the mask of role 0 for kappa = .2, .5 and .8, three draws each.

Blocks that differ between channels show their first channel; the number is the area kept over all channels.

python train_scripts/draw_masks.py [--output FILE.png] [--size 32] [--seed 0]
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.mixmo import MixMoPlan, member_masks, plan_mixmo
from timm_mix.lab.pictures.plots import plot_mask_families
from timm_mix.train.errors import UsageError, run_script
from timm_mix.train.settings.text import Parser

KAPPAS = (0.2, 0.5, 0.8)
DRAWS = 3
CHANNELS = 16


def masks_of_role_0(
    family: str, kappa: float, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """DRAWS masks of a family at one kappa: [DRAWS, h, w], their first channel, and the areas really kept, [DRAWS]."""
    plan = _at_kappa(plan_mixmo(DRAWS, 2, (CHANNELS, size, size), rng=rng, block=family), kappa, rng)
    masks, ratios = member_masks(plan)
    return masks[:, 0, 0], ratios[:, 0]


def _at_kappa(plan: MixMoPlan, kappa: float, rng: np.random.Generator) -> MixMoPlan:
    """The plan with its ratios set to kappa for role 0, and role 0 played by the first member."""
    ratios = np.tile([kappa, 1 - kappa], (len(plan.kappa), 1))
    draw = BLOCKS[plan.family].draw
    regions = () if draw is None else (draw(ratios[:, 0], plan.shape, rng=rng),)
    areas = ratios[:, : plan.areas.shape[1]]
    return dataclasses.replace(plan, kappa=ratios, areas=areas, regions=regions, roles=np.arange(2))


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("output/masks.png"))
    parser.add_argument("--size", type=int, default=32, help="side of the masks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.size < 8 or args.seed < 0:
        raise UsageError(f"--size must be >= 8 and --seed >= 0, got {args.size} and {args.seed}")
    rng = np.random.default_rng(args.seed)
    drawn = {family: [masks_of_role_0(family, kappa, args.size, rng) for kappa in KAPPAS] for family in BLOCKS}
    plot_mask_families(args.output, drawn, KAPPAS)
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_script(main)
