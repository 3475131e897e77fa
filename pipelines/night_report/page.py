"""The page of one `segment` run: what happened, what to look at, what failed, what has moved. One file, read anywhere.

Everything comes from the tables, the run's plan and its `summary.json`, so a page can be drawn again; samples come from
the images themselves. The same run, seed and images give the same page, but for the time that drawing it took.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.night_report.metrics import earlier_fractions, read_metrics, run_reference
from pipelines.night_report.page_rows import FailureReason, RunTotals, read_failures, read_predictions
from pipelines.night_report.page_samples import SampleChooser, SampleCounts, sample_sections
from pipelines.night_report.page_sections import (
    challenger_section,
    class_section,
    drift_section,
    failure_section,
    intake_section,
    run_section,
    time_section,
    trend_picture,
)
from pipelines.night_report.summary import RunSummary, read_summary
from pipelines.nightly.challenge import night_evidence
from pipelines.pages import Block, Facts, Gallery, Paragraph, Section, render_page, write_page
from pipelines.tables import commits
from pipelines.tables.runs import RunSettings

FOOTER = "Written by jobs/segment.py from its tables."


def write_run_page(
    tables: str,
    run_id: str,
    output_html_uri: str,
    *,
    counts: SampleCounts | None = None,
    seed: int = 0,
    prefix_depth: int = 1,
) -> None:
    """Draw the page of a published run.

    Args:
        tables: what `segment` wrote to.
        run_id: the run.
        output_html_uri: where the page goes.
        counts: sample images per sheet; default `SampleCounts()`.
        seed: of the random sheet.
        prefix_depth: folders below the listed one that tell the cameras apart, as the metrics have it.

    Raises:
        ValueError: no snapshot of the tables holds the run.
    """
    began = time.monotonic()
    snapshot = commits.newest_snapshot(tables)
    if run_id not in snapshot.run_ids:
        raise ValueError(
            f"the tables in {tables!r} hold no published run {run_id!r}; check the run id, or run jobs/segment.py"
        )
    settings = commits.read_settings(tables, run_id)
    metrics = read_metrics(tables, snapshot)
    metrics = metrics.filter([each <= run_id for each in metrics["run_id"].to_pylist()])
    chooser = SampleChooser(
        counts or SampleCounts(),
        seed=seed,
        images=settings.images,
        prefix_depth=prefix_depth,
        earlier=earlier_fractions(metrics, run_id),
    )
    totals = read_predictions(tables, run_id, snapshot, also=(chooser.visit,))
    failures = read_failures(tables, run_id, snapshot)
    own = [row for row in metrics.to_pylist() if row["run_id"] == run_id]
    own.sort(key=lambda row: row["prefix"] is not None)  # the whole run first
    drift = drift_section(own, _reference(settings, own), snapshot.class_names)
    sections = [failure_section(failures, num_images=totals.num_images)] if failures else []
    if totals.num_images:
        sheets = sample_sections(tables, run_id, snapshot, chooser, palette=snapshot.palette)
        classes = class_section(totals, metrics, class_names=snapshot.class_names, palette=snapshot.palette)
        sections = [*sheets, classes, drift, *sections, intake_section(totals)]
    evidence = night_evidence(tables, run_id)
    if evidence is not None:
        sections.append(challenger_section(evidence, settings, snapshot.class_names))
    summary = read_summary(tables, run_id)
    if summary is not None:
        summary = summary.with_stage("page", time.monotonic() - began)
        sections.append(time_section(summary, totals))
    sections.append(run_section(tables, settings, summary, totals))
    overview = Section(title="", blocks=_overview(totals, failures, own, summary))
    subtitle = f"{settings.run_date}: {settings.images} by {settings.model_uri}, into {tables}"
    page = render_page(f"Segmentation run {run_id}", [overview, *sections], subtitle=subtitle, footer=FOOTER)
    write_page(output_html_uri, page)


def write_quiet_page(tables: str, output_html_uri: str, *, images: str, num_present: int) -> None:
    """The page of a night without anything new: what the tables hold, and the trend up to here.

    Args:
        tables: what `segment` writes to, with a published run.
        output_html_uri: where the page goes.
        images: the listed folder.
        num_present: images that were listed, all of them in the tables.
    """
    snapshot = commits.newest_snapshot(tables)
    metrics = read_metrics(tables, snapshot)
    facts = (("images listed", f"{num_present:,}"), ("new or changed", "0"), ("newest run", snapshot.run_ids[-1]))
    text = "Nothing was new: every listed image is in the tables under this model and these settings."
    sections = [Section(title="", blocks=(Facts(facts=facts), Paragraph(text=text)))]
    trend = trend_picture(metrics, class_names=snapshot.class_names, palette=snapshot.palette)
    if trend is not None:
        sections.append(Section(title="Classes", blocks=(Gallery(pictures=(trend,)),)))
    now = datetime.now(UTC)
    title = f"Nothing new, {now:%Y-%m-%d}"
    page = render_page(title, sections, subtitle=f"{now:%H:%M} UTC: {images}, into {tables}", footer=FOOTER)
    write_page(output_html_uri, page)


def _reference(settings: RunSettings, own: Sequence[dict[str, Any]]) -> Any:
    """The reference that the run's metrics were computed with, while it is still in the model's folder."""
    digest = own[0]["reference_digest"] if own else None
    reference = run_reference(settings) if digest else None
    return reference if reference is not None and reference.digest == digest else None


def _overview(
    totals: RunTotals,
    failures: Sequence[FailureReason],
    own: Sequence[dict[str, Any]],
    summary: RunSummary | None,
) -> tuple[Block, ...]:
    images, failed = totals.num_images, sum(reason.count for reason in failures)
    rate = f" ({100 * failed / (images + failed):.1f} %)" if images + failed else ""
    facts = [("images segmented", f"{images:,}"), ("images that failed", f"{failed:,}{rate}")]
    if summary is not None:
        facts.append(("wall time", _duration(summary.seconds)))
        if summary.images_per_second is not None:
            facts.append(("images per second", f"{summary.images_per_second:,.1f}"))
        facts += _cost(summary)
    if images:
        facts.append(("mean confidence", f"{100 * totals.confidence_sum / images:.1f} %"))
    whole = own[0]["drift"] if own else None
    drifted = [row["prefix"] or "(top)" for row in own[1:] if row["drift"] == "significant"]
    if whole:
        facts.append(("drift", whole))
        if len(own) > 2:
            facts.append(("cameras with significant drift", f"{len(drifted)} of {len(own) - 1}"))
    blocks: list[Block] = [Facts(facts=tuple(facts))]
    if whole == "significant" or drifted:
        some = f" of {', '.join(drifted[:10])}{' ...' if len(drifted) > 10 else ''}"
        of_cameras = some if drifted and len(own) > 2 else ""
        text = f"The images{of_cameras} differ from those that the model was validated on. See the section on drift."
        blocks.append(Paragraph(text=text, warning=True))
    if not images:
        blocks.append(Paragraph(text="Not one image was segmented. The reasons are below.", warning=True))
    return tuple(blocks)


def _cost(summary: RunSummary) -> list[tuple[str, str]]:
    """Of a million images: the price where one was given, else the hours of all workers; and what was predicted."""
    if summary.cost_per_hour is None:
        name, actual = "hours per million images", summary.hours_per_million()
        predicted = summary.hours_per_million(predicted=True)
    else:
        name, actual = "cost per million images", summary.cost_per_million()
        predicted = summary.cost_per_million(predicted=True)
    if actual is None:
        return []
    said = "unknown" if predicted is None else f"{predicted:,.1f}"
    return [(name, f"{actual:,.1f}"), ("predicted, without start-up", said)]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
