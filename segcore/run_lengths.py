"""Masks as row-major run lengths: a value and how many pixels in a row have it, running on from row to row.

    [[1, 1, 2],            values  [1, 2, 0]
     [2, 2, 0]]    <->     lengths [2, 3, 1]

Lossless; a street mask takes about a hundredth of its pixels. Decoding needs no library of ours: in NumPy
`np.repeat(values, lengths).reshape(height, width)`, and class areas are sums of lengths by value.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", np.uint8, np.uint16)

MAX_PIXELS = 2**31 - 1
"""Lengths are int32."""


def encode(mask_HW: NDArray[Value]) -> tuple[NDArray[Value], NDArray[np.int32]]:
    """Run lengths of a mask.

    Args:
        mask_HW: uint8 or uint16, at least one pixel.

    Returns:
        values, of the mask's type, and lengths, int32: equally many, every length at least 1, no two neighbouring
        values equal, lengths adding up to H * W.

    Raises:
        ValueError: another type or shape, no pixel, or more than `MAX_PIXELS`.
    """
    if mask_HW.dtype not in (np.uint8, np.uint16) or mask_HW.ndim != 2:
        raise ValueError(f"mask is {mask_HW.dtype} of shape {mask_HW.shape}; expected uint8 or uint16 (H, W)")
    if not 0 < mask_HW.size <= MAX_PIXELS:
        raise ValueError(f"mask of shape {mask_HW.shape} has {mask_HW.size} pixels; expected 1 to {MAX_PIXELS}")
    pixels = mask_HW.ravel()
    last_of_run = np.flatnonzero(pixels[1:] != pixels[:-1])
    ends = np.append(last_of_run, pixels.size - 1)
    return pixels[ends], np.diff(ends, prepend=-1).astype(np.int32)


def decode(values: NDArray[Value], lengths: NDArray[np.int32], *, height: int, width: int) -> NDArray[Value]:
    """Reverse `encode`.

    Raises:
        ValueError: the runs do not add up to height * width pixels.
    """
    if len(values) != len(lengths):
        raise ValueError(f"{len(values)} values and {len(lengths)} lengths; expected equally many")
    found = int(lengths.sum(dtype=np.int64))
    if found != height * width:
        raise ValueError(f"runs hold {found} pixels; expected {height} x {width} = {height * width}")
    return np.repeat(values, lengths).reshape(height, width)
