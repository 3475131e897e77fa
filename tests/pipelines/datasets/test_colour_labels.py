"""Labels in colours: their values, and what is said of a colour that nobody named."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.colour_labels import ColourTable, colour_label_png, colour_values
from pipelines.intake.formats import ImageError
from pipelines.intake.labels import decode_label_colours, decode_labels
from segcore import IGNORE_INDEX

TABLE = ColourTable((((0, 0, 0), IGNORE_INDEX), ((255, 0, 1), 0), ((1, 0, 255), 1), ((1, 0, 254), 1)))


def png(pixels: NDArray[np.uint8], *, turn: Callable[[Image.Image], Image.Image] = lambda image: image) -> bytes:
    file = io.BytesIO()
    turn(Image.fromarray(pixels)).save(file, "PNG")
    return file.getvalue()


def test_values_are_those_of_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    colours = np.array([colour for colour, _ in TABLE.values], np.uint8)
    rgb_HW3 = colours[rng.integers(0, len(colours), (37, 41))]
    by_colour = dict(TABLE.values)
    expected = [[by_colour[tuple(pixel.tolist())] for pixel in row] for row in rgb_HW3]
    assert colour_values(rgb_HW3, TABLE).tolist() == expected
    assert decode_labels(colour_label_png(png(rgb_HW3), TABLE)).tolist() == expected


def test_a_colour_that_is_not_in_the_table_is_named_with_its_place() -> None:
    rgb_HW3 = np.zeros((5, 7, 3), np.uint8)
    rgb_HW3[2, 3] = (9, 8, 7)
    with pytest.raises(
        ImageError,
        match=r"the colour \(9, 8, 7\) at row 2, column 3 is not among the 4 colours of the class table \(1 pixels",
    ) as caught:
        colour_values(rgb_HW3, TABLE)
    assert caught.value.stage == "validate"
    rgb_HW3[2:, 4] = (9, 8, 8)
    with pytest.raises(ImageError, match=r"row 2, column 3 .* nor are 1 others, such as \(9, 8, 8\) \(4 pixels in all"):
        colour_values(rgb_HW3, TABLE)


def to_palette(image: Image.Image) -> Image.Image:
    return image.quantize(8, dither=Image.Dither.NONE)


def to_rgba(image: Image.Image) -> Image.Image:
    return image.convert("RGBA")


@pytest.mark.parametrize("turn", [to_palette, to_rgba], ids=["palette", "opaque alpha"])
def test_palettes_and_opaque_alpha_are_read_as_their_colours(turn: Callable[[Image.Image], Image.Image]) -> None:
    rgb_HW3 = np.zeros((4, 6, 3), np.uint8)
    rgb_HW3[:, 2:] = (255, 0, 1)
    assert decode_label_colours(png(rgb_HW3, turn=turn)).tolist() == rgb_HW3.tolist()


def test_gray_labels_are_colours_of_three_equal_levels() -> None:
    levels = np.array([[0, 255]], np.uint8)
    assert decode_label_colours(png(levels)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def turned(pixels: NDArray[np.uint8]) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


def half_transparent(pixels: NDArray[np.uint8]) -> bytes:
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)])
    return png(rgba)


def of_16_bits(pixels: NDArray[np.uint8]) -> bytes:
    return png(pixels[..., 0].astype(np.uint16))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (jpeg, "is a JPEG, whose compression changes class values"),
        (turned, "carries orientation 6, expected an upright one"),
        (half_transparent, "has transparent pixels, expected opaque colours of 8 bits"),
        (of_16_bits, "has mode I;16 and 16 bits, expected opaque colours"),
    ],
)
def test_files_that_cannot_hold_colours_of_classes_are_refused(
    written: Callable[[NDArray[np.uint8]], bytes], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        decode_label_colours(written(np.zeros((4, 6, 3), np.uint8)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((((1, 2, 3), 0), ((1, 2, 3), 1)), r"the colour \(1, 2, 3\) stands twice"),
        ((((1, 2, 256), 0),), "a level outside 0..255"),
        ((((1, 2, 3), 254),), "a value outside 0..253 that is not 255"),
    ],
)
def test_broken_tables_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColourTable(values)
