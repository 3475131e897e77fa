"""Where the tiles of a large image lie, and how much each counts at a pixel (`segcore.tiling`)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.backbones import OUTPUT_STRIDES

ALIGNMENT_PX = max(OUTPUT_STRIDES)
"""Tiles begin at multiples of it: a network's coarsest features then lie where they would in the whole image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TilingConfig:
    """Which images are shown in tiles, and how."""

    above_px: int = 2**25
    """Images of more pixels than this (33.5 million) are shown in tiles."""

    tile_px: int = 1024
    """Largest side of a tile."""

    overlap_px: int = 128
    """Least overlap of neighbouring tiles; the middle half of it is blended."""

    def __post_init__(self) -> None:
        if self.above_px < 1:
            raise ValueError(f"tiling.above_px is {self.above_px}; expected 1 pixel or more")
        if self.tile_px < 2 * ALIGNMENT_PX:
            raise ValueError(f"tiling.tile_px is {self.tile_px}; expected {2 * ALIGNMENT_PX} pixels or more")
        largest = min(self.tile_px // 2, self.tile_px - 2 * ALIGNMENT_PX)
        if not 0 <= self.overlap_px <= largest:
            raise ValueError(
                f"tiling.overlap_px is {self.overlap_px}; with tiles of {self.tile_px} pixels expected 0 to {largest}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class TileAxis:
    """Tiles along the rows or the columns of an image.

    Attributes:
        length: of the image.
        size: of every tile.
        starts: where each tile begins.
        begins, ends: where each tile's weight is above zero; both ascend.
        weights: of the pixels of each tile between those, float32; the tiles' weights at a pixel add up to 1.
    """

    length: int
    size: int
    starts: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    weights: tuple[Tensor, ...]

    def done(self, index: int) -> int:
        """Up to where the pixels are finished when tile `index` and those before have been added."""
        return self.begins[index + 1] if index + 1 < len(self.starts) else self.length


def tile_axis(length: int, config: TilingConfig) -> TileAxis:
    """Tiles along an axis of `length` pixels: as few as the overlap allows, evenly spread."""
    if length <= config.tile_px:
        return TileAxis(length, length, (0,), (0,), (length,), (torch.ones(length),))
    # The largest size with which the last tile begins at a multiple of the alignment and ends with the image.
    size = config.tile_px - (config.tile_px - length) % ALIGNMENT_PX
    last, step = (length - size) // ALIGNMENT_PX, (size - config.overlap_px) // ALIGNMENT_PX
    num_steps = math.ceil(last / step)
    starts = tuple(last * index // num_steps * ALIGNMENT_PX for index in range(num_steps + 1))
    raw = [_weights(size, config.overlap_px, first=start == 0, last=start == starts[-1]) for start in starts]
    total = np.zeros(length)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + size] += weights
    assert total.min() > 0, "a pixel that no tile counts for"
    begins, ends, shares = [], [], []
    for start, weights in zip(starts, raw, strict=True):
        counted = np.flatnonzero(weights)
        begin, end = start + int(counted[0]), start + int(counted[-1]) + 1
        begins.append(begin)
        ends.append(end)
        shares.append(torch.from_numpy((weights[begin - start : end - start] / total[begin:end]).astype(np.float32)))
    return TileAxis(length, size, starts, tuple(begins), tuple(ends), tuple(shares))


def _weights(size: int, overlap_px: int, *, first: bool, last: bool) -> NDArray[np.float64]:
    """Raised cosine sin^2(pi/2 t), t from 0 to 1 over the middle half of the overlap; 1 towards the image's border."""
    ignored = overlap_px // 4
    ramp = max(1, overlap_px - 2 * ignored)
    rise = np.sin(np.pi / 2 * np.clip((np.arange(size) - ignored + 0.5) / ramp, 0, 1)) ** 2 if overlap_px else 1.0
    weights = np.ones(size)
    if not first:
        weights *= rise
    if not last:
        weights[::-1] *= rise
    return weights
