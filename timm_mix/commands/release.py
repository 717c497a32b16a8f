"""Make the folder that ships from a finished run of train.py.

    timm-mix release output/mixmo_wrn16_2_m2_digits --tag digits
    timm-mix release output/mixmo_wrn16_2_m2_digits --tag mixmo_m2_digits --fold
    timm-mix release output/RUN --tag cifar100 --data-name cifar100 --output FOLDER

writes <output>/<architecture>.<tag>/ with model.safetensors (float16), config.json, results.json, recipe.yaml and
README.md. The figures are those of the float16 weights, measured by validate.py on the run's validation images; the
model card quotes the line that gives them again. The folder is written whole or not at all; an earlier release of the
name is replaced. A table in a README.md beside the folders, below the mark that ours has, is written anew.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm_mix.commands.validate import main as validate
from timm_mix.lab.release.releasing import read_run, take_model, write_release
from timm_mix.lab.release.weights_table import update_table
from timm_mix.models import is_declared, shipped_folder
from timm_mix.train.errors import user_errors
from timm_mix.train.settings.text import Parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line says; returns the content of results.json."""
    given = _parser().parse_args(argv)
    run = read_run(given.run)
    release = take_model(run, given.tag, fold=given.fold, license=given.license, data_name=given.data_name)
    target = Path(given.output) / release.name
    results = write_release(run, release, target, partial(_evaluate, given.workers))
    with user_errors(f"write {target.parent / 'README.md'}"):
        update_table(target.parent)
    size = results["weights"]["bytes"]
    print(f"{target}: {size:,} bytes, top-1 {results['reproduce']['top1']:.2f} % ({results['prediction']})")
    print(results["reproduce"]["command"])
    if not is_declared(release.name):
        print(f"to create it by its name, add it to TAGS in timm_mix/models/weights/shipped.py: {release.name}")
    return results


def _evaluate(workers: int, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return validate([*flags, "--workers", str(workers), "--output", scratch])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Make a folder that ships (float16 weights, figures, card) from a finished run.")
    parser.add_argument("run", metavar="RUN_FOLDER", help="output/RUN of train.py, with model/ and results.json")
    parser.add_argument("--tag", required=True, help="name of the weights behind the architecture's: digits")
    parser.add_argument("--fold", action="store_true", help="ship the folded plain network of a mixmo model")
    parser.add_argument("--output", default=str(shipped_folder()), help="where the folder goes (default: %(default)s)")
    parser.add_argument("--license", help="of the weights (default: apache-2.0, if the run started from nothing)")
    parser.add_argument("--data-name", help="what the images are called (default: the run's --dataset)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images for the evaluation")
    return parser
