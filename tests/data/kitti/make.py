"""Fake KITTI semantics: training/image_2 with the next frames of the stereo benchmark, training/semantic and the two
other kinds of labels, testing/image_2."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_kitti(folder: Path, *, num_images: int = 20, height: int = 20, width: int = 62) -> Path:
    """`num_images` pairs; labels hold every id from 0 to 33. Returns `folder`."""
    rng = np.random.default_rng(0)
    for part in ("image_2", "semantic", "semantic_rgb", "instance"):
        (folder / "training" / part).mkdir(parents=True)
    (folder / "testing/image_2").mkdir(parents=True)
    ids = (np.arange(height * width).reshape(height, width) % 34).astype(np.uint8)
    for index in range(num_images):
        for path in ("training/image_2/{:06d}_10", "training/image_2/{:06d}_11", "testing/image_2/{:06d}_10"):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.save(folder / f"{path.format(index)}.png")
        name = f"{index:06d}_10.png"
        Image.fromarray(ids).save(folder / "training/semantic" / name)
        Image.fromarray(np.stack([ids] * 3, axis=-1)).save(folder / "training/semantic_rgb" / name)
        Image.fromarray(ids.astype(np.uint16) * 256).save(folder / "training/instance" / name)
    return folder
