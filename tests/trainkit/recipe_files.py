"""The recipes, and how to read what their headers state."""

from pathlib import Path

RECIPES = Path(__file__).parents[2] / "train_scripts" / "recipes"
ALL = sorted(RECIPES.glob("**/*.yaml"))
# training images and classes of the data sets whose recipes repeat published runs
DATA = {
    **{"cifar10": (50_000, 10), "cifar100": (50_000, 100)},
    **{"tiny_imagenet": (100_000, 200), "imagenet": (1_281_167, 1000)},
}
OF_PAPERS = [path for path in ALL if path.parent.name in DATA]


def named(path):
    return f"{path.parent.name}/{path.stem}"


def header(path):
    """The comments above the settings: key -> text of `# key: text`, and the title."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return {"title": lines[0], **dict(line.split(": ", 1) for line in lines[1:] if ": " in line)}
