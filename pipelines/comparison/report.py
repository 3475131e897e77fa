"""A comparison as a CSV file, as tables for a terminal and as a page."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from pipelines.charts import iou_chart
from pipelines.comparison.pictures import SameImage
from pipelines.comparison.runs import ComparedRun, differing_fields
from pipelines.pages import Block, Cell, Gallery, Legend, Paragraph, Picture, Section, Table, number_cell, render_page
from pipelines.shards import PreparedDataset


@dataclass(frozen=True, slots=True)
class Column:
    """A number of each run.

    Attributes:
        title: head of the column.
        csv_name: in the CSV file, where units are those of the value.
        value: what it is; None where unknown.
        scale, digits: how it is shown.
        sign: 1 where more is better, -1 where less is, 0 where neither.
    """

    title: str
    csv_name: str
    value: Callable[[ComparedRun], float | None]
    scale: float
    digits: int
    sign: int

    def best(self, runs: Sequence[ComparedRun]) -> set[int]:
        """Indices of the best runs, as far as the digits shown tell; none where all are equal."""
        values = {index: value for index, run in enumerate(runs) if (value := self.value(run)) is not None}
        shown = {index: self.sign * round(value * self.scale, self.digits) for index, value in values.items()}
        if not self.sign or len(shown) < 2 or len(set(shown.values())) == 1:
            return set()
        return {index for index, value in shown.items() if value == max(shown.values())}


COLUMNS = (
    Column("mIoU, %", "mean_iou", lambda run: run.scores.get("mean_iou"), 100, 2, 1),
    Column("pixel acc., %", "pixel_accuracy", lambda run: run.scores.get("pixel_accuracy"), 100, 2, 1),
    Column("params, M", "parameters", lambda run: run.parameters, 1e-6, 2, -1),
    Column("mult-adds, G", "multiply_adds", lambda run: run.multiply_adds, 1e-9, 2, -1),
    Column("images/s", "images_per_second", lambda run: run.images_per_second, 1, 1, 1),
    Column("training, min", "train_seconds", lambda run: run.train_seconds, 1 / 60, 1, -1),
)


def class_columns(runs: Sequence[ComparedRun]) -> list[Column]:
    """IoU of each class that any run knows, in the class table's order."""
    names = dict.fromkeys(name for run in runs for name in run.class_names)
    return [Column(name, f"iou/{name}", lambda run, name=name: run.iou(name), 100, 1, 1) for name in names]  # type: ignore[misc]


def csv_bytes(runs: Sequence[ComparedRun]) -> bytes:
    """One row per run; fractions, counts and seconds unscaled, empty where unknown."""
    columns = [*COLUMNS, *class_columns(runs)]
    differing = differing_fields(runs)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    facts = (
        "run",
        "run_id",
        "network",
        "backbone",
        "output_stride",
        "scored_by",
        "scored_dataset_digest",
        "model_folder",
    )
    writer.writerow([*facts, *(column.csv_name for column in columns), *(f"setting/{name}" for name in differing)])
    for index, run in enumerate(runs):
        values = [column.value(run) for column in columns]
        writer.writerow(
            [
                *(run.name, run.run_id, run.network, run.backbone, run.output_stride),
                *(run.scored_by, run.scored_digest, run.model_folder),
                *("" if value is None else value for value in values),
                *(settings[index] for settings in differing.values()),
            ]
        )
    return buffer.getvalue().encode()


def terminal_tables(runs: Sequence[ComparedRun]) -> str:
    """Two tables as text: the runs, and IoU by class; in colour where standard output is a terminal."""
    summary = TerminalTable(title="Runs, best first", title_justify="left")
    for head in ("run", "network", "backbone", "OS"):
        summary.add_column(head)
    for column in COLUMNS:
        summary.add_column(column.title, justify="right")
    bests = [column.best(runs) for column in COLUMNS]
    for index, run in enumerate(runs):
        numbers = [
            _emphasised(number_cell(column.value(run), scale=column.scale, digits=column.digits).text, index in best)
            for column, best in zip(COLUMNS, bests, strict=True)
        ]
        summary.add_row(Text(run.name), run.network, run.backbone, str(run.output_stride), *numbers)
    by_class = TerminalTable(title="IoU by class, %", title_justify="left")
    by_class.add_column("class")
    for run in runs:
        by_class.add_column(Text(run.name), justify="right")
    for column in class_columns(runs):
        best = column.best(runs)
        texts = [number_cell(column.value(run), scale=100, digits=column.digits).text for run in runs]
        by_class.add_row(Text(column.title), *(_emphasised(text, index in best) for index, text in enumerate(texts)))
    return printed(summary, by_class)


def printed(*tables: TerminalTable) -> str:
    """Tables as text; in colour where standard output is a terminal."""
    terminal = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=None if terminal else 140)
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def comparison_page(
    experiment: str,
    runs: Sequence[ComparedRun],
    images: Sequence[SameImage],
    *,
    dataset: PreparedDataset | None,
    split: str,
    notes: Sequence[str],
    threads: int,
    paper: Section | None = None,
) -> bytes:
    """The comparison as one HTML file.

    Args:
        experiment: name.
        runs: best first.
        images: pictures by every model, or none.
        dataset: where the pictures come from, for the colours; None where there are none.
        split: name.
        notes: warnings to show on top.
        threads: CPU threads that speeds were measured with.
        paper: the runs beside a paper's table, or None.
    """
    scored = sorted({run.scored_by for run in runs})
    size = sorted({run.cost_size for run in runs})
    explanation = (
        f"Scores: {', '.join(scored)}. Multiply-adds of one image of "
        f"{', '.join(f'{height} x {width}' for height, width in size)} pixels, one per multiplication. "
        f"Images per second: one image at a time on {threads} CPU thread(s) of the machine that wrote this page, "
        "as segment runs it. Training: time in epochs, validation included. The best of each column is "
        "emphasised; a click on a column's head sorts."
    )
    blocks: list[Block] = [Paragraph(text=note, warning=True) for note in notes]
    sections = [
        Section(title="", blocks=(*blocks, _run_table(runs), Paragraph(text=explanation))),
        *([paper] if paper else []),
        Section(title="IoU by class", blocks=(_class_table(runs), *_chart(runs))),
        Section(title="What differs", blocks=_differences(runs)),
    ]
    if images and dataset is not None:
        legend = Legend(class_names=dataset.class_names, palette=dataset.palette)
        galleries = [
            Gallery(
                pictures=tuple(Picture(data=data, caption=caption) for caption, data in image.panels), min_width_px=290
            )
            for image in images
        ]
        intro = Paragraph(text=f"Images at even distances over split {split!r}, not chosen by score.")
        sections.append(Section(title="The same images by each model", blocks=(intro, legend, *galleries)))
    subtitle = f"MLflow experiment {experiment!r}: {len(runs)} finished training run(s)"
    return render_page(
        f"Comparison: {experiment}",
        sections,
        subtitle=subtitle,
        footer="Written by jobs/compare.py; the table is in comparison.csv.",
    )


def _run_table(runs: Sequence[ComparedRun]) -> Table:
    heads = ("run", "network", "backbone", "output stride", *(column.title for column in COLUMNS), "scored on dataset")
    bests = [column.best(runs) for column in COLUMNS]
    rows = []
    for index, run in enumerate(runs):
        numbers = (
            number_cell(column.value(run), scale=column.scale, digits=column.digits, best=index in best)
            for column, best in zip(COLUMNS, bests, strict=True)
        )
        rows.append(
            (
                Cell(text=run.name),
                Cell(text=run.network),
                Cell(text=run.backbone),
                Cell(text=str(run.output_stride), order=run.output_stride),
                *numbers,
                Cell(text=run.scored_digest[:12]),
            )
        )
    return Table(columns=heads, rows=tuple(rows), numeric=tuple(range(3, 4 + len(COLUMNS))))


def _class_table(runs: Sequence[ComparedRun]) -> Table:
    rows = []
    for column in class_columns(runs):
        best = column.best(runs)
        cells = (number_cell(column.value(run), scale=100, best=index in best) for index, run in enumerate(runs))
        rows.append((Cell(text=column.title), *cells))
    return Table(
        columns=("class", *(run.name for run in runs)), rows=tuple(rows), numeric=tuple(range(1, len(runs) + 1))
    )


def _chart(runs: Sequence[ComparedRun]) -> tuple[Gallery, ...]:
    names = [column.title for column in class_columns(runs)]
    series = [
        (run.name, np.array([np.nan if (iou := run.iou(name)) is None else iou for name in names])) for run in runs
    ]
    return (Gallery(pictures=(Picture(data=iou_chart(series, names), card=True),)),)


def _differences(runs: Sequence[ComparedRun]) -> tuple[Block, ...]:
    differing = differing_fields(runs)
    if not differing:
        return (Paragraph(text="Nothing: one run, or all were given the same recipe, weights and data."),)
    rows = tuple((Cell(text=name), *(Cell(text=value) for value in values)) for name, values in differing.items())
    explanation = "Every setting of the recipe, the weights and the data that is not the same in all runs."
    return Paragraph(text=explanation), Table(columns=("setting", *(run.name for run in runs)), rows=rows)


def _emphasised(text: str, best: bool) -> Text:
    return Text(text, style="bold green" if best else "")
