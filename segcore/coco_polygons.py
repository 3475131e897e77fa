"""Polygons as COCO rasterises them: the very pixels of pycocotools, which differ from those of other rules.

Source: `rleFrPoly` in pycocotools' `maskApi.c`. The outline is drawn on a grid five times finer, an edge by steps of
one along its longer side, rounded. Where the drawn line goes from one fine column to the next at the middle of a
pixel's column, the pixels below it in that column change sides. What is inside after an even number of changes is
outside again (even-odd rule), and the rule at the borders is asymmetric: a square from 1 to 3 covers rows and columns
1 and 2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segcore.coco_runs import Spans

SCALE = 5
_MIDDLE = SCALE // 2  # of a pixel, on the fine grid
MIN_COORDINATES = 6
"""A polygon of fewer than three points encloses nothing."""
_FARTHEST = 4  # from the image, in multiples of its height and width together; beyond is no outline of anything in it


def polygon_spans(polygon: Sequence[float], *, height: int, width: int) -> Spans:
    """Spans (see `coco_runs`) of a polygon x, y, x, y, ... in pixels, cut off at the image's border.

    Raises:
        ValueError: an odd number of coordinates, fewer than six, or one that is not finite or far from the image.
    """
    points = np.asarray(polygon, np.float64)
    if points.ndim != 1 or points.size % 2 or points.size < MIN_COORDINATES:
        raise ValueError(
            f"a polygon has {points.size} coordinates in {points.ndim} dimensions, expected a flat list "
            f"x, y, x, y, ... of {MIN_COORDINATES} or more"
        )
    far = _FARTHEST * (height + width)
    if not (np.abs(points) <= far).all():  # a NaN is not
        raise ValueError(
            f"a polygon has a coordinate that is not finite or beyond {far} px, in an image of {height} x {width}"
        )
    fine = np.trunc(SCALE * points.reshape(-1, 2) + 0.5).astype(np.int64)
    column, row = _outline(fine)
    crossed = column[1:] != column[:-1]
    here, before = column[1:][crossed], column[:-1][crossed]
    at = np.where(here < before, here, here - 1)
    top = np.minimum(row[1:], row[:-1])[crossed]
    pixel_column = (at - _MIDDLE) // SCALE
    kept = (at % SCALE == _MIDDLE) & (pixel_column >= 0) & (pixel_column < width)
    pixel_row = np.clip(-((_MIDDLE - top) // SCALE), 0, height)  # rounded up
    changes = np.sort((pixel_column * height + pixel_row)[kept])
    if changes.size % 2:
        changes = np.append(changes, height * width)
    spans = changes.reshape(-1, 2)
    return spans[spans[:, 1] > spans[:, 0]]


def _outline(fine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of every point drawn on the fine grid, edge after edge around the polygon."""
    start, stop = fine, np.roll(fine, -1, axis=0)
    span = np.abs(stop - start)
    flat = span[:, 0] >= span[:, 1]
    along, across = np.where(flat, 0, 1), np.where(flat, 1, 0)  # axes: the longer side, the other
    edges = np.arange(len(fine))
    backward = start[edges, along] > stop[edges, along]  # an edge is drawn alike in both directions
    low, high = np.where(backward[:, None], stop, start), np.where(backward[:, None], start, stop)
    length = span[edges, along]
    rise = high[edges, across] - low[edges, across]
    slope = rise / np.maximum(length, 1)  # a point of an edge without length crosses no column
    edge = np.repeat(edges, length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    step = np.where(backward[edge], length[edge] - step, step)
    long = step + low[edges, along][edge]
    short = np.trunc(low[edges, across][edge] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(flat[edge], long, short), np.where(flat[edge], short, long)
