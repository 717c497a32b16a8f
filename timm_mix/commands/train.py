"""Train an image classifier with mixed inputs, divided networks, or plainly, on one process or many.

    timm-mix train --config digits/mixmo_wrn16_2_m2
    accelerate launch --num_processes 2 -m timm_mix train --config RECIPE --batch-size 32     (GPUs)
    torchrun --nproc-per-node 2 -m timm_mix train --config RECIPE --batch-size 16 --cpu
    torchrun --nproc-per-node 4 -m timm_mix train --config SPLITNET_RECIPE --member-parallel     (one part each)

Flags carry timm's names and override the recipe. The run's folder (--output / --experiment) gets results.json,
checkpoints/last.pt and best.pt, and model/, a folder that timm.create_model('local-dir:...', pretrained=True) loads.
Before it starts it prints the predicted cost of the recipe.
"""

from collections.abc import Sequence
from typing import Any

from timm_mix.train.run import run
from timm_mix.train.settings.config import parse_config

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line says; returns the content of results.json (on the main process)."""
    return run(parse_config(argv))
