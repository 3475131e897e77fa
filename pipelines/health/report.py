"""The doctor's page: what was found, pictures of it, classes by split, and what labels can carry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.charts import recovery_chart
from pipelines.health.class_checks import class_histogram
from pipelines.health.examples import Drawn
from pipelines.health.findings import Example, Finding, counted
from pipelines.health.recovery import BLOCK_SIDES, BOUND_METHODS, NUM_COMPONENTS
from pipelines.health.survey import Survey
from pipelines.pages import (
    Block,
    Cell,
    Facts,
    Gallery,
    LayeredPicture,
    Legend,
    Paragraph,
    Picture,
    Section,
    Table,
    number_cell,
    render_page,
)
from pipelines.palettes import Palette

TONES = {"error": "bad", "warning": "warn", "note": ""}
PICTURES_SHOWN = 6
MAX_LEGEND = 40
"""Classes. A longer legend stands on the page once, above the images of no finding."""
METHOD_NAMES = {"bilinear": "bilinear enlargement", "basis": f"label PCA, {NUM_COMPONENTS} components"}

Pictures = Mapping[tuple[str, ...], Drawn | None]
"""Drawn examples by their image ids."""


def doctor_page(
    survey: Survey,
    findings: Sequence[Finding],
    recovery: Sequence[Mapping[str, Any]],
    samples: Sequence[Example],
    pictures: Pictures,
    *,
    name: str,
    palette: Palette,
    judged: bool,
) -> bytes:
    """The report as one HTML file.

    Args:
        survey: of the dataset.
        findings: in order.
        recovery: rows of RECOVERY_SCHEMA.
        samples: images of no finding in particular, to be looked at.
        pictures: of the examples, as far as they could be drawn.
        name: of the dataset.
        palette: that the pictures are drawn in.
        judged: classes, void and constant labels were judged.
    """
    sections = [_summary(survey, findings, judged=judged)]
    legend = Legend(class_names=survey.class_table.names, palette=palette)
    sections += [_finding_section(finding, pictures, legend) for finding in findings]
    gallery = _gallery(samples, pictures)
    if gallery:
        hint = "Does each label fit its image, and do the colours mean what the legend says?"
        sections.append(Section(title="Some images with their labels", blocks=(Paragraph(text=hint), legend, *gallery)))
    sections += [_classes(survey), _images(survey)]
    if recovery:
        sections.append(_recovery(recovery))
    return render_page("Dataset doctor", sections, subtitle=name, footer="Written by doctor.")


def _summary(survey: Survey, findings: Sequence[Finding], *, judged: bool) -> Section:
    counts = counted(findings)
    facts = Facts(
        facts=(
            ("pairs", f"{survey.table.num_rows:,}"),
            ("splits", ", ".join(f"{split} {int(survey.in_split(split).sum()):,}" for split in survey.splits)),
            ("classes", str(len(survey.class_table.names))),
            *((f"{severity}s", str(count)) for severity, count in counts.items()),
        )
    )
    blocks: list[Block] = [facts]
    if not judged:
        text = (
            "The labels do not fit the class table, so that rare and missing classes, void and constant labels were "
            "not judged. Mend the labels or the class table first, and run the doctor again."
        )
        blocks.append(Paragraph(text=text, warning=True))
    if not findings:
        blocks.append(Paragraph(text="Nothing was found."))
    else:
        blocks.append(
            Table(
                columns=("severity", "finding", "count", "splits", "found", "expected", "what to do"),
                rows=tuple(
                    (
                        Cell(text=finding.severity, tone=TONES[finding.severity]),  # type: ignore[arg-type]
                        Cell(text=finding.title),
                        Cell(text=f"{finding.count:,} {_unit(finding)}", order=finding.count),
                        Cell(text=", ".join(finding.splits)),
                        Cell(text=finding.found),
                        Cell(text=finding.expected),
                        Cell(text=finding.remedy),
                    )
                    for finding in findings
                ),
                numeric=(2,),
                wide=(4, 5, 6),
            )
        )
    return Section(title="", blocks=tuple(blocks))


def _unit(finding: Finding) -> str:
    """`1 class`, `2 classes`."""
    return (
        finding.unit if finding.count != 1 else {"classes": "class"}.get(finding.unit, finding.unit.removesuffix("s"))
    )


def _finding_section(finding: Finding, pictures: Pictures, legend: Legend) -> Section:
    found = f"{finding.found[0].upper()}{finding.found[1:]}."
    blocks: list[Block] = [Paragraph(text=found, warning=finding.severity == "error")]
    gallery = _gallery(finding.examples, pictures)
    if len(legend.class_names) <= MAX_LEGEND and any(shown.has_layers for shown in gallery):
        blocks.append(legend)
    blocks += gallery
    shown = [example for example in finding.examples if not _drawn(example, pictures)]
    if shown:
        rows = tuple((Cell(text=", ".join(example.image_ids)), Cell(text=example.text)) for example in shown)
        blocks.append(Table(columns=("image", "seen"), rows=rows, wide=(1,)))
    return Section(title=f"{finding.title[0].upper()}{finding.title[1:]}", blocks=tuple(blocks))


def _drawn(example: Example, pictures: Pictures) -> Drawn | None:
    return pictures.get(example.image_ids) if example.image_ids else None


def _gallery(examples: Sequence[Example], pictures: Pictures) -> list[Gallery]:
    shown: list[Picture | LayeredPicture] = []
    for example in examples:
        drawn = _drawn(example, pictures)
        if drawn is None:
            continue
        named = all(image_id in example.text for image_id in example.image_ids)
        caption = example.text if named else f"{', '.join(example.image_ids)}: {example.text}"
        if drawn.layer:
            shown.append(LayeredPicture(data=drawn.data, layer=drawn.layer, caption=caption))
        else:
            shown.append(Picture(data=drawn.data, caption=caption))
    return [Gallery(pictures=tuple(shown), min_width_px=320)] if shown else []


def _classes(survey: Survey) -> Section:
    histogram = class_histogram(survey)
    totals = {split: max(int(pixels_C.sum()), 1) for split, (pixels_C, _) in histogram.items()}
    largest = max((float(pixels_C.max()) / totals[split] for split, (pixels_C, _) in histogram.items()), default=0.0)
    rows = []
    for index, name in enumerate(survey.class_table.names):
        cells = [Cell(text=name), number_cell(survey.class_table.values[index], digits=0)]
        for split, (pixels_C, images_C) in histogram.items():
            share = float(pixels_C[index]) / totals[split]
            cells.append(
                Cell(
                    text=f"{share:.3%}",
                    order=share,
                    bar=share / largest if largest else 0.0,
                    tone="" if share else "warn",
                )
            )
            cells.append(number_cell(int(images_C[index]), digits=0))
        rows.append(tuple(cells))
    heads = [head for split in histogram for head in (f"{split}, share of pixels", f"{split}, images")]
    columns = ("class", "stored value", *heads)
    return Section(
        title="Classes", blocks=(Table(columns=columns, rows=tuple(rows), numeric=tuple(range(1, len(columns)))),)
    )


def _images(survey: Survey) -> Section:
    """Five numbers of each measure, by split."""
    rows = []
    for split in survey.splits:
        for name, digits in (("height", 0), ("width", 0), ("brightness", 3), ("contrast", 3), ("void_share", 4)):
            values = survey.numbers(name)[survey.in_split(split)]
            values = values[~np.isnan(values)]
            quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)) if len(values) else [np.nan] * 5
            cells = (number_cell(float(value), digits=digits) for value in quantiles)
            rows.append((Cell(text=split), Cell(text=name.replace("_", " ")), *cells))
    columns = ("split", "measure", "least", "5 %", "median", "95 %", "most")
    return Section(title="Images", blocks=(Table(columns=columns, rows=tuple(rows), numeric=(2, 3, 4, 5, 6)),))


def _recovery(recovery: Sequence[Mapping[str, Any]]) -> Section:
    found = {(row["block_side"], row["method"]): row for row in recovery}
    text = (
        "True labels in blocks of R x R, coded and expanded again: the mIoU that a network which enlarges by R "
        "can reach here, except by luck. Measured on a sample; jobs/fit_label_pca.py measures it on all labels."
    )
    rows = tuple(
        (
            Cell(text=f"{side}"),
            *(number_cell(found[side, method]["mean_iou"], digits=2, scale=100, unit=" %") for method in BOUND_METHODS),
        )
        for side in BLOCK_SIDES
    )
    columns = ("R", *(METHOD_NAMES[method] for method in BOUND_METHODS))
    table = Table(columns=columns, rows=rows, numeric=(0, 1, 2))
    bounds = {
        METHOD_NAMES[method]: {side: found[side, method]["mean_iou"] for side in BLOCK_SIDES}
        for method in BOUND_METHODS
    }
    chart = Gallery(pictures=(Picture(data=recovery_chart(bounds), caption="Best mean IoU by R", card=True),))
    return Section(title="What enlargement leaves of the labels", blocks=(Paragraph(text=text), table, chart))
