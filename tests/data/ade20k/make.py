"""Fake ADE20K of the scene parsing benchmark."""

from pathlib import Path

import numpy as np

from tests.data.fake_files import every_value, write_image, write_label

HEIGHT, WIDTH = 12, 16
NAMES = {"training": ("ADE_train_00000001", "ADE_train_00000002"), "validation": ("ADE_val_00000001",)}


def make_ade20k(folder: Path) -> Path:
    """Write `ADEChallengeData2016` with annotations of 0 to 150; returns it."""
    root = folder / "ADEChallengeData2016"
    for split, names in NAMES.items():
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg", height=HEIGHT, width=WIDTH)
            labels_HW = every_value(range(151), height=HEIGHT, width=WIDTH).astype(np.uint8)
            write_label(root / "annotations" / split / f"{name}.png", labels_HW)
    return root
