"""The numbers of a comparison: how each is taken from a run, averaged over the seeds of a row, shown and emphasised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.comparison.rows import ComparedRow, mean_iou
from pipelines.comparison.runs import ComparedRun
from pipelines.pages import Cell, number_cell


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
        return self._best([self.value(run) for run in runs])

    def best_rows(self, rows: Sequence[ComparedRow]) -> set[int]:
        """`best` of the rows' means."""
        return self._best([row.mean(self.value) for row in rows])

    def cell(self, row: ComparedRow, *, best: bool = False) -> Cell:
        """The mean of a row, with the deviation over its seeds where it has several."""
        cell = number_cell(row.mean(self.value), scale=self.scale, digits=self.digits, best=best)
        deviation = row.deviation(self.value)
        if not deviation:  # also where all seeds have one value, as parameters
            return cell
        return replace(cell, text=f"{cell.text} ± {deviation * self.scale:,.{self.digits}f}")

    def _best(self, found: Sequence[float | None]) -> set[int]:
        values = {index: value for index, value in enumerate(found) if value is not None}
        shown = {index: self.sign * round(value * self.scale, self.digits) for index, value in values.items()}
        if not self.sign or len(shown) < 2 or len(set(shown.values())) == 1:
            return set()
        return {index for index, value in shown.items() if value == max(shown.values())}


COLUMNS = (
    Column("mIoU, %", "mean_iou", mean_iou, 100, 2, 1),
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
