"""Charts of an evaluation: numbers in, PNG out. Equal input gives equal bytes; the style is that of `pictures`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pipelines.pictures import CHART_DPI, SERIES_COLOURS, chart_bytes, plain_axes
from segcore.calibration import Calibration

GREY = "#8a8f98"


def trimap_chart(widths_px: Sequence[int], mean_iou: Sequence[float], *, everywhere: float) -> bytes:
    """PNG of the mean IoU within some pixels of a border, against the width; all pixels as a dashed line.

    Args:
        widths_px: of the bands, increasing.
        mean_iou: of the pixels within each, fractions of 1; NaN where there is none.
        everywhere: the mean IoU of all pixels.
    """
    figure = Figure(figsize=(5.6, 3.4), dpi=CHART_DPI)
    axes = figure.add_subplot()
    percent = 100 * np.asarray(mean_iou, dtype=np.float64)
    axes.axhline(100 * everywhere, color=GREY, linewidth=1.2, linestyle="--")
    axes.text(widths_px[0], 100 * everywhere, " all pixels", va="bottom", fontsize=8, color="#555555")
    axes.plot(widths_px, percent, color=SERIES_COLOURS[0], marker="o", markersize=4.5, linewidth=1.8)
    for width, value in zip(widths_px, percent, strict=True):
        if not np.isnan(value):
            axes.annotate(
                f"{value:.1f}", (width, value), (0, -12), textcoords="offset points", ha="center", fontsize=7.5
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths_px, [str(width) for width in widths_px])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.16)
    axes.set_ylabel("mean IoU, %", fontsize=9)
    plain_axes(axes, "distance from a border of the truth, at most, px")
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    return chart_bytes(figure)


def reliability_chart(calibration: Calibration) -> bytes:
    """PNG of the accuracy of pixels by their confidence, above how many pixels have it; a calibrated network lies on
    the diagonal.

    Bars below the diagonal: surer than right. What is between bar and diagonal, weighed by the pixels, is the ECE.
    """
    bins = len(calibration.pixels_B)
    centres = (np.arange(bins) + 0.5) / bins * 100
    bar_width = 100 / bins * 0.92
    figure = Figure(figsize=(4.6, 4.6), dpi=CHART_DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    accuracy = 100 * np.nan_to_num(calibration.accuracy_B)
    gap = np.nan_to_num(100 * calibration.confidence_B - accuracy)
    counted = calibration.pixels_B > 0
    upper.bar(centres, accuracy, width=bar_width, color=SERIES_COLOURS[0], label="right")
    place, base = centres[counted], accuracy[counted]
    shade = {"color": "#e8833a66", "edgecolor": "#e8833a", "label": "gap to the mean confidence"}
    upper.bar(place, gap[counted], bottom=base, width=bar_width, **shade)
    upper.plot([0, 100], [0, 100], color="#444444", linewidth=1.0, linestyle="--")
    upper.set_xlim(0, 100)
    upper.set_ylim(0, 100)
    upper.set_ylabel("pixels that are right, %", fontsize=9)
    upper.legend(fontsize=8, frameon=False, loc="upper left")
    share = 100 * calibration.pixels_B / max(int(calibration.pixels_B.sum()), 1)
    lower.bar(centres, share, width=bar_width, color=GREY)
    lower.set_ylabel("pixels, %", fontsize=9)
    plain_axes(upper, "")
    plain_axes(lower, "confidence, %")
    for axes in (upper, lower):
        axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    figure.align_ylabels()
    return chart_bytes(figure)


def protocol_chart(names: Sequence[str], seconds: Sequence[float], mean_iou: Sequence[float]) -> bytes:
    """PNG of the mean IoU of protocols against their seconds per image, on a logarithmic scale.

    Args:
        names: of the protocols.
        seconds: per image, above 0; NaN where they were not measured, and then the point is left out.
        mean_iou: fractions of 1.
    """
    figure = Figure(figsize=(5.6, 3.2), dpi=CHART_DPI)
    axes = figure.add_subplot()
    for number, (name, cost, score) in enumerate(zip(names, seconds, mean_iou, strict=True)):
        if np.isnan(cost) or np.isnan(score):
            continue
        axes.plot(1000 * cost, 100 * score, "o", color=SERIES_COLOURS[number % len(SERIES_COLOURS)], markersize=7)
        axes.annotate(name, (1000 * cost, 100 * score), (6, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.margins(x=0.22, y=0.22)
    axes.set_ylabel("mean IoU, %", fontsize=9)
    plain_axes(axes, "network's time per image, ms")
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    return chart_bytes(figure)
