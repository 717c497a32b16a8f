"""Settings as text: yaml files, flags and key=value words, checked against the types that their parts declare."""

import argparse
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from timm_mix.own_methods import import_modules
from timm_mix.train.errors import UsageError, check_keys
from timm_mix.train.settings.nested import Nested, Setting

__all__ = ["Parser", "check_settings", "checked", "import_own", "parse_flags", "parse_pairs", "read_yaml"]


class _OneOfEach(yaml.SafeLoader):
    """A key that stands twice is an error: of two values the reader would see one and the run take the other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(what: str, path: str | Path) -> Any:
    """Content of a yaml file; `what` it is begins the UsageError.

    >>> written = Path("mine.yaml").write_text("{lr: 0.1, opt: sgd}")
    >>> read_yaml("recipe", "mine.yaml")
    {'lr': 0.1, 'opt': 'sgd'}
    """
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise UsageError(f"cannot read {what} {path}: it is no regular file")
    try:
        return _load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{what} {path} is not valid yaml: {' '.join(str(error).split())}") from None


def _load(text: str) -> Any:
    """Raises yaml.YAMLError or ValueError (numbers of thousands of digits) for what is not valid."""
    try:
        return yaml.load(text, _OneOfEach)
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None


def import_own(names: Iterable[str]) -> None:
    """Import the modules that the user named; a failure is a UsageError.

    >>> import_own(["my_methdos"])
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: cannot import 'my_methdos' (No module named 'my_methdos'); give the name of ...
    """
    try:
        import_modules(names)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_settings(where: str, content: Any, kind: type[Nested]) -> dict[str, Any]:
    """Settings by their flat names as the types that `kind` declares; `where` they stand begins the UsageError.

    >>> from timm_mix.train.settings.config import Config
    >>> check_settings("recipe mine.yaml", {"lr": 1, "opt_betas": [0.9, 0.99]}, Config)
    {'lr': 1.0, 'opt_betas': (0.9, 0.99)}
    >>> check_settings("recipe mine.yaml", {"batchsize": 64}, Config)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: recipe mine.yaml has an unknown key 'batchsize'; did you mean 'batch_size'?
    """
    if not isinstance(content, dict):
        raise UsageError(f"{where} must be a mapping of settings, got {type(content).__name__}")
    settings = kind.settings()
    check_keys(where, content, settings, "see train --help")
    return {key: checked(f"{where}: {key}", value, settings[key].kind) for key, value in content.items()}


def checked(where: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a UsageError that says what was wanted.

    >>> checked("--opt-betas", [0.9, "1e-2"], tuple[float, ...])
    (0.9, 0.01)
    >>> checked("--epochs", 2.5, int)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: --epochs must be a value of type int, got 2.5
    """
    if value is None and isinstance(kind, types.UnionType):
        return None
    kind = _plain(kind)
    origin = typing.get_origin(kind)
    if origin is dict and isinstance(value, dict):
        return {str(name): _number(item) for name, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(checked(where, item, typing.get_args(kind)[0]) for item in value)
    if kind is float:
        value = _number(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    wanted = "a mapping" if origin is dict else "a list" if origin is tuple else f"a value of type {kind.__name__}"
    raise UsageError(f"{where} must be {wanted}, got {value!r}")


def parse_pairs(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` words of a flag as settings; a value is read as yaml.

    >>> parse_pairs("--mix", ["p=0.5", "block=linear"])
    {'p': 0.5, 'block': 'linear'}
    """
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"{flag} takes key=value pairs, got {pair!r}")
        try:
            settings[name] = _number(_load(value))
        except (yaml.YAMLError, ValueError):
            raise UsageError(f"{flag} takes key=value pairs, {pair!r} has no yaml value") from None
    return settings


class Parser(argparse.ArgumentParser):
    """A mistake in the flags is a UsageError; `timm-mix COMMAND` is called so in the help.

    >>> Parser(prog="timm-mix train").parse_args(["--rate", "0.1"])
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: unrecognized arguments: --rate 0.1; see timm-mix train --help
    """

    def __init__(self, **settings: Any):
        command = sys.argv[1:2] if Path(sys.argv[0]).name in ("timm-mix", "__main__.py") else []
        super().__init__(**{"prog": " ".join(["timm-mix", *command]) if command else None, **settings})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse_flags(
    argv: Sequence[str] | None, kind: type[Nested], about: str, *, recipe: bool = True
) -> tuple[str | None, dict[str, Any]]:
    """The recipe of a command line, and the settings that its flags give, by flat names.

    Args:
        kind: declares the settings; there is a flag for each, and the help has a group for each part.
        recipe: whether there is `--config`.
    Raises:
        UsageError: anything that is wrong with the flags.

    >>> from timm_mix.train.settings.config import Config
    >>> parse_flags(["--config", "mine.yaml", "--lr", "0.1", "--mix", "p=0.5"], Config, "Train.")
    ('mine.yaml', {'lr': 0.1, 'mix': {'p': 0.5}})
    """
    parser = Parser(description=about, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    if recipe:
        place = "yaml file of settings, or the name of one that `timm-mix recipes` lists; flags override it"
        parser.add_argument("--config", metavar="RECIPE", help=place)
    titles = {name: (part.__doc__ or "").partition("\n")[0] for name, part in kind.parts().items()}
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    settings = kind.settings()
    for setting in settings.values():
        _add_flag(groups[setting.part], setting)
    values = vars(parser.parse_args(argv))
    chosen = values.pop("config", None)
    for name, value in values.items():
        if typing.get_origin(_plain(settings[name].kind)) is dict:
            value = parse_pairs(settings[name].flag, value)
        values[name] = checked(settings[name].flag, value, settings[name].kind)
    return chosen, values


def _add_flag(group: Any, setting: Setting) -> None:
    kind = _plain(setting.kind)
    given: dict[str, Any] = {"dest": setting.name, "help": _help_of(setting).replace("%", "%%")}
    if kind is bool:
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **given)
    elif typing.get_origin(kind) is dict:
        group.add_argument(setting.flag, nargs="+", metavar="KEY=VALUE", **given)
    elif typing.get_origin(kind) is tuple:
        group.add_argument(setting.flag, nargs="+", type=typing.get_args(kind)[0], metavar="X", **given)
    else:
        group.add_argument(setting.flag, type=kind, metavar=kind.__name__.upper(), **given)


def _help_of(setting: Setting) -> str:
    """What a setting is for, what it may be, and its default where there is one."""
    about = setting.why
    if callable(setting.choices):
        about += f": {', '.join(filter(None, setting.choices()))}"
    if setting.default in (None, "", (), {}) or setting.default is False or "default:" in about:
        return about
    values = setting.default if isinstance(setting.default, tuple) else (setting.default,)
    return f"{about} (default: {' '.join(map(str, values))})"


def _plain(kind: Any) -> Any:
    """The type behind `T | None`."""
    if isinstance(kind, types.UnionType):
        return next(arg for arg in typing.get_args(kind) if arg is not type(None))
    return kind


def _number(value: Any) -> Any:
    """yaml 1.1 reads 1e-4 as text; here it is a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
