"""What the tests of sizes and channels share: small images that are no squares, small networks, the three scripts."""

import numpy as np
from PIL import Image
from support.trainer_runs import forget_accelerator

from timm_mix.commands import finetune, train, validate
from timm_mix.train.evaluate import run as evaluate_run

NARROW = ["depth=1", "embed_dim=24", "num_heads=2"]
VIT, DEIT = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
SWIN = "swin_tiny_patch4_window7_224"
NARROW_SWIN = ["embed_dim=12", "depths=[1,1,1,1]", "num_heads=[1,2,2,4]"]
CONV = ["layers=[1,1,1,1]", "channels=[8,16,24,32]"]
NETS = {  # flags of the network
    "vit": ["--model", VIT, "--model-kwargs", *NARROW],
    "resnet": ["--model", "resnet18", "--model-kwargs", *CONV],
    "mixmo of a vit": ["--model", "mixmo", "--task", "mixmo", "--model-kwargs", f"backbone={VIT}", *NARROW],
    "splitnet of a deit": [
        *("--model", "splitnet", "--task", "cotraining", "--model-kwargs", f"backbone={DEIT}", "divide=false"),
        *NARROW,
    ],
    "swin": ["--model", SWIN, "--model-kwargs", *NARROW_SWIN],
    "mixmo of a swin": ["--model", "mixmo", "--task", "mixmo", "--model-kwargs", f"backbone={SWIN}", *NARROW_SWIN],
}


def write_images(root, channels=3, dtype=np.uint8, train=4, validation=2, size=(40, 56)):
    """Two classes in train/ and val/: PNG for 3 channels, .npy for others."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", validation)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.random((*size, channels))
                whole = not np.issubdtype(dtype, np.floating)
                pixels = (pixels * (np.iinfo(dtype).max if whole else 1)).astype(dtype)
                if channels == 3:
                    Image.fromarray(pixels).save(folder / f"{i}.png")
                else:
                    np.save(folder / f"{i}.npy", pixels)
    return root


class Scripts:
    """train, finetune and validate on one folder of images, each run in this process; results under `out`."""

    def __init__(self, images, out):
        self.images, self.out = images, out

    def train(self, name, *flags):
        return self._run(train.main, name, flags)

    def finetune(self, name, *flags):
        return self._run(finetune.main, name, flags)

    def _run(self, main, name, flags):
        short = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--cpu", "--data-dir", str(self.images)]
        return _then_forget(main, [*short, "--output", str(self.out), "--experiment", name, *flags])

    def validate(self, name, *flags):
        """`name` below `out`: a model's folder or a checkpoint."""
        where = ["--data-dir", str(self.images), "--model", str(self.out / name), "--output", str(self.out / "figures")]
        return _then_forget(validate.main, [*where, "--workers", "0", "--batch-size", "4", "--cpu", *flags])


def _then_forget(main, flags):
    try:
        return main(flags)
    finally:
        forget_accelerator()


def without_pictures(monkeypatch):
    """They take most of the time of a small evaluation."""
    monkeypatch.setattr(evaluate_run, "can_draw", lambda: False)
    monkeypatch.setattr(validate, "can_draw", lambda: False)
    monkeypatch.setattr(evaluate_run, "THROUGHPUT_SECONDS", 0)
