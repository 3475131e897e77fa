"""Label maps with regions, jagged borders and ignored seams, as many as a test wants."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from segcore import IGNORE_INDEX

CELL = 8  # pixels per sample of the smooth fields


def jagged_maps(
    count: int, *, height: int, width: int, num_classes: int, present: int = 6, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Each map: the largest of `present` smooth random fields, pixels displaced near borders, seams ignored in part.

    Class c is present with a probability that falls as 1 / (c + 1), as classes do in real datasets.
    """
    rng = np.random.default_rng(seed)
    chances_C = 1 / np.arange(1, num_classes + 1)
    chances_C /= chances_C.sum()
    rows, columns = np.mgrid[:height, :width]
    maps = []
    for _ in range(count):
        classes = rng.choice(num_classes, min(present, num_classes), replace=False, p=chances_C).astype(np.uint8)
        coarse = rng.standard_normal((classes.size, height // CELL + 2, width // CELL + 2))
        smooth = gaussian_filter(coarse, (0, 2, 2))
        fields = zoom(smooth / smooth.std(), (1, CELL, CELL), order=1)[:, :height, :width]
        labels_HW = classes[(fields + rng.normal(size=(classes.size, 1, 1)) / 2).argmax(axis=0)]
        shift = rng.normal(size=(2, height, width)) * rng.uniform(0, 1.2)
        wobble = rng.integers(-1, 2, (height, 1)) + rng.integers(-1, 2, (1, width))
        moved_rows, moved_columns = np.rint(np.stack([rows, columns]) + shift + wobble).astype(np.int64)
        labels_HW = labels_HW[moved_rows.clip(0, height - 1), moved_columns.clip(0, width - 1)]
        seam = (labels_HW != np.roll(labels_HW, 1, axis=0)) & (rng.random((height, width)) < 0.4)
        maps.append(np.where(seam, np.uint8(IGNORE_INDEX), labels_HW))
    return maps
