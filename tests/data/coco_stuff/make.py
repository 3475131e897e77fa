"""Fake COCO-Stuff: COCO 2017's images, and pixel maps without the eleven values that occur nowhere."""

from pathlib import Path

import numpy as np

from tests.data.fake_files import every_value, write_image, write_label

HEIGHT, WIDTH = 12, 16
NAMES = {"train2017": ("000000000009", "000000000025"), "val2017": ("000000000139",)}
ABSENT = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush: COCO's id minus one."""
VALUES = (*(value for value in range(182) if value not in ABSENT), 255)


def make_coco_stuff(root: Path, *, labels: str = "annotations") -> Path:
    """Write `images` and the pixel maps in the folder `labels`; returns `root`."""
    for split, names in NAMES.items():
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg", height=HEIGHT, width=WIDTH)
            labels_HW = every_value(VALUES, height=HEIGHT, width=WIDTH).astype(np.uint8)
            write_label(root / labels / split / f"{name}.png", labels_HW)
    return root
