"""Fake Cityscapes: cities below splits, every kind of file of gtFine, test labels without a class."""

from pathlib import Path

import numpy as np

from tests.data.fake_files import every_value, write_image, write_label

HEIGHT, WIDTH = 8, 16
FRAMES = {
    "train": ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313"),
    "val": ("frankfurt/frankfurt_000000_000294",),
    "test": ("berlin/berlin_000000_000019",),
}
UNTRAINED_IN_TEST = (1, 2, 3)  # ego vehicle, rectification border, out of roi


def make_cityscapes(root: Path) -> Path:
    """Write leftImg8bit and gtFine; returns `root`."""
    for split, frames in FRAMES.items():
        for frame in frames:
            write_image(root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", height=HEIGHT, width=WIDTH)
            ids = UNTRAINED_IN_TEST if split == "test" else range(34)
            labels_HW = every_value(ids, height=HEIGHT, width=WIDTH).astype(np.uint8)
            truth = root / "gtFine" / split
            write_label(truth / f"{frame}_gtFine_labelIds.png", labels_HW)
            write_label(truth / f"{frame}_gtFine_instanceIds.png", labels_HW)
            write_image(truth / f"{frame}_gtFine_color.png", height=HEIGHT, width=WIDTH)
            (truth / f"{frame}_gtFine_polygons.json").write_text("{}\n")
    return root
