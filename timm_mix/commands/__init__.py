"""`timm-mix COMMAND`: one file per command, each with a `main(argv)`; `timm-mix --help` lists the table below."""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["COMMANDS", "main_of"]

# name -> what it does, in the order in which a person meets them; the file has the name of the command
COMMANDS = {
    "train": "train a model by a recipe, on one process or many",
    "finetune": "fine-tune any timm model on a folder of your own images",
    "validate": "figures and pictures of a trained model: members, ensembles, calibration, corruptions",
    "push": "publish a trained model on the Hugging Face Hub",
    "recipes": "list the recipes that come with the package, with their published figures",
    "compare": "run recipes x seeds and write one table of them",
    "table": "what dividing a network costs: parameters and multiply-accumulates",
    "benchmark": "time and memory against plain training, pairwise",
    "convert": "a checkpoint of the papers' published code -> a folder for the Hub",
    "release": "a finished run -> a folder that ships: float16 weights, figures, card",
}


def main_of(name: str) -> Callable[..., Any]:
    """The `main(argv)` of a command; its libraries are imported only now."""
    main: Callable[..., Any] = importlib.import_module(f"timm_mix.commands.{name}").main
    return main
