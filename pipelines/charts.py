"""Charts: numbers in, PNG out, in one style. Equal input gives equal bytes. The only module that draws with matplotlib,
but for the blocks of a label PCA.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from pipelines.pictures import Palette
from segcore.calibration import Calibration

CHART_DPI = 160
SERIES_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#782d00", "#333333")
"""Okabe and Ito's without their yellow, which is lost on white, and a brown; every vision can tell them apart."""
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#8a8f98"
GRID = "#e3e3e3"
LOG_FROM = 5.0
"""Below this ratio of its ends, a logarithmic axis would have too few marks."""
MAX_ANNOTATED_CLASSES = 25
"""Above this, the numbers in a confusion matrix's cells would overlap."""
MAX_CLASSES_NAMED = 20
"""In the legend of `trend_chart`, which would be higher than the chart."""
SMALLEST_SHARE_NAMED = 0.005
MAX_NIGHTS_NAMED = 15
MAX_MARKED = 40
"""Epochs up to which a learning curve marks each."""
LEARNING_METRICS = {
    "train/loss": ("loss", 1.0),
    "val/mean_iou": ("mean IoU, %", 100.0),
    "val/top1": ("top-1 accuracy, %", 100.0),
    "train/learning_rate": ("learning rate", 1.0),
}
"""Metrics of a training that `learning_chart` draws: the panel's label, and what values are multiplied by."""


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
    plain_axes(axes, "distance from a border of the truth, at most, px", grid="both")
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
    shade = {"color": f"{SERIES_COLOURS[1]}66", "edgecolor": SERIES_COLOURS[1], "label": "gap to the mean confidence"}
    upper.bar(place, gap[counted], bottom=base, width=bar_width, **shade)
    upper.plot([0, 100], [0, 100], color="#444444", linewidth=1.0, linestyle="--")
    upper.set_xlim(0, 100)
    upper.set_ylim(0, 100)
    upper.set_ylabel("pixels that are right, %", fontsize=9)
    upper.legend(fontsize=8, frameon=False, loc="upper left")
    share = 100 * calibration.pixels_B / max(int(calibration.pixels_B.sum()), 1)
    lower.bar(centres, share, width=bar_width, color=GREY)
    lower.set_ylabel("pixels, %", fontsize=9)
    plain_axes(upper, "", grid="both")
    plain_axes(lower, "confidence, %", grid="both")
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
    plain_axes(axes, "network's time per image, ms", grid="both")
    return chart_bytes(figure)


def learning_chart(runs: Sequence[tuple[str, Mapping[str, Sequence[tuple[int, float]]]]]) -> bytes:
    """PNG of how trainings went: a panel for each metric of `LEARNING_METRICS` that a run has, over epochs.

    Args:
        runs: name and points (epoch from 0, value) by metric, as MLflow keeps them. Runs differ in colour and stroke.

    Raises:
        ValueError: no run has a point of any of the metrics.
    """
    there = [name for name in LEARNING_METRICS if any(points.get(name) for _, points in runs)]
    if not there:
        raise ValueError(f"no run has a point of {', '.join(LEARNING_METRICS)}; log them, or leave the chart out")
    figure = Figure(figsize=(5.6, 2.1 * len(there) + 0.5), dpi=CHART_DPI)
    panels = figure.subplots(len(there), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, there, strict=True):
        label, scale = LEARNING_METRICS[metric]
        for number, (name, points) in enumerate(runs):
            if not points.get(metric):
                continue
            epochs, values = zip(*points[metric], strict=True)
            style = {**_series_style(number), "marker": "o" if len(epochs) < MAX_MARKED else "", "label": name}
            axes.plot([epoch + 1 for epoch in epochs], scale * np.asarray(values), linewidth=1.6, markersize=3, **style)
        plain_axes(axes, "epoch" if metric == there[-1] else "", grid="both")
        axes.set_ylabel(label, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        panels[0].legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    figure.align_ylabels()
    return chart_bytes(figure)


def components_chart(
    curves: Mapping[int, Sequence[tuple[int, float]]], levels: Mapping[str, Mapping[int, float]]
) -> bytes:
    """PNG of recovery against components: the mean IoU of labels that a label code gives back.

    Args:
        curves: by block side R: (number of components, mean IoU as a fraction of 1), increasing.
        levels: by name, mean IoU by block side of ways that have no components: a level line each.
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=CHART_DPI)
    axes = figure.add_subplot()
    for number, (side, points) in enumerate(sorted(curves.items())):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        if points:
            counts, values = zip(*points, strict=True)
            percent = 100 * np.asarray(values)
            axes.plot(counts, percent, marker=marker, color=colour, markersize=4, label=f"label code, R = {side}")
        for style, (name, by_side) in zip(("--", ":"), levels.items(), strict=False):
            if side in by_side:
                level = 100 * by_side[side]
                axes.axhline(level, color=colour, linestyle=style, linewidth=1.2, label=f"{name}, R = {side}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_ylim(top=101)
    plain_axes(axes, "components", grid="both")
    axes.set_ylabel("mean IoU of the labels that come back, %", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return chart_bytes(figure)


def recovery_chart(bounds: Mapping[str, Mapping[int, float]]) -> bytes:
    """PNG of recovery against the block side R: the mean IoU that a network which enlarges by R can reach at best.

    Args:
        bounds: by name of the way to enlarge, mean IoU (fractions of 1) by R; NaN leaves a gap.
    """
    figure = Figure(figsize=(5.6, 3.2), dpi=CHART_DPI)
    axes = figure.add_subplot()
    sides = sorted({side for by_side in bounds.values() for side in by_side})
    for number, (name, by_side) in enumerate(bounds.items()):
        own = sorted(by_side)
        percent = [100 * by_side[side] for side in own]
        style = _series_style(number) | {"marker": MARKERS[number % len(MARKERS)]}
        axes.plot(own, percent, linewidth=1.8, markersize=5, label=name, **style)
    for side in sides:
        values = sorted(100 * by_side[side] for by_side in bounds.values() if not np.isnan(by_side.get(side, np.nan)))
        for rank, value in enumerate(values):  # the best one's number above, the worst one's below, others beside
            place = (0, 7) if rank == len(values) - 1 else (0, -14) if rank == 0 else (16, -3)
            axes.annotate(f"{value:.1f}", (side, value), place, textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.18)
    plain_axes(axes, "enlarged by R", grid="both")
    axes.set_ylabel("best mean IoU, %", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return chart_bytes(figure)


def pareto_chart(
    names: Sequence[str],
    costs: Sequence[float],
    mean_iou: Sequence[float],
    deviations: Sequence[float],
    *,
    front: Sequence[int],
    label: str,
) -> bytes:
    """PNG of the mean IoU of networks against what they cost; those that none beats in both are filled and joined by a
    line. The scale is logarithmic where costs differ by more than `LOG_FROM`.

    Args:
        names: of the networks.
        costs: above 0.
        mean_iou: fractions of 1.
        deviations: standard deviations over seeds, fractions of 1, drawn as bars; NaN for one seed.
        front: indices of the Pareto front, cheapest first.
        label: of the cost, with its unit.
    """
    figure = Figure(figsize=(5.6, 3.8), dpi=CHART_DPI)
    axes = figure.add_subplot()
    percent = 100 * np.asarray(mean_iou, dtype=np.float64)
    axes.step([costs[index] for index in front], percent[list(front)], where="post", color=GREY, linewidth=1.2)
    for index, (name, cost) in enumerate(zip(names, costs, strict=True)):
        colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
        if not np.isnan(deviations[index]):
            axes.errorbar(cost, percent[index], yerr=100 * deviations[index], color=colour, linewidth=1.2, capsize=3)
        filling = colour if index in front else "white"
        axes.plot(cost, percent[index], "o", color=colour, markerfacecolor=filling, markersize=7)
        axes.annotate(name, (cost, percent[index]), (7, 5), textcoords="offset points", fontsize=8)
    if max(costs) > LOG_FROM * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.margins(x=0.22, y=0.16)
    axes.set_ylabel("mean IoU, %", fontsize=9)
    plain_axes(axes, label, grid="both")
    return chart_bytes(figure)


def plain_axes(axes: Axes, label: str, *, grid: Literal["x", "both"] = "x") -> None:
    """Axes without a frame, with a pale grid across the x-axis, or across both, and the x-axis' label."""
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def chart_bytes(figure: Figure) -> bytes:
    """PNG without the version of matplotlib that it would note inside; no pyplot, which keeps figures in a global."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    return buffer.getvalue()


def _series_style(number: int) -> dict[str, Any]:
    """Colour and line style of a series: a style more for those who see no colour, and for more series than colours."""
    return {
        "color": SERIES_COLOURS[number % len(SERIES_COLOURS)],
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
    }


def _annotate(axes: Axes, rate_CC: NDArray[np.floating]) -> None:
    for row, column in np.ndindex(*rate_CC.shape):
        rate = rate_CC[row, column]
        if np.isnan(rate) or rate < 0.05:
            continue
        text = f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}"
        colour = "white" if rate > 55 else "#333333"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
