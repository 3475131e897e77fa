"""Tables of papers by name: `TABLES`, and which of our runs belong to which row.

A run belongs to a row if it started from a recipe of that name (`<dataset>.<row>`), whatever flags then changed; and to
every row whose recipe is the same, since the paper prints some networks twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, stdev

from pipelines import tracking
from pipelines.comparison.bounds import Bound
from pipelines.comparison.runs import SEED, SETTINGS, ComparedRun
from pipelines.recipes import RECIPES, find_recipe, recipe_to_dict
from segcore.cost import decoder_multiply_adds
from segcore.label_pca import PCA
from segcore.models import ModelConfig, meta_model, needed_label_pca

PAPER_CLASSES, PAPER_SIZE_PX = 21, 513
"""VOC 2012's classes and the side of the image that decoder costs are counted at."""
DIGEST_LETTERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One row as published; None where the paper prints nothing.

    Attributes:
        method: what the row is, in the paper's words.
        mean_iou, bound: mIoU on VOC 2012 val and mIoU*, fractions of 1.
        decoder_gflops: decoder FLOPs in billions, two per multiply-add, at 513 x 513.
    """

    table: int
    method: str
    mean_iou: float | None = None
    bound: float | None = None
    decoder_gflops: float | None = None


DUPSAMPLING = {
    "table1_bilinear_os32": PaperRow(table=1, method="bilinear, OS 32", mean_iou=0.7077, bound=0.9480),
    "table1_dupsampling_os32": PaperRow(table=1, method="DUpsampling, OS 32", mean_iou=0.7209, bound=0.9990),
    "table1_bilinear_os16": PaperRow(table=1, method="bilinear, OS 16", mean_iou=0.7215, bound=0.9840),
    "table1_dupsampling_os16": PaperRow(table=1, method="DUpsampling, OS 16", mean_iou=0.7315, bound=0.9995),
    "table2_none": PaperRow(table=2, method="no feature", mean_iou=0.7315, decoder_gflops=0.80),
    "table2_conv1_3": PaperRow(table=2, method="conv1_3", mean_iou=0.7270, decoder_gflops=1.13),
    "table2_b1u2c3": PaperRow(table=2, method="b1u2c3", mean_iou=0.7403, decoder_gflops=1.15),
    "table2_b3u6c3": PaperRow(table=2, method="b3u6c3", mean_iou=0.7343, decoder_gflops=1.23),
    "table2_b1u2c3_b3u6c3": PaperRow(table=2, method="b1u2c3 + b3u6c3", mean_iou=0.7382, decoder_gflops=1.58),
    "table2_conv1_3_b3u6c3": PaperRow(table=2, method="conv1_3 + b3u6c3", mean_iou=0.7420, decoder_gflops=1.56),
    "table3_resnet50_vanilla_4": PaperRow(
        table=3, method="R50, vanilla, b1u2c3 / 4", mean_iou=0.7326, decoder_gflops=5.53
    ),
    "table3_resnet50_proposed_4": PaperRow(
        table=3, method="R50, proposed, b1u2c3 / 4", mean_iou=0.7403, decoder_gflops=1.15
    ),
    "table3_resnet50_vanilla_2_16": PaperRow(
        table=3, method="R50, vanilla, conv1_3 / 2 + b3u6c3 / 16 (out of memory)", decoder_gflops=22.34
    ),
    "table3_xception65_vanilla_4": PaperRow(
        table=3, method="X65, vanilla, efb2u1c2 / 4", mean_iou=0.7870, decoder_gflops=5.53
    ),
    "table3_xception65_proposed_4": PaperRow(
        table=3, method="X65, proposed, efb2u1c2 / 4", mean_iou=0.7909, decoder_gflops=1.93
    ),
    "table3_xception65_vanilla_16": PaperRow(
        table=3, method="X65, vanilla, mfb1u16c3 / 16", mean_iou=0.7874, decoder_gflops=0.41
    ),
    "table3_xception65_proposed_16": PaperRow(
        table=3, method="X65, proposed, mfb1u16c3 / 16", mean_iou=0.7967, decoder_gflops=1.98
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """Rows by name, in the paper's order, and where they were published."""

    source: str
    rows: dict[str, PaperRow]


TABLES: dict[str, PaperTable] = {
    "dupsampling": PaperTable(
        source="Tian et al., DUpsampling (CVPR 2019, arXiv 1903.02120), tables 1 to 3", rows=DUPSAMPLING
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLine:
    """A row of the paper, and the runs of ours that are one experiment of it.

    Attributes:
        row: its name, without a dataset.
        paper: as published.
        variant: what the runs do otherwise than their recipe, or "".
        runs: of one experiment, but for the seed; none where nobody ran the row.
        bound: mIoU* of the runs, or None where there are none.
    """

    row: str
    paper: PaperRow
    variant: str = ""
    runs: tuple[ComparedRun, ...] = ()
    bound: Bound | None = None

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
        """Of our network, counted as the paper does."""
        return decoder_flops(self.runs[0].model_config) if self.runs else None


def find_table(name: str) -> PaperTable:
    """The table called `name`.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if name not in TABLES:
        raise ValueError(f"unknown --table {name!r}; known: {', '.join(TABLES)}")
    return TABLES[name]


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
    """Rows that a run belongs to: that of its recipe, and those whose recipe differs in nothing but the name."""
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
    for row, paper in table.rows.items():
        ours = [(variant, group) for variant, group in experiments if row in rows_of(group[0], table)]
        told_apart = _told_apart(ours)
        lines += [TableLine(row=row, paper=paper, variant=variant, runs=group) for variant, group in told_apart]
        if not ours:
            lines.append(TableLine(row=row, paper=paper))
    return lines


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
