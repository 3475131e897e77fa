"""Fake KITTI semantics: training/image_2 with the next frames of the stereo benchmark, training/semantic and the two
other kinds of labels, testing/image_2."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.fake_files import every_value, write_image, write_label


def make_kitti(folder: Path, *, num_images: int = 20, height: int = 20, width: int = 62) -> Path:
    """`num_images` pairs; labels hold every id from 0 to 33. Returns `folder`."""
    ids_HW = every_value(range(34), height=height, width=width).astype(np.uint8)
    (folder / "training/instance").mkdir(parents=True)
    for index in range(num_images):
        for path in ("training/image_2/{:06d}_10", "training/image_2/{:06d}_11", "testing/image_2/{:06d}_10"):
            write_image(folder / f"{path.format(index)}.png", height=height, width=width)
        name = f"{index:06d}_10.png"
        write_label(folder / "training/semantic" / name, ids_HW)
        write_image(folder / "training/semantic_rgb" / name, height=height, width=width)
        Image.fromarray(ids_HW.astype(np.uint16) * 256).save(folder / "training/instance" / name)
    return folder
