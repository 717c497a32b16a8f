"""Evaluate an image classifier: each member, the ensembles, the folded network.

    timm-mix validate --model output/RUN/model --dataset digits --fold --output output/RUN/validation
    timm-mix validate --model output/RUN/checkpoints/best.pt --data-dir DIR --output OUT
    timm-mix validate --model hf-hub:USER/NAME --data-dir DIR --robustness --corruptions all --output OUT
    torchrun --nproc-per-node 2 -m timm_mix validate ...     (any number of processes, the same figures)

Accuracy, NLL, calibration before and after a cross-fitted temperature, Brier score, AURC, diversity of the members,
throughput; accuracy under FGSM (--robustness) and under common corruptions (--corruptions, --corruptions-dir).
Writes results.json, which also says how every figure is computed, and pictures into --output, where matplotlib is
installed (the extra `plots`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.canvas import can_draw, open_pyplot
from timm_mix.train.evaluate.corruptions import families_in
from timm_mix.train.evaluate.outputs import create_accelerator
from timm_mix.train.evaluate.run import KIND, Evaluation
from timm_mix.train.evaluate.settings import parse_validate
from timm_mix.train.files import check_folder

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line says; returns the content of results.json (on the main process)."""
    config = parse_validate(argv)
    _check_folder(Path(config.measured.output))
    if can_draw():
        open_pyplot()  # a matplotlib that is broken is an error now, not at the end
    if config.measured.corruptions_dir:
        families_in(Path(config.measured.corruptions_dir))
    accelerator = create_accelerator(config.model.amp, config.model.amp_dtype, config.model.cpu)
    try:
        return Evaluation(config, accelerator).run()
    finally:
        accelerator.end_training()


def _check_folder(folder: Path) -> None:
    """What cannot be written at the end is an error now, and nobody else's results are overwritten."""
    check_folder(folder)
    results = folder / "results.json"
    if not results.exists():
        return
    try:
        kind = json.loads(results.read_text()).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND:
        raise UsageError(f"{results} is not that of an evaluation (a training run's?): give another --output")
