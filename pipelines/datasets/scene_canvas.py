"""Painting into an image and its label map at the same time: a camera, polygons, textures, shadows, void borders."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX

Colour = tuple[float, float, float]
Points = Sequence[tuple[float, float]]
Floats = NDArray[np.float32]

_NOISE_SIDE = 1024
_FAR_AWAY_PX = 20_000.0  # OpenCV's polygons overflow beyond about 2**15 px


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A pinhole camera that looks along the road, lengths in metres: x to the right, y up from the ground, z ahead."""

    height: int
    width: int
    focal_px: float
    centre_column: float
    horizon_row: float
    eye_height: float

    def project(self, *, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of a point ahead of the camera."""
        return self.centre_column + self.focal_px * x / z, self.horizon_row - self.focal_px * (y - self.eye_height) / z

    def pixels_per_metre(self, z: float) -> float:
        """Scale of things at distance z."""
        return self.focal_px / z


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Canvas:
    """The picture as it grows. Painting goes from far to near and changes both arrays in place.

    Attributes:
        pixels_HW3: float32 RGB, 0 to 255, linear with the paint, before light and camera.
        labels_HW: uint8 class indices, 255 on the borders of objects.
        haze: colour of far things; half of it at `haze_distance` metres.
    """

    pixels_HW3: Floats
    labels_HW: NDArray[np.uint8]
    haze: Colour
    haze_distance: float

    def hazy(self, colour: Colour, z: float) -> Colour:
        """The colour of a thing as seen from z metres away."""
        share = 1 - 0.5 ** (z / self.haze_distance)
        red, green, blue = (own + (air - own) * share for own, air in zip(colour, self.haze, strict=True))
        return red, green, blue


def noise(rng: np.random.Generator, height: int, width: int, *, grain_px: int) -> Floats:
    """A random piece (height, width) of smooth noise with unit variance; `grain_px` is 1, 4, 16 or 64."""
    field = _noise_field(grain_px)
    row, column = rng.integers(0, _NOISE_SIDE - height + 1), rng.integers(0, _NOISE_SIDE - width + 1)
    return field[row : row + height, column : column + width]


@cache
def _noise_field(grain_px: int) -> Floats:
    side = _NOISE_SIDE // grain_px
    coarse = np.random.default_rng(grain_px).standard_normal((side, side)).astype(np.float32)
    field = cv2.resize(coarse, (_NOISE_SIDE, _NOISE_SIDE), interpolation=cv2.INTER_CUBIC)
    field.setflags(write=False)
    scaled: Floats = field / field.std()
    return scaled


def paint_object(
    canvas: Canvas,
    parts: Sequence[tuple[Points, Colour]],
    *,
    label: int,
    border_px: int,
    grain: Floats | None = None,
    roughness: float = 0.0,
) -> None:
    """Paint polygons that make one object, in order, and label their union; `border_px` around it become ignored.

    Args:
        grain: noise (canvas height, canvas width) that modulates the colours by `roughness`, a share of the colour.
    """
    box = _box(canvas, [points for points, _ in parts], margin=border_px)
    if box is None:
        return
    rows, columns = box
    union = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)
    for points, colour in parts:
        own = _box(canvas, [points], margin=0)
        if own is None:
            continue
        mask = _filled(points, *own)
        inside = mask.view(bool)
        paint: Floats = np.asarray(colour, dtype=np.float32)
        if grain is not None:
            paint = paint * (1 + roughness * grain[own][inside][:, None])
        canvas.pixels_HW3[own][inside] = paint
        top, left = own[0].start - rows.start, own[1].start - columns.start
        union[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask
    _label(canvas.labels_HW[rows, columns], union, label=label, border_px=border_px)


def paint_masked(
    canvas: Canvas, colours_HW3: Floats, mask_HW: NDArray[np.uint8], *, top: int, left: int, label: int, border_px: int
) -> None:
    """Paint a small picture where its mask is 1, at a position that may lie partly outside the canvas."""
    height, width = canvas.labels_HW.shape
    rows = slice(max(top - border_px, 0), min(top + mask_HW.shape[0] + border_px, height))
    columns = slice(max(left - border_px, 0), min(left + mask_HW.shape[1] + border_px, width))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return
    padded = np.pad(mask_HW, border_px)
    cut = (
        slice(rows.start - top + border_px, rows.stop - top + border_px),
        slice(columns.start - left + border_px, columns.stop - left + border_px),
    )
    mask = np.ascontiguousarray(padded[cut])
    colours = np.pad(colours_HW3, ((border_px, border_px), (border_px, border_px), (0, 0)))[cut]
    inside = mask.view(bool)
    canvas.pixels_HW3[rows, columns][inside] = colours[inside]
    _label(canvas.labels_HW[rows, columns], mask, label=label, border_px=border_px)


def paint_plane(canvas: Canvas, texture_HW3: Floats, corners: Points, *, label: int, border_px: int) -> None:
    """Paint a flat texture in perspective; corners are the texture's top left, top right, bottom right, bottom left."""
    box = _box(canvas, [corners], margin=border_px)
    if box is None:
        return
    rows, columns = box
    warped = _in_perspective(texture_HW3, corners, rows=rows, columns=columns, mode=cv2.BORDER_REPLICATE)
    mask = _filled(corners, rows, columns)
    inside = mask.view(bool)
    canvas.pixels_HW3[rows, columns][inside] = warped[inside]
    _label(canvas.labels_HW[rows, columns], mask, label=label, border_px=border_px)


def paint_bars(canvas: Canvas, bars_HW: Floats, colour: Colour, corners: Points, *, label: int, border_px: int) -> None:
    """Paint a flat lattice in perspective: `bars_HW` is 1 on bars and 0 in gaps, which show what is behind, but the
    whole area gets the label. Corners as in `paint_plane`."""
    box = _box(canvas, [corners], margin=border_px)
    if box is None:
        return
    rows, columns = box
    pixels = canvas.pixels_HW3[rows, columns]
    cover = _in_perspective(bars_HW, corners, rows=rows, columns=columns, mode=cv2.BORDER_CONSTANT)[..., None]
    pixels += (np.asarray(colour, dtype=np.float32) - pixels) * cover
    _label(canvas.labels_HW[rows, columns], _filled(corners, rows, columns), label=label, border_px=border_px)


def darken(canvas: Canvas, points: Points, factor: float, *, first: int, last: int) -> None:
    """A shadow: multiply the pixels in a polygon by `factor`, where the label is `first` to `last`."""
    box = _box(canvas, [points], margin=0)
    if box is None:
        return
    rows, columns = box
    labels = canvas.labels_HW[rows, columns]
    lying = _filled(points, rows, columns).view(bool) & (labels >= first) & (labels <= last)
    canvas.pixels_HW3[rows, columns][lying] *= factor


def fill_polygon(picture_HW: NDArray[np.uint8], points: Points | NDArray[np.float64], value: int) -> None:
    """Write `value` inside a polygon, edges included."""
    inside = np.asarray(points, dtype=np.float64).clip(-_FAR_AWAY_PX, _FAR_AWAY_PX)
    cv2.fillPoly(picture_HW, [np.rint(inside).astype(np.int32)], value)


def ellipse(column: float, row: float, radius_column: float, radius_row: float, *, corners: int = 14) -> Points:
    """A polygon that looks like an ellipse."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    return [(column + radius_column * np.cos(a), row + radius_row * np.sin(a)) for a in angles]


def _label(labels: NDArray[np.uint8], mask: NDArray[np.uint8], *, label: int, border_px: int) -> None:
    if border_px:
        wide = cv2.dilate(mask, np.ones((2 * border_px + 1, 2 * border_px + 1), dtype=np.uint8))
        labels[wide.view(bool)] = IGNORE_INDEX
    labels[mask.view(bool)] = label


def _box(canvas: Canvas, polygons: Sequence[Points], *, margin: int) -> tuple[slice, slice] | None:
    """Rows and columns of the canvas that the polygons touch; None where they lie outside."""
    height, width = canvas.labels_HW.shape
    columns = [column for points in polygons for column, _ in points]
    rows = [row for points in polygons for _, row in points]
    top, bottom = max(int(min(rows)) - margin - 1, 0), min(int(max(rows)) + margin + 2, height)
    left, right = max(int(min(columns)) - margin - 1, 0), min(int(max(columns)) + margin + 2, width)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _filled(points: Points, rows: slice, columns: slice) -> NDArray[np.uint8]:
    """1 inside the polygon and 0 outside, for a piece of the canvas."""
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)
    fill_polygon(mask, np.asarray(points) - (columns.start, rows.start), 1)
    return mask


def _in_perspective(flat: Floats, corners: Points, *, rows: slice, columns: slice, mode: int) -> Floats:
    """A flat picture as its corners lie in a piece of the canvas."""
    height, width = flat.shape[:2]
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32)
    target = np.asarray(corners, dtype=np.float32) - np.array([columns.start, rows.start], dtype=np.float32)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    warped = cv2.warpPerspective(flat, cv2.getPerspectiveTransform(source, target), size, borderMode=mode)
    return warped.astype(np.float32, copy=False)
