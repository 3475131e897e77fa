"""Label blocks in compressed form: the operator G of `label_blocks`, where its matrix would be too large.

A block's row holds the non-zeros of u, its mixed difference (see `label_blocks`): entry index c*R*R + row*R + column as
int32, value as int8, 5 bytes each, and 8 bytes for the row's start. A constant block is one non-zero, and real label
maps need 0.1 to 0.5 bytes per pixel, so that the rows of a whole dataset stay in memory and are passed over many times.
With U and V the rows of the ordinary and of the noise-like blocks, the latter pixel by pixel, and S the cumulative sum
over rows and columns of a block,

    G Omega = S U^T (U (S^T Omega)) + V^T (V Omega).

Omega holds integers, so the product is exact, and the sum of products over any shards in any order has the same bits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point, kernel
from segcore.label_blocks import check_block_shape, checked_words
from segcore.label_corners import (
    WORD_BYTES,
    Entries,
    LabelWords,
    _is_constant,
    _list_corners,
    _list_pixels,
    _mark_changes,
)

LANES = 48
"""Columns of Omega that are multiplied together: more would only take more memory (measured)."""


class Rows(NamedTuple):
    """Compressed rows: row m has the entries from `starts[m]` up to `starts[m + 1]`. Read-only arrays."""

    entries: NDArray[np.int32]
    values: NDArray[np.int8]
    starts: NDArray[np.int64]


class LabelRows:
    """Additive state: the compressed rows of every label block seen so far.

    `num_blocks` counts the blocks with at least one valid pixel, `num_noisy_blocks` those among them with more corners
    than pixels. What the methods return does not depend on the order of images, nor on how states were merged.
    """

    __slots__ = ("_corners", "_pixels", "block_side", "num_blocks", "num_classes", "num_noisy_blocks")

    def __init__(self, *, block_side: int, num_classes: int) -> None:
        check_block_shape(block_side=block_side, num_classes=num_classes)
        self.block_side = block_side
        self.num_classes = num_classes
        self.num_blocks = 0
        self.num_noisy_blocks = 0
        self._corners: list[Rows] = []
        self._pixels: list[Rows] = []

    @classmethod
    def zero(cls, block_side: int, num_classes: int) -> "LabelRows":
        """The state that has seen nothing.

        Raises:
            ValueError: impossible block side or class count.
        """
        return cls(block_side=block_side, num_classes=num_classes)

    @property
    def num_entries(self) -> int:
        """D."""
        return self.num_classes * self.block_side**2

    @property
    def num_nonzeros(self) -> int:
        """Non-zeros of all rows."""
        return sum(rows.entries.size for rows in (*self._corners, *self._pixels))

    @property
    def num_bytes(self) -> int:
        """Memory of the rows: 5 bytes per non-zero and 8 per block, and 16 per map that has not been joined."""
        return sum(part.nbytes for rows in (*self._corners, *self._pixels) for part in rows)

    def update(self, labels_HW: NDArray[np.uint8]) -> None:
        """Add one label map of any size; blocks that reach over its bottom or right edge end in ignored pixels.

        Raises:
            ValueError: not a uint8 map, or a value is neither a class nor ignored; nothing has been added then.
        """
        block_map = checked_words(labels_HW, block_side=self.block_side, num_classes=self.num_classes)
        num_blocks = block_map.num_blocks
        if num_blocks == 0:
            return
        # A row has at most as many entries as pixels. Pages that stay empty are never allocated.
        corners, pixels = (_empty_rows(num_blocks * self.block_side**2, num_blocks) for _ in range(2))
        num_ordinary, num_noisy = list_rows(*block_map, *corners, *pixels)
        for rows, count, collected in ((corners, num_ordinary, self._corners), (pixels, num_noisy, self._pixels)):
            if count:
                used = int(rows.starts[count])
                trimmed = rows.entries[:used].copy(), rows.values[:used].copy(), rows.starts[: count + 1].copy()
                collected.append(_read_only(*trimmed))
        self.num_blocks += num_ordinary + num_noisy
        self.num_noisy_blocks += num_noisy

    def merge(self, other: "LabelRows") -> None:
        """Add all that another state has seen; the rows are shared, not copied.

        Raises:
            ValueError: block sides or class counts differ.
        """
        if (self.block_side, self.num_classes) != (other.block_side, other.num_classes):
            raise ValueError(
                f"found rows of blocks of side {other.block_side} with {other.num_classes} classes, expected side "
                f"{self.block_side} with {self.num_classes} classes; merge only what was counted alike"
            )
        self._corners += other._corners
        self._pixels += other._pixels
        self.num_blocks += other.num_blocks
        self.num_noisy_blocks += other.num_noisy_blocks

    def counts_D(self) -> NDArray[np.int64]:
        """Blocks whose entry is 1, the diagonal of G, since v^2 = v."""
        counts_D1 = np.zeros((self.num_entries, 1), np.int64)
        for rows in self._corners:
            add_columns(*rows, counts_D1)
        sum_over_blocks(counts_D1, self.block_side)
        for rows in self._pixels:
            add_columns(*rows, counts_D1)
        return counts_D1[:, 0]

    def multiply(self, block_DL: NDArray[np.int32]) -> NDArray[np.int64]:
        """G @ block, exact: int64, D x L.

        Products of any shards may be added up in int64 while all of them together have fewer than 2**62 / (R * largest
        column norm of the block) blocks: 2**33 for R = 32 and columns of norm 2**24.

        Raises:
            ValueError: the block is not int32 of D rows, or its columns are so long that 32 bits could overflow.
        """
        if block_DL.dtype != np.int32 or block_DL.ndim != 2 or len(block_DL) != self.num_entries:
            raise ValueError(
                f"found a block of type {block_DL.dtype} and shape {block_DL.shape}; expected int32 of shape "
                f"({self.num_entries}, L) for {self.num_classes} classes and blocks of side {self.block_side}"
            )
        product_DL = np.empty(block_DL.shape, np.int64)
        for first in range(0, block_DL.shape[1], LANES):
            lanes = slice(first, first + LANES)
            product_DL[:, lanes] = self._multiply_lanes(np.ascontiguousarray(block_DL[:, lanes]))
        return product_DL

    def _multiply_lanes(self, block_Dl: NDArray[np.int32]) -> NDArray[np.int64]:
        # |v . omega| and every sum over part of a block are at most R * |omega| (Cauchy and Schwarz).
        largest = self.block_side * float(np.sqrt((block_Dl.astype(np.float64) ** 2).sum(axis=0).max()))
        if largest >= 2**31 or 2 * largest * max(1, self.num_blocks) >= 2**63:
            raise ValueError(
                f"a column of the block times the block side of {self.block_side} has norm {largest:.3g}; expected "
                f"less than 2**31, and less than 2**62 times {self.num_blocks} blocks: scale the block down"
            )
        product_Dl = np.zeros(block_Dl.shape, np.int64)
        if self._corners:
            sums_Dl = block_Dl.copy()
            sum_over_blocks(sums_Dl[::-1], self.block_side)  # S^T: classes and pixels in reverse
            for rows in self._corners:
                add_products(*rows, sums_Dl, product_Dl)
            sum_over_blocks(product_Dl, self.block_side)
        for rows in self._pixels:
            add_products(*rows, block_Dl, product_Dl)
        return product_Dl

    def to_arrays(self) -> dict[str, NDArray[np.integer]]:
        """The state as arrays for transport: `header`, and three arrays each of corner rows and of pixel rows."""
        header = [self.block_side, self.num_classes, self.num_blocks, self.num_noisy_blocks]
        arrays: dict[str, NDArray[np.integer]] = {"header": np.array(header, np.int64)}
        for kind, parts in (("corner", self._corners), ("pixel", self._pixels)):
            arrays |= {f"{kind}_{name}": array for name, array in _join(parts)._asdict().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "LabelRows":
        """The state that `to_arrays` took apart, on the same memory."""
        block_side, num_classes, num_blocks, num_noisy_blocks = (int(value) for value in arrays["header"])
        state = cls(block_side=block_side, num_classes=num_classes)
        state.num_blocks, state.num_noisy_blocks = num_blocks, num_noisy_blocks
        corners, pixels = (
            _read_only(*(arrays[f"{kind}_{name}"] for name in Rows._fields)) for kind in ("corner", "pixel")
        )
        state._corners = [corners] if corners.entries.size else []
        state._pixels = [pixels] if pixels.entries.size else []
        return state


def _empty_rows(num_entries: int, num_rows: int) -> Rows:
    return Rows(np.empty(num_entries, np.int32), np.empty(num_entries, np.int8), np.zeros(num_rows + 1, np.int64))


def _read_only(entries: NDArray[np.int32], values: NDArray[np.int8], starts: NDArray[np.int64]) -> Rows:
    """Views that cannot be written: numba compiles for read-only arrays apart, with one kind it compiles once."""
    views = Rows(entries.view(), values.view(), starts.view())
    for view in views:
        view.setflags(write=False)
    return views


def _join(parts: list[Rows]) -> Rows:
    """All rows as one; a single part is left where it lies."""
    if len(parts) == 1:
        return parts[0]
    joined = _empty_rows(sum(rows.entries.size for rows in parts), sum(rows.starts.size - 1 for rows in parts))
    at = row = 0
    for rows in parts:
        size, num_rows = rows.entries.size, rows.starts.size - 1
        joined.entries[at : at + size] = rows.entries
        joined.values[at : at + size] = rows.values
        joined.starts[row + 1 : row + 1 + num_rows] = rows.starts[1:] + at
        at, row = at + size, row + num_rows
    return _read_only(*joined)


@entry_point
def list_rows(
    labels: NDArray[np.uint8],
    words: NDArray[np.uint64],
    words_per_row: int,
    words_per_block: int,
    block_side: int,
    num_classes: int,
    corner_entries: NDArray[np.int32],
    corner_values: NDArray[np.int8],
    corner_starts: NDArray[np.int64],
    pixel_entries: NDArray[np.int32],
    pixel_values: NDArray[np.int8],
    pixel_starts: NDArray[np.int64],
) -> tuple[int, int]:
    """Write a row for every block with a valid pixel; returns how many went by corners, and how many by pixels.

    Args:
        labels, words, words_per_row, words_per_block, block_side, num_classes: the fields of `LabelWords`.
        corner_entries, ..., pixel_starts: rows to fill, with room for one entry a pixel and for every block.
    """
    block_map = LabelWords(labels, words, words_per_row, words_per_block, block_side, num_classes)
    area = block_side**2
    room = 4 * area + 1  # four entries a pixel, and one written past the end before it is known to be zero
    found = Entries(np.empty(room, np.uint8), np.empty(room, np.int32), np.empty(room, np.int32))
    changes = np.empty(words_per_row, np.uint64)
    num_corner_rows = num_pixel_rows = 0
    for top in range(0, words.size, words_per_row * block_side):
        _mark_changes(block_map, top, changes)
        for column in range(0, words_per_row, words_per_block):
            first = top + column
            if _is_constant(block_map, first, changes, column):
                found.classes[0] = labels[first * WORD_BYTES]
                found.positions[0], found.values[0] = 0, 1
                count = int(found.classes[0] < num_classes)
            else:
                count = _list_corners(block_map, first, found)
            if count > area:
                count = _list_pixels(block_map, first, found)
                num_pixel_rows = _append(found, count, area, pixel_entries, pixel_values, pixel_starts, num_pixel_rows)
            elif count > 0:
                num_corner_rows = _append(
                    found, count, area, corner_entries, corner_values, corner_starts, num_corner_rows
                )
    return num_corner_rows, num_pixel_rows


@kernel
def _append(
    found: Entries,
    count: int,
    area: int,
    entries: NDArray[np.int32],
    values: NDArray[np.int8],
    starts: NDArray[np.int64],
    num_rows: int,
) -> int:
    """Write one more row; returns their number."""
    start = starts[num_rows]
    for i in range(count):
        entries[start + i] = np.int64(found.classes[i]) * area + found.positions[i]
        values[start + i] = found.values[i]
    starts[num_rows + 1] = start + count
    return num_rows + 1


@entry_point
def add_products(
    entries: NDArray[np.int32],
    values: NDArray[np.int8],
    starts: NDArray[np.int64],
    block_Dl: NDArray[np.int32],
    product_Dl: NDArray[np.int64],
) -> None:
    """product += U^T (U block) for compressed rows U.

    A row times the block fits 32 bits; what leaves them on the way there comes back, as sums modulo 2**32 do.
    """
    num_lanes = block_Dl.shape[1]
    row_l = np.empty(num_lanes, np.int32)
    for m in range(starts.size - 1):
        row_l[:] = 0
        for i in range(starts[m], starts[m + 1]):
            entry = np.uintp(entries[i])
            for lane in range(num_lanes):
                row_l[lane] += values[i] * block_Dl[entry, lane]
        for i in range(starts[m], starts[m + 1]):
            entry, value = np.uintp(entries[i]), np.int64(values[i])
            for lane in range(num_lanes):
                product_Dl[entry, lane] += value * row_l[lane]


@entry_point
def add_columns(
    entries: NDArray[np.int32], values: NDArray[np.int8], starts: NDArray[np.int64], sums_D1: NDArray[np.int64]
) -> None:
    """Add the sum of all rows."""
    for i in range(starts[0], starts[starts.size - 1]):
        sums_D1[entries[i], 0] += values[i]


def sum_over_blocks(sums_Dl: NDArray[Any], block_side: int) -> None:
    """S in place: cumulative sums down and across each class's R x R entries; S^T where given in reverse (`[::-1]`)."""
    tiles = sums_Dl.reshape(-1, block_side, block_side, sums_Dl.shape[1])
    for k in range(1, block_side):
        tiles[:, k] += tiles[:, k - 1]
    for k in range(1, block_side):
        tiles[:, :, k] += tiles[:, :, k - 1]
