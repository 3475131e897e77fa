"""The page of one `segment` run, drawn from the tables alone: what was segmented, what failed, samples to look at."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.images import decode_image
from pipelines.pages import (
    Block,
    Cell,
    Facts,
    Gallery,
    Legend,
    Paragraph,
    Picture,
    Section,
    Table,
    number_cell,
    render_page,
    write_page,
)
from pipelines.pictures import fit_width, jpeg_bytes, overlay, share_chart
from segcore.run_lengths import decode

PICTURE_WIDTH_PX = 480
MAX_FAILURES_SHOWN = 200
SAMPLE_COLUMNS = ("work_id", "uri", "height", "width", "source_mode", "orientation", "mean_confidence", "notes")
COLUMNS = (*SAMPLE_COLUMNS, "size_bytes", "class_pixels", "decode_ms", "infer_ms", "encode_ms", "created_at")


@dataclass(slots=True)
class RunSummary:
    """An additive summary of a run's prediction rows; of the images themselves only a few are kept.

    Attributes:
        class_names, palette: class table, from the files' footers.
        facts: model and code of the run, from its first row.
        num_images, num_bytes, num_pixels: sums.
        class_pixels_C: predicted pixels per class.
        confidence_sum: of the images' mean confidences.
        milliseconds: sums of `decode_ms`, `infer_ms`, `encode_ms`.
        kinds: images by stored pixel format and orientation.
        first, last: earliest and latest `created_at`.
        spread: sample rows at even distances, each with the name of its part.
        uncertain: sample rows of the lowest mean confidence.
    """

    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    num_images: int = 0
    num_bytes: int = 0
    num_pixels: int = 0
    class_pixels_C: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    confidence_sum: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "infer", "encode"), 0.0))
    kinds: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None
    spread: list[dict[str, Any]] = field(default_factory=list)
    uncertain: list[dict[str, Any]] = field(default_factory=list)


def write_run_page(
    tables_uri: str, run_id: str, output_html_uri: str, *, num_spread: int = 12, num_uncertain: int = 4
) -> None:
    """Draw the page of a run.

    Args:
        tables_uri: what `segment` wrote to.
        run_id: the run, as in the names of its part files.
        output_html_uri: where the page goes.
        num_spread: sample images at even distances over the run.
        num_uncertain: sample images that the network was least sure of.

    Raises:
        ValueError: the tables hold nothing of this run.
    """
    summary = summarise_run(tables_uri, run_id, num_spread=num_spread, num_uncertain=num_uncertain)
    failures, num_failures = _failures(tables_uri, run_id)
    if not summary.num_images and not num_failures:
        raise ValueError(
            f"the tables in {tables_uri!r} hold no image of run {run_id!r}; check the run id, or run jobs/segment.py"
        )
    blocks = _overview(summary, num_failures)
    sections = [Section(title="", blocks=blocks)]
    if failures:
        sections.append(_failure_section(failures, num_failures))
    if summary.num_images:
        sections += _sample_sections(tables_uri, summary)
        sections.append(_class_section(summary))
        sections.append(_intake_section(summary))
    subtitle = f"Tables in {tables_uri}"
    footer = "Written by jobs/segment.py from its tables. " + ", ".join(f"{k} {v}" for k, v in summary.facts.items())
    write_page(output_html_uri, render_page(f"Segmentation run {run_id}", sections, subtitle=subtitle, footer=footer))


def summarise_run(tables_uri: str, run_id: str, *, num_spread: int, num_uncertain: int) -> RunSummary:
    """Add up the prediction rows of a run, one part file in memory at a time."""
    summary = RunSummary()
    part_uris = list(_part_uris(tables_uri, "predictions", run_id))
    per_part = -(-num_spread // max(1, len(part_uris)))
    for uri in part_uris:
        file = pq.ParquetFile(io.BytesIO(storage.read_bytes(uri)))
        metadata = file.schema_arrow.metadata or {}
        summary.class_names = tuple(json.loads(metadata[b"segpipe.class_names"]))
        summary.palette = tuple((red, green, blue) for red, green, blue in json.loads(metadata[b"segpipe.palette"]))
        table = file.read(columns=list(COLUMNS))
        if table.num_rows:
            if not summary.facts:
                head = file.read(columns=["model_uri", "model_digest", "code_commit"]).slice(0, 1).to_pylist()[0]
                summary.facts = {key.replace("_", " "): value for key, value in head.items()}
            _add_part(summary, table, part=uri.rsplit("/", 2)[1:], per_part=per_part, num_uncertain=num_uncertain)
    keep = np.unique(np.linspace(0, len(summary.spread) - 1, min(num_spread, len(summary.spread))).astype(int))
    summary.spread = [summary.spread[index] for index in keep]
    return summary


def _add_part(summary: RunSummary, table: Any, *, part: list[str], per_part: int, num_uncertain: int) -> None:
    num_classes = len(summary.class_names)
    class_pixels_NC = table["class_pixels"].combine_chunks().flatten().to_numpy().reshape(-1, num_classes)
    if not len(summary.class_pixels_C):
        summary.class_pixels_C = np.zeros(num_classes, dtype=np.int64)
    summary.class_pixels_C += class_pixels_NC.sum(axis=0)
    confidence_N = table["mean_confidence"].to_numpy()
    summary.num_images += table.num_rows
    summary.num_bytes += int(table["size_bytes"].to_numpy().sum())
    summary.num_pixels += int((table["height"].to_numpy().astype(np.int64) * table["width"].to_numpy()).sum())
    summary.confidence_sum += float(confidence_N.sum(dtype=np.float64))
    for stage in summary.milliseconds:
        summary.milliseconds[stage] += float(table[f"{stage}_ms"].to_numpy().sum(dtype=np.float64))
    rows = table.select(SAMPLE_COLUMNS)
    for mode, orientation in zip(table["source_mode"].to_pylist(), table["orientation"].to_pylist(), strict=True):
        summary.kinds[mode if orientation == 1 else f"{mode}, EXIF orientation {orientation}"] += 1
    created = table["created_at"].to_pylist()
    summary.first = min(created if summary.first is None else [*created, summary.first])
    summary.last = max(created if summary.last is None else [*created, summary.last])
    evenly = np.unique(np.linspace(0, table.num_rows - 1, min(per_part, table.num_rows)).astype(int))
    lowest = np.argsort(confidence_N, kind="stable")[:num_uncertain]
    summary.spread += [row | {"part": part} for row in rows.take(evenly).to_pylist()]
    summary.uncertain += [row | {"part": part} for row in rows.take(lowest).to_pylist()]
    summary.uncertain = sorted(summary.uncertain, key=lambda row: float(row["mean_confidence"]))[:num_uncertain]


def _failures(tables_uri: str, run_id: str) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a run's failures, and how many there are."""
    shown: list[dict[str, Any]] = []
    total = 0
    for uri in _part_uris(tables_uri, "failures", run_id):
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        total += table.num_rows
        shown += table.slice(0, MAX_FAILURES_SHOWN - len(shown)).to_pylist()
    return shown, total


def _part_uris(tables_uri: str, table: str, run_id: str) -> Iterator[str]:
    for uri in storage.list_files(storage.join(tables_uri, table)):
        if uri.rsplit("/", 1)[1].startswith(f"part-{run_id}-"):
            yield uri


def _overview(summary: RunSummary, num_failures: int) -> tuple[Block, ...]:
    images = summary.num_images
    facts = [("images segmented", f"{images:,}"), ("images that failed", f"{num_failures:,}")]
    if not images:
        return (Facts(facts=tuple(facts)),)
    facts.append(("mean confidence", f"{100 * summary.confidence_sum / images:.1f} %"))
    facts.append(("megapixels", f"{summary.num_pixels / 1e6:,.1f}"))
    facts += [(f"{stage}, ms per image", f"{total / images:.1f}") for stage, total in summary.milliseconds.items()]
    when = f"Segmented from {summary.first:%Y-%m-%d %H:%M:%S} to {summary.last:%Y-%m-%d %H:%M:%S} UTC."
    return Facts(facts=tuple(facts)), Paragraph(text=when)


def _failure_section(failures: list[dict[str, Any]], num_failures: int) -> Section:
    rows = tuple(
        (
            Cell(text=row["uri"].rsplit("/", 1)[-1]),
            Cell(text=row["stage"]),
            Cell(text=row["message"]),
            number_cell(row["size_bytes"], digits=0),
            Cell(text=row["first_bytes_hex"]),
            Cell(text="yes" if row["retryable"] else "no"),
        )
        for row in failures
    )
    counts = Counter(row["stage"] for row in failures)
    text = f"{num_failures:,} image(s), each with its reason; the run went on without them. By stage: "
    text += ", ".join(f"{stage} {count:,}" for stage, count in counts.most_common())
    text += f" (of the first {len(rows):,})." if len(rows) < num_failures else "."
    columns = ("file", "stage", "reason", "bytes", "first bytes", "worth another try")
    return Section(title="Failures", blocks=(Paragraph(text=text), Table(columns=columns, rows=rows, numeric=(3,))))


def _sample_sections(tables_uri: str, summary: RunSummary) -> list[Section]:
    legend = Legend(class_names=summary.class_names, palette=summary.palette)
    sections = []
    groups = (("Samples, at even distances over the run", summary.spread), ("Least confident", summary.uncertain))
    for title, rows in groups:
        if not rows:
            continue
        pictures, problems = [], []
        for row in rows:
            try:
                pictures.append(_overlay_picture(tables_uri, row, summary))
            except (ValueError, OSError) as error:  # the bucket moves on: an image may be gone or replaced by now
                problems.append(Paragraph(text=f"{row['uri']}: {error}"))
        blocks: tuple[Block, ...] = (legend, Gallery(pictures=tuple(pictures), min_width_px=290), *problems)
        sections.append(Section(title=title, blocks=blocks))
    return sections


def _overlay_picture(tables_uri: str, row: dict[str, Any], summary: RunSummary) -> Picture:
    """The image under its mask.

    Raises:
        ValueError: the image has another size than its mask.
    """
    masks = storage.join(tables_uri, "masks", *row["part"])
    found = pq.read_table(io.BytesIO(storage.read_bytes(masks)), filters=[("work_id", "=", row["work_id"])])
    runs = found.to_pylist()[0]
    values, lengths = np.asarray(runs["values"], dtype=np.uint8), np.asarray(runs["lengths"], dtype=np.int32)
    mask_HW = decode(values, lengths, height=row["height"], width=row["width"])
    pixels_HW3 = decode_image(storage.read_bytes(row["uri"])).pixels_HW3
    picture = fit_width(overlay(pixels_HW3, mask_HW, summary.palette), width=PICTURE_WIDTH_PX)
    facts = [row["uri"].rsplit("/", 1)[-1], f"confidence {100 * row['mean_confidence']:.0f} %", *row["notes"]]
    return Picture(data=jpeg_bytes(picture), caption="; ".join(facts))


def _class_section(summary: RunSummary) -> Section:
    total = max(int(summary.class_pixels_C.sum()), 1)
    chart = share_chart(summary.class_pixels_C / total, summary.class_names, summary.palette)
    return Section(title="Classes over the whole run", blocks=(Gallery(pictures=(Picture(data=chart, card=True),)),))


def _intake_section(summary: RunSummary) -> Section:
    rows = tuple((Cell(text=kind), number_cell(count, digits=0)) for kind, count in summary.kinds.most_common())
    return Section(
        title="What the files were", blocks=(Table(columns=("stored pixels", "images"), rows=rows, numeric=(1,)),)
    )
