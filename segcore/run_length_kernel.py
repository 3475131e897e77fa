"""Compiled kernels of `run_lengths`: one pass over the pixels each.

Most neighbours are equal. Where they differ is marked byte by byte in a tile that stays in the cache, which LLVM turns
into vector instructions. Words of eight marks are then passed over, those with a mark listed without a branch, which
the processor could not predict, and the marks read off them.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point

Value = TypeVar("Value", np.uint8, np.uint16)

TILE = 4096
WORD_BYTES = 8
_ONE = np.uint64(1)
# A word with one mark, 256^b, times this has b in its highest three bits.
_BYTE_OF_MARK = np.uint64(sum(byte << (61 - 8 * byte) for byte in range(WORD_BYTES)))
_HIGHEST_BITS = np.uint64(61)


@entry_point
def find_runs(pixels: NDArray[Value], values: NDArray[Value], lengths: NDArray[np.int32]) -> int:
    """Write value and length of every run; returns their number.

    Args:
        pixels: one or more.
        values: room for as many as there are pixels.
        lengths: as many.
    """
    marks = np.zeros(TILE, np.uint8)
    words = marks.view(np.uint64)
    marked = np.empty(TILE // WORD_BYTES + 1, np.int64)
    last_pixel = pixels.size - 1
    end_before = -1
    num_runs = 0
    for first in range(0, last_pixel, TILE):
        count = min(TILE, last_pixel - first)
        here, after = pixels[first : first + count], pixels[first + 1 : first + 1 + count]
        for index in range(count):
            marks[index] = here[index] != after[index]
        marks[count:] = 0
        num_marked = 0
        for word in range((count + WORD_BYTES - 1) // WORD_BYTES):
            marked[num_marked] = word
            num_marked += words[word] != 0
        for number in range(num_marked):
            word_start = first + WORD_BYTES * marked[number]
            left = words[marked[number]]
            while left:
                lowest = left & (~left + _ONE)
                left ^= lowest
                end = word_start + np.int64((lowest * _BYTE_OF_MARK) >> _HIGHEST_BITS)
                values[num_runs] = pixels[end]
                lengths[num_runs] = end - end_before
                num_runs += 1
                end_before = end
    values[num_runs] = pixels[last_pixel]
    lengths[num_runs] = last_pixel - end_before
    return num_runs + 1


@entry_point
def fill_runs(values: NDArray[Value], lengths: NDArray[np.int32], pixels: NDArray[Value]) -> bool:
    """Write every run's pixels; False, and nothing beyond them is touched, where the runs do not just fill `pixels`."""
    start = 0
    for run in range(values.size):
        stop = start + lengths[run]
        if stop < start or stop > pixels.size:
            return False
        pixels[start:stop] = values[run]
        start = stop
    return start == pixels.size
