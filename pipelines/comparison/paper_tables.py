"""Which of our runs belong to which row of a paper's table.

A run belongs to a row that names its recipe, whatever flags then changed. In a table that names none, as DUpsampling's,
it belongs to the row of its recipe's name (`<dataset>.<row>`), and to every row whose recipe is the same, since the
paper prints some networks twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, stdev

from pipelines import tracking
from pipelines.comparison.bounds import Bound
from pipelines.comparison.published_tables import NO_RECIPE, TABLES, UNCONFIRMED, PaperRow, PaperTable
from pipelines.comparison.runs import SEED, SETTINGS, ComparedRun
from pipelines.recipes import RECIPES, find_recipe, recipe_to_dict
from segcore.cost import count_multiply_adds, decoder_multiply_adds
from segcore.label_pca import PCA
from segcore.models import ModelConfig, meta_model, needed_label_pca

PAPER_CLASSES, PAPER_SIZE_PX = 21, 513
"""VOC 2012's classes and the side of the image that decoder costs are counted at."""
DIGEST_LETTERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLine:
    """A row of the paper, and the runs of ours that are one experiment of it.

    Attributes:
        row: its name, without a dataset.
        paper: as published.
        variant: what the runs do otherwise than their recipe, or "".
        runs: of one experiment, but for the seed; none where nobody ran the row.
        bound: mIoU* of the runs, or None where there are none or the table prints none.
        named: whether the table names the recipes of its rows.
    """

    row: str
    paper: PaperRow
    variant: str = ""
    runs: tuple[ComparedRun, ...] = ()
    bound: Bound | None = None
    named: bool = False

    @property
    def scores(self) -> list[float]:
        """mIoU of each run that has one."""
        return [run.scores["mean_iou"] for run in self.runs if "mean_iou" in run.scores]

    @property
    def mean_iou(self) -> float | None:
        """Mean over the runs."""
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Of the runs' mIoU (n - 1 in the denominator); None for fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def decoder_flops(self) -> int | None:
        """Of our network, counted as the DUpsampling paper does; None in other tables."""
        return decoder_flops(self.runs[0].model_config) if self.runs and not self.named else None

    @property
    def multiply_adds(self) -> int | None:
        """Of our network, for an image and classes as the paper's cost is of; None where that is not known."""
        if not self.runs or self.paper.size_px is None:
            return None
        return network_multiply_adds(self.runs[0].model_config, self.paper.num_classes, *self.paper.size_px)

    @property
    def parameters(self) -> int | None:
        """Of our network, for the run's own classes."""
        return self.runs[0].parameters if self.runs else None

    @property
    def milliseconds(self) -> float | None:
        """Per image, measured where the comparison ran, at the size of its images; mean over the runs."""
        measured = [1000 / run.images_per_second for run in self.runs if run.images_per_second]
        return fmean(measured) if measured else None

    @property
    def missing(self) -> str:
        """What the row still needs, and what keeps ours from being the same experiment."""
        parts = [self.paper.missing]
        if self.paper.mean_iou is None and UNCONFIRMED not in self.paper.missing:
            parts.append("the paper prints no mIoU")
        if not self.runs and self.paper.recipes:
            parts.append(f"no run of {self.paper.recipes[0]}" + _shown_in_words(self.paper))
        elif not self.runs and self.named:
            parts.append(NO_RECIPE)
        elif not self.runs:
            parts.append(f"no run of a recipe <dataset>.{self.row}")
        elif len(self.scores) < 2:
            parts.append("one seed" if self.scores else "no score")
        return "; ".join(part for part in parts if part)


def find_table(name: str) -> PaperTable:
    """The table called `name`.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if name not in TABLES:
        raise ValueError(f"unknown --table {name!r}; known: {', '.join(TABLES)}")
    return TABLES[name]


def names_recipes(table: PaperTable) -> bool:
    """Whether the rows of a table name their recipes, or are called as these are."""
    return any(row.recipes for row in table.rows.values())


@lru_cache
def network_multiply_adds(config: ModelConfig, num_classes: int, height: int, width: int) -> int:
    """Multiply-adds of a network for one image of height x width, without weights and arithmetic."""
    return count_multiply_adds(meta_model(config, num_classes), height, width)


@lru_cache
def decoder_flops(config: ModelConfig) -> int:
    """Decoder FLOPs as tables 2 and 3 of the DUpsampling paper count them: for VOC's classes, at 513 x 513.

    Two per multiply-add, and one per bias that data-dependent upsampling adds (h w R^2 C). Reproduces the published
    figures within 1 %, but for the row that ran out of memory.
    """
    network = meta_model(config, PAPER_CLASSES)
    flops = 2 * decoder_multiply_adds(network, PAPER_SIZE_PX, PAPER_SIZE_PX)
    size = needed_label_pca(config)
    if size is None:
        return flops
    blocks = -(-PAPER_SIZE_PX // size.block_side)
    return flops + PAPER_CLASSES * (blocks * size.block_side) ** 2


def rows_of(run: ComparedRun, table: PaperTable) -> list[str]:
    """Rows that a run belongs to: those that name its recipe and were scored as it was; else that of its recipe, and
    those whose recipe differs in nothing but the name."""
    if names_recipes(table):
        several = any(each.startswith(("flip True", "scales")) for each in run.shown)
        return [
            row
            for row, paper in table.rows.items()
            if run.recipe_name in paper.recipes and paper.several_scales in (None, several)
        ]
    dataset, _, row = run.recipe_name.partition(".")
    if row not in table.rows:
        return []
    if run.recipe_name not in RECIPES:
        return [row]
    recipe = replace(find_recipe(run.recipe_name), recipe_name="")
    twins = (other for other in table.rows if f"{dataset}.{other}" in RECIPES)
    return [other for other in twins if RECIPES[f"{dataset}.{other}"]() == recipe]


def overrides(run: ComparedRun) -> list[str]:
    """What flags changed in the run's recipe, "name value" each, without the seed."""
    if run.recipe_name not in RECIPES:
        return [f"recipe {run.recipe_name} is not known here"]
    recipe = tracking.flat_parameters(recipe_to_dict(find_recipe(run.recipe_name)))
    changed = {name: value for name, value in run.settings.items() if name in recipe and value != recipe[name]}
    return [f"{name.rpartition('.')[2]} {value}" for name, value in sorted(changed.items()) if name != SEED]


def table_lines(runs: Sequence[ComparedRun], table: PaperTable, *, solvers: Mapping[str, str]) -> list[TableLine]:
    """The paper's rows in order, each with a line per experiment of ours, or with one line where there is none.

    Runs are one experiment if they differ in their seed alone and were scored in one way on the same data.

    Args:
        runs: any; those of no row are left out.
        table: one of `TABLES`.
        solvers: how label codes were found, by the digest of their folders, as far as these can be read.
    """
    groups: dict[tuple[object, ...], list[ComparedRun]] = {}
    for run in runs:
        if rows_of(run, table):
            groups.setdefault(run.experiment(), []).append(run)
    experiments = [(_variant(group[0], solvers), tuple(group)) for group in groups.values()]
    lines: list[TableLine] = []
    named = names_recipes(table)
    for row, paper in table.rows.items():
        ours = [(variant, group) for variant, group in experiments if row in rows_of(group[0], table)]
        told_apart = _told_apart(ours)
        lines += [
            TableLine(row=row, paper=paper, variant=variant, runs=group, named=named) for variant, group in told_apart
        ]
        if not ours:
            lines.append(TableLine(row=row, paper=paper, named=named))
    return lines


def _shown_in_words(paper: PaperRow) -> str:
    if paper.several_scales is None:
        return ""
    return " at several scales (evaluate --recipe-inference)" if paper.several_scales else " at one scale"


def _variant(run: ComparedRun, solvers: Mapping[str, str]) -> str:
    """What a run does otherwise than its recipe: fields that flags changed, and another label code than a PCA."""
    solver = solvers.get(run.settings.get("label_pca_digest", ""), PCA)
    return ", ".join([*overrides(run), *([f"label code {solver}"] if solver != PCA else [])])


def _told_apart(
    experiments: Sequence[tuple[str, tuple[ComparedRun, ...]]],
) -> list[tuple[str, tuple[ComparedRun, ...]]]:
    """Add to variants of one name what else differs between them: weights, data, splits, label code, how scored."""
    named: list[tuple[str, tuple[ComparedRun, ...]]] = []
    for variant, group in experiments:
        namesakes = [
            _circumstances(other[0])
            for name, other in experiments
            if (name, other[0].recipe_name) == (variant, group[0].recipe_name)
        ]
        extra = [
            f"{name} {value}"
            for name, value in _circumstances(group[0]).items()
            if any(other.get(name) != value for other in namesakes)
        ]
        named.append((", ".join(part for part in (variant, *extra) if part), group))
    return sorted(named, key=lambda one: (one[1][0].recipe_name, one[0].count(", "), one[0]))  # least changed first


def _circumstances(run: ComparedRun) -> dict[str, str]:
    """What a run was given beside its recipe, and how it was scored; digests are cut."""
    given = {name: run.settings[name] for name in SETTINGS if name in run.settings}
    given |= {"scored by": run.scored_by, "scored on dataset": run.scored_digest}
    return {
        name: value[:DIGEST_LETTERS] if name.endswith(("digest", "dataset")) else value for name, value in given.items()
    }
