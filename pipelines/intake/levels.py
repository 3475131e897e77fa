"""Histograms and sums of 8-bit pixels, several times faster than NumPy, which makes 64-bit numbers of them first."""

import cv2
import numpy as np
from numpy.typing import NDArray

EXACT = 2**24
"""OpenCV counts in single precision, which is exact up to here: more pixels are counted in pieces."""
PIECE = 2**15
"""Pixels that are summed at a time: their planes stay in the processor's cache."""
RUNS_SHARE = 8
"""Labels with fewer runs than one in so many pixels are counted by runs."""


def label_counts(labels_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels have each value, int64 of length 256, fast for label maps.

    They consist of runs of one value, over which a histogram stumbles: each count waits for the one before. So where
    the values leave bits free, neighbours get others there, are counted apart, and their counts are added.
    """
    shifted_HW = np.ascontiguousarray(labels_HW) + np.uint8(1)  # 255, which mostly means "no label", becomes 0
    used_bits = int(shifted_HW.max()).bit_length()
    if used_bits > 6:
        return _counts_by_runs(np.ascontiguousarray(labels_HW))
    lanes = np.arange(8, dtype=np.uint8) << max(used_bits, 5)  # 0, 32 ... 224; or 0, 64, 128, 192 and these again
    words = shifted_HW.ravel()[: shifted_HW.size // 8 * 8].view(np.uint64)
    words += lanes.view(np.uint64)
    shifted_counts = level_counts(shifted_HW).reshape(-1, 1 << max(used_bits, 5)).sum(axis=0)
    counts = np.zeros(256, dtype=np.int64)
    counts[: len(shifted_counts) - 1], counts[255] = shifted_counts[1:], shifted_counts[0]
    return counts


def _counts_by_runs(labels_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    values_N = labels_HW.ravel()
    changes = values_N[1:] != values_N[:-1]
    if np.count_nonzero(changes) * RUNS_SHARE > values_N.size:
        return level_counts(labels_HW)
    last = np.append(np.flatnonzero(changes), values_N.size - 1)
    # Sums of float64 are exact up to 2**53.
    return np.bincount(values_N[last], weights=np.diff(last, prepend=-1), minlength=256).astype(np.int64)


def channel_sums(pixels_HW3: NDArray[np.uint8]) -> tuple[list[int], list[int]]:
    """The sum of all levels in each channel, and the sum of their squares; exact."""
    sums, squares = [0, 0, 0], [0, 0, 0]
    height, width = pixels_HW3.shape[:2]
    rows = min(height, max(1, PIECE // max(1, width)))
    planes = [np.empty((rows, width), dtype=np.uint8) for _ in range(3)]
    for top in range(0, height, rows):
        piece = pixels_HW3[top : top + rows]
        for channel, plane in enumerate(cv2.split(piece, planes if len(piece) == rows else None)):
            sums[channel] += round(cv2.sumElems(plane)[0])
            # The square of a root: not whole to the last bit.
            squares[channel] += round(cv2.norm(plane, cv2.NORM_L2SQR))
    return sums, squares


def level_counts(levels_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels have each level, int64 of length 256."""
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, EXACT // max(1, levels_HW.shape[1]))
    for top in range(0, levels_HW.shape[0], rows):
        piece = np.ascontiguousarray(levels_HW[top : top + rows])
        counts += np.asarray(cv2.calcHist([piece], [0], None, [256], [0, 256])).ravel().astype(np.int64)
    return counts
