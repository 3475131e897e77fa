"""Labels whose colours name the classes: from RGB to stored values, for every importer of such a layout."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.files import read_files
from pipelines.datasets.listing import MAX_CLASSES, Sample
from pipelines.intake.formats import ImageError
from pipelines.intake.labels import decode_label_colours, encode_labels_png
from segcore import IGNORE_INDEX

Colour = tuple[int, int, int]
_UNKNOWN = MAX_CLASSES  # no class has this index
_COLOURS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class ColourTable:
    """Which value each colour stands for. Hashable, and small enough to travel with a task.

    Attributes:
        values: pairs of an 8-bit RGB colour and its value: a class index, or `IGNORE_INDEX`. Several colours may share
            a value.
    """

    values: tuple[tuple[Colour, int], ...]

    def __post_init__(self) -> None:
        """Refuse a colour that stands for two classes, and numbers that are none."""
        colours = [colour for colour, _ in self.values]
        if twice := sorted({colour for colour in colours if colours.count(colour) > 1}):
            raise ValueError(
                f"the colour {', '.join(map(str, twice))} stands twice in the colour table; "
                "give every class, and every ignored colour, one of its own"
            )
        if not all(0 <= level <= 255 for colour in colours for level in colour):
            raise ValueError("the colour table has a level outside 0..255; colours are 8-bit red, green, blue")
        if not all(0 <= value < MAX_CLASSES or value == IGNORE_INDEX for _, value in self.values):
            raise ValueError(f"the colour table has a value outside 0..{MAX_CLASSES - 1} that is not {IGNORE_INDEX}")


def colour_values(rgb_HW3: NDArray[np.uint8], table: ColourTable) -> NDArray[np.uint8]:
    """The values (H, W) of colours (H, W, 3).

    Raises:
        ImageError: stage `validate`: a colour is not in the table; the message names it and a pixel that has it.
    """
    codes_HW = rgb_HW3[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes_HW <<= 8
        codes_HW |= rgb_HW3[..., channel]
    values_HW = _lookup(table)[codes_HW]
    unknown_HW = values_HW == _UNKNOWN
    if unknown_HW.any():
        raise ImageError(_outside(rgb_HW3, codes_HW, unknown_HW, table), "validate")
    return values_HW


def colour_label_png(data: bytes, table: ColourTable) -> bytes:
    """A label file in colours as a PNG of their values.

    Raises:
        ImageError: as `decode_label_colours` and `colour_values` do.
    """
    return encode_labels_png(colour_values(decode_label_colours(data), table))


def read_colour_files(sample: Sample, *, table: ColourTable) -> tuple[bytes, bytes]:
    """The bytes of a sample's image file, and its label file's colours as a PNG of their values.

    Raises:
        OSError: one of them cannot be read.
        ImageError: as `colour_label_png` does.
    """
    image, label = read_files(sample)
    return image, colour_label_png(label, table)


@lru_cache(maxsize=1)  # 16 MB
def _lookup(table: ColourTable) -> NDArray[np.uint8]:
    """The value of every 24-bit colour."""
    lookup = np.full(2**24, _UNKNOWN, np.uint8)
    for (red, green, blue), value in table.values:
        lookup[red << 16 | green << 8 | blue] = value
    return lookup


def _outside(
    rgb_HW3: NDArray[np.uint8], codes_HW: NDArray[np.uint32], unknown_HW: NDArray[np.bool_], table: ColourTable
) -> str:
    row, column = (int(place) for place in np.unravel_index(int(unknown_HW.argmax()), unknown_HW.shape))
    found = tuple(rgb_HW3[row, column].tolist())
    others = [code for code in np.unique(codes_HW[unknown_HW]).tolist() if code != codes_HW[row, column]]
    shown = ", ".join(f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in others[:_COLOURS_SHOWN])
    too = f", nor are {len(others)} others, such as {shown}" if others else ""
    return (
        f"the colour {found} at row {row}, column {column} is not among the {len(table.values)} colours of the class "
        f"table{too} ({int(unknown_HW.sum())} pixels in all); add the colour to the table, or export the labels "
        "without resizing, smoothing or lossy compression, which mix colours"
    )
