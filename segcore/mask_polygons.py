"""Masks as polygons, class by class.

Corners of polygons are corners of pixels: (0, 0) is the upper left corner of the upper left pixel, x runs to the right,
y down. Without simplification the polygons enclose exactly their class's pixels (a ring may touch itself where two
pixels meet at a corner). With it they do not, and neighbouring classes overlap or leave gaps up to the tolerance.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int64]
"""(points, 2): x, y; the first point is not repeated at the end."""


def class_polygons(mask_HW: NDArray[np.uint8], *, simplify_px: float = 0.0) -> dict[int, list[list[Ring]]]:
    """Polygons of every class that occurs, by rising index.

    Args:
        mask_HW: class indices.
        simplify_px: how far a simplified line may stray from the pixels' edges (Ramer, Douglas and Peucker); 0: not
            simplified.

    Returns:
        Per class its polygons, each a list of rings: the outer one, then its holes.

    Raises:
        ValueError: another type or shape, or a negative tolerance.
    """
    if mask_HW.dtype != np.uint8 or mask_HW.ndim != 2:
        raise ValueError(f"mask is {mask_HW.dtype} of shape {mask_HW.shape}; expected uint8 (H, W)")
    if simplify_px < 0:
        raise ValueError(f"simplify_px is {simplify_px}; give 0 or more")
    present = np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256))
    return {int(index): _polygons(mask_HW == index, simplify_px) for index in present}


def _polygons(inside_HW: NDArray[np.bool_], simplify_px: float) -> list[list[Ring]]:
    rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box_hw = inside_HW[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV's contours run through the centres of border pixels. Of a mask twice as large these are quarters of a pixel
    # away from the edges, and rounding away from the centre gives the edges.
    double_hw = cv2.resize(box_hw, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(double_hw, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_ring(np.asarray(contour, np.int32).reshape(-1, 2), left, top, simplify_px) for contour in contours]
    outer_of: dict[int, list[Ring]] = {}
    parents = [int(parent) for _, _, _, parent in hierarchy[0]]
    for number, parent in enumerate(parents):
        if parent < 0:
            outer_of[number] = [rings[number]]
    for number, parent in enumerate(parents):
        if parent >= 0:
            outer_of[parent].append(rings[number])
    return list(outer_of.values())


def _ring(points_N2: NDArray[np.int32], left: int, top: int, simplify_px: float) -> Ring:
    corners_N2 = (points_N2 + 1) // 2 + np.array([left, top])
    corners_N2 = corners_N2[(corners_N2 != np.roll(corners_N2, 1, axis=0)).any(axis=1)]
    if simplify_px:
        simple_N2 = cv2.approxPolyDP(corners_N2.astype(np.int32)[:, None], simplify_px, True).reshape(-1, 2)
        if len(simple_N2) > 2:  # a speck would become a line
            corners_N2 = simple_N2
    return np.asarray(corners_N2, np.int64)
