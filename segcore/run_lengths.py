"""Masks as row-major run lengths: a value and how many pixels in a row have it, running on from row to row.

    [[1, 1, 2],            values  [1, 2, 0]
     [2, 2, 0]]    <->     lengths [2, 3, 1]

Lossless; a street mask takes about a hundredth of its pixels. Decoding needs no library of ours: in NumPy
`np.repeat(values, lengths).reshape(height, width)`, and class areas are sums of lengths by value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.run_length_kernel import Value, fill_runs, find_runs

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
    # room for a mask of noise; what is not written to costs no memory
    values, lengths = np.empty(mask_HW.size, mask_HW.dtype), np.empty(mask_HW.size, np.int32)
    num_runs = find_runs(_read_only(mask_HW.ravel()), values, lengths)
    return values[:num_runs].copy(), lengths[:num_runs].copy()


def join(
    parts: Sequence[tuple[NDArray[Value], NDArray[np.int32]]],
) -> tuple[NDArray[Value], NDArray[np.int32]]:
    """Run lengths of a mask from those of its strips of whole rows: what `encode` gives of the whole mask.

    Args:
        parts: values and lengths of each strip from the top down; one strip or more, at most `MAX_PIXELS` together.
    """
    values: list[NDArray[Value]] = []
    lengths: list[NDArray[np.int32]] = []
    for part_values, part_lengths in parts:
        if values and values[-1][-1] == part_values[0]:  # a run goes on from strip to strip
            lengths[-1] = lengths[-1].copy()
            lengths[-1][-1] += part_lengths[0]
            part_values, part_lengths = part_values[1:], part_lengths[1:]
        if len(part_values):
            values.append(part_values)
            lengths.append(part_lengths)
    return np.concatenate(values), np.concatenate(lengths)


def decode(values: NDArray[Value], lengths: NDArray[np.int32], *, height: int, width: int) -> NDArray[Value]:
    """Reverse `encode`.

    Raises:
        ValueError: the runs do not add up to height * width pixels, or a length is below 0.
    """
    if len(values) != len(lengths):
        raise ValueError(f"{len(values)} values and {len(lengths)} lengths; expected equally many")
    pixels = np.empty(height * width, values.dtype)
    if not fill_runs(_read_only(values), _read_only(lengths), pixels):
        found = int(lengths.sum(dtype=np.int64))
        negative = ", and no length below 0" if lengths.min(initial=0) < 0 else ""
        raise ValueError(f"runs hold {found} pixels; expected {height} x {width} = {height * width}{negative}")
    return pixels.reshape(height, width)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written: numba compiles for read-only arrays apart, with one kind it compiles once."""
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view
