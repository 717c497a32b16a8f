"""Settings of a training run: a recipe (yaml), then flags; both checked against one declaration, part by part.

The names are those of timm's train script where it has them, with `_` in a recipe and `-` in a flag.
"""

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.augment import AugmentSettings
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ModelSettings
from timm_mix.train.settings.nested import Nested
from timm_mix.train.settings.optimise import OptimiseSettings
from timm_mix.train.settings.recipes import find_recipe
from timm_mix.train.settings.run import RunSettings
from timm_mix.train.settings.task import TaskSettings
from timm_mix.train.settings.text import check_settings, import_own, parse_flags, read_yaml

__all__ = ["Config", "load_recipe", "parse_config"]

_ABOUT = "Train an image classifier: mixed inputs, divided networks, or plain."


@dataclass(frozen=True)
class Config(Nested):
    """One run. `None` leaves a setting to timm or to the model.

    >>> config = Config.of(model="resnet18", lr=0.1, aug="small")
    >>> config.model.name, config.optimise.lr, config.augment.aug
    ('resnet18', 0.1, 'small')
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimise: OptimiseSettings = field(default_factory=OptimiseSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        """What no part can know alone."""
        task, optimise = self.task, self.optimise
        if task.mixes_samples and self.data.batch_size % 2:  # timm pairs image i with image B - 1 - i
            raise UsageError(
                f"mixup and cutmix need an even batch_size, got {self.data.batch_size}; take one more or less"
            )
        if optimise.of_the_block:
            task.check_fact("own_block", f"{' and '.join(optimise.of_the_block)} are", "drop them")
        if self.run.member_parallel:
            task.check_fact("member_parallel", "member_parallel is", "drop it")
        if self.run.member_parallel and optimise.amp and optimise.amp_dtype == "float16":
            raise UsageError(
                "member_parallel needs amp_dtype bfloat16, got float16, whose loss scale would differ between parts"
            )

    @property
    def folder(self) -> Path:
        """Of the run."""
        name = self.model.name.replace(":", "_").replace("/", "_")
        return Path(self.run.output) / (self.run.experiment or name)


Kind = TypeVar("Kind", bound=Config)


def load_recipe(path: str | Path, kind: type[Config] = Config) -> dict[str, Any]:
    """Read a recipe and check every key and type against the declaration `kind`.

    Args:
        path: a file, or the name of a recipe that comes with the package.
    Raises:
        UsageError: no such file, not a yaml mapping, an unknown key, one that stands twice, a value of the wrong type.

    >>> recipe = load_recipe("digits/mixmo_wrn16_2_m2")
    >>> recipe["model"], recipe["task"]
    ('mixmo_wrn16_2_m2', 'mixmo')
    """
    return check_settings(f"recipe {path}", read_yaml("recipe", find_recipe(path)), kind)


@overload
def parse_config(argv: Sequence[str] | None = None) -> Config: ...


@overload
def parse_config(argv: Sequence[str] | None, kind: type[Kind], about: str = _ABOUT) -> Kind: ...


def parse_config(argv: Sequence[str] | None = None, kind: type[Any] = Config, about: str = _ABOUT) -> Any:
    """Settings from the command line: `--config recipe.yaml`, overridden by flags.

    `kind` declares the settings, `about` opens the help.

    Raises:
        UsageError: anything that is wrong with recipe or flags.

    >>> config = parse_config(["--config", "digits/mixmo_wrn16_2_m2", "--epochs", "5"])
    >>> config.task.name, config.optimise.epochs
    ('mixmo', 5)
    """
    recipe, flags = parse_flags(argv, kind, about)
    settings = load_recipe(recipe, kind) if recipe else {}
    for name, value in flags.items():
        merges = typing.get_origin(kind.settings()[name].kind) is dict
        settings[name] = {**settings.get(name, {}), **value} if merges else value
    import_own(settings.get("imports", ()))
    return kind.of(**settings)
