"""A fake folder of images, one of labels with the same stems, and a class table in YAML."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = "names: [sky, road, car]\nignore: [255]\n"
COLOUR_CLASSES = "colours: rgb\nnames: [sky, road]\npalette: [[70, 130, 180], [128, 64, 128]]\nignore: [[0, 0, 0]]\n"
COLOURS = np.array([(70, 130, 180), (128, 64, 128), (0, 0, 0), (1, 2, 3)], np.uint8)
"""Sky, road, what is ignored, and a colour that `COLOUR_CLASSES` does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeFolder:
    """Where the pieces lie; strings, as on a command line."""

    images: str
    labels: str
    classes: str


def make_folder(
    root: Path,
    *,
    stems: tuple[str, ...] = ("a", "b", "sub/c"),
    height: int = 20,
    width: int = 30,
    classes: str = CLASSES,
) -> FakeFolder:
    """Write one JPEG and one PNG per stem, which may hold sub-folders."""
    rng = np.random.default_rng(0)
    for stem in stems:
        image, label = root / "images" / f"{stem}.jpg", root / "labels" / f"{stem}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 3, (height, width), dtype=np.uint8)).save(label)
    (root / "classes.yaml").write_text(classes)
    return FakeFolder(images=str(root / "images"), labels=str(root / "labels"), classes=str(root / "classes.yaml"))
