"""The layers of the package: imports go one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "timm_mix"
# what each layer may import of this package, besides itself
ALLOWED = {
    "functional": set(),
    "models": {"functional"},
    "mixers": {"functional"},
    "tasks": {"functional", "models", "mixers"},
    "metrics": {"functional", "models"},
    "card": {"functional", "models", "_methods"},
    "_methods": set(),
    "convert": {
        *("functional", "models"),
        *("_official_mixmo", "_official_openmixup", "_official_recursivemix", "_official_splitnet"),
    },
    "_official_mixmo": set(),
    "_official_openmixup": set(),
    "_official_recursivemix": set(),
    "_official_splitnet": set(),
    "hub": {"functional", "models", "tasks", "mixers", "metrics", "_hub_errors", "_pull", "_push", "_release"},
    "_hub_errors": set(),
    "_pull": {"_hub_errors", "version"},
    "_release": {"_short_card", "card"},
    "_short_card": {"card"},
    "_remote": {"_hub_errors", "version"},
    "_push": {"_hub_errors", "_release", "_remote", "_short_card"},
    "drop_in": {"_drop_in", "tasks", "mixers", "models", "functional"},
    "_drop_in": {"tasks", "mixers", "models", "functional"},
    "version": set(),
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


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("[!_]*_cifar.py")), ids=lambda p: p.name)
def test_backbones_that_timm_lacks_are_files_that_need_timm_only(path):
    """So that a folded network over them loads where timm_mix is not installed, with this one file."""
    assert {name.split(".")[0] for name in _imports(path)} <= {"math", "functools", "typing", "torch", "timm"}


@pytest.mark.parametrize("path", sorted((ROOT / "functional").glob("*.py")), ids=lambda p: p.name)
def test_the_papers_need_torch_and_numpy_only(path):
    known = {"torch", "numpy", "timm_mix", "math", "dataclasses", "collections"}
    assert {name.split(".")[0] for name in _imports(path)} <= known
