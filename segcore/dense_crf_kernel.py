"""Compiled kernels of `dense_crf`: one mean-field update, and the way into its layout and back.

Classes of a pixel lie side by side, padded to whole registers; the padding has so low a logit that its probability
stays negligible. Every probability is at least exp(-60): smaller ones would become subnormal numbers when they are
weighted, which many processors handle a hundred times slower.
"""

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point, kernel
from segcore.exponentials import TILE, exponentials
from segcore.lanes import LANES, broadcast, larger, largest, load, plus, plus_scaled, store, total
from segcore.permutohedral_kernel import add_sliced

_PIXELS = TILE // LANES
_PADDING = np.float32(-1e4)
_LOWEST = np.float32(-60)
_ONE = np.float32(1)
_ZERO = np.float32(0)


@entry_point
def to_rows(logits_Cx: NDArray[np.float32], width: int, first: int, rows: NDArray[np.float32]) -> None:
    """Write logits of some neighbouring pixels into their rows, `first` on."""
    num_classes, num_pixels = logits_Cx.shape
    for start in range(0, num_pixels, _PIXELS):
        stop = min(start + _PIXELS, num_pixels)
        for c in range(num_classes):
            for x in range(start, stop):
                rows[(first + x) * width + c] = logits_Cx[c, x]
        for x in range(start, stop):
            for c in range(num_classes, width):
                rows[(first + x) * width + c] = _PADDING


@entry_point
def to_planes(
    rows: NDArray[np.float32], width: int, first: int, last: int, probabilities_CX: NDArray[np.float32]
) -> None:
    """Write the rows of some neighbouring pixels into one plane per class."""
    for start in range(first, last, _PIXELS):
        stop = min(start + _PIXELS, last)
        for c in range(len(probabilities_CX)):
            for x in range(start, stop):
                probabilities_CX[c, x] = rows[x * width + c]


@entry_point
def update(
    logits: NDArray[np.float32],
    width: int,
    table_1: NDArray[np.float32],
    corners_1_XS: NDArray[np.int32],
    weights_1_XS: NDArray[np.float32],
    table_2: NDArray[np.float32],
    corners_2_XS: NDArray[np.int32],
    weights_2_XS: NDArray[np.float32],
    first: int,
    last: int,
    rows: NDArray[np.float32],
) -> None:
    """softmax(logits + what the pixels read from both tables), for pixels `first` to `last`.

    Args:
        logits: -U, rows of `width` numbers.
        width: classes, padded to a multiple of `LANES`.
        table_1, corners_1_XS, weights_1_XS: messages of a kernel, see `permutohedral`; without corners (S = 0), none.
        table_2, corners_2_XS, weights_2_XS: likewise.
        first, last: part of the pixels.
        rows: written.
    """
    tile, exps = np.zeros(_PIXELS * width, np.float32), np.empty(_PIXELS * width, np.float32)
    powers = np.empty(TILE, np.int32)
    for start in range(first, last, _PIXELS):
        stop = min(start + _PIXELS, last)
        add_sliced(table_1, width, corners_1_XS, weights_1_XS, start, stop, logits, start * width, tile, 0)
        if corners_2_XS.shape[1]:
            add_sliced(table_2, width, corners_2_XS, weights_2_XS, start, stop, tile, 0, tile, 0)
        _below_largest(tile, width, stop - start)
        for part in range(0, _PIXELS * width, TILE):
            exponentials(tile[part : part + TILE], exps[part : part + TILE], powers)
        for row in range(0, (stop - start) * width, width):
            sums = load(exps, row)
            for k in range(LANES, width, LANES):
                sums = plus(sums, load(exps, row + k))
            share = _ONE / total(sums)
            for k in range(0, width, LANES):
                store(rows, start * width + row + k, plus_scaled(broadcast(_ZERO), load(exps, row + k), share))


@kernel
def _below_largest(tile: NDArray[np.float32], width: int, num_pixels: int) -> None:
    """Subtract each row's largest number, so that what is left lies in [-60, 0]."""
    floor = broadcast(_LOWEST)
    for row in range(0, num_pixels * width, width):
        best = load(tile, row)
        for k in range(LANES, width, LANES):
            best = larger(best, load(tile, row + k))
        shift = broadcast(-largest(best))
        for k in range(0, width, LANES):
            store(tile, row + k, larger(plus(load(tile, row + k), shift), floor))
