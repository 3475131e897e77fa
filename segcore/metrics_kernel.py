"""Compiled kernels of the scores: each is one pass over the pixels of a pair of label maps.

Classes are uint8. What is counted is added to int64 arrays that the caller holds.
"""

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.compiled import entry_point, kernel

CONFIDENCE_UNITS = 2**24
"""Of a sum of probabilities, which as integers add up to the same in any order: float32's own step below 1."""

_PIECE, _COUNT_BIT = 2**14, 40
"""Pixels that are worked off at a time: in the cache, and their confidences sum up to at most 2^14 * 2^24 units."""


@entry_point
def count_pairs(labels_X: NDArray[np.uint8], predictions_X: NDArray[np.uint8], confusion_CC: NDArray[np.int64]) -> bool:
    """Add pixels to a confusion matrix, ignored ones not.

    Returns:
        Whether all classes were in the table; nothing was counted otherwise.
    """
    num_classes = len(confusion_CC)
    counts_2K = np.zeros((2, num_classes**2 + 1), dtype=np.int64)
    place_W, cells_W = np.zeros(_PIECE, dtype=np.uint16), np.empty(_PIECE, dtype=np.int32)
    for start in range(0, labels_X.size, _PIECE):
        size = min(_PIECE, labels_X.size - start)
        labels_W, predictions_W = labels_X[start : start + size], predictions_X[start : start + size]
        if not _cells(labels_W, predictions_W, place_W, 1, num_classes, cells_W[:size]):
            return False
        _count(cells_W[:size], counts_2K)
    for cell in range(num_classes**2):
        confusion_CC[cell // num_classes, cell % num_classes] += counts_2K[0, cell] + counts_2K[1, cell]
    return True


@entry_point
def start_distances(classes_hw: NDArray[np.uint8], distance_hw: NDArray[np.unsignedinteger]) -> None:
    """Write 1 where a pixel lies beside one of another class, corners count, and else leave what is there.

    Args:
        classes_hw: with a frame of 1 pixel that repeats the outermost ones.
        distance_hw: of the same size; in the frame nothing is written.
    """
    height, width = classes_hw.shape
    for row in range(1, height - 1):
        above_w, here_w, below_w = classes_hw[row - 1], classes_hw[row], classes_hw[row + 1]
        for c in range(1, width - 1):
            own = here_w[c]
            beside = (above_w[c - 1] != own) | (above_w[c] != own) | (above_w[c + 1] != own)
            beside |= (here_w[c - 1] != own) | (here_w[c + 1] != own)
            beside |= (below_w[c - 1] != own) | (below_w[c] != own) | (below_w[c + 1] != own)
            distance_hw[row, c] = 1 if beside else distance_hw[row, c]


@entry_point
def spread_rows(distance_hw: NDArray[np.unsignedinteger], farthest: np.unsignedinteger) -> None:
    """Let distances grow by 1 a row, straight or aslant, downwards and upwards: for `boundaries.border_distances`.

    Every pixel of a row is worked off at once, by vector instructions.

    Args:
        distance_hw: changed in place; the first and last column, which are only read, hold the largest number.
        farthest: at which they stop to grow, of the same type; less than the largest number.
    """
    height = len(distance_hw)
    for row in range(1, height):
        _spread(distance_hw[row - 1], distance_hw[row], farthest)
    for row in range(height - 2, -1, -1):
        _spread(distance_hw[row + 1], distance_hw[row], farthest)


@kernel
def _spread(
    before_w: NDArray[np.unsignedinteger], now_w: NDArray[np.unsignedinteger], farthest: np.unsignedinteger
) -> None:
    for c in range(1, len(now_w) - 1):
        way = min(min(before_w[c - 1], before_w[c], before_w[c + 1]), farthest)
        now_w[c] = min(now_w[c], way + 1)


@entry_point
def count_near_borders(
    labels_HW: NDArray[np.uint8],
    predictions_HW: NDArray[np.uint8],
    label_distance_HW: NDArray[np.unsignedinteger],
    prediction_distance_HW: NDArray[np.unsignedinteger],
    boundary_px: int,
    widths_B: NDArray[np.unsignedinteger],
    boundary_3C: NDArray[np.int64],
    bands_BCC: NDArray[np.int64],
) -> bool:
    """Count the pixels near the borders of the truth, and of the prediction; ignored ones not.

    What is asked of a pixel is one cell of a table: its cell is found by vector instructions, row by row, and counted
    once.

    Args:
        labels_HW: truth.
        predictions_HW: classes, wherever the truth is not ignored.
        label_distance_HW: distance of each pixel to the nearest border in the truth.
        prediction_distance_HW: in the prediction, ignored where the truth is.
        boundary_px: how far a class's boundary reaches into it; the image ends like a class.
        widths_B: largest distance from the truth's borders of each band, increasing, in the type of distances.
        boundary_3C: boundary pixels of each class in truth and prediction at once, in the truth, in the prediction.
        bands_BCC: confusion of the pixels of each band.

    Returns:
        Whether all classes were in the table; nothing was counted otherwise.
    """
    height, width = labels_HW.shape
    num_places, num_classes = 4 * (len(bands_BCC) + 1), bands_BCC.shape[1]
    counts_2K = np.zeros((2, num_places * num_classes**2 + 1), dtype=np.int32)
    place_W, cells_W = np.empty(width, dtype=np.uint16), np.empty(width, dtype=np.int32)
    for row in range(height):
        at_edge = width if min(row, height - 1 - row) < boundary_px else min(boundary_px, width)
        _places(label_distance_HW[row], prediction_distance_HW[row], boundary_px, widths_B, at_edge, place_W)
        if not _cells(labels_HW[row], predictions_HW[row], place_W, num_places, num_classes, cells_W):
            return False
        _count(cells_W, counts_2K)
    for cell in range(num_places * num_classes**2):
        count = np.int64(counts_2K[0, cell]) + counts_2K[1, cell]
        if count:
            place, pair = divmod(cell, num_classes**2)
            _add_cell(count, place, pair // num_classes, pair % num_classes, boundary_3C, bands_BCC)
    return True


@kernel
def _places(
    label_distance_W: NDArray[np.unsignedinteger],
    prediction_distance_W: NDArray[np.unsignedinteger],
    boundary_px: int,
    widths_B: NDArray[np.unsignedinteger],
    at_edge: int,
    place_W: NDArray[np.uint16],
) -> None:
    """Of each pixel of a row: bit 0, in a boundary of the truth; bit 1, of the prediction; above them, its band.

    Args:
        at_edge: so many pixels at both ends of the row are in the boundary that the image's end makes.
    """
    width, reach = len(place_W), widths_B.dtype.type(boundary_px)
    for c in range(width):
        place_W[c] = np.uint16(label_distance_W[c] <= reach) + np.uint16(2) * np.uint16(
            prediction_distance_W[c] <= reach
        )
    place_W[:at_edge] = 3
    place_W[width - at_edge :] = 3
    for widest in widths_B:
        for c in range(width):
            place_W[c] += np.uint16(4) * np.uint16(label_distance_W[c] > widest)


@kernel
def _cells(
    labels_W: NDArray[np.uint8],
    predictions_W: NDArray[np.uint8],
    place_W: NDArray[np.uint16],
    num_places: int,
    num_classes: int,
    cells_W: NDArray[np.int32],
) -> bool:
    """The cell (place, truth, guess) of each pixel, the one behind all for ignored ones; False: a foreign class."""
    classes, ignored = np.int32(num_classes), np.int32(num_places * num_classes**2)
    foreign = False
    for c in range(len(cells_W)):
        truth, guess = np.int32(labels_W[c]), np.int32(predictions_W[c])
        counted = truth != IGNORE_INDEX
        foreign |= counted & ((truth >= classes) | (guess >= classes))
        cells_W[c] = (np.int32(place_W[c]) * classes + truth) * classes + guess if counted else ignored
    return not foreign


@kernel
def _count(cells_W: NDArray[np.int32], counts_2K: NDArray[np.signedinteger]) -> None:
    """Neighbouring pixels are mostly equal: in one table each addition would wait for the one before."""
    even = len(cells_W) // 2 * 2
    for c in range(0, even, 2):
        counts_2K[0, np.uint32(cells_W[c])] += 1
        counts_2K[1, np.uint32(cells_W[c + 1])] += 1
    if even < len(cells_W):
        counts_2K[0, np.uint32(cells_W[even])] += 1


@kernel
def _add_cell(
    count: int, place: int, truth: int, guess: int, boundary_3C: NDArray[np.int64], bands_BCC: NDArray[np.int64]
) -> None:
    band = place // 4
    if band < len(bands_BCC):
        bands_BCC[band, truth, guess] += count
    if place & 1:
        boundary_3C[1, truth] += count
    if place & 2:
        boundary_3C[2, guess] += count
    if place & 3 == 3 and truth == guess:
        boundary_3C[0, truth] += count


@entry_point
def count_confidence(
    labels_X: NDArray[np.uint8],
    predictions_X: NDArray[np.uint8],
    confidence_X: NDArray[np.float32],
    largest: float,
    counts_3B: NDArray[np.int64],
) -> bool:
    """Count pixels by their confidence, ignored ones not.

    Piece by piece: what is added, and where, is found by vector instructions; then both the sum and the number of a bin
    grow by one addition, the number in the bits from `_COUNT_BIT` on, which a piece's sum does not reach.

    Args:
        labels_X: truth.
        predictions_X: classes.
        confidence_X: probability of the predicted class, 0 to 1.
        largest: a little above 1, for which it is taken.
        counts_3B: of each of B equal bins, the sum of confidences in `CONFIDENCE_UNITS`, hits, pixels.

    Returns:
        Whether all confidences were from 0 to `largest`; nothing was counted otherwise.
    """
    bins = counts_3B.shape[1]
    total_3B, most = np.zeros_like(counts_3B), np.float32(largest)
    places, units = np.empty(_PIECE, dtype=np.int32), np.empty(_PIECE, dtype=np.int32)
    sums = np.empty(2 * bins + 1, dtype=np.int64)  # of misses and hits of each bin; of what is ignored
    for start in range(0, labels_X.size, _PIECE):
        size = min(_PIECE, labels_X.size - start)
        labels, predictions = labels_X[start : start + size], predictions_X[start : start + size]
        confidence = confidence_X[start : start + size]
        wrong = False
        for x in range(size):
            wrong |= (not (confidence[x] >= 0 and confidence[x] <= most)) & (labels[x] != IGNORE_INDEX)
        if wrong:
            return False
        for x in range(size):
            units[x] = np.int32(_probability(confidence[x]) * CONFIDENCE_UNITS + 0.5)
        for x in range(size):
            place = 2 * min(np.int32(bins - 1), np.int32(_probability(confidence[x]) * bins))
            place += np.int32(labels[x] == predictions[x])
            places[x] = np.int32(place) if labels[x] != IGNORE_INDEX else np.int32(2 * bins)
        sums[:] = 0
        for x in range(size):
            sums[np.uint32(places[x])] += np.int64(units[x]) + (1 << _COUNT_BIT)
        for b in range(bins):
            misses, hits = sums[2 * b], sums[2 * b + 1]
            total_3B[0, b] += misses % (1 << _COUNT_BIT) + hits % (1 << _COUNT_BIT)
            total_3B[1, b] += hits >> _COUNT_BIT
            total_3B[2, b] += (misses >> _COUNT_BIT) + (hits >> _COUNT_BIT)
    counts_3B += total_3B
    return True


@kernel
def _probability(confidence: np.float32) -> np.float64:
    positive = confidence if confidence > 0 else np.float32(0)
    return np.float64(positive if positive < 1 else np.float32(1))
