"""The demo: train a multi-input network on real digits, fold it, save it, reload it, draw it.

    make demo        (or: python train_scripts/demo.py [flags of train.py])

About three minutes on two cores, nothing is downloaded. Everything lands in output/mixmo_wrn16_2_m2_digits/.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.utils.data import DataLoader

import timm_mix
from timm_mix.commands.train import main as train
from timm_mix.hub import save_pretrained
from timm_mix.lab.pictures.plots import plot_curves, plot_mixed_inputs
from timm_mix.metrics import MemberMetrics, Scores
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.errors import run_script
from timm_mix.train.loop.build import build_data
from timm_mix.train.settings.config import Config, parse_config

RECIPE = Path(__file__).parent / "recipes" / "digits" / "mixmo_wrn16_2_m2.yaml"
# Runs in a process of its own: it loads the folded network without timm_mix and writes its logits. Backbones that timm
# itself has need nothing else; one that timm lacks needs the single file of its architecture, saved beside the weights.
PLAIN_TIMM = """
import importlib, pathlib, sys, numpy, timm, torch
folder, images, logits = sys.argv[1:]
sys.path.insert(0, folder)
for file in pathlib.Path(folder).glob("*.py"):
    importlib.import_module(file.stem)
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    numpy.save(logits, model(torch.from_numpy(numpy.load(images))).numpy())
assert "timm_mix" not in sys.modules
"""


def main(argv: Sequence[str] | None = None) -> None:
    begun = time.perf_counter()
    arguments = ["--config", str(RECIPE), *(sys.argv[1:] if argv is None else argv)]
    config = parse_config(arguments)
    results = train(arguments)
    trained = time.perf_counter() - begun

    folder = config.folder
    ensemble: Any = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True).eval()
    folded = _save_folded(ensemble, folder / "folded")
    images, target = _validation_set(config, ensemble)
    scores = _scores(ensemble, images, target, _plain_timm_logits(folded, images))
    print(f"\ntrained in {trained:.0f} s; {len(target)} validation images")
    _print_table(scores, ensemble, folded)

    pictures = folder / "pictures"
    _draw(pictures, ensemble, images, target, config)
    plot_curves(pictures / "curves.png", results)
    print("\nreload (the folded network does not need timm_mix, only timm and the file beside it):")
    for saved in (folder / "model", folded):
        print(f"  timm.create_model('local-dir:{saved}', pretrained=True)")
    print(f"pictures: {pictures / 'mixed_inputs.png'}, {pictures / 'curves.png'}; figures: {folder / 'results.json'}")


def _save_folded(ensemble: Any, folder: Path) -> Path:
    """Save the folded network, with the file of its architecture where timm does not have it."""
    plain = ensemble.fold()
    save_pretrained(plain, folder, label_names=ensemble.pretrained_cfg.get("label_names"))
    module = sys.modules[type(plain).__module__]
    if module.__name__.startswith("timm_mix.") and module.__file__:
        shutil.copy(module.__file__, folder)
    return folder


def _validation_set(config: Config, model: Any) -> tuple[Tensor, Tensor]:
    dataset: Any = build_data(config.data, config.model, config.run.seed).validation
    dataset.transform = create_transform(config.augment.aug, resolve_data_config({}, model=model), training=False)
    images, target = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    return images, target


def _plain_timm_logits(folder: Path, images: Tensor) -> Tensor:
    """Logits of the folded network, loaded in a fresh process that never imports timm_mix."""
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "images.npy", Path(scratch) / "logits.npy"
        np.save(given, images.numpy())
        subprocess.run([sys.executable, "-c", PLAIN_TIMM, str(folder), str(given), str(made)], check=True)
        return torch.from_numpy(np.load(made))


@torch.no_grad()
def _scores(ensemble: Any, images: Tensor, target: Tensor, folded: Tensor) -> dict[str, Scores]:
    members = ensemble(images, return_members=True)
    together = ensemble(images)
    metrics, plain = MemberMetrics(members.shape[1]), MemberMetrics(1)
    metrics.update(members, together, target)
    plain.update(folded[:, None], folded, target)
    difference = float((folded - together).abs().max() / together.abs().max())
    print(f"\nfolded against ensemble: logits differ by at most {difference:.1e} of their scale")
    return {**metrics.compute(), "folded": plain.compute()["ensemble"]}


def _print_table(scores: dict[str, Scores], ensemble: Any, folded: Path) -> None:
    sizes = {"folded": _count(timm.create_model(f"local-dir:{folded}")), "ensemble": _count(ensemble)}
    print(f"{'':12s} {'top-1 %':>8s} {'NLL':>8s} {'parameters':>12s}")
    for name, score in scores.items():
        print(f"{name:12s} {score.top1:8.2f} {score.nll:8.4f} {sizes.get(name, ''):>12}")


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _draw(folder: Path, ensemble: Any, images: Tensor, target: Tensor, config: Config) -> None:
    """Six samples as the training task mixes them with its binary block."""
    cfg = ensemble.pretrained_cfg
    settings = {**config.task.mix, "prob": 1.0}
    task: Any = timm_mix.create_task(
        "mixmo", ensemble, num_classes=ensemble.num_classes, seed=config.run.seed, **settings
    )
    plan = task.draw(images[:6])
    plot_mixed_inputs(
        folder / "mixed_inputs.png", images[:6], plan, torch.tensor(cfg["mean"]), torch.tensor(cfg["std"])
    )


if __name__ == "__main__":
    run_script(main)
