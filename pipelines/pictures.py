"""Pictures of labels and predictions: arrays in, arrays or PNG and JPEG out. Equal input gives equal bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segcore import IGNORE_INDEX

Pixels = NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]

HATCH_PERIOD_PX = 8
HATCH_WIDTH_PX = 2
HATCH_GREY = 96
WRONG_COLOUR = (224, 49, 49)
CAPTION_PX = 13
GAP_PX = 6


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a strip: RGB pixels (H, W, 3) uint8 and the words above it."""

    caption: str
    pixels_HW3: Pixels


def colourise(mask_HW: NDArray[np.integer], palette: Palette) -> Pixels:
    """Class colours of a mask; ignored pixels are black with a grey hatch.

    Args:
        mask_HW: class indices; `IGNORE_INDEX` where there is none.
        palette: one RGB colour per class.

    Raises:
        ValueError: a value has no colour.
    """
    table_256_3 = np.zeros((256, 3), dtype=np.uint8)
    table_256_3[: len(palette)] = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
    classes = mask_HW[mask_HW != IGNORE_INDEX]
    if classes.size and (classes.min() < 0 or classes.max() >= len(palette)):
        wrong = classes[(classes < 0) | (classes >= len(palette))][0]
        raise ValueError(f"class {wrong} has no colour in a palette of {len(palette)}; give the mask's own class table")
    pixels_HW3: Pixels = table_256_3[mask_HW]
    ignored_HW = mask_HW == IGNORE_INDEX
    pixels_HW3[ignored_HW] = 0
    pixels_HW3[ignored_HW & _hatch(*mask_HW.shape)] = HATCH_GREY
    return pixels_HW3


def shrink_mask(mask_HW: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """A mask at another size, by its nearest pixels: no class comes about that was not there."""
    return np.asarray(cv2.resize(mask_HW, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)


def overlay(
    pixels_HW3: Pixels, mask_HW: NDArray[np.integer], palette: Palette, *, opacity: float = 0.5, boundaries: bool = True
) -> Pixels:
    """Blend class colours over an image, with a line where two classes meet.

    Args:
        pixels_HW3: RGB image.
        mask_HW: class indices at the image's size; ignored pixels stay dark and hatched.
        palette: one RGB colour per class.
        opacity: of the colours, 0..1.
        boundaries: draw the lines.

    Raises:
        ValueError: sizes differ, or a class has no colour.
    """
    _check_same_size(pixels_HW3, mask_HW)
    colours_HW3 = colourise(mask_HW, palette)
    blended = cv2.addWeighted(pixels_HW3, 1 - opacity, colours_HW3, opacity, 0)
    if boundaries:
        line_HW = class_boundaries(mask_HW)
        blended[line_HW] = (colours_HW3[line_HW] * 0.5 + 127.5).astype(np.uint8)
    return np.asarray(blended, dtype=np.uint8)


def class_boundaries(mask_HW: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another class."""
    line_HW = np.zeros(mask_HW.shape, dtype=bool)
    line_HW[:, :-1] |= mask_HW[:, :-1] != mask_HW[:, 1:]
    line_HW[:-1] |= mask_HW[:-1] != mask_HW[1:]
    return line_HW


def errors(pixels_HW3: Pixels, labels_HW: NDArray[np.integer], predictions_HW: NDArray[np.integer]) -> Pixels:
    """The image in grey, wrong pixels in red, ignored pixels black and hatched.

    Raises:
        ValueError: sizes differ.
    """
    _check_same_size(pixels_HW3, labels_HW)
    _check_same_size(pixels_HW3, predictions_HW)
    grey_HW = cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2GRAY)
    shown = np.repeat((grey_HW // 2 + 100)[:, :, None], 3, axis=2)
    ignored_HW = labels_HW == IGNORE_INDEX
    shown[(labels_HW != predictions_HW) & ~ignored_HW] = WRONG_COLOUR
    shown[ignored_HW] = 0
    shown[ignored_HW & _hatch(*labels_HW.shape)] = HATCH_GREY
    return np.asarray(shown, dtype=np.uint8)


def fit_width(pixels_HW3: Pixels, *, width: int) -> Pixels:
    """Shrink a picture to at most `width` columns; a smaller one stays as it is."""
    height_px, width_px = pixels_HW3.shape[:2]
    if width_px <= width:
        return pixels_HW3
    size = (width, max(1, round(height_px * width / width_px)))
    return np.asarray(cv2.resize(pixels_HW3, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def strip(panels: Sequence[Panel]) -> Pixels:
    """Pictures side by side on white, each below its caption; all are shown at the first one's height."""
    if not panels:
        raise ValueError("a strip of no panels; give at least one")
    height = panels[0].pixels_HW3.shape[0]
    font = ImageFont.load_default(CAPTION_PX)
    head_px = CAPTION_PX + 2 * GAP_PX
    columns: list[Pixels] = []
    for number, panel in enumerate(panels):
        pixels = _at_height(panel.pixels_HW3, height)
        canvas = Image.new("RGB", (pixels.shape[1], head_px), "white")
        ImageDraw.Draw(canvas).text((1, GAP_PX), panel.caption, fill=(30, 30, 30), font=font)
        if number:
            columns.append(np.full((head_px + height, GAP_PX, 3), 255, dtype=np.uint8))
        columns.append(np.concatenate([np.asarray(canvas, dtype=np.uint8), pixels]))
    return np.concatenate(columns, axis=1)


def with_legend(pixels_HW3: Pixels, class_names: Sequence[str], palette: Palette, *, classes: Sequence[int]) -> Pixels:
    """A picture on white above the names of classes, each beside its colour, in rows as wide as the picture.

    Args:
        pixels_HW3: RGB picture, usually a `strip` of overlays.
        class_names: C names.
        palette: C colours.
        classes: those named, in order; `IGNORE_INDEX` among them names the hatch of ignored pixels.
    """
    font = ImageFont.load_default(CAPTION_PX)
    entries = [("ignored" if index == IGNORE_INDEX else class_names[index], index) for index in classes]
    rows: list[list[tuple[str, int, int]]] = [[]]
    used_px, width_px = GAP_PX, pixels_HW3.shape[1]
    for name, index in entries:
        entry_px = CAPTION_PX + GAP_PX // 2 + int(font.getlength(name)) + 2 * GAP_PX
        if rows[-1] and used_px + entry_px > width_px:
            rows.append([])
            used_px = GAP_PX
        rows[-1].append((name, index, used_px))
        used_px += entry_px
    row_px = CAPTION_PX + GAP_PX
    canvas = Image.new("RGB", (width_px, row_px * len(rows) + GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = GAP_PX + number * row_px
        for name, index, left in row:
            swatch = colourise(np.full((CAPTION_PX, CAPTION_PX), index, dtype=np.uint8), palette)
            canvas.paste(Image.fromarray(swatch), (left, top))
            draw.rectangle((left, top, left + CAPTION_PX - 1, top + CAPTION_PX - 1), outline=(120, 120, 120))
            draw.text((left + CAPTION_PX + GAP_PX // 2, top - 1), name, fill=(30, 30, 30), font=font)
    return np.concatenate([pixels_HW3, np.asarray(canvas, dtype=np.uint8)])


def classes_in(*masks_HW: NDArray[np.integer]) -> list[int]:
    """Every class of some masks, increasing; `IGNORE_INDEX` last."""
    return sorted({int(index) for mask_HW in masks_HW for index in np.unique(mask_HW)})


def png_bytes(pixels: Pixels) -> bytes:
    """Encode RGB (H, W, 3) or grey (H, W) pixels without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def indexed_png_bytes(mask_HW: Pixels, palette: Palette) -> bytes:
    """Encode a mask as PNG with a palette: pixel values are class indices, shown in their classes' colours.

    Up to 16 classes take 4 bits a pixel or fewer. Ignored pixels keep the value 255, shown black.

    Raises:
        ValueError: a class has no colour.
    """
    largest = int(mask_HW.max(initial=0, where=mask_HW != IGNORE_INDEX))
    if largest >= len(palette):
        raise ValueError(
            f"class {largest} has no colour in a palette of {len(palette)}; give the mask's own class table"
        )
    colours = list(palette)
    if (mask_HW == IGNORE_INDEX).any():
        colours += [(0, 0, 0)] * (IGNORE_INDEX + 1 - len(colours))
    image = Image.frombytes("P", (mask_HW.shape[1], mask_HW.shape[0]), np.ascontiguousarray(mask_HW).tobytes())
    image.putpalette([level for colour in colours for level in colour])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg_bytes(pixels_HW3: Pixels, *, quality: int = 88) -> bytes:
    """Encode RGB pixels for a page: a tenth of PNG's size where the picture is a photograph."""
    buffer = io.BytesIO()
    # subsampling=0: thin coloured lines survive. Not optimize=True: Pillow's buffer is then too small for noise.
    Image.fromarray(pixels_HW3).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _hatch(height: int, width: int) -> NDArray[np.bool_]:
    diagonal_HW = np.add.outer(np.arange(height), np.arange(width))
    return np.asarray(diagonal_HW % HATCH_PERIOD_PX < HATCH_WIDTH_PX)


def _at_height(pixels_HW3: Pixels, height: int) -> Pixels:
    height_px, width_px = pixels_HW3.shape[:2]
    if height_px == height:
        return pixels_HW3
    shrink = cv2.INTER_AREA if height < height_px else cv2.INTER_LINEAR
    size = (max(1, round(width_px * height / height_px)), height)
    return np.asarray(cv2.resize(pixels_HW3, size, interpolation=shrink), dtype=np.uint8)


def _check_same_size(pixels_HW3: Pixels, mask_HW: NDArray[np.integer]) -> None:
    if pixels_HW3.shape[:2] != mask_HW.shape:
        raise ValueError(f"image of size {pixels_HW3.shape[:2]} and mask of size {mask_HW.shape}; give one size")
