"""A comparison as sections of a page, which are rendered as HTML and as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.charts import iou_chart, pareto_chart
from pipelines.comparison.columns import COLUMNS, class_columns
from pipelines.comparison.moved import BOTH_WRONG, GAINED, LOST, Movement
from pipelines.comparison.pictures import SameImage
from pipelines.comparison.rows import ComparedRow, mean_iou, pareto_front
from pipelines.comparison.runs import ComparedRun, differing_fields
from pipelines.comparison.significance import DRAWS, RowPair
from pipelines.evaluation.page import interval_cell
from pipelines.pages import Block, Cell, Gallery, Legend, Paragraph, Picture, Section, Table, number_cell
from pipelines.shards import PreparedDataset

MOVED_WIDTH_PX = 230
SAME_WIDTH_PX = 290


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        experiment: of MLflow.
        rows: networks, best first.
        pairs: of rows that were scored on the same images.
        movement: from one row to another, or None.
        images: pictures by every row, or none.
        dataset: where the pictures come from, for the colours; None where there are none.
        split: name.
        notes: warnings to show on top.
        threads: CPU threads that speeds were measured with.
        paper: the runs beside a paper's table, or None.
    """

    experiment: str
    rows: Sequence[ComparedRow]
    pairs: Sequence[RowPair]
    movement: Movement | None
    images: Sequence[SameImage]
    dataset: PreparedDataset | None
    split: str
    notes: Sequence[str]
    threads: int
    paper: Section | None = None

    @property
    def runs(self) -> list[ComparedRun]:
        """Of all rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def title(self) -> str:
        """Of the page."""
        return f"Comparison: {self.experiment}"

    @property
    def subtitle(self) -> str:
        """What was compared, in a line."""
        return (
            f"MLflow experiment {self.experiment!r}: {len(self.runs)} finished training run(s) of {len(self.rows)} "
            "network(s)"
        )


def comparison_sections(comparison: Comparison) -> list[Section]:
    """The page, top to bottom."""
    notes = [Paragraph(text=note, warning=True) for note in comparison.notes]
    explanation = Paragraph(text=_explanation(comparison))
    rows = comparison.rows
    sections = [Section(title="", blocks=(*notes, _row_table(rows), explanation))]
    if comparison.pairs:
        sections.append(_pair_section(comparison.pairs))
    sections += pareto_sections(rows, threads=comparison.threads)
    if comparison.paper is not None:
        sections.append(comparison.paper)
    sections.append(Section(title="IoU by class", blocks=(_class_table(rows), *_chart(rows))))
    if comparison.movement is not None:
        sections += _movement_sections(comparison.movement, comparison.dataset)
    sections.append(Section(title="What differs", blocks=_differences(rows)))
    if len(comparison.runs) > len(rows):
        sections.append(Section(title="Runs", blocks=(_run_table(rows),)))
    if comparison.images and comparison.dataset is not None:
        sections.append(_same_images(comparison.images, comparison.dataset, comparison.split))
    return sections


def pareto_sections(rows: Sequence[ComparedRow], *, threads: int) -> list[Section]:
    """What each point of mIoU costs: none where fewer than two rows have a score and a cost at one image size."""
    if len({run.cost_size for row in rows for run in row.runs}) > 1:
        return []
    costs = {
        f"time per image on {threads} CPU thread(s) of this machine, ms": lambda run: (
            1000 / run.images_per_second if run.images_per_second else None
        ),
        "multiply-adds per image, G": lambda run: run.multiply_adds / 1e9 if run.multiply_adds else None,
    }
    pictures, sentences = [], []
    for label, value in costs.items():
        known = [(row, cost) for row in rows if row.mean_iou is not None and (cost := row.mean(value)) is not None]
        if len(known) < 2:
            continue
        gains = [row.mean_iou or 0.0 for row, _ in known]
        deviations = [row.deviation(mean_iou) for row, _ in known]
        front = pareto_front([cost for _, cost in known], gains)
        chart = pareto_chart(
            [row.name for row, _ in known],
            [cost for _, cost in known],
            gains,
            [math.nan if one is None else one for one in deviations],
            front=front,
            label=label,
        )
        pictures.append(Picture(data=chart, card=True))
        names = ", ".join(known[index][0].name for index in front)
        sentences.append(f"By {label.partition(',')[0]}: {names}.")
    if not pictures:
        return []
    text = (
        "Filled points are the Pareto front: no other network is at most as costly and at least as good. "
        + " ".join(sentences)
        + " Bars are standard deviations over seeds."
    )
    return [Section(title="Worth its cost", blocks=(Paragraph(text=text), Gallery(pictures=tuple(pictures))))]


def _explanation(comparison: Comparison) -> str:
    runs = comparison.runs
    sizes = ", ".join(f"{height} x {width}" for height, width in sorted({run.cost_size for run in runs}))
    return (
        f"Scores: {', '.join(sorted({run.scored_by for run in runs}))}. Runs that differ in their seed alone are one "
        "network: mean ± standard deviation over its seeds. "
        f"Multiply-adds of one image of {sizes} pixels, one per multiplication. Images per second: one image at a time "
        f"on {comparison.threads} CPU thread(s) of the machine that wrote this page, as segment runs it. Training: "
        "time in epochs, validation included. The best of each column is emphasised; a click on a column's head sorts."
    )


def _row_table(rows: Sequence[ComparedRow]) -> Table:
    heads = ("network", "runs", "architecture", "backbone", "output stride", *(column.title for column in COLUMNS))
    bests = [column.best_rows(rows) for column in COLUMNS]
    lines = []
    for index, row in enumerate(rows):
        first = row.runs[0]
        numbers = (column.cell(row, best=index in best) for column, best in zip(COLUMNS, bests, strict=True))
        lines.append(
            (
                Cell(text=row.name),
                number_cell(len(row.runs), digits=0),
                Cell(text=first.network),
                Cell(text=first.backbone),
                Cell(text=str(first.output_stride), order=first.output_stride),
                *numbers,
                Cell(text=first.scored_digest[:12]),
            )
        )
    numeric = (1, *range(4, 5 + len(COLUMNS)))
    return Table(columns=(*heads, "scored on dataset"), rows=tuple(lines), numeric=numeric)


def _pair_section(pairs: Sequence[RowPair]) -> Section:
    lines = []
    for pair in pairs:
        difference = pair.difference
        lines.append(
            (
                Cell(text=pair.second.name),
                Cell(text=pair.first.name),
                Cell(text=pair.verdict, best=pair.verdict.endswith("is better")),
                number_cell(difference.mean_iou, scale=100, digits=2),
                interval_cell(*difference.mean_iou_interval),
                number_cell(difference.mean_iou_p, digits=4),
                number_cell(pair.adjusted_p, digits=4),
                Cell(text=pair.seeds),
            )
        )
    heads = ("network", "minus", "verdict", "points of mIoU", "95 % interval", "p", "p, adjusted", "seeds")
    text = (
        f"Paired bootstrap: the images are drawn again {DRAWS:,} times, both networks are scored on each draw, their "
        "difference is looked at. p is small where nearly all draws agree on the better one; adjusted (Holm), it holds "
        "for all pairs of this table together, and below 0.05 the networks differ. This is about the choice of images. "
        "What another seed would give, only seeds tell: they are apart where every run of the one beats every run of "
        "the other. Neighbouring frames of one drive are no independent images, and make p too small."
    )
    table = Table(columns=heads, rows=tuple(lines), numeric=(3, 4, 5, 6))
    return Section(title="Is the difference real?", blocks=(table, Paragraph(text=text)))


def _class_table(rows: Sequence[ComparedRow]) -> Table:
    lines = []
    for column in class_columns([run for row in rows for run in row.runs]):
        best = column.best_rows(rows)
        cells = (column.cell(row, best=index in best) for index, row in enumerate(rows))
        lines.append((Cell(text=column.title), *cells))
    numeric = tuple(range(1, len(rows) + 1))
    return Table(columns=("class", *(row.name for row in rows)), rows=tuple(lines), numeric=numeric)


def _chart(rows: Sequence[ComparedRow]) -> tuple[Gallery, ...]:
    columns = class_columns([run for row in rows for run in row.runs])
    series = [
        (row.name, np.array([np.nan if (iou := row.mean(column.value)) is None else iou for column in columns]))
        for row in rows
    ]
    return (Gallery(pictures=(Picture(data=iou_chart(series, [column.title for column in columns]), card=True),)),)


def _movement_sections(movement: Movement, dataset: PreparedDataset | None) -> list[Section]:
    first, second = movement.first.name, movement.second.name
    lines = tuple(
        (
            Cell(text=move.name),
            number_cell(move.first, scale=100),
            number_cell(move.second, scale=100),
            number_cell(move.difference, scale=100),
            interval_cell(move.low, move.high),
            number_cell(move.p, digits=4),
        )
        for move in movement.classes
    )
    heads = ("class", f"{first}, %", f"{second}, %", "difference, points", "95 % interval", "p")
    text = (
        f"IoU of each class, from {first} to {second}, means over the seeds, what moved most first. p is of each class "
        "by itself: of many classes some fall below 0.05 by chance."
    )
    table = Table(columns=heads, rows=lines, numeric=(1, 2, 3, 4, 5))
    sections = [Section(title=f"Classes that moved: {first} to {second}", blocks=(Paragraph(text=text), table))]
    if movement.pictures and dataset is not None:
        sections.append(_moved_images(movement, dataset))
    return sections


def _moved_images(movement: Movement, dataset: PreparedDataset) -> Section:
    before, after = (run.name for run in movement.shown)
    text = (
        f"The {len(movement.pictures)} images whose mean IoU (over the classes of the one image) differs most between "
        f"run {before} and run {after}, most first. In the difference, colours stand where the masks differ."
    )
    legends = (
        Legend(class_names=dataset.class_names, palette=dataset.palette),
        Legend(
            class_names=(f"{after} alone is right", f"{before} alone is right", "both are wrong, differently"),
            palette=(GAINED, LOST, BOTH_WRONG),
            ignored=False,
        ),
    )
    galleries = [
        Gallery(
            pictures=tuple(Picture(data=data, caption=caption) for caption, data in image.panels),
            min_width_px=MOVED_WIDTH_PX,
        )
        for image in movement.pictures
    ]
    return Section(title="Images that moved", blocks=(Paragraph(text=text), *legends, *galleries))


def _differences(rows: Sequence[ComparedRow]) -> tuple[Block, ...]:
    differing = differing_fields([row.runs[0] for row in rows])
    if not differing:
        return (Paragraph(text="Nothing: one network, or all were given the same recipe, weights and data."),)
    lines = tuple((Cell(text=name), *(Cell(text=value) for value in values)) for name, values in differing.items())
    explanation = "Every setting of the recipe, the weights and the data that is not the same in all networks."
    return Paragraph(text=explanation), Table(columns=("setting", *(row.name for row in rows)), rows=lines)


def _run_table(rows: Sequence[ComparedRow]) -> Table:
    heads = ("network", "run", "seed", *(column.title for column in COLUMNS), "MLflow run")
    lines = tuple(
        (
            Cell(text=row.name),
            Cell(text=run.name),
            number_cell(run.seed, digits=0),
            *(number_cell(column.value(run), scale=column.scale, digits=column.digits) for column in COLUMNS),
            Cell(text=run.run_id),
        )
        for row in rows
        for run in row.runs
    )
    return Table(columns=heads, rows=lines, numeric=tuple(range(2, 3 + len(COLUMNS))))


def _same_images(images: Sequence[SameImage], dataset: PreparedDataset, split: str) -> Section:
    legend = Legend(class_names=dataset.class_names, palette=dataset.palette)
    galleries = [
        Gallery(
            pictures=tuple(Picture(data=data, caption=caption) for caption, data in image.panels),
            min_width_px=SAME_WIDTH_PX,
        )
        for image in images
    ]
    text = (
        f"Images at even distances over split {split!r}, not chosen by score; of several seeds the best run's masks "
        "are shown."
    )
    return Section(title="The same images by each network", blocks=(Paragraph(text=text), legend, *galleries))
