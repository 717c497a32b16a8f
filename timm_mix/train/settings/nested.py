"""Settings in parts: frozen dataclasses within one, built from flat names (recipes, flags, results files) and back."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

__all__ = ["Nested", "Setting"]

_Own = TypeVar("_Own", bound="Nested")


@dataclass(frozen=True)
class Setting:
    """One setting of a nested class.

    name: the flat one.   part, field: where it stands.   kind: its type.

    >>> from timm_mix.train.settings.config import Config
    >>> rate = Config.settings()["lr"]
    >>> rate.part, rate.kind, rate.default, rate.flag
    ('optimise', <class 'float'>, 0.05, '--lr')
    """

    name: str
    part: str
    field: str
    kind: Any
    default: Any
    why: str
    flag: str
    choices: Any = None


class Nested:
    """Base of a frozen dataclass whose fields are parts, each a frozen dataclass of `setting` fields.

    defaults, helps: where they differ from those that the parts declare; by flat name.

    >>> from timm_mix.train.settings.config import Config
    >>> run = Config.of(lr=0.1, batch_size=32)
    >>> run.optimise.lr, run.flat()["batch_size"], run.replace(lr=0.2).data.batch_size
    (0.1, 32, 32)
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    helps: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def parts(cls) -> dict[str, type[Any]]:
        hints = typing.get_type_hints(cls)
        return {spec.name: hints[spec.name] for spec in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """Every setting by its flat name."""
        found = {}
        for part, declared in cls.parts().items():
            kinds = typing.get_type_hints(declared)
            for spec in dataclasses.fields(declared):
                name = spec.metadata.get("name") or spec.name
                default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
                found[name] = Setting(
                    name,
                    part,
                    spec.name,
                    kinds[spec.name],
                    cls.defaults.get(name, default),
                    cls.helps.get(name, spec.metadata.get("why", "")),
                    spec.metadata.get("flag") or f"--{name.replace('_', '-')}",
                    spec.metadata.get("choices"),
                )
        return found

    @classmethod
    def of(cls: type[_Own], **flat: Any) -> _Own:
        """From flat names; a setting that is not named has its default.

        Raises:
            TypeError: a name that is no setting.
            UsageError: a value outside its range, or settings that do not go together.
        """
        settings = cls.settings()
        unknown = [name for name in flat if name not in settings]
        if unknown:
            raise TypeError(f"{cls.__name__} has no setting {unknown[0]!r}")
        values: dict[str, dict[str, Any]] = {part: {} for part in cls.parts()}
        for name, value in {**cls.defaults, **flat}.items():
            values[settings[name].part][settings[name].field] = value
        return cls(**{part: declared(**values[part]) for part, declared in cls.parts().items()})

    def flat(self) -> dict[str, Any]:
        """Every setting under its flat name, as results and checkpoints hold them."""
        return {name: getattr(getattr(self, one.part), one.field) for name, one in self.settings().items()}

    def replace(self: _Own, **flat: Any) -> _Own:
        """The same with other values of some settings."""
        return type(self).of(**{**self.flat(), **flat})
