"""The sections of a run's page that hold figures: time, drift, trend, failures, what ran."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.charts import share_chart, trend_chart
from pipelines.night_report.drift import MODERATE_PSI, SIGNIFICANT_PSI, Band, band
from pipelines.night_report.metrics import NIGHTS_COMPARED
from pipelines.night_report.page_rows import FailureReason, RunTotals
from pipelines.night_report.references import QUANTITIES, ModelReference
from pipelines.night_report.summary import STAGES, RunSummary
from pipelines.nightly.challenge import Evidence
from pipelines.pages import Block, Cell, Code, Gallery, Paragraph, Picture, Section, Table, number_cell
from pipelines.tables.runs import RunSettings

MAX_PREFIXES_SHOWN = 100
MAX_CLASSES_MOVED = 8
QUANTITY_NAMES = {
    "confidence": ("confidence, %", 100.0, 1),
    "entropy": ("entropy, nats", 1.0, 3),
    "brightness": ("brightness, %", 100.0, 1),
    "pixels": ("size, megapixels", 1e-6, 2),
}
_TONES: dict[Band, Any] = {"stable": "", "moderate": "warn", "significant": "bad"}
_SEVERITY: dict[str | None, int] = {None: 0, "stable": 1, "moderate": 2, "significant": 3}


def time_section(summary: RunSummary, totals: RunTotals) -> Section:
    """Where the time went; the stages add up to the wall time."""
    total = sum(summary.stages.values())
    rows = [
        (
            Cell(text=stage, order=float(place)),
            Cell(text=what),
            number_cell(summary.stages[stage], digits=1),
            Cell(
                text=f"{100 * summary.stages[stage] / max(total, 1e-9):.1f} %",
                bar=summary.stages[stage] / max(total, 1e-9),
            ),
        )
        for place, (stage, what) in enumerate(STAGES.items())
    ]
    rows.append(
        (
            Cell(text="sum", best=True),
            Cell(text="", best=True),
            number_cell(total, digits=1, best=True),
            Cell(text="100 %", best=True),
        )
    )
    text = (
        f"{summary.seconds:,.1f} s from the start of the job, or from the end of the run that it finished before, to "
        f"this page; the stages add up to {total:,.1f} s. Each moment counts for one stage, of the workers' time for "
        f"the network where it ran; a second of one of {summary.workers} worker(s) counts {1 / summary.workers:.3g} s."
    )
    blocks: list[Block] = [
        Paragraph(text=text),
        Table(columns=("stage", "what happens", "seconds", "share"), rows=tuple(rows), numeric=(2,), wide=(1,)),
    ]
    if totals.num_images:
        each = ", ".join(f"{stage} {total / totals.num_images:.1f} ms" for stage, total in totals.milliseconds.items())
        blocks.append(Paragraph(text=f"What an image takes by itself, on threads that overlap: {each}."))
    if summary.computed < summary.images + summary.failures:
        blocks.append(
            Paragraph(
                text=f"This job did {summary.computed:,} of the run's {summary.images + summary.failures:,} images; an "
                "earlier one, which did not finish it, the others. Times are this job's."
            )
        )
    return Section(title="Where the time went", blocks=tuple(blocks))


def failure_section(reasons: Sequence[FailureReason], *, num_images: int) -> Section:
    """Failures by reason with samples."""
    count = sum(reason.count for reason in reasons)
    by_stage: Counter[str] = Counter()
    for reason in reasons:
        by_stage[reason.stage or "several"] += reason.count
    text = (
        f"{count:,} of {count + num_images:,} images, each with its reason; the run went on without them. By stage: "
        + ", ".join(f"{stage} {number:,}" for stage, number in by_stage.most_common())
        + "."
    )
    rows = tuple(
        (
            Cell(text=reason.stage),
            Cell(text=reason.error),
            number_cell(reason.count, digits=0),
            Cell(text=reason.samples[0]["message"]),
            Cell(text="; ".join(_file_in_words(row) for row in reason.samples)),
            number_cell(reason.num_retryable, digits=0),
        )
        for reason in reasons
    )
    columns = ("stage", "error", "images", "in words (of the first)", "samples", "tried again")
    return Section(
        title="Failures by reason",
        blocks=(Paragraph(text=text), Table(columns=columns, rows=rows, numeric=(2, 5), wide=(3, 4))),
    )


def _file_in_words(row: dict[str, Any]) -> str:
    begins = f", begins {row['first_bytes_hex'][:16]}" if row["first_bytes_hex"] else ""
    return f"{row['uri'].rsplit('/', 1)[-1]} ({row['size_bytes']:,} bytes{begins})"


def class_section(
    totals: RunTotals,
    metrics: pa.Table,
    *,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> Section:
    """Class areas of the run, and their trend over nights."""
    pictures: list[Picture] = []
    if totals.num_images:
        pixels = max(int(totals.class_pixels_C.sum()), 1)
        chart = share_chart(totals.class_pixels_C / pixels, class_names, palette)
        pictures.append(Picture(data=chart, card=True, caption="This run: share of all pixels"))
    trend = trend_picture(metrics, class_names=class_names, palette=palette)
    if trend is not None:
        pictures.append(trend)
    return Section(title="Classes", blocks=(Gallery(pictures=tuple(pictures)),))


def trend_picture(
    metrics: pa.Table, *, class_names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Picture | None:
    """Class fractions of the last nights; None before the second."""
    nights = [row for row in metrics.to_pylist() if row["prefix"] is None and row["class_fraction"]][-NIGHTS_COMPARED:]
    if len(nights) < 2:
        return None
    names = [f"{row['run_date']} ({int(row['run_id'])})" for row in nights]
    shares_NC = np.array([row["class_fraction"] for row in nights])
    chart = trend_chart(names, shares_NC, class_names, palette)
    return Picture(
        data=chart, card=True, caption="Night by night: share of an image, mean over images; run number in brackets"
    )


def drift_section(
    rows: Sequence[dict[str, Any]], reference: ModelReference | None, class_names: Sequence[str]
) -> Section:
    """Drift of a run, given its rows of `metrics`.

    Args:
        rows: one per prefix, and one whose prefix is None.
        reference: what they were computed with, if it is still there.
        class_names: by class index.
    """
    title = "Drift"
    whole = next((row for row in rows if row["prefix"] is None), None)
    if whole is None:
        return Section(title=title, blocks=(Paragraph(text="This run has no metrics: an older version published it."),))
    blocks: list[Block] = []
    if whole["reference_digest"] is None:
        why = (
            "No image was segmented."
            if not whole["num_images"]
            else "There is no reference: an older version trained the model, or it is an ensemble, or not all classes "
            "were asked for. jobs/train.py leaves one in the model folder; until then drift is not told."
        )
        blocks.append(Paragraph(text=why))
    else:
        text = (
            "Against the images that the model was validated on"
            + (f" ({reference.num_images} of split {reference.split!r})" if reference else "")
            + f". Population stability index: from {MODERATE_PSI} moderate, look at the images; from {SIGNIFICANT_PSI} "
            "significant, the model sees other images than it was validated on. Below what chance alone exceeds once "
            "in a hundred times, stable."
        )
        blocks += [Paragraph(text=text), _quantities_table(whole, reference)]
        moved = _moved_classes_table(whole, reference, class_names)
        if moved.rows:
            blocks += [
                Paragraph(text="The classes whose fractions of an image are distributed most differently:"),
                moved,
            ]
    prefixes = [row for row in rows if row["prefix"] is not None]
    if len(prefixes) > 1:
        blocks += _prefix_blocks(prefixes)
    return Section(title=title, blocks=tuple(blocks))


def _quantities_table(whole: dict[str, Any], reference: ModelReference | None) -> Table:
    def line(name: str, night: Cell, before: Cell, shift: Cell, index: float | None, chance: float) -> tuple[Cell, ...]:
        found: Band = "stable" if index is None else band(index, chance=chance)
        word = Cell(text="-" if index is None else found, tone=_TONES[found])
        return (
            Cell(text=name),
            night,
            before,
            shift,
            number_cell(index, digits=3),
            number_cell(chance, digits=3),
            word,
        )

    dash = Cell(text="-")
    distance = number_cell(whole["class_js_distance"], digits=3)
    lines = [line("classes: JS distance", distance, dash, dash, whole["class_psi"], whole["class_psi_chance"])]
    for name in QUANTITIES:
        words, scale, digits = QUANTITY_NAMES[name]
        before = reference.quantities[name].mean if reference else None
        lines.append(
            line(
                words,
                number_cell(whole[f"mean_{name}"], scale=scale, digits=digits),
                number_cell(before, scale=scale, digits=digits),
                number_cell(whole[f"{name}_shift"], digits=2),
                whole[f"{name}_psi"],
                whole["psi_chance"],
            )
        )
    columns = ("of an image", "this night", "validation", "shift, std", "PSI", "by chance", "band")
    return Table(columns=columns, rows=tuple(lines), numeric=(1, 2, 3, 4, 5))


def _moved_classes_table(whole: dict[str, Any], reference: ModelReference | None, class_names: Sequence[str]) -> Table:
    chance = whole["psi_chance"]
    index_C = whole["class_fraction_psi"]
    order = sorted(range(len(index_C)), key=lambda index: -index_C[index])[:MAX_CLASSES_MOVED]
    rows = []
    for index in order:
        found = band(index_C[index], chance=chance)
        if found == "stable":
            break
        before = reference.class_fractions[index].mean if reference else None
        rows.append(
            (
                Cell(text=class_names[index]),
                number_cell(whole["class_fraction"][index], scale=100, digits=2),
                number_cell(before, scale=100, digits=2),
                number_cell(index_C[index], digits=3),
                Cell(text=found, tone=_TONES[found]),
            )
        )
    columns = ("class", "this night, %", "validation, %", "PSI", "band")
    return Table(columns=columns, rows=tuple(rows), numeric=(1, 2, 3))


def _prefix_blocks(prefixes: Sequence[dict[str, Any]]) -> list[Block]:
    worst_first = sorted(prefixes, key=lambda row: (-_SEVERITY[row["drift"]], -(row["class_psi"] or 0), row["prefix"]))
    rows = []
    for row in worst_first[:MAX_PREFIXES_SHOWN]:
        found = row["drift"]
        rows.append(
            (
                Cell(text=row["prefix"] or "(top)"),
                number_cell(row["num_images"], digits=0),
                number_cell(row["failure_rate"], scale=100),
                number_cell(row["class_psi"], digits=3),
                number_cell(row["class_js_distance"], digits=3),
                number_cell(row["confidence_shift"], digits=2),
                number_cell(row["entropy_shift"], digits=2),
                number_cell(row["brightness_shift"], digits=2),
                number_cell(row["pixels_psi"], digits=3),
                Cell(text=found or "-", order=float(_SEVERITY[found]), tone=_TONES[found] if found else ""),
            )
        )
    columns = (
        "camera",
        "images",
        "failed, %",
        "class PSI",
        "JS distance",
        "confidence, std",
        "entropy, std",
        "brightness, std",
        "size PSI",
        "worst band",
    )
    blocks: list[Block] = [
        Paragraph(text="By camera, which is the first folder below the listed one:"),
        Table(columns=columns, rows=tuple(rows), numeric=tuple(range(1, 9))),
    ]
    if len(prefixes) > MAX_PREFIXES_SHOWN:
        blocks.append(
            Paragraph(text=f"The worst {MAX_PREFIXES_SHOWN} of {len(prefixes):,}; all are in the table metrics.")
        )
    return blocks


def challenger_section(evidence: Evidence, settings: RunSettings, class_names: Sequence[str]) -> Section:
    """How far the challenger agrees with the night's model, how sure each is and how fast."""
    uri = settings.challenger["member"]["model_uri"]
    if not evidence.num_images:
        text = f"{uri} saw no image of this night ({evidence.num_errors} failed); raise --challenger-fraction."
        return Section(title="Challenger", blocks=(Paragraph(text=text),))
    text = (
        f"{uri} saw {evidence.num_images:,} of these images as well ({evidence.num_errors} more failed). Both give "
        f"{100 * evidence.agreement:.1f} % of their pixels one class; mean IoU of the two "
        f"{100 * evidence.mean_iou:.1f} %. That tells how much would change, not which one is right."
    )
    figures = Table(
        columns=("", "night's model", "challenger"),
        rows=(
            (
                Cell(text="mean confidence, %"),
                number_cell(100 * evidence.champion_confidence, digits=1),
                number_cell(100 * evidence.challenger_confidence, digits=1),
            ),
            (
                Cell(text="network, ms an image (median)"),
                number_cell(evidence.champion_ms, digits=1),
                number_cell(evidence.challenger_ms, digits=1),
            ),
        ),
        numeric=(1, 2),
    )
    classes = Table(
        columns=("class", "IoU of the two, %"),
        rows=tuple(
            (Cell(text=name), number_cell(100 * iou, digits=1))
            for name, iou in zip(class_names, evidence.iou_C, strict=True)
            if not math.isnan(iou)
        ),
        numeric=(1,),
    )
    return Section(title="Challenger", blocks=(Paragraph(text=text), figures, classes))


def intake_section(totals: RunTotals) -> Section:
    """What the files were."""
    rows = tuple((Cell(text=kind), number_cell(count, digits=0)) for kind, count in totals.kinds.most_common())
    return Section(
        title="What the files were", blocks=(Table(columns=("stored pixels", "images"), rows=rows, numeric=(1,)),)
    )


def run_section(tables: str, settings: RunSettings, summary: RunSummary | None, totals: RunTotals) -> Section:
    """What ran, and a query to go on with."""
    inference = ", ".join(f"{name} {value}" for name, value in settings.inference.items())
    facts = [
        ("images", settings.images),
        ("model", settings.model_uri),
        ("model folder", settings.model_folder),
        ("model digest", settings.model_digest),
        ("models of the ensemble", f"{len(settings.ensemble)}" if settings.ensemble else ""),
        ("shown to the network", inference),
        ("settings digest", settings.config_digest),
        ("code commit", settings.code_commit),
        ("planned, UTC", settings.created_at),
        ("first and last mask, UTC", f"{totals.first} to {totals.last}" if totals.first else ""),
        ("read", f"{totals.num_bytes / 1e6:,.1f} MB, {totals.num_pixels / 1e6:,.1f} megapixels"),
    ]
    if summary is not None:
        where = "on GPUs" if summary.use_gpu else "on CPUs"
        facts += [
            ("workers, threads of each", f"{summary.workers}, {summary.threads} {where}"),
            ("largest worker's memory", f"{summary.peak_memory_bytes / 2**20:,.0f} MiB"),
        ]
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in facts if value)
    query = (
        f"SELECT uri, stage, message FROM '{tables}/failures/*/*.parquet' WHERE run_id = '{settings.run_id}';\n"
        f"SELECT uri, mean_confidence FROM '{tables}/predictions/*/*.parquet' WHERE run_id = '{settings.run_id}' "
        "ORDER BY mean_confidence LIMIT 50;"
    )
    blocks: tuple[Block, ...] = (Table(columns=("what", "value"), rows=rows, wide=(1,)), Code(text=query))
    return Section(title="What ran", blocks=blocks)
