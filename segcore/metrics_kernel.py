"""Compiled kernels of the scores: each is one pass over the pixels of a pair of label maps.

Classes are uint8. What is counted is added to int64 arrays that the caller holds.
"""

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.compiled import entry_point

CONFIDENCE_UNITS = 2**24
"""Of a sum of probabilities, which as integers add up to the same in any order: float32's own step below 1."""

_FAR = np.int32(2**30)


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
def border_distances(classes_hw: NDArray[np.uint8], distance_hw: NDArray[np.int32]) -> None:
    """Chessboard distance of each pixel to the nearest one of another class: 1 beside it (corners count); else huge.

    Two passes with steps of 1 in all eight directions are exact (Rosenfeld and Pfaltz, "Distance functions on digital
    pictures", 1968). One map serves all classes: the way to the nearest other class stays in its own to the last step.

    Args:
        classes_hw: a map with one more row and column on each side, which repeat its outermost ones.
        distance_hw: of the same shape; written. Its margin means nothing.
    """
    height, width = classes_hw.shape
    distance_hw[:] = _FAR
    for row in range(1, height - 1):
        above, here, below = classes_hw[row - 1], classes_hw[row], classes_hw[row + 1]
        before, now = distance_hw[row - 1], distance_hw[row]
        for c in range(1, width - 1):
            own = here[c]
            in_row = (here[c - 1] != own) | (here[c + 1] != own)
            in_above = (above[c - 1] != own) | (above[c] != own) | (above[c + 1] != own)
            in_below = (below[c - 1] != own) | (below[c] != own) | (below[c + 1] != own)
            way = min(before[c - 1], before[c], before[c + 1]) + 1
            now[c] = 1 if in_row | in_above | in_below else way
        for c in range(2, width - 1):
            now[c] = min(now[c], now[c - 1] + 1)
    for row in range(height - 2, 0, -1):
        before, now = distance_hw[row + 1], distance_hw[row]
        for c in range(1, width - 1):
            now[c] = min(now[c], min(before[c - 1], before[c], before[c + 1]) + 1)
        for c in range(width - 3, 0, -1):
            now[c] = min(now[c], now[c + 1] + 1)


@entry_point
def count_near_borders(
    labels_HW: NDArray[np.uint8],
    predictions_HW: NDArray[np.uint8],
    label_distance_hw: NDArray[np.int32],
    prediction_distance_hw: NDArray[np.int32],
    boundary_px: int,
    band_of: NDArray[np.int64],
    boundary_3C: NDArray[np.int64],
    bands_BCC: NDArray[np.int64],
) -> bool:
    """Count the pixels near the borders of the truth, and of the prediction; ignored ones not.

    Args:
        labels_HW: truth.
        predictions_HW: classes, wherever the truth is not ignored.
        label_distance_hw: `border_distances` of the truth, with its margin.
        prediction_distance_hw: of the prediction, ignored where the truth is.
        boundary_px: how far a class's boundary reaches into it; the image ends like a class.
        band_of: of a distance from the truth's borders, the band; distances beyond the last one are in none.
        boundary_3C: boundary pixels of each class in truth and prediction at once, in the truth, in the prediction.
        bands_BCC: confusion of the pixels of each band.

    Returns:
        Whether all classes were in the table; the counts mean nothing otherwise.
    """
    height, width = labels_HW.shape
    num_classes = boundary_3C.shape[1]
    for row in range(height):
        for column in range(width):
            truth, guess = labels_HW[row, column], predictions_HW[row, column]
            if truth == IGNORE_INDEX:
                continue
            if truth >= num_classes or guess >= num_classes:
                return False
            distance = label_distance_hw[row + 1, column + 1]
            if distance < band_of.size:
                bands_BCC[band_of[distance], truth, guess] += 1
            edge = 1 + min(row, height - 1 - row, column, width - 1 - column)
            in_truth = min(distance, edge) <= boundary_px
            in_guess = min(prediction_distance_hw[row + 1, column + 1], edge) <= boundary_px
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
