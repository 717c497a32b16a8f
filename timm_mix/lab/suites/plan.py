"""Suites: which recipes `compare.py` runs with which seeds, from a yaml file.

    command: train              # or finetune: what runs them; may be left out
    test: test                  # split that every finished run is measured on besides; may be left out
    seeds: [0, 1, 2]
    baseline: vanilla           # the method that the others are compared to; may be left out
    data: {images: 1437, classes: 10}           # training images; for the predicted cost, may be left out
    settings: {epochs: 4}       # of every run, over its recipe
    methods:
      - recipe: digits/vanilla_wrn16_2      # of the package, or a file beside the suite; may be left out
        name: vanilla           # default: the file's name
      - recipe: my_recipes/vanilla.yaml
        name: mixup
        settings: {mixup: 0.2}  # of this method, over those above
      - recipe: cifar100/*_b4   # a pattern: one method per recipe
        baseline: mixup         # another baseline for these
      - name: vanilla_again
        seed_offset: 1000       # trained with the seed + 1000
      - name: taught            # of finetune: its setting `teacher` is vanilla's model of the same seed
        teacher: vanilla
      - name: deep_ensemble_2   # nothing is trained: the mean probability of both on the test split
        average: [vanilla, vanilla_again]

Settings of a dict type (`mix`, `model_kwargs`) are merged key by key, as train.py's flags are; an empty
one (`model_kwargs: {}`, beside another `model`) drops what the recipe has.
"""

import difflib
import glob
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from timm_mix.places import shipped
from timm_mix.tasks import task_settings
from timm_mix.train.errors import UsageError, check_keys
from timm_mix.train.finetune.plan import settle
from timm_mix.train.finetune.settings import FinetuneConfig
from timm_mix.train.settings.config import Config, load_recipe
from timm_mix.train.settings.recipes import recipe_names, recipes_folder
from timm_mix.train.settings.task import PLAIN
from timm_mix.train.settings.text import check_settings, import_own, read_yaml

__all__ = ["SUITES", "Method", "Run", "Suite", "find_suite", "load_suite"]

SUITES = shipped("train_scripts/suites", "_suites")
_KEYS = ("command", "test", "seeds", "baseline", "data", "settings", "methods")
_METHOD_KEYS = ("recipe", "name", "baseline", "settings", "seed_offset", "teacher", "average")
_KINDS: dict[str, type[Config]] = {"train": Config, "finetune": FinetuneConfig}
_DATA_KEYS = ("images", "classes")
_OF_THE_HARNESS = ("seed", "output", "experiment", "resume")  # it sets them itself, run by run
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Method:
    """Settings under a name; `baseline` and `teacher` are other methods' names, or None.

    seed_offset: is added to the suite's seed.
    average: methods whose mean probability this is; it has no runs of its own.
    """

    name: str
    settings: dict[str, Any]
    baseline: str | None = None
    seed_offset: int = 0
    teacher: str | None = None
    average: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training run: a method with a seed. `settings` are those that differ from the defaults of `command`.

    offset: of the run's seed over that of the suite.
    test: the split that the finished run is measured on, or None.
    after: folder of the run whose model this one needs, or None.
    """

    method: str
    settings: dict[str, Any]
    command: str = "train"
    offset: int = 0
    test: str | None = None
    after: Path | None = None

    @cached_property
    def config(self) -> Config:
        config = _KINDS[self.command].of(**self.settings)
        return settle(config) if isinstance(config, FinetuneConfig) else config

    @property
    def seed(self) -> int:
        """Of the suite."""
        return self.settings["seed"] - self.offset

    @property
    def folder(self) -> Path:
        return Path(self.settings["output"]) / self.settings["experiment"]

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """Methods x seeds. `images` and `classes` of the training data are None where the file does not say."""

    name: str
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    images: int | None = None
    classes: int | None = None
    command: str = "train"
    test: str | None = None

    def runs(self, output: Path) -> list[Run]:
        """Every run, seed by seed, in the folder `output/<method>/seed<seed>`.

        Raises:
            UsageError: settings that do not go together.
        """
        return [self.run(method, seed, output) for seed in self.seeds for method in self.methods if not method.average]

    def run(self, method: Method, seed: int, output: Path) -> Run:
        """That of one method with one seed."""
        place = {"output": str(output / method.name), "experiment": f"seed{seed}"}
        settings = {**method.settings, "seed": seed + method.seed_offset, **place}
        after = None
        if method.teacher is not None:
            after = output / method.teacher / f"seed{seed}"
            settings["teacher"] = f"local-dir:{after / 'model'}"
        return Run(method.name, settings, self.command, method.seed_offset, self.test, after)


def find_suite(name: str) -> Path:
    """The file of a suite: a path as it is, or the name of one that stands in `suites/`."""
    if Path(name).suffix or len(Path(name).parts) > 1:
        return Path(name)
    known = sorted(path.stem for path in SUITES.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a file, or one of {', '.join(known)}"
        raise UsageError(f"no suite {name!r}; {hint}")
    return SUITES / f"{name}.yaml"


def load_suite(path: Path, *, seeds: Sequence[int] | None = None, settings: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite and check it, its recipes and every method's settings.

    Args:
        seeds: instead of the file's.
        settings: of every run, over those of the file.
    Raises:
        UsageError: no such file, an unknown key, a value of the wrong type, settings that do not go together.
    """
    where = f"suite {path}"
    content = _mapping(where, read_yaml("suite", path), _KEYS)
    command, test = content.get("command", "train"), content.get("test")
    if command not in _KINDS:
        raise UsageError(f"{where}: command must be one of {', '.join(_KINDS)}, got {command!r}")
    if test is not None and not isinstance(test, str):
        raise UsageError(f"{where}: test must be the name of a split, got {test!r}")
    over = _settings("--set", settings or {}, command)
    shared = _settings(f"{where}: settings", content.get("settings", {}), command)
    data = _mapping(f"{where}: data", content.get("data", {}), _DATA_KEYS)
    for key, value in data.items():
        _check_count(f"{where}: data: {key}", value, 1)
    entries = content.get("methods")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: methods must be a list of at least one method, got {entries!r}")
    methods: list[Method] = []
    for number, entry in enumerate(entries, 1):
        of_entry = f"{where}: method {number}"
        entry = {"baseline": content.get("baseline"), **_mapping(of_entry, entry, _METHOD_KEYS)}
        methods += _methods(of_entry, path.parent, entry, (shared, over), command)
    _check_names(where, methods)
    _check_averages(where, methods, test)
    chosen = _seeds(where, content.get("seeds", [0]) if seeds is None else seeds)
    return Suite(path.stem, chosen, tuple(methods), **data, command=command, test=test)


def _methods(
    where: str, folder: Path, entry: dict[str, Any], around: Sequence[dict[str, Any]], command: str
) -> list[Method]:
    """The methods of one entry: one, or one per recipe that its pattern finds. `around`: settings under and over."""
    own = _settings(f"{where}: settings", entry.get("settings", {}), command)
    name, recipe, baseline, teacher = (entry.get(key) for key in ("name", "recipe", "baseline", "teacher"))
    for key, value in (("name", name), ("recipe", recipe), ("baseline", baseline), ("teacher", teacher)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}: {key} must be text, got {value!r}")
    if recipe is None and name is None:
        raise UsageError(f"{where} has neither a recipe nor a name: give one")
    if teacher is not None and command != "finetune":
        raise UsageError(f"{where}: teacher is for command finetune, got {command}: drop it")
    _check_count(f"{where}: seed_offset", entry.get("seed_offset", 0), 0)
    files: list[Path | None] = [None] if recipe is None else [*_recipes(where, folder, recipe)]
    if len(files) > 1 and name is not None:
        raise UsageError(f"{where} has the name {name!r} and {len(files)} recipes: drop the name, or name one recipe")
    methods = []
    for file in files:
        called = name or typing.cast(Path, file).stem
        if not _NAME.fullmatch(called):
            raise UsageError(f"{where}: a name is made of letters, digits and . _ + -, got {called!r}")
        settings = load_recipe(file, _KINDS[command]) if file else {}
        for more in (around[0], own, around[1]):
            settings = _merged(settings, more)
        settings = {key: value for key, value in settings.items() if key not in _OF_THE_HARNESS}
        import_own(settings.get("imports", ()))
        average = _average(where, entry)
        if not average:
            _check_together(f"{where} ({called})", settings, command)
        more = {"seed_offset": entry.get("seed_offset", 0), "teacher": teacher, "average": average}
        methods.append(Method(called, settings, baseline if baseline != called else None, **more))
    return methods


def _average(where: str, entry: dict[str, Any]) -> tuple[str, ...]:
    names = entry.get("average", [])
    alone = [key for key in ("recipe", "settings", "seed_offset", "teacher") if names and entry.get(key)]
    if alone:
        raise UsageError(f"{where}: an average trains nothing, got {alone[0]} as well: drop it")
    if "average" in entry and (
        not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names)
    ):
        raise UsageError(f"{where}: average must be a list of two methods or more, got {names!r}")
    return tuple(names)


def _recipes(where: str, folder: Path, pattern: str) -> list[Path]:
    """Files beside the suite, or recipes that come with the package, which are named without a path."""
    ours = recipes_folder()
    if not glob.has_magic(pattern):
        beside = folder / pattern
        return [beside if beside.exists() or pattern not in recipe_names() else ours / f"{pattern}.yaml"]
    found = sorted(glob.glob(str(folder / pattern))) or sorted(glob.glob(str(ours / f"{pattern}.yaml")))
    if not found:
        raise UsageError(f"{where}: no recipe is called {folder / pattern}")
    return [Path(path) for path in found]


def _settings(where: str, content: Any, command: str) -> dict[str, Any]:
    settings = check_settings(where, content, _KINDS[command])
    for key in _OF_THE_HARNESS:
        if key in settings:
            raise UsageError(f"{where}: {key} differs from run to run and is set by compare.py; drop it")
    return settings


def _check_together(where: str, settings: dict[str, Any], command: str) -> None:
    try:
        config = Run("", {**settings, "experiment": ""}, command).config
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    task = config.task
    if task.name != PLAIN:
        known = task_settings(task.name)
        check_keys(f"{where}: mix", task.mix, known, f"task {task.name} has {', '.join(sorted(known))}")


def _check_names(where: str, methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where} has {names.count(name)} methods called {name!r}: give each a name of its own")
    for method in methods:
        for role, other in (("baseline", method.baseline), ("teacher", method.teacher)):
            _check_is_one(f"{where}: the {role}", other, names)


def _check_averages(where: str, methods: Sequence[Method], test: str | None) -> None:
    trained = [method.name for method in methods if not method.average]
    taught = [method.name for method in methods if method.teacher is not None]
    for method in methods:
        for name in method.average:
            _check_is_one(f"{where} ({method.name}): the averaged", name, trained)
        if method.average and test is None:
            raise UsageError(f"{where}: {method.name} is measured on a test split: give the suite test: NAME")
        if method.teacher is not None and method.teacher not in trained:
            raise UsageError(f"{where}: the teacher {method.teacher!r} is an average, no model: name another method")
        if method.teacher in taught:  # or itself: the runs would wait for each other
            raise UsageError(f"{where}: the teacher {method.teacher!r} has a teacher itself: name another method")


def _check_is_one(what: str, name: str | None, names: Sequence[str]) -> None:
    if name is not None and name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of its methods"
        raise UsageError(f"{what} {name!r} is none of its methods; {hint}")


def _check_count(what: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise UsageError(f"{what} must be an integer >= {least}, got {value!r}")


def _merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`more` over `settings`; dicts are merged key by key, an empty one drops what was there."""
    both = {
        key: {**settings[key], **value}
        for key, value in more.items()
        if value and isinstance(value, dict) and isinstance(settings.get(key), dict)
    }
    return {**settings, **more, **both}


def _mapping(where: str, content: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UsageError(f"{where} must be a mapping, got {type(content).__name__}")
    check_keys(where, content, known, f"known are {', '.join(known)}")
    return content


def _seeds(where: str, seeds: Any) -> tuple[int, ...]:
    right = isinstance(seeds, list | tuple) and len(seeds) > 0 and all(type(s) is int and s >= 0 for s in seeds)
    if not right or len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: seeds must be a list of different integers >= 0, got {seeds!r}")
    return tuple(seeds)
