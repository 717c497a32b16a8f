"""Folders of noisy images for tests that train on them."""

import numpy as np
from PIL import Image


def write_noise(root, size, splits):
    """root/<split>/class<i> with the given numbers of images, the brighter the higher the class."""
    rng = np.random.default_rng(0)
    for split, counts in splits.items():
        for label, count in enumerate(counts):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 230, (size, size, 3)) + 15 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root
