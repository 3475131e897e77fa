"""Masks as COCO's run lengths: one binary mask per class, column by column, its counts packed into text.

Source: pycocotools' `maskApi.c`. Counts alternate between pixels outside and inside, beginning outside (with 0 where
the first pixel is inside). From the fourth on, a count is stored as its difference to the one two before it; a number
is written in groups of five bits, lowest first, each plus 48 as a character, bit 32 set in all groups but the last.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.run_lengths import encode

_BITS = 5
_MAX_GROUPS = 7  # of a difference of two int32
_FIRST_CHARACTER = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRuns:
    """One class of a mask.

    Attributes:
        class_index: the value of its pixels.
        counts: as COCO packs them.
        area: pixels.
        box: column, row, width, height of the smallest box around them, in pixels.
    """

    class_index: int
    counts: str
    area: int
    box: tuple[int, int, int, int]


def class_runs(mask_HW: NDArray[np.uint8]) -> list[ClassRuns]:
    """Every class that occurs in a mask, by rising index.

    Raises:
        ValueError: as `run_lengths.encode` does.
    """
    height = mask_HW.shape[0]
    values, lengths = encode(mask_HW.T)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    found = []
    for class_index in np.unique(values):
        inside = values == class_index
        first, stop = starts[inside], ends[inside]
        outside = first - np.concatenate([[0], stop[:-1]])
        counts = np.stack([outside, stop - first], axis=1).ravel()
        if stop[-1] < mask_HW.size:
            counts = np.append(counts, mask_HW.size - stop[-1])
        found.append(
            ClassRuns(
                class_index=int(class_index),
                counts=_pack(counts),
                area=int((stop - first).sum()),
                box=_box(first, stop - 1, height),
            )
        )
    return found


def _pack(counts: NDArray[np.int64]) -> str:
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    characters = np.zeros((numbers.size, _MAX_GROUPS), np.uint8)
    used = np.zeros((numbers.size, _MAX_GROUPS), bool)
    more = np.ones(numbers.size, bool)
    for group in range(_MAX_GROUPS):
        low = numbers & 31
        numbers >>= _BITS
        used[:, group] = more
        # done once the rest is all sign, and the sign is that of this group's highest bit
        goes_on = np.where(low & 16, numbers != -1, numbers != 0)
        characters[:, group] = low + 32 * goes_on + _FIRST_CHARACTER
        more = more & goes_on
    return characters[used].tobytes().decode("ascii")


def _box(first: NDArray[np.int64], last: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    """Around runs down the columns, from their first and last pixels."""
    first_column, last_column = first // height, last // height
    whole = first_column != last_column  # such a run touches the top and the bottom
    top = 0 if whole.any() else int((first % height).min())
    bottom = height - 1 if whole.any() else int((last % height).max())
    left, right = int(first_column.min()), int(last_column.max())
    return left, top, right - left + 1, bottom - top + 1
