"""Settings as text: yaml files, flags and key=value words, checked against the types that a dataclass declares."""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from timm_mix.train.errors import UsageError, check_keys

__all__ = ["Parser", "check_settings", "checked", "parse_pairs", "parser_of", "read_yaml"]


def read_yaml(what: str, path: str | Path) -> Any:
    """Content of a yaml file; `what` it is begins the UsageError."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is not valid yaml: {' '.join(str(error).split())}") from None


def check_settings(where: str, content: Any, kind: type[Any]) -> dict[str, Any]:
    """Settings of a run as the types that `kind` declares; `where` they stand begins the UsageError."""
    if not isinstance(content, dict):
        raise UsageError(f"{where} must be a mapping of settings, got {type(content).__name__}")
    types_of = typing.get_type_hints(kind)
    check_keys(where, content, types_of, "see train.py --help")
    return {key: checked(f"{where}: {key}", value, types_of[key]) for key, value in content.items()}


def checked(where: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a UsageError that says what was wanted."""
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


def parse_pairs(key: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` words of the flag --key as settings; a value is read as yaml."""
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--{key.replace('_', '-')} takes key=value pairs, got {pair!r}")
        try:
            settings[name] = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise UsageError(f"--{key.replace('_', '-')} takes key=value pairs, {pair!r} has no yaml value") from None
    return settings


class Parser(argparse.ArgumentParser):
    """A mistake in the flags is a UsageError; `timm-mix COMMAND` is called so in the help."""

    def __init__(self, **settings: Any):
        command = sys.argv[1:2] if Path(sys.argv[0]).name in ("timm-mix", "__main__.py") else []
        super().__init__(**{"prog": " ".join(["timm-mix", *command]) if command else None, **settings})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parser_of(declared: type[Any], description: str) -> argparse.ArgumentParser:
    """A flag for every field of a dataclass, and `--config`; what is not given is not in the namespace."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="RECIPE", help="yaml file of settings; flags override it")
    types_of = typing.get_type_hints(declared)
    for spec in dataclasses.fields(declared):
        kind, flag = _plain(types_of[spec.name]), f"--{spec.name.replace('_', '-')}"
        about = _help_of(spec).replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        elif typing.get_origin(kind) is dict:
            parser.add_argument(flag, nargs="+", metavar="KEY=VALUE", help=about)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], help=about)
        else:
            parser.add_argument(flag, type=kind, help=about)
    return parser


def _help_of(spec: dataclasses.Field) -> str:
    """What a setting is and its default, where there is one."""
    about = str(spec.metadata.get("help", ""))
    if spec.default in (dataclasses.MISSING, None, "") or spec.default is False or "default:" in about:
        return about
    values = spec.default if isinstance(spec.default, tuple) else (spec.default,)
    return f"{about} (default: {' '.join(map(str, values))})".lstrip()


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
