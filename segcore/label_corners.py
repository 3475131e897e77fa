"""Compiled kernels of `label_blocks`: find the corners of each label block, add their outer product.

A label map lies in memory as 8-byte words, so that eight pixels are compared with the row above at once. Most blocks of
real label maps are of one class; they are recognised word by word and cost one count.

Here a block is addressed by the index of its first word, an entry is a non-zero of u (see `label_blocks`), and a tile
is the part of sum u u^T that belongs to one pair of classes.

Indices through `np.uintp` spare numba's check for negative ones.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.compiled import entry_point, kernel
from segcore.label_masks import MASKED_SIDES, ClassMasks, Factors, list_corners, mask_classes

WORD_BYTES = 8
_IGNORE = np.uint8(IGNORE_INDEX)
_ONE = np.uint8(1)
_NO_BIT = np.uint64(0)
_BYTE = np.uint64(8)
_LAST_BYTE = np.uint64(56)
_FULL_BYTE = np.uint64(255)

# De Bruijn multiplication finds the lowest set bit of a word: numba has no public count of trailing zeros.
_DE_BRUIJN = 0x03F79D71B4CB0A89
_MULTIPLIER = np.uint64(_DE_BRUIJN)
_TOP_SIX_BITS = np.uint64(58)
_BYTE_OF_BIT = np.zeros(64, np.int64)
for _bit in range(64):
    _BYTE_OF_BIT[((1 << _bit) * _DE_BRUIJN & (2**64 - 1)) >> 58] = _bit // 8


class LabelWords(NamedTuple):
    """A label map whose block rows are whole words; `labels` and `words` are the same memory."""

    labels: NDArray[np.uint8]
    words: NDArray[np.uint64]
    words_per_row: int
    words_per_block: int
    block_side: int
    num_classes: int

    @property
    def num_blocks(self) -> int:
        """Blocks of the map, with or without a valid pixel."""
        return self.words.size // (self.words_per_block * self.block_side)


class Entries(NamedTuple):
    """Entries of one block in scan order: class, position row*R + column, value."""

    classes: NDArray[np.uint8]
    positions: NDArray[np.int32]
    values: NDArray[np.int32]


def label_words(padded_HW: NDArray[np.uint8], *, block_side: int, num_classes: int) -> LabelWords:
    """Lay out a label map, whose sides R divides, in words.

    Where 8 does not divide R, each block row is lengthened by repeats of its last pixel: a repeated column has no
    corners, so the statistics do not see it.
    """
    height, width = padded_HW.shape
    extra = -block_side % WORD_BYTES
    if extra:
        rows = padded_HW.reshape(height, width // block_side, block_side)
        padded_HW = np.pad(rows, ((0, 0), (0, 0), (0, extra)), mode="edge")
    labels = np.ascontiguousarray(padded_HW).reshape(-1).view()
    labels.setflags(write=False)  # numba compiles for read-only arrays apart: with one kind, it compiles once
    return LabelWords(
        labels=labels,
        words=labels.view(np.uint64),
        words_per_row=labels.size // max(height, 1) // WORD_BYTES,
        words_per_block=(block_side + extra) // WORD_BYTES,
        block_side=block_side,
        num_classes=num_classes,
    )


@entry_point
def has_only_classes(labels: NDArray[np.uint8], num_classes: int) -> bool:
    """Whether every label is a class or ignored."""
    largest = np.uint8(0)
    for label in labels:
        largest = max(largest, np.uint8(label + _ONE))  # in bytes 255 + 1 is 0, so that one maximum finds both
    return bool(largest <= num_classes)


@entry_point
def accumulate(
    labels: NDArray[np.uint8],
    words: NDArray[np.uint64],
    words_per_row: int,
    words_per_block: int,
    block_side: int,
    num_classes: int,
    corner_tiles: NDArray[np.int32],
    pixel_tiles: NDArray[np.int32],
    tile_starts_CC: NDArray[np.int64],
) -> tuple[int, int]:
    """Add every block of a map to the tiles; returns how many have a valid pixel, and how many are noise-like.

    Args:
        labels, words, words_per_row, words_per_block, block_side, num_classes: the fields of `LabelWords`.
        corner_tiles, pixel_tiles: all tiles in one row, int32; `label_blocks` says what they hold.
        tile_starts_CC: index of the first count of the tile of classes (a, b), a <= b; for one a, the tiles are
            neighbours, by rising b.
    """
    block_map = LabelWords(labels, words, words_per_row, words_per_block, block_side, num_classes)
    area, per_row = block_side**2, words_per_row // words_per_block
    masked = block_side in MASKED_SIDES
    room = per_row * (min(num_classes, area) + 1)  # one for a class that turns out to be none
    masks = ClassMasks(
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(per_row, np.int64),
        np.empty(room * (area // 64), np.uint64),
        np.empty(area // 8, np.uint64),
    )
    room = (per_row + 4) * area  # a block has up to four corners a pixel, before it is listed by pixel instead
    factors = Factors(
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
        np.empty(per_row, np.int64),
        np.empty(per_row, np.bool_),
    )
    changes, mixed = np.empty(words_per_row, np.uint64), np.empty(per_row, np.int64)
    num_blocks = num_noisy = 0
    for top in range(0, words.size, words_per_row * block_side):
        num_mixed, num_constant = _count_constant(block_map, top, corner_tiles, tile_starts_CC, changes, mixed)
        if masked:
            mask_classes(words, words_per_row, block_side, num_classes, mixed, num_mixed, masks)
            list_corners(masks, num_mixed, block_side, tile_starts_CC, factors)
        else:
            _list_all(block_map, mixed, num_mixed, tile_starts_CC, factors)
        found, noisy = _add_outer(corner_tiles, pixel_tiles, factors, num_mixed)
        num_blocks += num_constant + found
        num_noisy += noisy
    return num_blocks, num_noisy


@kernel
def _count_constant(
    block_map: LabelWords,
    top: int,
    corner_tiles: NDArray[np.int32],
    tile_starts_CC: NDArray[np.int64],
    changes: NDArray[np.uint64],
    mixed: NDArray[np.int64],
) -> tuple[int, int]:
    """Count the blocks of one class in a row of blocks, and list the others; returns the numbers of both."""
    _mark_changes(block_map, top, changes)
    num_mixed = num_constant = 0
    for column in range(0, block_map.words_per_row, block_map.words_per_block):
        if _is_constant(block_map, top + column, changes, column):
            label = block_map.labels[(top + column) * WORD_BYTES]
            if label < block_map.num_classes:
                corner_tiles[tile_starts_CC[label, label]] += 1
                num_constant += 1
        else:
            mixed[num_mixed] = top + column
            num_mixed += 1
    return num_mixed, num_constant


@kernel
def _mark_changes(block_map: LabelWords, top: int, changes: NDArray[np.uint64]) -> None:
    """Per word column of a row of blocks: non-zero where a pixel differs from the one above. LLVM vectorises it."""
    changes[:] = 0
    stride = block_map.words_per_row
    for row in range(1, block_map.block_side):
        here = block_map.words[top + row * stride : top + (row + 1) * stride]
        above = block_map.words[top + (row - 1) * stride : top + row * stride]
        for x in range(stride):
            changes[x] |= here[x] ^ above[x]


@kernel
def _is_constant(block_map: LabelWords, first: int, changes: NDArray[np.uint64], column: int) -> bool:
    word = block_map.words[np.uintp(first)]
    if word != ((word << _BYTE) | (word & _FULL_BYTE)):
        return False
    different = _NO_BIT
    for w in range(block_map.words_per_block):
        different |= changes[np.uintp(column + w)] | (block_map.words[np.uintp(first + w)] ^ word)
    return bool(different == _NO_BIT)


@kernel
def _list_corners(block_map: LabelWords, first: int, entries: Entries) -> int:
    """List the non-zeros of u for one block; returns their number.

    Only pixels can be corners at which, in this column or the one before, something differs from the row above. Words
    are compared first, so a row that equals the one above costs one comparison per word.
    """
    labels, words, stride = block_map.labels, block_map.words, block_map.words_per_row
    count = 0
    for row in range(block_map.block_side):
        before = _FULL_BYTE if row == 0 else _NO_BIT
        for w in range(block_map.words_per_block):
            at = first + row * stride + w
            if row == 0:  # above the block all is absent: corners are where the pixel to the left differs or is absent
                changed = words[at] ^ ((words[at] << _BYTE) | before)
                changed |= _FULL_BYTE if w == 0 else _NO_BIT
                before = words[at] >> _LAST_BYTE
            else:
                different = words[at] ^ words[at - stride]
                changed = different | (different << _BYTE) | before
                before = different >> _LAST_BYTE
            while changed:
                byte = _BYTE_OF_BIT[((changed & (~changed + np.uint64(1))) * _MULTIPLIER) >> _TOP_SIX_BITS]
                changed &= ~(_FULL_BYTE << np.uint64(8 * byte))
                here, column = at * WORD_BYTES + byte, w * WORD_BYTES + byte
                above = here - stride * WORD_BYTES if row > 0 else here
                count = _emit_corner(
                    entries,
                    count,
                    row * block_map.block_side + column,
                    block_map.num_classes,
                    labels[np.uintp(here)],
                    labels[np.uintp(above)] if row > 0 else _IGNORE,
                    labels[np.uintp(here - 1)] if column > 0 else _IGNORE,
                    labels[np.uintp(above - 1)] if row > 0 and column > 0 else _IGNORE,
                )
    return count


@kernel
def _emit_corner(
    entries: Entries,
    count: int,
    position: int,
    num_classes: int,
    here: np.uint8,
    above: np.uint8,
    left: np.uint8,
    diagonal: np.uint8,
) -> int:
    """+e_here - e_above - e_left + e_diagonal of a pixel: equal classes merged, zeros and ignored pixels left out.

    Written without branches: along the border of a region a processor guesses every second one wrong.
    """
    value = 1 - (above == here) - (left == here) + (diagonal == here)
    count = _emit(entries, count, here, position, value, num_classes)
    value = (above != here) * ((diagonal == above) - (left == above) - 1)
    count = _emit(entries, count, above, position, value, num_classes)
    value = (left != here) * (left != above) * ((diagonal == left) - 1)
    count = _emit(entries, count, left, position, value, num_classes)
    value = (diagonal != here) * (diagonal != above) * (diagonal != left)
    return _emit(entries, count, diagonal, position, value, num_classes)


@kernel
def _emit(entries: Entries, count: int, label: np.uint8, position: int, value: int, num_classes: int) -> int:
    """Write an entry; it stays only if it is of a class and not zero."""
    at = np.uintp(count)
    entries.classes[at] = label
    entries.positions[at] = position
    entries.values[at] = value
    return count + int((value != 0) & (label < num_classes))


@kernel
def _list_pixels(block_map: LabelWords, first: int, entries: Entries) -> int:
    """List the valid pixels of one block, with value 1; returns their number."""
    count = 0
    for row in range(block_map.block_side):
        start = (first + row * block_map.words_per_row) * WORD_BYTES
        for column in range(block_map.block_side):
            position = row * block_map.block_side + column
            count = _emit(entries, count, block_map.labels[start + column], position, 1, block_map.num_classes)
    return count


@kernel
def _list_all(
    block_map: LabelWords,
    firsts: NDArray[np.int64],
    num_blocks: int,
    tile_starts_CC: NDArray[np.int64],
    factors: Factors,
) -> None:
    """`label_masks.list_corners` for blocks of any side."""
    area = block_map.block_side**2
    room = 4 * area + 1  # four entries a pixel, and one written past the end before it is known to be zero
    entries = Entries(np.empty(room, np.uint8), np.empty(room, np.int32), np.empty(room, np.int32))
    ends = np.empty(block_map.num_classes + 1, np.int64)
    count = 0
    for n in range(num_blocks):
        size = _list_corners(block_map, firsts[n], entries)
        noisy = size > area
        if noisy:
            size = _list_pixels(block_map, firsts[n], entries)
        ends[:] = 0  # counting sort: by class, in scan order
        for i in range(size):
            ends[entries.classes[i] + 1] += 1
        for c in range(block_map.num_classes):
            ends[c + 1] += ends[c]
        for i in range(size):
            label, position = np.int64(entries.classes[i]), entries.positions[i]
            at = count + ends[label]
            ends[label] += 1
            factors.rows[at] = tile_starts_CC[label, label] - label * area**2 + position * area
            factors.columns[at] = label * area**2 + position
            factors.values[at] = entries.values[i]
        count += size
        factors.ends[n], factors.noisy[n] = count, noisy


@kernel
def _add_outer(
    corner_tiles: NDArray[np.int32], pixel_tiles: NDArray[np.int32], factors: Factors, num_blocks: int
) -> tuple[int, int]:
    """tiles += u u^T of each block, each unordered pair of entries once; how many have entries, and are noise-like."""
    rows, columns, values = factors.rows, factors.columns, factors.values
    start = num_found = num_noisy = 0
    for n in range(num_blocks):
        end, noisy = factors.ends[n], factors.noisy[n]
        for s in range(start, end):
            row, value = rows[np.uintp(s)], values[np.uintp(s)]
            if noisy:
                for t in range(s, end):
                    pixel_tiles[np.uintp(row + columns[np.uintp(t)])] += value * values[np.uintp(t)]
            else:
                for t in range(s, end):
                    corner_tiles[np.uintp(row + columns[np.uintp(t)])] += value * values[np.uintp(t)]
        num_found += end > start
        num_noisy += noisy
        start = end
    return num_found, num_noisy
