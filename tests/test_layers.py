"""The layers of the package: imports go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "timm_mix"
PAPERS = {"announced", "functional", "places", "registry", "version"}
SEATS = {*PAPERS, "models", "mixers", "tasks", "metrics", "views"}
OUTSIDE = {*SEATS, "own_methods", "card", "convert", "hub", "drop_in"}
# what each room may import of this package, besides itself
ALLOWED = {
    "version": set(),
    "announced": set(),
    "own_methods": set(),
    "places": set(),
    "registry": set(),
    "functional": {"registry"},
    "models": PAPERS,
    "mixers": PAPERS,
    "tasks": {*PAPERS, "models", "mixers"},
    "metrics": {*PAPERS, "models"},
    "views": set(),
    "card": {*PAPERS, "models", "tasks"},
    "convert": {*PAPERS, "models"},
    "hub": SEATS | {"card"},
    "drop_in": SEATS | {"own_methods"},
    "train": OUTSIDE,
    "lab": {*OUTSIDE, "train"},
    "commands": {*OUTSIDE, "train", "lab"},
    "__main__": {"commands", "train", "version"},
}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module if node.level == 0 else "." + (node.module or "")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in _imports(path):
        assert not name.startswith("."), f"{path.name}: relative import {name}"
        if name.startswith("timm_mix."):
            other = name.split(".")[1]
            assert other == layer or other in ALLOWED[layer], f"{layer} must not import {other}"


def _names(path):
    """Every name of this package that a file imports, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_reaches_into_the_private_names_of_another(path):
    """Below a folder its own private files may be imported, from nowhere else."""
    package = ["timm_mix", *path.relative_to(ROOT).parts[:-1]]
    for name in _names(path):
        parts = name.split(".")
        if parts[0] != "timm_mix":
            continue
        private = next((i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")), None)
        if private is not None:
            assert package[:private] == parts[:private], f"{path.name} imports {name}, which belongs to another room"


def test_importing_the_package_imports_neither_the_trainer_nor_its_libraries():
    heavy = ("accelerate", "matplotlib", "torchmetrics", "timm_mix.train", "timm_mix.lab", "timm_mix.commands")
    code = f"import sys, timm_mix; print(sorted(set(sys.modules) & set({heavy!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("[!_]*_cifar.py")), ids=lambda p: p.name)
def test_backbones_that_timm_lacks_are_files_that_need_timm_only(path):
    """So that a folded network over them loads where timm_mix is not installed, with this one file."""
    assert {name.split(".")[0] for name in _imports(path)} <= {"math", "functools", "typing", "torch", "timm"}


@pytest.mark.parametrize("path", sorted((ROOT / "functional").glob("*.py")), ids=lambda p: p.name)
def test_the_papers_need_torch_and_numpy_only(path):
    known = {"torch", "numpy", "timm_mix", "math", "dataclasses", "collections", "typing"}
    assert {name.split(".")[0] for name in _imports(path)} <= known
