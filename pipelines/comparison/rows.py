"""Rows of a comparison: runs that differ in their seed alone are one network, with a mean and a deviation."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, stdev

from pipelines.comparison.runs import ComparedRun

_WORD = re.compile(r"[^-_. ]+$")
_SEED_WORD = re.compile(r"[-_. ]+((seed|s)[-_. ]*)?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRow:
    """One network of a comparison.

    Attributes:
        name: of its run, or what the names of its runs have in common; unique.
        runs: one of each seed, by seed; one or more.
    """

    name: str
    runs: tuple[ComparedRun, ...]

    def values(self, value: Callable[[ComparedRun], float | None]) -> list[float]:
        """Of each run that has one."""
        return [found for run in self.runs if (found := value(run)) is not None]

    def mean(self, value: Callable[[ComparedRun], float | None]) -> float | None:
        """Over the runs that have a value; None where none has."""
        values = self.values(value)
        return fmean(values) if values else None

    def deviation(self, value: Callable[[ComparedRun], float | None]) -> float | None:
        """Standard deviation over the runs (n - 1 in the denominator); None for fewer than two values."""
        values = self.values(value)
        return stdev(values) if len(values) > 1 else None

    @property
    def mean_iou(self) -> float | None:
        """Mean over the seeds."""
        return self.mean(mean_iou)

    @property
    def best_run(self) -> ComparedRun:
        """The run with the highest mIoU, whose masks stand for the row; the first of equals."""
        return max(self.runs, key=lambda run: run.scores.get("mean_iou", -1.0))


def mean_iou(run: ComparedRun) -> float | None:
    """mIoU of a run, a fraction of 1, or None."""
    return run.scores.get("mean_iou")


def group_rows(runs: Sequence[ComparedRun], *, seeds_together: bool = True) -> list[ComparedRow]:
    """The runs as rows, best mean IoU first.

    A seed that was trained twice is a repetition, which begins a row of its own: two trainings of one recipe and one
    seed are compared, not averaged.

    Args:
        runs: names are unique.
        seeds_together: False gives each run a row of its own.
    """
    groups: dict[tuple[object, ...], list[ComparedRun]] = {}
    for number, run in enumerate(runs):
        repetition = 0
        while seeds_together and any(
            run.seed == other.seed for other in groups.get((repetition, *run.experiment()), [])
        ):
            repetition += 1
        key = (repetition, *run.experiment()) if seeds_together else (number,)
        groups.setdefault(key, []).append(run)
    rows = [
        ComparedRow(name=_name(group), runs=tuple(sorted(group, key=lambda run: run.seed))) for group in groups.values()
    ]
    names = [row.name for row in rows]
    unique = [
        ComparedRow(name=f"{row.name} ({row.runs[0].run_id[:6]})", runs=row.runs) if names.count(row.name) > 1 else row
        for row in rows
    ]
    return sorted(unique, key=lambda row: -1.0 if row.mean_iou is None else row.mean_iou, reverse=True)


def find_row(rows: Sequence[ComparedRow], name: str) -> ComparedRow:
    """The row called `name`, or a row of its own of the run of that name.

    Raises:
        ValueError: there is neither; the message lists what there is.
    """
    for row in rows:
        if row.name == name:
            return row
    for row in rows:
        for run in row.runs:
            if run.name == name:
                return ComparedRow(name=name, runs=(run,))
    known = ", ".join(dict.fromkeys(name for row in rows for name in (row.name, *(run.name for run in row.runs))))
    raise ValueError(f"--pair names {name!r}, which is no row and no run of this comparison; there are: {known}")


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of what nothing else beats: no other one costs at most as much and gains at least as much, one of the
    two strictly. Cheapest first.
    """
    points = list(zip(costs, gains, strict=True))
    front = [
        index
        for index, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]
    return sorted(front, key=lambda index: points[index])


def _name(runs: Sequence[ComparedRun]) -> str:
    """What the names of the runs begin with, without a word for the seed; else their recipe, or their network."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    common = "".join(letters[0] for letters in takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False)))
    if all(name[len(common) :].isdigit() or name == common for name in names):
        common = common.rstrip("0123456789")  # of -1 and -10
    else:
        common = _WORD.sub("", common)
    return _SEED_WORD.sub("", common) or runs[0].recipe_name or runs[0].network
