"""What an odd file is, and what must become of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Specimen:
    """A file, and the row that it must give or the stage at which it must fail.

    Attributes:
        name: of the file, ending included, which need not be the truth.
        data: its content.
        stage: where it must fail: sniff, validate or decode; "" where it must be decoded.
        message: pattern that the failure's message must match.
        mode: `source_mode` of its row.
        orientation: likewise.
        notes: what each of its row's notes must contain, all of them and in order.
        pixels_HW3: what it shows, upright; None where only its being decoded counts.
        tolerance: largest mean difference from that, in levels; 0 for equality.
    """

    name: str
    data: bytes
    stage: str = ""
    message: str = ""
    mode: str = "RGB"
    orientation: int = 1
    notes: tuple[str, ...] = ()
    pixels_HW3: NDArray[np.uint8] | None = None
    tolerance: float = 0.0


def gray_as_rgb(gray_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Gray levels as three equal channels."""
    return np.repeat(gray_HW.astype(np.uint8)[..., None], 3, axis=2)


def one_colour(colour: tuple[int, int, int], *, height: int, width: int) -> NDArray[np.uint8]:
    """A picture of one colour."""
    return np.full((height, width, 3), colour, dtype=np.uint8)
