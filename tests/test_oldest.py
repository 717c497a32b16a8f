"""The floors of pyproject.toml are the versions that `make test-oldest` runs with."""

import re
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# the linters of `dev` do not run there, and trackers are not installed
NOT_RUN = ("ruff", "mypy", "types-PyYAML", "types-tqdm", "timm_mix", "tensorboard", "wandb")


def _release(version):
    """1.26.0 and 1.26 are one."""
    return re.sub(r"(\.0)+$", "", version)


def _floors():
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    named = (re.fullmatch(r"([\w-]+)(?:\[.*\])?(?:>=([\d.]+))?", line).groups() for line in lines)
    return {name: floor for name, floor in named if name not in NOT_RUN}


def test_every_floor_is_the_version_of_the_oldest_run():
    lines = [line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    oldest = dict(line.split("==") for line in lines)
    assert {name: _release(version) for name, version in oldest.items()} == {
        name: _release(floor) for name, floor in _floors().items()
    }
