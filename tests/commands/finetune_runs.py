"""What the tests of finetune.py share: digits as a folder of images, saved models, and a run from one of them."""

import numpy as np
import timm
import torch
from script_runs import fresh_accelerate

from timm_mix.commands.finetune import main
from timm_mix.hub import save_pretrained
from timm_mix.train.data.digits import Digits

NAMES = ["one", "seven", "three"]  # folders sort by name, not by digit
TRAIN, VALIDATION = 12, 5
NET = {"depth": 10, "widen_factor": 1}
SOURCES = {
    "plain": ("wrn16_2", {}),
    "mixmo": ("mixmo", {"backbone": "wrn16_2", "members": 2}),
    "splitnet": ("splitnet", {"backbone": "wrn16_2", "split": 2, "divide": False}),
    "other classes": ("mixmo", {"backbone": "wrn16_2", "members": 2}),
}
FEED = {"input_size": (3, 24, 24), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.75}


def write_digits(root):
    """train/ with 12 and val/ with 5 scans of each of three digits."""
    for split, count in (("train", TRAIN), ("val", VALIDATION)):
        scans = Digits(split)
        for name, digit in zip(NAMES, (1, 7, 3), strict=True):
            (root / split / name).mkdir(parents=True)
            for number in np.flatnonzero(scans.targets == digit)[:count]:
                scans[number][0].save(root / split / name / f"{number}.png")
    return root


def save_sources(root):
    """Saved models, with three classes of their own or with seven, fed in a way of their own."""
    for seed, (name, (architecture, kwargs)) in enumerate(SOURCES.items()):
        torch.manual_seed(seed)
        count = 7 if name == "other classes" else 3
        model = timm.create_model(architecture, num_classes=count, **NET, **kwargs)
        labels = [f"old {i}" for i in range(count)]
        save_pretrained(model, root / name, label_names=labels, data_config=FEED)
        if name == "mixmo":
            save_pretrained(model.fold(), root / "folded", label_names=labels, data_config=FEED)
    return root


def run_finetune(model, data, output, *flags):
    where = ["--model", f"local-dir:{model}", "--data-dir", str(data), "--workers", "0", "--cpu"]
    place = ["--output", str(output)]
    with fresh_accelerate():
        return main([*where, *place, "--batch-size", "6", "--epochs", "1", "--lr", "0.05", *flags])


def loaded(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
