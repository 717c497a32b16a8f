"""Run timm's own tests/test_models.py on every name that timm_mix registers.

The tests come from timm's source distribution of the installed version, fetched once from the package index into
.timm_suite/. Arguments are passed on to pytest: `python tests/timm_suite/run.py -k mixmo`.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".timm_suite"


def fetch(version: str) -> Path:
    """Unpack tests/ and pyproject.toml of timm's source distribution; returns their folder."""
    folder = CACHE / f"timm-{version}"
    if (folder / "tests" / "test_models.py").is_file():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
        subprocess.run([*download, "--dest", scratch, f"timm=={version}"], check=True)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            wanted = [
                m for m in archive.getmembers() if m.name.split("/", 1)[-1].startswith(("tests/", "pyproject.toml"))
            ]
            archive.extractall(scratch, members=wanted, filter="data")
        (Path(scratch) / f"timm-{version}").rename(folder)
    return folder


def main() -> int:
    folder = fetch(timm.__version__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "only_ours", "-q", "-n", str(os.cpu_count()), "-W", "ignore"]
    return subprocess.run([*command, *sys.argv[1:], "tests/test_models.py"], cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
