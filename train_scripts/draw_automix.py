"""AutoMix's masks on real images: what a trained Mix Block cuts out of pairs of them for lam = 0, .3, .7 and 1.

The Mix Block and the momentum copy, whose features it sees, come from a checkpoint of train.py --task automix; data and
settings are that run's unless flags say otherwise. Without --resume the digits recipe is trained first (minutes; a
second call finds it).

python train_scripts/draw_automix.py --resume output/RUN/checkpoints/last.pt [--data-dir DIR] [--output FILE.png]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor

from timm_mix.commands.train import main as train
from timm_mix.functional.automix import mix_pairs
from timm_mix.lab.pictures.mix_plots import draw_images, plot_automix_masks
from timm_mix.train.checkpoints.content import read_checkpoint
from timm_mix.train.errors import UsageError, run_script, user_errors
from timm_mix.train.loop.build import build_data, build_model, build_task
from timm_mix.train.loop.network import data_config_of
from timm_mix.train.settings.config import Config, parse_config
from timm_mix.train.settings.text import Parser

LAMS = (0.0, 0.3, 0.7, 1.0)
RECIPE = Path(__file__).parent / "recipes" / "digits" / "automix_wrn16_2.yaml"


def load_task(content: dict[str, Any], num_classes: int) -> Any:
    """The training task of a checkpoint, in evaluation mode.

    Raises:
        UsageError: a checkpoint of another task, or one that does not fit its own settings.
    """
    without = {"pretrained": False, "initial_checkpoint": None, "torchcompile": False, "class_weights": None}
    config = _settings_of(content).replace(**without)
    clock: dict[str, Any] = {"epochs": config.optimise.epochs, "steps_per_epoch": 1, "seed": config.run.seed}
    task: Any = build_task(config.task, build_model(config.model, num_classes), num_classes, **clock)
    with user_errors("load the checkpoint"):
        task.load_checkpoint_state(content["state_dict"], content["task_states"][0])
    task.follower.eval()
    task.get_trainable_module().eval()
    return task


def _settings_of(content: dict[str, Any]) -> Config:
    """Of the run; settings that this version does not know had no part in the masks."""
    if content["config"].get("task") != "automix":
        raise UsageError(f"--resume wants a checkpoint of task automix, got task {content['config'].get('task')}")
    known = Config.settings()
    return Config.of(**{name: value for name, value in content["config"].items() if name in known})


@torch.no_grad()
def masks_of(task: Any, images: Tensor, partners: np.ndarray, lam: float) -> Tensor:
    """The Mix Block's masks of the pairs (image i, image partners[i]) at one lam: [B, 2, 1, H, W]."""
    block = unwrap_model(task.get_trainable_module()).block
    return block(task._features(images), torch.from_numpy(partners), lam, tuple(images.shape[-2:]))


def _trained_on_digits() -> Path:
    arguments = ["--config", str(RECIPE), "--cpu", "--resume", "auto"]
    print(f"no --resume: training {RECIPE.name} first", flush=True)
    train(arguments)
    return parse_config(arguments).folder / "checkpoints" / "last.pt"


def _draw(args: argparse.Namespace) -> None:
    content = read_checkpoint(args.resume or _trained_on_digits())
    settings = _settings_of(content)
    given = {name: getattr(args, name) for name in ("dataset", "data_dir", "val_split")}
    settings = settings.replace(**{name: value for name, value in given.items() if value is not None})
    data = build_data(settings.data, settings.model, settings.run.seed)
    task = load_task(content, data.num_classes)
    data_config = data_config_of(settings.model, unwrap_model(task.get_eval_model()))
    images = draw_images(data, settings.augment.aug, data_config, 2 * args.pairs, np.random.default_rng(args.seed))
    partners = np.roll(np.arange(len(images)), args.pairs)
    mean, std = (torch.tensor(data_config[name])[:, None, None] for name in ("mean", "std"))
    pixels, rows = images * std + mean, slice(args.pairs)
    masks = {lam: masks_of(task, images, partners, lam) for lam in LAMS}
    mixed = {lam: mix_pairs(pixels, torch.from_numpy(partners), mask)[rows] for lam, mask in masks.items()}
    kept = {lam: mask[rows, 0] for lam, mask in masks.items()}
    title = (
        f"Masks of the Mix Block ({settings.task.mix.get('block', 'automix')}, {settings.model.name}, after "
        f"{content['progress']['epoch']} of {settings.optimise.epochs} epochs) for validation images of "
        f"{settings.data.data_dir or settings.data.dataset}; white: the image, black: its partner"
    )
    plot_automix_masks(args.output, pixels[rows], pixels[partners][rows], kept, mixed, title)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--resume", type=Path, help="checkpoint of task automix; default: train the digits recipe")
    parser.add_argument("--output", type=Path, default=Path("output/automix.png"))
    parser.add_argument("--dataset", help="default: the run's")
    parser.add_argument("--data-dir", help="default: the run's")
    parser.add_argument("--val-split", help="default: the run's")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.seed < 0:
        raise UsageError(f"--pairs must be >= 1 and --seed >= 0, got {args.pairs} and {args.seed}")
    _draw(args)
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_script(main)
