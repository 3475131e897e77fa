"""Our runs beside a paper's table: as a CSV file, for the terminal and as a section of the comparison's page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table as TerminalTable
from rich.text import Text

from pipelines.comparison.bounds import Bound, load_codes, measure_bounds
from pipelines.comparison.paper_tables import TableLine, find_table, names_recipes, rows_of, table_lines
from pipelines.comparison.published_tables import CODE, TABLE, PaperTable
from pipelines.comparison.report import csv_file, printed
from pipelines.comparison.runs import ComparedRun
from pipelines.pages import Cell, Paragraph, Section, Table, number_cell
from pipelines.shards import PreparedDataset


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that papers print and we have too.

    Attributes:
        head: of both columns.
        paper, ours: of a line; None where unknown.
        scale, digits: of ours.
        paper_scale: of the paper's.
    """

    head: str
    paper: Callable[[TableLine], float | None]
    ours: Callable[[TableLine], float | None]
    scale: float = 1.0
    digits: int = 2
    paper_scale: float = 1.0


QUANTITIES = (
    Quantity("mIoU, %", lambda line: line.paper.mean_iou, lambda line: line.mean_iou, scale=100, paper_scale=100),
    Quantity(
        "mIoU*, %",
        lambda line: line.paper.bound,
        lambda line: line.bound.mean_iou if line.bound else None,
        scale=100,
        paper_scale=100,
    ),
    Quantity(
        "decoder, G", lambda line: line.paper.decoder_gflops, lambda line: line.decoder_flops, scale=1e-9, digits=3
    ),
    Quantity("cost, G", lambda line: line.paper.cost_g, lambda line: line.multiply_adds, scale=1e-9),
    Quantity("size, M", lambda line: line.paper.size_m, lambda line: line.parameters, scale=1e-6),
    Quantity("ms", lambda line: line.paper.milliseconds, lambda line: line.milliseconds, digits=1),
)
"""Those that no row of a table has are not shown beside it."""
EXPLANATIONS = {
    "mIoU*, %": (
        " mIoU*: what comes back of the true labels of {num_images} images of split {split!r} through the last step "
        "(bilinear: the share of each class in every block; data-dependent: the label code that the run was given); "
        "the paper fed labels in place of images."
    ),
    "decoder, G": (
        " Decoder: billions of FLOPs, two per multiply-add outside backbone and ASPP and one per bias of the "
        "expansion, for 21 classes at 513 x 513."
    ),
    "cost, G": " Cost: the paper's as printed; ours, multiply-adds at the paper's image size and classes.",
    "size, M": " Size: the paper's as printed; ours, parameters.",
    "ms": " Time per image: the paper's GPU; this machine's CPU, at the size of our images.",
}


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
            f"no run started from a recipe of table {name!r}: {known}; its recipes are called "
            f"{', '.join(_recipes(table))}: train some with jobs/train.py, or leave --table out"
        )
    codes = load_codes(ours)
    solvers = {digest: code.code.solver for digest, code in codes.items() if not isinstance(code, str)}
    lines = table_lines(ours, table, solvers=solvers)
    if any(row.bound is not None for row in table.rows.values()):
        bounds = measure_bounds(ours, codes, dataset, split=split, num_images=num_bound_images, threads=threads)
        lines = [replace(line, bound=bounds[line.runs[0].run_id]) if line.runs else line for line in lines]
    notes = table_notes(lines)
    return BesideTable(
        csv=table_csv(lines),
        terminal="\n".join([_terminal(table, lines), *notes]),
        section=_section(table, lines, notes, split=split),
    )


def _recipes(table: PaperTable) -> list[str]:
    if names_recipes(table):
        return list(dict.fromkeys(recipe for row in table.rows.values() for recipe in row.recipes))
    return [f"<dataset>.{row}" for row in table.rows]


def table_csv(lines: Sequence[TableLine]) -> bytes:
    """One row per line; fractions and counts unscaled, empty where unknown. A paper's cost and size are as printed."""
    head = [
        *("table", "row", "method", "paper_data", "paper_source", "paper_mean_iou", "paper_bound"),
        *("paper_decoder_flops", "paper_cost", "paper_size", "paper_milliseconds"),
        *("recipe", "variant", "runs", "num_runs", "mean_iou", "mean_iou_deviation"),
        *("bound", "bound_images", "bound_note", "decoder_flops", "multiply_adds", "parameters", "milliseconds"),
        *("scored_by", "scored_dataset_digest", "missing"),
    ]
    rows = []
    for line in lines:
        paper, bound = line.paper, line.bound or Bound(mean_iou=None)
        values: list[object] = [paper.table, line.row, paper.method, paper.data, paper.source, paper.mean_iou]
        values += [paper.bound, _billions(paper.decoder_gflops), _billions(paper.cost_g)]
        values += [None if paper.size_m is None else round(paper.size_m * 1e6), paper.milliseconds]
        if line.runs:
            first = line.runs[0]
            values += [first.recipe_name, line.variant, "; ".join(run.name for run in line.runs), len(line.runs)]
            values += [line.mean_iou, line.deviation, bound.mean_iou, bound.num_images, bound.note]
            values += [line.decoder_flops, line.multiply_adds, line.parameters, line.milliseconds]
            values += [first.scored_by, first.scored_digest]
        else:
            values += [None] * 15
        rows.append([*values, line.missing])
    return csv_file(head, rows)


def _billions(value: float | None) -> int | None:
    return None if value is None else round(value * 1e9)


def table_notes(lines: Sequence[TableLine]) -> list[str]:
    """Why mIoU* is missing where it is, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line.bound is not None and line.bound.note:
            names = reasons.setdefault(line.bound.note, [])
            names += [run.name for run in line.runs if run.name not in names]
    return [f"No mIoU* of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def _quantities(lines: Sequence[TableLine]) -> list[Quantity]:
    return [quantity for quantity in QUANTITIES if any(quantity.paper(line) is not None for line in lines)]


def _heads(lines: Sequence[TableLine]) -> tuple[str, ...]:
    """The paper's columns stand left of "ours", ours right of it."""
    heads = [quantity.head for quantity in _quantities(lines)]
    return ("table", "row", "data", f"paper: {heads[0]}", *heads[1:], "ours", "runs", *heads, "missing")


def _numeric(heads: Sequence[str]) -> tuple[int, ...]:
    words = ("table", "row", "data", "ours", "missing")
    return tuple(index for index, head in enumerate(heads) if head not in words)


def _cells(line: TableLine, quantities: Sequence[Quantity]) -> tuple[Cell, ...]:
    """One line of the page's and the terminal's table."""
    paper = line.paper
    ours = [number_cell(each.ours(line), scale=each.scale, digits=each.digits) for each in quantities]
    if line.deviation is not None:
        ours[0] = replace(ours[0], text=f"{ours[0].text} ± {100 * line.deviation:.2f}")
    return (
        Cell(text=paper.table),
        Cell(text=paper.method),
        Cell(text=f"{paper.data} [{paper.source}]"),
        *(number_cell(each.paper(line), scale=each.paper_scale, digits=2) for each in quantities),
        Cell(text=_ours(line)),
        number_cell(len(line.runs) or None, digits=0),
        *ours,
        Cell(text=line.missing or "-"),
    )


def _ours(line: TableLine) -> str:
    """Dataset of our recipe, its row where it is a twin's, and the variant: "camvid (table2_none): epochs 3"."""
    if not line.runs:
        return "-"
    dataset, _, row = line.runs[0].recipe_name.partition(".")
    recipe = dataset if row == line.row else f"{dataset} ({row})"
    return f"{recipe}: {line.variant}" if line.variant else recipe


def _terminal(table: PaperTable, lines: Sequence[TableLine]) -> str:
    """Without the columns of sentences, for which a terminal is too narrow."""
    shown = TerminalTable(title=f"Beside {table.source}", title_justify="left")
    heads = _heads(lines)
    kept = [index for index, head in enumerate(heads) if head not in ("data", "missing")]
    for index in kept:
        shown.add_column(heads[index], justify="right" if index in _numeric(heads) else "left")
    for line in lines:
        cells = _cells(line, _quantities(lines))
        shown.add_row(*(Text(cells[index].text) for index in kept))
    return printed(shown)


def _section(table: PaperTable, lines: Sequence[TableLine], notes: Sequence[str], *, split: str) -> Section:
    explanation = (
        f"Left: {table.source}; read in a table of the paper [{TABLE}], or in released code or its documentation "
        f"[{CODE}]. Right: ours; on other data or another backbone compare the differences between rows, not the "
        "scores. A line is one experiment: runs that differ in their seed alone, with mean and standard deviation. The "
        "variant names what flags changed in the recipe."
    )
    if not names_recipes(table):
        explanation += " A run stands at every row whose recipe is the same (in parentheses, its own)."
    heads = _heads(lines)
    num_images = max((line.bound.num_images for line in lines if line.bound), default=0)
    for quantity in _quantities(lines):
        explanation += EXPLANATIONS.get(quantity.head, "").format(num_images=num_images, split=split)
    rows = tuple(_cells(line, _quantities(lines)) for line in lines)
    return Section(
        title="Beside the paper",
        blocks=(
            *(Paragraph(text=note, warning=True) for note in notes),
            Table(columns=heads, rows=rows, numeric=_numeric(heads), wide=(len(heads) - 1,)),
            Paragraph(text=explanation),
        ),
    )
