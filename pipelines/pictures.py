"""Pictures of labels, predictions and scores: arrays in, arrays or PNG and JPEG out. Equal input gives equal bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
CHART_DPI = 160
MAX_ANNOTATED_CLASSES = 25
"""Above this, the numbers in a confusion matrix's cells would overlap."""
MAX_CLASSES_NAMED = 20
"""In the legend of `trend_chart`, which would be higher than the chart."""
SMALLEST_SHARE_NAMED = 0.005
MAX_NIGHTS_NAMED = 15
SERIES_COLOURS = ("#3b6fd4", "#e8833a", "#2f9e63", "#a855c7", "#c2394b", "#0e9aa7", "#8a6d3b", "#6b7280")


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


def confusion_heat_map(confusion_CC: NDArray[np.integer], class_names: Sequence[str]) -> bytes:
    """PNG of a confusion matrix: where the pixels of each true class went, in percent of its row.

    Args:
        confusion_CC: pixels, rows truth, columns prediction.
        class_names: C names. Rows of classes that never occur stay empty.

    Raises:
        ValueError: the matrix and the names do not match.
    """
    num_classes = len(class_names)
    if confusion_CC.shape != (num_classes, num_classes):
        raise ValueError(f"a confusion matrix of shape {confusion_CC.shape} and {num_classes} class names do not match")
    truth_C1 = confusion_CC.sum(axis=1, keepdims=True).astype(np.float64)
    rate_CC = np.where(truth_C1 > 0, 100 * confusion_CC / np.maximum(truth_C1, 1), np.nan)
    side_inches = float(np.clip(0.42 * num_classes + 2.0, 4.5, 22.0))
    figure = Figure(figsize=(side_inches + 0.6, side_inches), dpi=CHART_DPI)
    axes = figure.add_subplot()
    axes.set_facecolor("#ececec")
    cells = axes.pcolormesh(
        np.ma.masked_invalid(rate_CC), cmap="Blues", vmin=0, vmax=100, edgecolors="white", linewidth=0.8
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    font_size = 8 if num_classes <= MAX_ANNOTATED_CLASSES else max(2.5, 8 * MAX_ANNOTATED_CLASSES / num_classes)
    centres = np.arange(num_classes) + 0.5
    axes.set_xticks(centres, class_names, rotation=50, ha="right", rotation_mode="anchor", fontsize=font_size)
    axes.set_yticks(centres, class_names, fontsize=font_size)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    axes.set_title("Where the pixels of each true class went (% of its row)", fontsize=10, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if num_classes <= MAX_ANNOTATED_CLASSES:
        _annotate(axes, rate_CC)
    bar = figure.colorbar(cells, ax=axes, shrink=0.5, pad=0.02, aspect=25)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return chart_bytes(figure)


def iou_chart(series: Sequence[tuple[str, NDArray[np.floating]]], class_names: Sequence[str]) -> bytes:
    """PNG of per-class IoU as horizontal bars, one colour per series; best class of the first series on top.

    Args:
        series: name and iou_C (fractions, NaN where a class does not occur) of each model.
        class_names: C names.

    Raises:
        ValueError: there is no series, or one does not have C values.
    """
    if not series or any(len(values) != len(class_names) for _, values in series):
        found = [len(values) for _, values in series]
        raise ValueError(f"series of {found} values and {len(class_names)} class names do not match")
    order = np.argsort(-np.nan_to_num(series[0][1], nan=-1.0), kind="stable")
    bar_height = 0.8 / len(series)
    inches = float(np.clip(len(class_names) * (0.14 * len(series) + 0.2) + 1.1, 2.2, 40.0))
    figure = Figure(figsize=(7.2, inches), dpi=CHART_DPI)
    axes = figure.add_subplot()
    rows = np.arange(len(class_names))
    for index, (name, values) in enumerate(series):
        percent = 100 * np.asarray(values, dtype=np.float64)[order]
        offset = (index - (len(series) - 1) / 2) * bar_height
        colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
        axes.barh(rows + offset, np.nan_to_num(percent), height=bar_height * 0.9, color=colour, label=name)
        for row, value in zip(rows, percent, strict=True):
            text = "absent" if np.isnan(value) else f"{value:.1f}"
            place = 0 if np.isnan(value) else value
            axes.text(
                place + 0.8, row + offset, text, va="center", fontsize=7 if len(series) < 4 else 5, color="#444444"
            )
    axes.set_yticks(rows, [class_names[index] for index in order], fontsize=9)
    axes.set_ylim(len(class_names) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    plain_axes(axes, "IoU, %")
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=min(3, len(series)), loc="lower left", bbox_to_anchor=(0, 1.0))
    return chart_bytes(figure)


def share_chart(shares_C: NDArray[np.floating], class_names: Sequence[str], palette: Palette) -> bytes:
    """PNG of each class's share of all pixels, in the class's own colour, largest on top.

    Args:
        shares_C: fractions of 1.
        class_names: C names.
        palette: C colours.

    Raises:
        ValueError: their numbers differ.
    """
    if not len(shares_C) == len(class_names) == len(palette):
        raise ValueError(f"{len(shares_C)} shares, {len(class_names)} names and {len(palette)} colours do not match")
    order = np.argsort(-shares_C, kind="stable")
    percent = 100 * np.asarray(shares_C, dtype=np.float64)[order]
    figure = Figure(figsize=(7.2, float(np.clip(0.3 * len(order) + 0.8, 1.6, 40.0))), dpi=CHART_DPI)
    axes = figure.add_subplot()
    rows = range(len(order))
    colours = [tuple(level / 255 for level in palette[index]) for index in order]
    axes.barh(rows, percent, height=0.72, color=colours, edgecolor="#00000030", linewidth=0.6)
    for row, value in zip(rows, percent, strict=True):
        axes.text(value + 0.6, row, f"{value:.1f}" if value >= 0.05 or value == 0 else "<0.1", va="center", fontsize=8)
    axes.set_yticks(rows, [class_names[index] for index in order], fontsize=9)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, max(1.0, percent.max() * 1.1))
    plain_axes(axes, "share of pixels, %")
    return chart_bytes(figure)


def trend_chart(
    names_N: Sequence[str], shares_NC: NDArray[np.floating], class_names: Sequence[str], palette: Palette
) -> bytes:
    """PNG of each class's share over nights: a stacked bar per night, oldest on the left, classes in their own colours.

    Args:
        names_N: of the nights, below the bars; every n-th where they are many.
        shares_NC: fractions of 1 that add up to 1 in each night.
        class_names: C names; the legend shows those that reach 0.5 % in some night, largest first.
        palette: C colours.

    Raises:
        ValueError: the shares are not N by C.
    """
    num_nights, num_classes = len(names_N), len(class_names)
    if shares_NC.shape != (num_nights, num_classes) or len(palette) != num_classes:
        raise ValueError(
            f"shares of shape {shares_NC.shape}, {num_nights} nights, {num_classes} names and {len(palette)} colours "
            "do not match"
        )
    figure = Figure(figsize=(6.4, 3.8), dpi=CHART_DPI)
    axes = figure.add_subplot()
    bottom_N = np.zeros(num_nights)
    largest_first = np.argsort(-shares_NC.max(axis=0), kind="stable")
    shown = largest_first[shares_NC.max(axis=0)[largest_first] >= SMALLEST_SHARE_NAMED][:MAX_CLASSES_NAMED]
    for index in np.argsort(-shares_NC.mean(axis=0), kind="stable"):
        percent_N = 100 * shares_NC[:, index]
        colour = tuple(level / 255 for level in palette[index])
        label = class_names[index] if index in shown else None
        axes.bar(range(num_nights), percent_N, bottom=bottom_N, width=0.86, color=colour, label=label)
        bottom_N += percent_N
    step = -(-num_nights // MAX_NIGHTS_NAMED)
    axes.set_xticks(range(0, num_nights, step), names_N[::step], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, max(num_nights, 8) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of an image, %", fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), reverse=True)
    return chart_bytes(figure)


def plain_axes(axes: Axes, label: str) -> None:
    """Axes without a frame, with a pale grid across the x-axis and its label."""
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _annotate(axes: Axes, rate_CC: NDArray[np.floating]) -> None:
    for row, column in np.ndindex(*rate_CC.shape):
        rate = rate_CC[row, column]
        if np.isnan(rate) or rate < 0.05:
            continue
        text = f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}"
        colour = "white" if rate > 55 else "#333333"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=colour)


def chart_bytes(figure: Figure) -> bytes:
    """PNG without the version of matplotlib that it would note inside; no pyplot, which keeps figures in a global."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
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
