"""Images of noise and label files, for the fake datasets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_image(path: Path, *, height: int, width: int) -> None:
    """Noise, in the format that the path's ending says; the same for the same path name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def write_label(
    path: Path, values_HW: NDArray[np.uint8], *, palette: Sequence[tuple[int, int, int]] | None = None
) -> None:
    """A PNG of one channel; with a palette of that many colours, the values are its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values_HW)
    if palette is not None:
        image.putpalette([level for colour in palette for level in colour])
    image.save(path)


def every_value(values: Sequence[int], *, height: int, width: int) -> NDArray[np.uint16]:
    """A label map (H, W) that holds each of the values."""
    assert len(values) <= height * width, f"{len(values)} values do not fit {height} x {width} pixels"
    return np.resize(np.array(values, dtype=np.uint16), (height, width))
