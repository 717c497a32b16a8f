"""The recipes that come with the package: found by name, listed with what their headers say."""

from pathlib import Path

from timm_mix.places import shipped
from timm_mix.train.errors import UsageError, nearest

__all__ = ["find_recipe", "recipe_header", "recipe_names", "recipes_folder"]


def recipes_folder() -> Path:
    """Where they lie, in a checkout as in an installed package.

    >>> (recipes_folder() / "digits/mixmo_wrn16_2_m2.yaml").is_file()
    True
    """
    return shipped("train_scripts/recipes", "_recipes")


def recipe_names() -> list[str]:
    """`<dataset>/<name>` of every recipe, as `--config` takes them.

    >>> "digits/mixmo_wrn16_2_m2" in recipe_names()
    True
    """
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        UsageError: neither a file nor such a name.

    >>> find_recipe("digits/mixmo_wrn16_2_m2").name
    'mixmo_wrn16_2_m2.yaml'
    >>> find_recipe("digits/mixmo_wrn16_2")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: cannot read recipe digits/mixmo_wrn16_2: No such file or directory; did ...
    """
    path = Path(name)
    if path.exists():
        return path
    shipped_one = recipes_folder() / f"{str(name).removesuffix('.yaml')}.yaml"
    if shipped_one.is_file():
        return shipped_one
    hint = nearest(str(name), recipe_names()) or "`timm-mix recipes` lists those that come with the package"
    raise UsageError(f"cannot read recipe {name}: No such file or directory; {hint}")


def recipe_header(path: Path) -> dict[str, str]:
    """The comments above the settings: `title`, the first line, and `key: text` of those behind it.

    >>> recipe_header(find_recipe("digits/mixmo_wrn16_2_m2"))["title"]
    "Cut-MixMo, two members, WRN-16-2 on ...
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return {"title": lines[0] if lines else "", **dict(line.split(": ", 1) for line in lines[1:] if ": " in line)}
