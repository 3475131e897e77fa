"""The page of an evaluation: tables and charts, as sections."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.evaluation.tables import Summary
from pipelines.pages import Cell, Facts, Gallery, Paragraph, Picture, Section, Table, number_cell

SPEED_LABELS = {
    "network_images_per_second": "images/s, network of one worker",
    "images_per_second": "images/s, end to end",
}
SPEED_NOTE = (
    "Network: one worker from pixels to class map, its first pass left out. End to end: all workers, "
    "with reading, decoding and scoring, from the first row to the last; start-up and loading the model left out."
)
INTERVAL_NOTE = (
    "Intervals hold 95 % of 1,000 draws of the images with replacement: how far a score may be off by the choice of "
    "these images. Two networks on the same images differ by less than their intervals suggest; jobs/compare.py draws "
    "them as pairs."
)
GROUP_KINDS = {"size": "size", "folder": "folder", "table": "group"}


def overview(summary: Summary, num_images: int, speeds: dict[str, float]) -> Section:
    """The large figures."""
    total, (low, high) = summary.total, summary.intervals.mean_iou
    interval = "" if math.isnan(low) else f" ({100 * low:.1f} to {100 * high:.1f})"
    percent = [
        ("mean IoU (95 % interval)" if interval else "mean IoU", total.mean_iou),
        ("pixel accuracy", total.pixel_accuracy),
        ("mean accuracy", total.mean_accuracy),
        ("frequency-weighted IoU", total.frequency_weighted_iou),
        ("boundary IoU", summary.boundary_iou),
        ("calibration error (ECE)", summary.calibration.expected_error),
    ]
    facts = [
        (name, f"{100 * value:.2f} %{interval if number == 0 else ''}") for number, (name, value) in enumerate(percent)
    ]
    facts.append(("images", f"{num_images:,}"))
    facts += [(SPEED_LABELS[name], f"{value:.1f}") for name, value in speeds.items()]
    notes = (Paragraph(text=INTERVAL_NOTE),) if interval else ()
    return Section(title="", blocks=(Facts(facts=tuple(facts)), *notes, Paragraph(text=SPEED_NOTE)))


def class_section(
    confusion_CC: NDArray[np.int64], summary: Summary, names: Sequence[str], charts: Mapping[str, bytes]
) -> Section:
    """Scores of each class, and where its pixels went."""
    total = summary.total
    all_pixels = max(int(confusion_CC.sum()), 1)
    rows = []
    for index, name in enumerate(names):
        wrong_C = confusion_CC[index].copy()
        wrong_C[index] = 0
        taken_for = (
            f"{names[int(wrong_C.argmax())]} ({100 * wrong_C.max() / confusion_CC[index].sum():.1f} %)"
            if wrong_C.any()
            else "-"
        )
        rows.append(
            (
                Cell(text=name),
                number_cell(total.iou_C[index], scale=100, digits=2),
                interval_cell(*summary.intervals.iou_C2[index]),
                number_cell(summary.boundary_iou_C[index], scale=100, digits=2),
                number_cell(total.accuracy_C[index], scale=100, digits=2),
                number_cell(confusion_CC[index].sum() / all_pixels, scale=100, digits=2),
                number_cell(confusion_CC[:, index].sum() / all_pixels, scale=100, digits=2),
                Cell(text=taken_for),
            )
        )
    columns = (
        "class",
        "IoU, %",
        "95 % interval",
        "boundary IoU, %",
        "accuracy (recall), %",
        "share of truth, %",
        "share of predictions, %",
        "most often taken for",
    )
    pictures = tuple(Picture(data=charts[name], card=True) for name in ("iou.png", "confusion.png"))
    table = Table(columns=columns, rows=tuple(rows), numeric=(1, 2, 3, 4, 5, 6))
    return Section(title="Classes", blocks=(table, Gallery(pictures=pictures)))


def border_section(summary: Summary, charts: Mapping[str, bytes]) -> Section:
    """Near borders, and how sure the network was."""
    lead = 100 * summary.calibration.overconfidence
    side = "above" if lead > 0 else "below"
    sure = "" if math.isnan(lead) else f" Here the mean confidence is {abs(lead):.1f} points {side} the accuracy."
    pictures = (
        Picture(data=charts["trimaps.png"], caption="Mean IoU near the borders of the truth", card=True),
        Picture(data=charts["reliability.png"], caption="Share of right pixels by confidence", card=True),
    )
    text = (
        "Left, the pixels within some distance of a border of the truth, scored by themselves. Right, the pixels by "
        "the probability of their class: on the diagonal the network is as sure as it is right, below it too sure."
        + sure
    )
    return Section(title="Borders and confidence", blocks=(Paragraph(text=text), Gallery(pictures=pictures)))


def group_sections(groups: pa.Table) -> list[Section]:
    """A section for each kind of group that has several; equal sizes are no news."""
    sections = []
    for kind, title in GROUP_KINDS.items():
        found = [row for row in groups.to_pylist() if row["kind"] == kind]
        if not found or (kind == "size" and len(found) < 2):
            continue
        rows = tuple(
            (
                Cell(text=row["group"]) if kind != "size" else Cell(text=row["group"], order=number),
                number_cell(row["num_images"], digits=0),
                number_cell(row["mean_iou"], scale=100, digits=2),
                interval_cell(row["mean_iou_low"], row["mean_iou_high"]),
                number_cell(row["pixel_accuracy"], scale=100, digits=2),
            )
            for number, row in enumerate(found)
        )
        columns = (title, "images", "mean IoU, %", "95 % interval", "pixel accuracy, %")
        sections.append(
            Section(
                title=f"By {title}",
                blocks=(Table(columns=columns, rows=rows, numeric=(1, 2, 3, 4)), Paragraph(text=GROUP_NOTE)),
            )
        )
    return sections


GROUP_NOTE = "The mean IoU of a group is over the classes that occur in it, so groups may average over other classes."


def protocol_section(protocols: pa.Table, charts: Mapping[str, bytes]) -> Section:
    """Protocols side by side; what stands elsewhere on the page is the first one's."""
    found = protocols.to_pylist()
    rows = []
    for row in found:
        rows.append(
            (
                Cell(text=row["protocol"]),
                number_cell(row["mean_iou"], scale=100, digits=2),
                interval_cell(row["mean_iou_low"], row["mean_iou_high"]),
                number_cell(row["difference"], scale=100, digits=2),
                interval_cell(row["difference_low"], row["difference_high"]),
                number_cell(row["difference_p"], digits=3),
                number_cell(row["boundary_iou"], scale=100, digits=2),
                number_cell(row["calibration_error"], scale=100, digits=2),
                number_cell(row["seconds_per_image"], scale=1000, digits=1),
                number_cell(row["relative_cost"], digits=2),
                number_cell(row["inputs_per_image"], digits=1),
            )
        )
    columns = (
        "protocol",
        "mean IoU, %",
        "95 % interval",
        f"minus {found[0]['protocol']}, points",
        "95 % interval of that",
        "p",
        "boundary IoU, %",
        "ECE, %",
        "ms per image",
        "relative cost",
        "inputs per image",
    )
    text = (
        "The same images in each way, decoded once; differences are drawn as pairs. Time is one worker's, from pixels "
        f"to class map. The rest of this page is of {found[0]['protocol']!r}."
    )
    table = Table(columns=columns, rows=tuple(rows), numeric=tuple(range(1, len(columns))))
    chart = Gallery(pictures=(Picture(data=charts["protocols.png"], card=True),))
    return Section(title="Protocols", blocks=(Paragraph(text=text), table, chart))


def learning_section(chart: bytes) -> Section:
    """How the networks were trained."""
    text = "As the training logged it. The score is that of its own validation, the learning rate an epoch's first."
    return Section(title="Training", blocks=(Paragraph(text=text), Gallery(pictures=(Picture(data=chart, card=True),))))


def origin_section(origins: dict[str, str]) -> Section:
    """Where model and data come from."""
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in origins.items())
    return Section(title="Origins", blocks=(Table(columns=("what", "value"), rows=rows),))


def interval_cell(low: float | None, high: float | None) -> Cell:
    """Two fractions of 1 as percent, sorted by their distance; a dash where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return number_cell(None)
    return Cell(text=f"{100 * low:.1f} to {100 * high:.1f}", order=high - low)
