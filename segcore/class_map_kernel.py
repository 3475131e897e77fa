"""Compiled kernel of `class_maps`: logits in, classes and sums out, in one pass over memory.

Pixels are worked off in tiles that stay in the cache (up to 30 classes the first level's), class by class, so that
every inner loop runs over neighbouring pixels and is compiled to vector instructions.

With l = logit - largest logit and Z = sum exp(l), the largest probability is 1 / Z, the second largest is
exp(l of the second) / Z, and the entropy ln Z - sum(exp(l) l) / Z.
"""

import math

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point, kernel
from segcore.exponentials import LOWEST, TILE, exponentials

_ONE = np.float32(1)


@entry_point
def describe_rows(
    logits_Crw: NDArray[np.float32],
    classes_rw: NDArray[np.uint8],
    pixels_C: NDArray[np.int64],
    confidence_C: NDArray[np.float64],
    histogram_B: NDArray[np.int64],
    sums_3: NDArray[np.float64],
    confidence_rw: NDArray[np.float32],
) -> None:
    """Classes of some rows; what they add to the sums of their image is added. Logits have any memory layout.

    Args:
        logits_Crw: scores; NaN, inf, or -inf of all classes make `sums_3` NaN.
        classes_rw: argmax over classes, the first of equal ones; written.
        pixels_C: pixels per predicted class.
        confidence_C: sum of the largest probability over the pixels of each predicted class.
        histogram_B: pixels by their largest probability, B equal bins from 0 to 1.
        sums_3: largest probability, entropy in nats, largest minus second largest probability.
        confidence_rw: largest probability; written, unless it has no elements.
    """
    num_classes, rows, width = logits_Crw.shape
    tile_Cm = np.empty((num_classes, TILE), np.float32)
    best_m, second_m = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    class_m = np.empty(TILE, np.int32)
    exp_m, power_m = np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    exp_sum_m, product_sum_m = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for row in range(rows):
        for start in range(0, width, TILE):
            count = min(TILE, width - start)
            _rank(logits_Crw, row, start, count, tile_Cm, best_m, second_m, class_m)
            exp_sum_m[:] = 0
            product_sum_m[:] = 0
            for c in range(num_classes):
                _below(tile_Cm[c], best_m)
                exponentials(tile_Cm[c], exp_m, power_m)
                for m in range(TILE):
                    exp_sum_m[m] += exp_m[m]
                    product_sum_m[m] += exp_m[m] * tile_Cm[c, m]
            _below(second_m, best_m)
            exponentials(second_m, exp_m, power_m)
            for m in range(count):
                confidence = _ONE / exp_sum_m[m]
                sums_3[0] += confidence
                sums_3[1] += math.log(exp_sum_m[m]) - product_sum_m[m] * confidence
                sums_3[2] += confidence - exp_m[m] * confidence
                c = class_m[m]
                classes_rw[row, start + m] = c
                if confidence_rw.size:
                    confidence_rw[row, start + m] = confidence
                pixels_C[c] += 1
                confidence_C[c] += confidence
                # the lower bound is for NaN, which is any integer
                histogram_B[max(0, min(histogram_B.size - 1, int(confidence * histogram_B.size)))] += 1


@kernel
def _rank(
    logits_Crw: NDArray[np.float32],
    row: int,
    start: int,
    count: int,
    tile_Cm: NDArray[np.float32],
    best_m: NDArray[np.float32],
    second_m: NDArray[np.float32],
    class_m: NDArray[np.int32],
) -> None:
    """Copy `count` pixels to the tile, zeros behind them; their largest and second largest logit and their class."""
    best_m[:] = -np.inf
    second_m[:] = -np.inf
    class_m[:] = 0
    for c in range(len(tile_Cm)):
        tile_m = tile_Cm[c]
        for m in range(count):
            tile_m[m] = logits_Crw[c, row, start + m]
        tile_m[count:] = 0
        this_class = np.int32(c)
        for m in range(TILE):
            logit, best, second = tile_m[m], best_m[m], second_m[m]
            lower = best if logit > best else logit
            second_m[m] = lower if lower > second else second
            class_m[m] = this_class if logit > best else class_m[m]
            best_m[m] = logit if logit > best else best


@kernel
def _below(logits_m: NDArray[np.float32], best_m: NDArray[np.float32]) -> None:
    """Subtract the largest, and keep the result where `exponentials` is valid; NaN stays NaN."""
    for m in range(TILE):
        below = logits_m[m] - best_m[m]
        logits_m[m] = LOWEST if below < LOWEST else below
