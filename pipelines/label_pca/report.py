"""What a label code can do, as tables, a plot and a page: recovery against components, beside the two plain ways."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.charts import components_chart, recovery_chart
from pipelines.pages import Cell, Facts, Gallery, Paragraph, Picture, Section, Table, number_cell, render_page
from segcore.label_code import LabelCode
from segcore.label_pca import LabelPCA
from segcore.label_recovery import METHODS, Recovery, RecoveryCurve
from segcore.metrics import Scores, scores

CHART_WIDTH_PX = 1000
COMPONENT_GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryRow:
    """One line of recovery.csv: what comes back of a split's labels by one method.

    Attributes:
        block_side: R.
        split: name.
        method: `basis`, `bilinear` or `nearest`.
        num_components: of the basis; None for the others.
        captured_energy: of the basis, on the labels that it was fitted to.
        pixel_accuracy, mean_iou, mixed_pixel_accuracy: in mixed blocks; None where not measured.
        worst_class, worst_iou: the class that comes back worst.
    """

    block_side: int
    split: str
    method: str
    num_components: int | None
    captured_energy: float | None
    pixel_accuracy: float | None
    mean_iou: float | None
    mixed_pixel_accuracy: float | None
    worst_class: str | None
    worst_iou: float | None


def component_grid(num_components: int) -> tuple[int, ...]:
    """Numbers of components at which a curve is measured, the last one P itself."""
    return (*(count for count in COMPONENT_GRID if count < num_components), num_components)


def recovery_rows(
    code: LabelCode, recovery: Recovery, curve: RecoveryCurve, *, split: str, class_names: Sequence[str]
) -> list[RecoveryRow]:
    """The lines of one block side and split: each number of components, and each method."""

    def row(
        method: str,
        confusion_CC: NDArray[np.int64],
        *,
        num_components: int | None = None,
        captured_energy: float | None = None,
        mixed_pixel_accuracy: float | None = None,
    ) -> RecoveryRow:
        found = scores(confusion_CC)
        worst = None if np.isnan(found.iou_C).all() else int(np.nanargmin(found.iou_C))
        return RecoveryRow(
            block_side=code.block_side,
            split=split,
            method=method,
            num_components=num_components,
            captured_energy=captured_energy,
            pixel_accuracy=or_null(found.pixel_accuracy),
            mean_iou=or_null(found.mean_iou),
            mixed_pixel_accuracy=mixed_pixel_accuracy,
            worst_class=None if worst is None else class_names[worst],
            worst_iou=None if worst is None else float(found.iou_C[worst]),
        )

    rows = []
    for count in curve.num_components[:-1]:
        assert isinstance(code, LabelPCA)
        captured = code.leading(count).captured_energy
        rows.append(row("basis", curve.confusion[count], num_components=count, captured_energy=captured))
    for method in METHODS:
        of_basis = method == "basis"
        rows.append(
            row(
                method,
                recovery.confusion[method],
                num_components=code.num_components if of_basis else None,
                captured_energy=code.captured_energy if of_basis else None,
                mixed_pixel_accuracy=or_null(scores(recovery.mixed_confusion[method]).pixel_accuracy),
            )
        )
    return rows


def recovery_csv(rows: Sequence[RecoveryRow]) -> bytes:
    """The lines as CSV; empty where there is no value."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [field.name for field in fields(RecoveryRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return sink.getvalue().encode()


def recovery_table(recovery: Recovery, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores by method, as JSON values: null where there was nothing to score."""
    table = {}
    for method in METHODS:
        confusion_CC = recovery.confusion[method]
        found = scores(confusion_CC)
        worst = None if np.isnan(found.iou_C).all() else class_names[int(np.nanargmin(found.iou_C))]
        table[method] = {
            "pixel_accuracy": or_null(found.pixel_accuracy),
            "mean_iou": or_null(found.mean_iou),
            "mixed_pixel_accuracy": or_null(scores(recovery.mixed_confusion[method]).pixel_accuracy),
            "worst_class": worst,
            "iou": _by_class(found.iou_C, class_names),
            "accuracy": _by_class(found.accuracy_C, class_names),
            "num_pixels": int(confusion_CC.sum()),
            "num_mixed_pixels": int(recovery.mixed_confusion[method].sum()),
        }
    return table


def recovery_png(rows: Sequence[RecoveryRow]) -> bytes:
    """Mean IoU of what comes back against the number of components, by block side; the plain ways as level lines."""
    curves: dict[int, list[tuple[int, float]]] = {}
    levels: dict[str, dict[int, float]] = {"bilinear": {}, "nearest": {}}
    for row in rows:
        if row.mean_iou is None:
            continue
        if row.method in levels:
            levels[row.method][row.block_side] = row.mean_iou
        else:
            curves.setdefault(row.block_side, []).append((row.num_components or 0, row.mean_iou))
    return components_chart(curves, levels)


def sides_png(rows: Sequence[RecoveryRow]) -> bytes | None:
    """Mean IoU of what comes back against the block side, with all components that were fitted; None for one side."""
    bounds: dict[str, dict[int, float]] = {"bilinear": {}, "nearest": {}}
    for row in rows:
        if row.mean_iou is not None:  # of the components' rows of a side the last has all
            name = row.method if row.method in bounds else "label code"
            bounds.setdefault(name, {})[row.block_side] = row.mean_iou
    return recovery_chart(bounds) if len({row.block_side for row in rows}) > 1 else None


def report_page(
    code: LabelCode,
    rows: Sequence[RecoveryRow],
    recovery: Recovery,
    *,
    split: str,
    class_names: Sequence[str],
    dataset_uri: str,
    plot: bytes,
    components: bytes | None,
) -> bytes:
    """The report as one HTML file."""
    entries = code.num_classes * code.block_side**2
    basis = scores(recovery.confusion["basis"])
    by_method = {method: scores(recovery.confusion[method]) for method in METHODS}
    facts = (
        ("solver", code.solver),
        ("blocks", f"{code.block_side} x {code.block_side} pixels, {code.num_classes} classes"),
        ("components", f"{code.num_components} of {entries:,}"),
        ("energy kept", f"{100 * code.captured_energy:.2f} %"),
        (f"mIoU that {split} can reach", f"{100 * basis.mean_iou:.2f} %"),
    )
    explanation = (
        f"True labels of {split} are coded, expanded again and scored: the best that a network with this decoder can "
        "do, except by luck. Bilinear enlarges each block's class shares, nearest repeats its central pixel."
    )
    sections = [
        Section(title="", blocks=(Facts(facts=facts), Paragraph(text=explanation))),
        Section(
            title="Recovery against components",
            blocks=(*_charts(rows, plot, split), _rows_table(rows)),
        ),
        Section(title="Recovery by class", blocks=(_class_table(by_method, class_names),)),
    ]
    if components is not None:
        chart = _chart(components, "The leading columns of the basis as blocks of pixels")
        sections.append(Section(title="Leading basis blocks", blocks=(chart,)))
    return render_page("Label PCA", sections, subtitle=f"Labels of {dataset_uri}", footer="Written by fit_label_pca.")


def or_null(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value


def _charts(rows: Sequence[RecoveryRow], plot: bytes, split: str) -> list[Gallery]:
    by_side = sides_png(rows)
    pictures = [Picture(data=plot, caption=f"Mean IoU of {split}'s labels, coded and expanded again", card=True)]
    if by_side is not None:
        pictures.append(Picture(data=by_side, caption="The same by block side, with all components", card=True))
    return [Gallery(pictures=tuple(pictures))]


def _chart(png: bytes, caption: str) -> Gallery:
    return Gallery(pictures=(Picture(data=png, caption=caption, card=True),), min_width_px=CHART_WIDTH_PX)


def _rows_table(rows: Sequence[RecoveryRow]) -> Table:
    return Table(
        columns=(
            "R",
            "method",
            "components",
            "energy kept",
            "pixel accuracy",
            "in mixed blocks",
            "mIoU",
            "worst class",
        ),
        rows=tuple(
            (
                Cell(text=str(row.block_side), order=row.block_side),
                Cell(text=row.method),
                number_cell(row.num_components, digits=0),
                number_cell(row.captured_energy, digits=2, scale=100, unit=" %"),
                number_cell(row.pixel_accuracy, digits=2, scale=100, unit=" %"),
                number_cell(row.mixed_pixel_accuracy, digits=2, scale=100, unit=" %"),
                number_cell(row.mean_iou, digits=2, scale=100, unit=" %"),
                Cell(text="-" if row.worst_iou is None else f"{row.worst_class}: {100 * row.worst_iou:.1f} %"),
            )
            for row in rows
        ),
        numeric=(0, 2, 3, 4, 5, 6),
    )


def _class_table(by_method: dict[str, Scores], class_names: Sequence[str]) -> Table:
    return Table(
        columns=("class", *(f"IoU, {method}" for method in METHODS)),
        rows=tuple(
            (
                Cell(text=name),
                *(number_cell(float(by_method[method].iou_C[c]), scale=100, unit=" %") for method in METHODS),
            )
            for c, name in enumerate(class_names)
        ),
        numeric=tuple(range(1, len(METHODS) + 1)),
    )


def _by_class(values_C: NDArray[np.float64], class_names: Sequence[str]) -> dict[str, float | None]:
    return {name: or_null(float(value)) for name, value in zip(class_names, values_C, strict=True)}
