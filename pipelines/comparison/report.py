"""A comparison as CSV files and as tables for a terminal."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from pipelines.comparison.columns import COLUMNS, class_columns
from pipelines.comparison.moved import Movement
from pipelines.comparison.rows import ComparedRow
from pipelines.comparison.runs import ComparedRun, differing_fields
from pipelines.comparison.significance import RowPair


def csv_file(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(["" if value is None else value for value in row])
    return buffer.getvalue().encode()


def csv_bytes(runs: Sequence[ComparedRun]) -> bytes:
    """One row per run; fractions, counts and seconds unscaled, empty where unknown."""
    columns = [*COLUMNS, *class_columns(runs)]
    differing = differing_fields(runs)
    facts = (
        *("run", "run_id", "network", "backbone", "output_stride"),
        *("scored_by", "scored_dataset_digest", "model_folder"),
    )
    return csv_file(
        [*facts, *(column.csv_name for column in columns), *(f"setting/{name}" for name in differing)],
        (
            [
                *(run.name, run.run_id, run.network, run.backbone, run.output_stride),
                *(run.scored_by, run.scored_digest, run.model_folder),
                *(column.value(run) for column in columns),
                *(settings[index] for settings in differing.values()),
            ]
            for index, run in enumerate(runs)
        ),
    )


def rows_csv(rows: Sequence[ComparedRow]) -> bytes:
    """One row per network: means over its seeds, and for each the standard deviation, empty for one seed."""
    columns = [*COLUMNS, *class_columns([run for row in rows for run in row.runs])]
    heads = [name for column in columns for name in (column.csv_name, f"{column.csv_name}_deviation")]
    return csv_file(
        ["row", "num_runs", "runs", "seeds", "network", "backbone", "output_stride", *heads],
        (
            [
                *(row.name, len(row.runs), "; ".join(run.name for run in row.runs)),
                " ".join(str(run.seed) for run in row.runs),
                *(row.runs[0].network, row.runs[0].backbone, row.runs[0].output_stride),
                *(value for column in columns for value in (row.mean(column.value), row.deviation(column.value))),
            ]
            for row in rows
        ),
    )


def pairs_csv(pairs: Sequence[RowPair]) -> bytes:
    """One row per pair of networks on the same images; fractions of 1."""
    return csv_file(
        ["better", "other", "difference", "difference_low", "difference_high", "p", "adjusted_p", "seeds", "verdict"],
        (
            [
                *(pair.second.name, pair.first.name, pair.difference.mean_iou, *pair.difference.mean_iou_interval),
                *(pair.difference.mean_iou_p, pair.adjusted_p, pair.seeds, pair.verdict),
            ]
            for pair in pairs
        ),
    )


def class_moves_csv(movement: Movement) -> bytes:
    """One row per class, from the first network to the second; fractions of 1, empty where a class has no IoU."""
    return csv_file(
        ["class", "first", "second", "difference", "difference_low", "difference_high", "p"],
        (
            [move.name, *(None if number != number else number for number in numbers)]
            for move in movement.classes
            for numbers in [(move.first, move.second, move.difference, move.low, move.high, move.p)]
        ),
    )


def image_moves_csv(movement: Movement) -> bytes:
    """One row per image that moved, most first; fractions of 1."""
    return csv_file(
        ["image_id", "first", "second", "difference"],
        ([move.image_id, move.first, move.second, move.difference] for move in movement.images),
    )


def terminal_tables(rows: Sequence[ComparedRow], pairs: Sequence[RowPair] = ()) -> str:
    """Tables as text: the networks, the pairs, and IoU by class; in colour where standard output is a terminal."""
    summary = TerminalTable(title="Networks, best first", title_justify="left")
    for head in ("network", "runs", "architecture", "backbone", "OS"):
        summary.add_column(head)
    for column in COLUMNS:
        summary.add_column(column.title, justify="right")
    bests = [column.best_rows(rows) for column in COLUMNS]
    for index, row in enumerate(rows):
        numbers = [
            _emphasised(column.cell(row).text, index in best) for column, best in zip(COLUMNS, bests, strict=True)
        ]
        first = row.runs[0]
        facts = (str(len(row.runs)), first.network, first.backbone, str(first.output_stride))
        summary.add_row(Text(row.name), *facts, *numbers)
    by_class = TerminalTable(title="IoU by class, %", title_justify="left")
    by_class.add_column("class")
    for row in rows:
        by_class.add_column(Text(row.name), justify="right")
    for column in class_columns([run for row in rows for run in row.runs]):
        best = column.best_rows(rows)
        texts = [column.cell(row).text for row in rows]
        by_class.add_row(Text(column.title), *(_emphasised(text, index in best) for index, text in enumerate(texts)))
    return printed(summary, *([_pair_table(pairs)] if pairs else []), by_class)


def _pair_table(pairs: Sequence[RowPair]) -> TerminalTable:
    table = TerminalTable(title="On the same images, in points of mIoU", title_justify="left")
    for head in ("network", "minus", "difference", "95 % interval", "p, adjusted", "verdict"):
        table.add_column(head, justify="right" if head in ("difference", "p, adjusted") else "left")
    for pair in pairs:
        low, high = pair.difference.mean_iou_interval
        numbers = (f"{100 * pair.difference.mean_iou:.2f}", f"{100 * low:.2f} to {100 * high:.2f}")
        names = Text(pair.second.name), Text(pair.first.name)
        table.add_row(*names, *numbers, f"{pair.adjusted_p:.4f}", Text(pair.verdict))
    return table


def printed(*tables: TerminalTable) -> str:
    """Tables as text; in colour where standard output is a terminal."""
    terminal = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=None if terminal else 140)
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def _emphasised(text: str, best: bool) -> Text:
    return Text(text, style="bold green" if best else "")
