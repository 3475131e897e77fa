"""Masks as COCO's run lengths: one binary mask per class, column by column, its counts packed into text.

Source: pycocotools' `maskApi.c`. Counts alternate between pixels outside and inside, beginning outside (with 0 where
the first pixel is inside). From the fourth on, a count is stored as its difference to the one two before it; a number
is written in groups of five bits, lowest first, each plus 48 as a character, bit 32 set in all groups but the last.

What is read becomes *spans*, int64 (n, 2): first pixel and the one after the last of each run inside, counted down the
columns; `coco_polygons` makes the same of polygons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.run_lengths import encode

Spans = NDArray[np.int64]

_BITS = 5
_LOW_BITS, _SIGN, _MORE = 31, 16, 32
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


def unpack_counts(packed: str) -> NDArray[np.int64]:
    """The counts in COCO's packed text.

    Raises:
        ValueError: a character is none of COCO's, or a number does not end or is longer than any count.
    """
    if not packed:
        return np.zeros(0, np.int64)
    characters = np.frombuffer(packed.encode(), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if characters.min() < 0 or characters.max() > _MORE | _LOW_BITS:
        raise ValueError("packed counts hold a character outside '0' to 'o', which COCO does not write")
    last = np.flatnonzero(characters < _MORE)
    if not last.size or last[-1] != len(characters) - 1:
        raise ValueError("packed counts end within a number; they were cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() >= _MAX_GROUPS:
        raise ValueError(f"packed counts hold a number of more than {_MAX_GROUPS} characters")
    group = np.arange(len(characters)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((characters & _LOW_BITS) << _BITS * group, first)
    numbers -= np.where(characters[last] & _SIGN, 1 << _BITS * (group[last] + 1), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def counts_to_spans(counts: Sequence[int] | NDArray[np.int64], *, height: int, width: int) -> Spans:
    """Spans of a mask from its counts.

    Raises:
        ValueError: a count is below 0, or they do not add up to height * width.
    """
    lengths = np.asarray(counts, np.int64)
    ends = np.cumsum(lengths)
    found = int(ends[-1]) if ends.size else 0
    if found != height * width or lengths.min(initial=0) < 0:
        negative = ", and no count below 0" if lengths.min(initial=0) < 0 else ""
        raise ValueError(f"counts hold {found} pixels; expected {height} x {width} = {height * width}{negative}")
    stops = ends[1::2]
    return _filled(np.stack([ends[: 2 * len(stops) : 2], stops], axis=1))


def union_of_spans(parts: Sequence[Spans]) -> Spans:
    """Spans of the pixels that are in any of some masks, sorted and apart from each other."""
    spans = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(spans[:, 1])
    begins = np.flatnonzero(np.concatenate([[True], spans[1:, 0] > reached[:-1]]))
    return np.stack([spans[begins, 0], reached[np.append(begins[1:] - 1, len(spans) - 1)]], axis=1)


def spans_area(spans: Spans) -> int:
    """Pixels in spans that are apart from each other."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def paint_spans(labels_WH: NDArray[np.uint8], spans: Spans, value: int) -> None:
    """Give the pixels in spans a value, in a contiguous label map whose rows and columns are exchanged."""
    lengths = spans[:, 1] - spans[:, 0]
    before = np.cumsum(lengths) - lengths
    labels_WH.reshape(-1)[np.arange(lengths.sum()) + np.repeat(spans[:, 0] - before, lengths)] = value


def _filled(spans: Spans) -> Spans:
    return spans[spans[:, 1] > spans[:, 0]]


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
