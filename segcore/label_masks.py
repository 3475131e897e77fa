"""Compiled kernels of `label_corners` for blocks of 8, 16 or 32 pixels a side: classes as bit masks.

There the R*R pixels of a block fill whole 64-bit words, bit p for position p = row*R + column. One comparison of eight
pixels gives eight bits of a class's mask, the pixel above is a shift by R and the one to the left a shift by 1, so the
corners of 64 pixels are found with a dozen operations, and come out by class and in scan order.

All mixed blocks of a row of blocks go through one call: numba counts references whenever an array is handed from one
function to another, which per block took longer than the masks. Called in the loops are functions of numbers only.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import kernel

MASKED_SIDES = (8, 16, 32)

_ONE = np.uint64(1)
_SEVEN = np.uint64(7)
_NONE = np.uint64(0)
_ALL = np.uint64(2**64 - 1)
_LAST_BYTE = np.uint64(255)
_FIRST_BITS = np.uint64(0x0101010101010101)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_TO_LAST_BYTE = np.uint64(0x0102040810204080)
_LAST_BYTE_START = np.uint64(56)


class ClassMasks(NamedTuple):
    """Classes of some blocks: those of block n are at `ends[n-1]` to `ends[n]`, by rising label.

    `words` has R*R / 64 words for each, at `slots[i] * R*R / 64`; `pixels` is room for the words of one block.
    """

    labels: NDArray[np.int64]
    slots: NDArray[np.int64]
    ends: NDArray[np.int64]
    words: NDArray[np.uint64]
    pixels: NDArray[np.uint64]


class Factors(NamedTuple):
    """Entries of some blocks in the order of D: those of block n are at `ends[n-1]` to `ends[n]`.

    The product of entries s <= t is counted in the tiles at `rows[s] + columns[t]`. `noisy` blocks are listed by pixel.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.int32]
    ends: NDArray[np.int64]
    noisy: NDArray[np.bool_]


@kernel
def mask_classes(
    words: NDArray[np.uint64],
    words_per_row: int,
    block_side: int,
    num_classes: int,
    firsts: NDArray[np.int64],
    num_blocks: int,
    masks: ClassMasks,
) -> None:
    """The classes of the blocks whose first words are `firsts`, each with its mask."""
    labels, slots, class_words, pixels = masks.labels, masks.slots, masks.words, masks.pixels
    num_groups = block_side**2 // 64
    end = 0
    for n in range(num_blocks):
        k = 0
        for row in range(block_side):
            for at in range(firsts[n] + row * words_per_row, firsts[n] + row * words_per_row + block_side // 8):
                pixels[np.uintp(k)] = words[np.uintp(at)]
                k += 1
        start = end
        for group in range(num_groups):
            remaining = _ALL
            for slot in range(start, end):
                remaining &= ~class_words[np.uintp(slot * num_groups + group)]
            while remaining:
                bit = _trailing_zeros(remaining)
                label = np.int64((pixels[np.uintp(group * 8 + bit // 8)] >> np.uint64(bit % 8 * 8)) & _LAST_BYTE)
                for g in range(num_groups):
                    mask = _NONE
                    for k in range(8):
                        equal = _equal_bytes(pixels[np.uintp(g * 8 + k)], np.uint64(label) * _FIRST_BITS)
                        mask |= equal << np.uint64(8 * k)
                    class_words[np.uintp(end * num_groups + g)] = mask
                remaining &= ~class_words[np.uintp(end * num_groups + group)]
                if label < num_classes:  # else the next class takes its place
                    at = end
                    while at > start and labels[np.uintp(at - 1)] > label:
                        labels[np.uintp(at)], slots[np.uintp(at)] = labels[np.uintp(at - 1)], slots[np.uintp(at - 1)]
                        at -= 1
                    labels[np.uintp(at)], slots[np.uintp(at)] = label, end
                    end += 1
        masks.ends[n] = end


@kernel
def list_corners(
    masks: ClassMasks, num_blocks: int, block_side: int, tile_starts_CC: NDArray[np.int64], factors: Factors
) -> None:
    """The non-zeros of u for each block; its valid pixels, with value 1, where that would be more than R*R."""
    labels, slots, words = masks.labels, masks.slots, masks.words
    rows, columns, values = factors.rows, factors.columns, factors.values
    mask_ends, ends, noise = masks.ends, factors.ends, factors.noisy
    area = block_side**2
    num_groups = area // 64
    side, rest = np.uint64(block_side), np.uint64(64 - block_side)
    not_first_column = ~(_ALL // ((_ONE << side) - _ONE))
    start = count = 0
    for n in range(num_blocks):
        begin, end = count, mask_ends[n]
        for i in range(start, end):
            label, previous = labels[np.uintp(i)], _NONE
            first_row = tile_starts_CC[label, label] - label * area**2
            for group in range(num_groups):
                here = words[np.uintp(slots[np.uintp(i)] * num_groups + group)]
                above = (here << side) | (previous >> rest)
                left, diagonal = (here << _ONE) & not_first_column, (above << _ONE) & not_first_column
                previous = here
                remaining = _corners(here, above, left, diagonal)
                while remaining:
                    bit = _trailing_zeros(remaining)
                    position, at = group * 64 + bit, np.uintp(count)
                    rows[at] = first_row + position * area
                    columns[at] = label * area**2 + position
                    values[at] = _value(here, above, left, diagonal, np.uint64(bit))
                    count += 1
                    remaining &= remaining - _ONE
        noise[n] = count - begin > area
        if noise[n]:
            count = _list_pixels(masks, start, end, block_side, tile_starts_CC, factors, begin)
        ends[n] = count
        start = end


@kernel
def _list_pixels(
    masks: ClassMasks,
    start: int,
    end: int,
    block_side: int,
    tile_starts_CC: NDArray[np.int64],
    factors: Factors,
    count: int,
) -> int:
    """List one block's valid pixels from entry `count` on; returns where they end."""
    area = block_side**2
    for i in range(start, end):
        label = masks.labels[i]
        for group in range(area // 64):
            remaining = masks.words[masks.slots[i] * (area // 64) + group]
            while remaining:
                position = group * 64 + _trailing_zeros(remaining)
                factors.rows[count] = tile_starts_CC[label, label] - label * area**2 + position * area
                factors.columns[count] = label * area**2 + position
                factors.values[count] = 1
                count += 1
                remaining &= remaining - _ONE
    return count


@kernel
def _equal_bytes(word: np.uint64, pattern: np.uint64) -> np.uint64:
    """Bit k says whether byte k of the two words is the same."""
    different = word ^ pattern
    equal = ~(((different & _LOW_BITS) + _LOW_BITS) | different | _LOW_BITS)  # the high bit of each equal byte
    return ((equal >> _SEVEN) * _TO_LAST_BYTE) >> _LAST_BYTE_START


@kernel
def _corners(here: np.uint64, above: np.uint64, left: np.uint64, diagonal: np.uint64) -> np.uint64:
    """Where here - above - left + diagonal is not zero: it is odd, 2, or -2."""
    return (here ^ above ^ left ^ diagonal) | (here & diagonal & ~(above | left)) | (above & left & ~(here | diagonal))


@kernel
def _value(here: np.uint64, above: np.uint64, left: np.uint64, diagonal: np.uint64, bit: np.uint64) -> np.int64:
    """here - above - left + diagonal at one bit."""
    positive = np.int64((here >> bit) & _ONE) + np.int64((diagonal >> bit) & _ONE)
    return positive - np.int64((above >> bit) & _ONE) - np.int64((left >> bit) & _ONE)


@kernel
def _popcount(word: np.uint64) -> int:
    """Number of set bits. LLVM knows this loop and makes one instruction of it; numba has no function for it."""
    count = 0
    while word:
        word &= word - _ONE
        count += 1
    return count


@kernel
def _trailing_zeros(word: np.uint64) -> int:
    """Index of the lowest set bit: one instruction too."""
    return _popcount(~word & (word - _ONE))
