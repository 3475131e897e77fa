"""Our runs beside a paper's table: as a CSV file, for the terminal and as a section of the comparison's page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table as TerminalTable
from rich.text import Text

from pipelines.comparison.bounds import Bound, load_codes, measure_bounds
from pipelines.comparison.paper_tables import PaperTable, TableLine, find_table, rows_of, table_lines
from pipelines.comparison.report import printed
from pipelines.comparison.runs import ComparedRun
from pipelines.pages import Cell, Paragraph, Section, Table, number_cell
from pipelines.shards import PreparedDataset

HEADS = (
    "table",
    "row",
    "paper: mIoU, %",
    "mIoU*, %",
    "decoder, G",
    "ours",
    "runs",
    "mIoU, %",
    "mIoU*, %",
    "decoder, G",
)
WORDS = (0, 1, 5)
"""Columns that hold no numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BesideTable:
    """The comparison in three forms."""

    csv: bytes
    terminal: str
    section: Section


def beside_table(
    name: str,
    runs: Sequence[ComparedRun],
    dataset: PreparedDataset | None,
    *,
    split: str,
    num_bound_images: int,
    threads: int = 1,
) -> BesideTable:
    """Lay the runs beside the table called `name`, with mIoU* measured from true labels.

    Args:
        name: key of `TABLES`.
        runs: those of no row are left out.
        dataset: whose labels give mIoU*; None where it cannot be read.
        split: of the dataset.
        num_bound_images: at most, for mIoU*.
        threads: CPU threads.

    Raises:
        ValueError: no such table, or none of the runs is of one of its rows; the message lists what there is.
    """
    table = find_table(name)
    ours = [run for run in runs if rows_of(run, table)]
    if not ours:
        known = ", ".join(f"{run.name} ({run.recipe_name or 'no recipe recorded'})" for run in runs)
        raise ValueError(
            f"no run started from a recipe of table {name!r}: {known}; its recipes are called <dataset>."
            f"{', <dataset>.'.join(table.rows)}: train some with jobs/train.py, or leave --table out"
        )
    codes = load_codes(ours)
    solvers = {digest: code.code.solver for digest, code in codes.items() if not isinstance(code, str)}
    bounds = measure_bounds(ours, codes, dataset, split=split, num_images=num_bound_images, threads=threads)
    lines = [
        replace(line, bound=bounds[line.runs[0].run_id]) if line.runs else line
        for line in table_lines(ours, table, solvers=solvers)
    ]
    notes = table_notes(lines)
    return BesideTable(
        csv=table_csv(lines),
        terminal="\n".join([_terminal(table, lines), *notes]),
        section=_section(table, lines, notes, split=split),
    )


def table_csv(lines: Sequence[TableLine]) -> bytes:
    """One row per line; fractions and counts unscaled, empty where unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            *("table", "row", "method", "paper_mean_iou", "paper_bound", "paper_decoder_flops"),
            *("recipe", "variant", "runs", "num_runs", "mean_iou", "mean_iou_deviation"),
            *("bound", "bound_images", "bound_note", "decoder_flops", "scored_by", "scored_dataset_digest"),
        ]
    )
    for line in lines:
        paper, bound = line.paper, line.bound or Bound(mean_iou=None)
        flops = None if paper.decoder_gflops is None else round(paper.decoder_gflops * 1e9)
        values: list[object] = [paper.table, line.row, paper.method, paper.mean_iou, paper.bound, flops]
        if line.runs:
            first = line.runs[0]
            values += [first.recipe_name, line.variant, "; ".join(run.name for run in line.runs), len(line.runs)]
            values += [line.mean_iou, line.deviation, bound.mean_iou, bound.num_images, bound.note]
            values += [line.decoder_flops, first.scored_by, first.scored_digest]
        else:
            values += [None] * 12
        writer.writerow(["" if value is None else value for value in values])
    return buffer.getvalue().encode()


def table_notes(lines: Sequence[TableLine]) -> list[str]:
    """Why mIoU* is missing where it is, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line.bound is not None and line.bound.note:
            names = reasons.setdefault(line.bound.note, [])
            names += [run.name for run in line.runs if run.name not in names]
    return [f"No mIoU* of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def _cells(line: TableLine) -> tuple[Cell, ...]:
    """One line of the page's and the terminal's table."""
    paper = line.paper
    mean_iou = number_cell(line.mean_iou, scale=100, digits=2)
    if line.deviation is not None:
        mean_iou = replace(mean_iou, text=f"{mean_iou.text} ± {100 * line.deviation:.2f}")
    return (
        Cell(text=str(paper.table), order=paper.table),
        Cell(text=paper.method),
        number_cell(paper.mean_iou, scale=100, digits=2),
        number_cell(paper.bound, scale=100, digits=2),
        number_cell(paper.decoder_gflops, digits=2),
        Cell(text=_ours(line)),
        number_cell(len(line.runs) or None, digits=0),
        mean_iou,
        number_cell(line.bound.mean_iou if line.bound else None, scale=100, digits=2),
        number_cell(line.decoder_flops, scale=1e-9, digits=3),
    )


def _ours(line: TableLine) -> str:
    """Dataset of our recipe, its row where it is a twin's, and the variant: "camvid (table2_none): epochs 3"."""
    if not line.runs:
        return "-"
    dataset, _, row = line.runs[0].recipe_name.partition(".")
    recipe = dataset if row == line.row else f"{dataset} ({row})"
    return f"{recipe}: {line.variant}" if line.variant else recipe


def _terminal(table: PaperTable, lines: Sequence[TableLine]) -> str:
    shown = TerminalTable(title=f"Beside {table.source}", title_justify="left")
    for index, head in enumerate(HEADS):
        shown.add_column(head, justify="left" if index in WORDS else "right")
    for line in lines:
        shown.add_row(*(Text(cell.text) for cell in _cells(line)))
    return printed(shown)


def _section(table: PaperTable, lines: Sequence[TableLine], notes: Sequence[str], *, split: str) -> Section:
    num_images = max((line.bound.num_images for line in lines if line.bound), default=0)
    explanation = (
        f"Left: {table.source}, on VOC 2012 val. Right: ours; on other data or another backbone compare the "
        "differences between rows, not the scores. A line is one experiment: runs that differ in their seed alone, "
        "with mean and standard deviation. The variant names what flags changed in the recipe. A run stands at every "
        "row whose recipe is the same (in parentheses, its own). mIoU*: what comes back of the true labels of "
        f"{num_images} images of split {split!r} through the last step (bilinear: the share of each class in every "
        "block; data-dependent: the label code that the run was given); the paper fed labels in place of images. "
        "Decoder: billions of FLOPs, two per multiply-add outside backbone and ASPP and one per bias of the expansion, "
        "for 21 classes at 513 x 513."
    )
    rows = tuple(_cells(line) for line in lines)
    numeric = tuple(index for index in range(len(HEADS)) if index not in WORDS)
    return Section(
        title="Beside the paper",
        blocks=(
            *(Paragraph(text=note, warning=True) for note in notes),
            Table(columns=HEADS, rows=rows, numeric=numeric),
            Paragraph(text=explanation),
        ),
    )
