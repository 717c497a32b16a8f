"""The recipes, and how to read what their headers state."""

from pathlib import Path

from timm_mix.train.settings.recipes import recipe_header

RECIPES = Path(__file__).parents[2] / "train_scripts" / "recipes"
ALL = sorted(RECIPES.glob("**/*.yaml"))
# training images and classes of the data sets whose recipes repeat published runs
DATA = {
    **{"cifar10": (50_000, 10), "cifar100": (50_000, 100)},
    **{"tiny_imagenet": (100_000, 200), "imagenet": (1_281_167, 1000)},
}
OF_PAPERS = [path for path in ALL if path.parent.name in DATA]
# RecursiveMix, AutoMix and SAMix, whose recipes name their paper
SAMPLE_MIXING = ("arXiv:2203.06844", "arXiv:2103.13027", "arXiv:2111.15454")


def named(path):
    return f"{path.parent.name}/{path.stem}"


header = recipe_header


OF_SAMPLE_MIXING = [path for path in OF_PAPERS if any(paper in header(path)["title"] for paper in SAMPLE_MIXING)]
