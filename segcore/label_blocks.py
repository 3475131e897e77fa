"""Exact second moments of one-hot label blocks, from label maps, in integers.

A label map is cut into R x R blocks; block v is the one-hot vector of length D = C*R*R, index (c*R + row)*R + column,
with zeros at ignored pixels. Wanted is the Gram matrix G = sum over blocks of v v^T.

v is long but its mixed difference is short. With v = 0 outside the block,

    u(c, y, x) = v(c, y, x) - v(c, y-1, x) - v(c, y, x-1) + v(c, y-1, x-1)

is non-zero only at the corners of regions: a block of one class has 1 non-zero instead of R*R, blocks of real label
maps have 10 to 20 times fewer than R*R. Taking u is undone by S, the cumulative sum over rows and columns, so

    G = S (sum u u^T) S^T,

exactly and in integers: `BlockStatistics` keeps the sum on the right, `gram()` takes the cumulative sums once.

A noise-like block has up to 4*R*R non-zeros and would be slower than its pixels: past R*R it goes, pixel by pixel, to a
second sum of the same layout, which needs no cumulative sums.

Memory: both sums keep only tiles of classes a <= b, C*(C+1)/2 tiles of R*R x R*R int32; pages of tiles that no block
touches are never allocated. int32 counts move to int64 before they can overflow, and on merge.

The corner-domain method is this project's own; docs/benchmarks.md, section label_statistics, has its speed.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_corners import LabelWords, accumulate, has_only_classes, label_words

MAX_CLASSES = 254
MAX_ENTRIES = 12_500
"""Largest D of the exact statistics; `check_exact_size` says what more would cost."""

INT32_SAFE_BLOCKS = 2**29 - 1
"""Blocks that an int32 count can hold: a corner is at most 2, so a block adds at most 4 in size."""


def check_exact_size(*, block_side: int, num_classes: int) -> None:
    """Refuse blocks that are too long for exact statistics, before any work is done.

    Raises:
        ValueError: impossible block side or class count, or D above `MAX_ENTRIES`; the message says the memory needed.
    """
    check_block_shape(block_side=block_side, num_classes=num_classes)
    entries = num_classes * block_side**2
    if entries > MAX_ENTRIES:
        raise ValueError(
            f"blocks of {block_side} x {block_side} pixels with {num_classes} classes have {entries:,} entries; exact "
            f"statistics of them need {solve_bytes(entries) / 1e9:,.0f} GB, and are made for at most {MAX_ENTRIES:,} "
            f"entries ({solve_bytes(MAX_ENTRIES) / 1e9:,.0f} GB); choose a smaller block side, and a network of that "
            "output stride"
        )


def check_block_shape(*, block_side: int, num_classes: int) -> None:
    """Refuse blocks that no label map can have.

    Raises:
        ValueError: impossible block side or class count.
    """
    if block_side < 1 or not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"found block side {block_side} and {num_classes} classes; expected a block side of at least 1 and 1 to "
            f"{MAX_CLASSES} classes (labels are bytes, and {IGNORE_INDEX} means ignored)"
        )


def checked_words(labels_HW: NDArray[np.uint8], *, block_side: int, num_classes: int) -> LabelWords:
    """A label map of any size as whole blocks, in words, for the compiled kernels; empty where the map is.

    Raises:
        ValueError: not a uint8 map, or a value is neither a class nor ignored.
    """
    if labels_HW.dtype != np.uint8 or labels_HW.ndim != 2:
        raise ValueError(
            f"found labels of type {labels_HW.dtype} and shape {labels_HW.shape}; expected uint8 class indices of "
            "shape (height, width), as `prepare` writes them"
        )
    block_map = label_words(pad_to_blocks(labels_HW, block_side), block_side=block_side, num_classes=num_classes)
    if not has_only_classes(block_map.labels, num_classes):
        wrong = labels_HW[(labels_HW >= num_classes) & (labels_HW != IGNORE_INDEX)][0]
        raise ValueError(
            f"label value {wrong} is outside 0..{num_classes - 1} and is not ignore_index={IGNORE_INDEX}; "
            "check that labels and class table belong together"
        )
    return block_map


def solve_bytes(entries: int) -> int:
    """Memory of the process that solves, for D = `entries`: tiles in int64 and int32, moments in float64."""
    return (4 + 2 + 8) * entries**2


def pad_to_blocks(labels_HW: NDArray[np.uint8], block_side: int) -> NDArray[np.uint8]:
    """Extend a label map at the bottom and right with ignored pixels to a multiple of R (no copy where it is one)."""
    bottom, right = -labels_HW.shape[0] % block_side, -labels_HW.shape[1] % block_side
    if bottom == 0 and right == 0:
        return labels_HW
    height, width = labels_HW.shape
    padded_HW = np.empty((height + bottom, width + right), np.uint8)  # np.pad takes ten times as long
    padded_HW[:height, :width] = labels_HW
    padded_HW[height:] = IGNORE_INDEX
    padded_HW[:height, width:] = IGNORE_INDEX
    return padded_HW


class BlockStatistics:
    """Additive state: the second moments of every label block seen so far.

    Results do not depend on the order of images or on how they are spread over states that are merged.
    `num_blocks` counts the blocks with at least one valid pixel: a block of ignored pixels is no observation.
    """

    __slots__ = ("_corners", "_pixels", "_tile_starts", "block_side", "num_blocks", "num_classes", "num_noisy_blocks")

    def __init__(self, *, block_side: int, num_classes: int) -> None:
        check_exact_size(block_side=block_side, num_classes=num_classes)
        self.block_side = block_side
        self.num_classes = num_classes
        self.num_blocks = 0
        self.num_noisy_blocks = 0
        area = block_side**2
        num_tiles = num_classes * (num_classes + 1) // 2
        self._corners = _TileSum(num_tiles, area)
        self._pixels = _TileSum(num_tiles, area)
        starts_CC = np.full((num_classes, num_classes), -1, np.int64)
        starts_CC[np.triu_indices(num_classes)] = np.arange(num_tiles) * area * area
        self._tile_starts = starts_CC

    @classmethod
    def zero(cls, block_side: int, num_classes: int) -> "BlockStatistics":
        """The state that has seen nothing.

        Raises:
            ValueError: see `check_exact_size`.
        """
        return cls(block_side=block_side, num_classes=num_classes)

    def update(self, labels_HW: NDArray[np.uint8]) -> None:
        """Add one label map of any size; blocks that reach over its bottom or right edge end in ignored pixels.

        Raises:
            ValueError: not a uint8 map, or a value is neither a class nor ignored; nothing has been added then.
        """
        block_map = checked_words(labels_HW, block_side=self.block_side, num_classes=self.num_classes)
        if block_map.num_blocks == 0:
            return
        self._corners.reserve(block_map.num_blocks)
        self._pixels.reserve(block_map.num_blocks)
        blocks, noisy = accumulate(
            *block_map,
            self._corners.counts.reshape(-1),
            self._pixels.counts.reshape(-1),
            self._tile_starts,
        )
        self.num_blocks += blocks
        self.num_noisy_blocks += noisy

    def merge(self, other: "BlockStatistics") -> None:
        """Add all that another state has seen.

        Raises:
            ValueError: block sides or class counts differ.
        """
        if (self.block_side, self.num_classes) != (other.block_side, other.num_classes):
            raise ValueError(
                f"found statistics of blocks of side {other.block_side} with {other.num_classes} classes, expected "
                f"side {self.block_side} with {self.num_classes} classes; merge only what was counted alike"
            )
        self._corners.add(other._corners)
        if other.num_noisy_blocks:
            self._pixels.add(other._pixels)
        self.num_blocks += other.num_blocks
        self.num_noisy_blocks += other.num_noisy_blocks

    def gram(self) -> NDArray[np.int64]:
        """G = sum over blocks of v v^T, int64, D x D, symmetric."""
        gram_DD = np.zeros((self.num_classes * self.block_side**2,) * 2, np.int64)
        self._fill_gram(gram_DD)
        return gram_DD

    def moments(self) -> NDArray[np.float64]:
        """`gram()` in double precision, without holding both; exact, since counts stay below 2**53."""
        moments_DD = np.zeros((self.num_classes * self.block_side**2,) * 2, np.float64)
        self._fill_gram(moments_DD)
        return moments_DD

    @property
    def class_pixels_C(self) -> NDArray[np.int64]:
        """Valid pixels per class: the trace of each class's own tile of the Gram matrix."""
        return np.array([np.trace(self._gram_tile(c, c)) for c in range(self.num_classes)], np.int64)

    def digest(self) -> str:
        """SHA-256 of the whole state; equal for equal sets of blocks, however they were ordered, sharded and merged."""
        digest = hashlib.sha256(self._header().astype("<i8").tobytes())
        for tiles in (self._corners, self._pixels) if self.num_noisy_blocks else (self._corners,):
            for index in range(len(tiles.counts)):
                digest.update(tiles.tile(index).astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def to_arrays(self) -> dict[str, NDArray[np.integer]]:
        """The state as arrays for transport: `header`, `corners`, and `pixels` where there are noise-like blocks."""
        arrays: dict[str, NDArray[np.integer]] = {"header": self._header(), "corners": self._corners.sums()}
        if self.num_noisy_blocks:
            arrays["pixels"] = self._pixels.sums()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.integer]]) -> "BlockStatistics":
        """The state that `to_arrays` took apart; read-only arrays are left as they are."""
        block_side, num_classes, num_blocks, num_noisy_blocks = (int(value) for value in arrays["header"])
        state = cls(block_side=block_side, num_classes=num_classes)
        state.num_blocks, state.num_noisy_blocks = num_blocks, num_noisy_blocks
        state._corners.total = arrays["corners"].astype(np.int64)
        if "pixels" in arrays:
            state._pixels.total = arrays["pixels"].astype(np.int64)
        return state

    def _header(self) -> NDArray[np.int64]:
        return np.array([self.block_side, self.num_classes, self.num_blocks, self.num_noisy_blocks], np.int64)

    def _fill_gram(self, gram_DD: NDArray[Any]) -> None:
        area = self.block_side**2
        for a in range(self.num_classes):
            rows = slice(a * area, (a + 1) * area)
            for b in range(a, self.num_classes):
                columns = slice(b * area, (b + 1) * area)
                tile = self._gram_tile(a, b)
                gram_DD[rows, columns] = tile
                gram_DD[columns, rows] = tile.T

    def _gram_tile(self, a: int, b: int) -> NDArray[np.int64]:
        """Rows of class a, columns of class b >= a."""
        side = self.block_side
        index = int(self._tile_starts[a, b]) // side**4
        corners = self._corners.tile(index)
        pixels = self._pixels.tile(index) if self.num_noisy_blocks else None
        if a == b:  # the kernel adds each pair of entries once, in scan order
            corners = _mirror(corners)
            pixels = None if pixels is None else _mirror(pixels)
        sums = corners.reshape(side, side, side, side)
        for axis in range(3):  # whole slices: twice as fast as np.cumsum along the first three axes
            along = np.moveaxis(sums, axis, 0)
            for k in range(1, side):
                along[k] += along[k - 1]
        np.cumsum(sums, axis=3, out=sums)
        tile = sums.reshape(side**2, side**2)
        return tile if pixels is None else tile + pixels


class _TileSum:
    """Tiles of counts: int32 where the kernel writes, int64 once a count could outgrow that."""

    __slots__ = ("counts", "room", "total")

    def __init__(self, num_tiles: int, area: int) -> None:
        self.counts = np.zeros((num_tiles, area, area), np.int32)
        self.total: NDArray[np.int64] | None = None
        self.room = INT32_SAFE_BLOCKS

    def reserve(self, num_blocks: int) -> None:
        """Make sure that the counts can take this many more blocks."""
        if num_blocks > self.room:
            self.total = self.sums().astype(np.int64, copy=False)
            self.counts.fill(0)
            self.room = INT32_SAFE_BLOCKS
        self.room -= num_blocks

    def add(self, other: "_TileSum") -> None:
        """Add another sum into the int64 total."""
        if self.total is None:
            self.total = np.zeros(self.counts.shape, np.int64)
        self.total += other.counts
        if other.total is not None:
            self.total += other.total

    def tile(self, index: int) -> NDArray[np.int64]:
        """A new int64 array of one tile's sums."""
        tile: NDArray[np.int64] = self.counts[index].astype(np.int64)
        if self.total is not None:
            tile += self.total[index]
        return tile

    def sums(self) -> NDArray[np.integer]:
        """All sums: the int32 counts themselves where nothing has gone to int64 yet."""
        return self.counts if self.total is None else self.total + self.counts


def _mirror(tile: NDArray[np.int64]) -> NDArray[np.int64]:
    """T + T^T with the diagonal counted once."""
    mirrored: NDArray[np.int64] = np.ascontiguousarray(tile + tile.T - np.diag(np.diag(tile)))
    return mirrored
