"""Fake CamVid in SegNet's layout: train.txt, val.txt, the folders they name, 11 = unlabelled."""

from pathlib import Path

import numpy as np
from PIL import Image

PREFIX = "/SegNet/CamVid/"


def make_camvid(
    folder: Path,
    *,
    num_train: int = 6,
    num_val: int = 3,
    suffix: str = ".png",
    prefix: str = "",
    height: int = 30,
    width: int = 40,
) -> Path:
    """Write `num_train` + `num_val` pairs of noise below `folder`; list lines begin with `prefix`. Returns `folder`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        (folder / split).mkdir(parents=True)
        (folder / f"{split}annot").mkdir()
        lines = []
        for index in range(count):
            stem = f"0001TP_{split}{index:03d}"
            image, label = f"{split}/{stem}{suffix}", f"{split}annot/{stem}.png"
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / image)
            Image.fromarray(rng.integers(0, 12, (height, width), dtype=np.uint8)).save(folder / label)
            lines.append(f"{prefix}{image} {prefix}{label}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder
