"""Compiled kernels of the scores: each is one pass over the pixels of a pair of label maps.

Classes are uint8. What is counted is added to int64 arrays that the caller holds.
"""

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.compiled import entry_point, kernel

CONFIDENCE_UNITS = 2**24
"""Of a sum of probabilities, which as integers add up to the same in any order: float32's own step below 1."""

FAR = np.uint16(65535)
"""Distance of what has no border."""

_LAST = np.uint16(FAR - 1)


@entry_point
def count_pairs(labels_X: NDArray[np.uint8], predictions_X: NDArray[np.uint8], counts_2VV: NDArray[np.int64]) -> None:
    """Add every pair of values to a table (2, 256, 256), ignored and impossible ones too; its halves are to be summed.

    Neighbouring pixels are mostly equal: on one counter each addition would wait for the one before, on two half as
    long.
    """
    even = labels_X.size // 2 * 2
    for x in range(0, even, 2):
        counts_2VV[0, labels_X[x], predictions_X[x]] += 1
        counts_2VV[1, labels_X[x + 1], predictions_X[x + 1]] += 1
    if even < labels_X.size:
        counts_2VV[0, labels_X[even], predictions_X[even]] += 1


@entry_point
def spread_rows(distance_hw: NDArray[np.uint16]) -> None:
    """Let distances grow by 1 a row, straight or aslant, downwards and upwards: for `boundaries.border_distances`.

    Every pixel of a row is worked off at once, by vector instructions.

    Args:
        distance_hw: changed in place; the first and last column, which are only read, hold `FAR`.
    """
    height = len(distance_hw)
    for row in range(1, height):
        _spread(distance_hw[row - 1], distance_hw[row])
    for row in range(height - 2, -1, -1):
        _spread(distance_hw[row + 1], distance_hw[row])


@kernel
def _spread(before_w: NDArray[np.uint16], now_w: NDArray[np.uint16]) -> None:
    for c in range(1, len(now_w) - 1):
        way = min(min(before_w[c - 1], before_w[c], before_w[c + 1]), _LAST)
        now_w[c] = min(now_w[c], np.uint16(way + 1))


@entry_point
def count_near_borders(
    labels_HW: NDArray[np.uint8],
    predictions_HW: NDArray[np.uint8],
    label_distance_HW: NDArray[np.uint16],
    prediction_distance_HW: NDArray[np.uint16],
    boundary_px: int,
    band_of: NDArray[np.int64],
    boundary_3C: NDArray[np.int64],
    bands_BCC: NDArray[np.int64],
) -> bool:
    """Count the pixels near the borders of the truth, and of the prediction; ignored ones not.

    Args:
        labels_HW: truth.
        predictions_HW: classes, wherever the truth is not ignored.
        label_distance_HW: distance of each pixel to the nearest border in the truth.
        prediction_distance_HW: in the prediction, ignored where the truth is.
        boundary_px: how far a class's boundary reaches into it; the image ends like a class.
        band_of: of a distance from the truth's borders, the band; distances beyond the last one are in none.
        boundary_3C: boundary pixels of each class in truth and prediction at once, in the truth, in the prediction.
        bands_BCC: confusion of the pixels of each band.

    Returns:
        Whether all classes were in the table; the counts mean nothing otherwise.
    """
    height, width = labels_HW.shape
    num_classes = boundary_3C.shape[1]
    far = max(boundary_px + 1, band_of.size)
    for row in range(height):
        row_edge = 1 + min(row, height - 1 - row)
        for column in range(width):
            truth, guess = labels_HW[row, column], predictions_HW[row, column]
            if truth == IGNORE_INDEX:
                continue
            if truth >= num_classes or guess >= num_classes:
                return False
            edge = min(row_edge, 1 + min(column, width - 1 - column))
            of_truth, of_guess = int(label_distance_HW[row, column]), int(prediction_distance_HW[row, column])
            if min(of_truth, of_guess, edge) >= far:
                continue
            if of_truth < band_of.size:
                bands_BCC[band_of[of_truth], truth, guess] += 1
            in_truth, in_guess = min(of_truth, edge) <= boundary_px, min(of_guess, edge) <= boundary_px
            if in_truth:
                boundary_3C[1, truth] += 1
            if in_guess:
                boundary_3C[2, guess] += 1
            if in_truth and in_guess and truth == guess:
                boundary_3C[0, truth] += 1
    return True


@entry_point
def count_confidence(
    labels_X: NDArray[np.uint8],
    predictions_X: NDArray[np.uint8],
    confidence_X: NDArray[np.float32],
    counts_3B: NDArray[np.int64],
) -> None:
    """Count pixels by their confidence, ignored ones not.

    Args:
        labels_X: truth.
        predictions_X: classes.
        confidence_X: probability of the predicted class, 0 to 1.
        counts_3B: of each of B equal bins, the sum of confidences in `CONFIDENCE_UNITS`, hits, pixels.
    """
    bins = counts_3B.shape[1]
    for x in range(labels_X.size):
        if labels_X[x] == IGNORE_INDEX:
            continue
        confidence = min(1.0, max(0.0, float(confidence_X[x])))
        b = min(bins - 1, int(confidence * bins))
        counts_3B[0, b] += int(confidence * CONFIDENCE_UNITS + 0.5)
        counts_3B[1, b] += labels_X[x] == predictions_X[x]
        counts_3B[2, b] += 1
