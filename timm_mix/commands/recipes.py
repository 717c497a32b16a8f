"""List the recipes that come with the package.

    timm-mix recipes [cifar100 ...]

Each with the figure that its paper published, from the header of its file.
"""

import argparse
from collections.abc import Sequence

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.recipes import recipe_header, recipe_names, recipes_folder
from timm_mix.train.settings.text import Parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per recipe."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only names that hold all of these words")
    words = parser.parse_args(argv).words
    names = [name for name in recipe_names() if all(word in name for word in words)]
    if not names:
        raise UsageError(f"no recipe's name holds {' and '.join(words)}; timm-mix recipes lists all")
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {figure_of(name)}".rstrip())


def figure_of(name: str) -> str:
    """The published figure, as the recipe's header states it; its title where it repeats no published run."""
    header = recipe_header(recipes_folder() / f"{name}.yaml")
    return header.get("published", header["title"])
