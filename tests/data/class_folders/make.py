"""A fake image classification dataset in ImageNet's layout: train/<class>/*.JPEG and val/<class>/*.JPEG."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02102040")
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))


def make_class_folders(
    root: Path,
    *,
    num_train: int = 4,
    num_val: int = 2,
    classes: tuple[str, ...] = CLASSES,
    sizes: tuple[tuple[int, int], ...] = ((40, 56), (48, 36)),
) -> Path:
    """Noise around one colour per class, in JPEGs of several sizes; returns the root."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noisy = np.array(COLOURS[index % 3]) + rng.integers(-50, 50, (*sizes[number % len(sizes)], 3))
                pixels_HW3 = np.clip(noisy, 0, 255).astype(np.uint8)
                stem = f"{name}_{number}" if split == "train" else f"ILSVRC2012_val_{index * count + number + 1:08d}"
                Image.fromarray(pixels_HW3).save(folder / f"{stem}.JPEG", "JPEG")
    return root
