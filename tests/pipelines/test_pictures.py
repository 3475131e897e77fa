import io

import numpy as np
import pytest
from PIL import Image

from pipelines.pictures import (
    Panel,
    class_boundaries,
    classes_in,
    colourise,
    errors,
    fit_width,
    indexed_png_bytes,
    jpeg_bytes,
    overlay,
    png_bytes,
    shrink_mask,
    strip,
    with_legend,
)
from segcore import IGNORE_INDEX

PALETTE = ((10, 20, 30), (200, 100, 0), (0, 0, 255))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_colourise_gives_each_class_its_colour() -> None:
    mask_HW = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    assert colourise(mask_HW, PALETTE).tolist() == [[[10, 20, 30], [200, 100, 0]], [[0, 0, 255], [200, 100, 0]]]


def test_ignored_pixels_are_black_and_hatched() -> None:
    mask_HW = np.full((16, 16), IGNORE_INDEX, dtype=np.uint8)
    colours = {tuple(colour) for colour in colourise(mask_HW, PALETTE).reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (96, 96, 96)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_colour_of_a_class_outside_the_palette_is_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="class 3 has no colour in a palette of 3"):
        colourise(np.array([[0, 3]], dtype=dtype), PALETTE)


def test_boundaries_lie_where_right_or_lower_neighbours_differ() -> None:
    mask_HW = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 1]], dtype=np.uint8)
    expected = [[False, True, False], [True, True, False], [False, True, False]]
    assert class_boundaries(mask_HW).tolist() == expected


def test_overlay_blends_inside_classes() -> None:
    pixels_HW3 = np.full((4, 4, 3), 100, dtype=np.uint8)
    blended = overlay(pixels_HW3, np.ones((4, 4), dtype=np.uint8), PALETTE, opacity=0.25)
    assert blended[1, 1].tolist() == [125, 100, 75]
    assert (pixels_HW3 == 100).all(), "the image itself must not change"


def test_overlay_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"image of size \(4, 4\) and mask of size \(4, 5\)"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 5), dtype=np.uint8), PALETTE)


def test_errors_marks_wrong_pixels_but_not_ignored_ones() -> None:
    labels_HW = np.array([[0, 0, IGNORE_INDEX, 1]], dtype=np.uint8)
    predictions_HW = np.array([[0, 1, 1, 1]], dtype=np.uint8)
    shown = errors(np.full((1, 4, 3), 50, dtype=np.uint8), labels_HW, predictions_HW)
    assert shown[0, 1].tolist() == [224, 49, 49]
    assert shown[0, 0].tolist() == shown[0, 3].tolist() == [125, 125, 125]
    assert shown[0, 2].tolist() == [0, 0, 0]


def test_strip_puts_captioned_panels_side_by_side_at_one_height() -> None:
    first = np.full((40, 30, 3), 7, dtype=np.uint8)
    second = np.full((80, 100, 3), 9, dtype=np.uint8)
    joined = strip([Panel("image", first), Panel("truth", second)])
    head_px = joined.shape[0] - 40
    assert head_px > 0
    assert joined.shape[1] == 30 + 6 + 50
    assert (joined[head_px:, :30] == 7).all()
    assert (joined[head_px:, 36:] == 9).all()
    assert (joined[:head_px, :30] < 128).any(), "the caption must be drawn"


def test_strip_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no panels"):
        strip([])


def test_fit_width_shrinks_but_never_enlarges() -> None:
    assert fit_width(np.zeros((50, 100, 3), dtype=np.uint8), width=40).shape == (20, 40, 3)
    assert fit_width(np.zeros((50, 100, 3), dtype=np.uint8), width=400).shape == (50, 100, 3)


def test_png_is_lossless_and_jpeg_is_close() -> None:
    gradient = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    assert (decoded(png_bytes(gradient)) == gradient).all()
    assert np.abs(decoded(jpeg_bytes(gradient)).astype(int) - gradient).mean() < 3


def test_noise_becomes_a_jpeg_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 1300, 3)).astype(np.uint8)
    assert decoded(jpeg_bytes(noise)).shape == noise.shape


def test_an_indexed_png_holds_classes_and_shows_colours() -> None:
    mask_HW = np.array([[0, 1, 2], [2, 2, 0]], dtype=np.uint8)
    image = Image.open(io.BytesIO(indexed_png_bytes(mask_HW, PALETTE)))
    assert image.mode == "P" and np.array_equal(np.asarray(image), mask_HW)
    assert np.array_equal(np.asarray(image.convert("RGB")), colourise(mask_HW, PALETTE))


def test_a_shrunk_mask_has_no_class_that_was_not_there() -> None:
    mask_HW = np.zeros((40, 60), dtype=np.uint8)
    mask_HW[:, 30:] = 2
    small_HW = shrink_mask(mask_HW, height=7, width=10)
    assert small_HW.shape == (7, 10) and set(np.unique(small_HW)) == {0, 2}


def test_a_legend_stands_below_the_picture_in_the_classes_colours() -> None:
    picture = np.full((30, 150, 3), 255, dtype=np.uint8)
    names = ["a", "a rather long name", "never there"]
    named = with_legend(picture, names, PALETTE, classes=[0, 1, IGNORE_INDEX])
    assert np.array_equal(named[:30], picture) and named.shape[1] == 150
    colours = {tuple(colour) for colour in named[30:].reshape(-1, 3).tolist()}
    assert {PALETTE[0], PALETTE[1], (0, 0, 0), (96, 96, 96)} <= colours and PALETTE[2] not in colours
    assert with_legend(picture, names, PALETTE, classes=[0, 1, 2]).shape[0] > named.shape[0] - 20
    wide = with_legend(np.full((30, 600, 3), 255, dtype=np.uint8), names, PALETTE, classes=[0, 1, IGNORE_INDEX])
    assert wide.shape[0] < named.shape[0], "one row where there is room"


def test_classes_of_masks_are_each_named_once_and_ignored_last() -> None:
    first, second = np.array([[2, 0], [IGNORE_INDEX, 2]], np.uint8), np.array([[5, 2], [0, 0]], np.uint8)
    assert classes_in(first, second) == [0, 2, 5, IGNORE_INDEX]
