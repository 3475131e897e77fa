"""From the labels of a split to a label code: exact, by block Krylov, or learned.

| method | for | what a worker holds | what the driver holds |
|---|---|---|---|
| exact | up to 12,500 entries | one integer Gram matrix, upper class tiles | that, in double precision |
| krylov | more | its label blocks in compressed form, two blocks of vectors | the vectors of all passes |
| learned | solvers other than PCA | one worker: the labels that it learns from | |

Exact or Krylov is chosen by size. A worker's memory is reserved from Ray, and refused at once where no node has it.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.cluster import check_memory
from pipelines.label_pca.report import component_grid
from pipelines.label_pca.tasks import (
    add_arrays,
    collect_rows,
    count_blocks,
    fetch,
    learn_labels,
    merge_counts,
    merge_tree,
    multiply_rows,
    run_shares,
    run_task,
    score_labels,
    share_out,
)
from pipelines.progress import progress
from pipelines.shards import Part, PreparedDataset
from segcore.label_blocks import MAX_ENTRIES, BlockStatistics, check_block_shape, check_exact_size, solve_bytes
from segcore.label_code import LabelCode
from segcore.label_krylov import EXTRA_COLUMNS, PASSES, RANDOM_COLUMNS, coarse_factor, krylov_bytes, solve_krylov
from segcore.label_pca import PCA, LabelPCA, solve
from segcore.label_recovery import Recovery, RecoveryCurve
from segcore.label_solvers import SOLVERS, LearnConfig, resolved
from segcore.metrics import scores

logger = logging.getLogger(__name__)

Method = Literal["auto", "exact", "krylov"]
Solver = Literal["pca", "sgd", "orthogonal_sgd", "autoencoder"]
ALL_SOLVERS = (PCA, *SOLVERS)

VALIDATION_SPLIT = "val"
FIRST_COMPONENTS, MAX_CHOSEN_COMPONENTS, COMPONENT_STEP = 64, 1024, 8
"""Of the search for the number of components that reaches a target."""

WORKER_BASE_BYTES = 400_000_000
"""Python, pyarrow, numba and one part of labels."""
ROW_BYTES_PER_PIXEL = 0.6
"""Of compressed blocks, which take 0.14 to 0.46 on real and generated label maps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """What is fitted, but for where the labels are; `pipelines.fit_label_pca.FitLabelPCAConfig` says what each means.

    `num_components` is None where `target_miou_bound` chooses it.
    """

    split: str
    block_side: int
    num_components: int | None
    target_miou_bound: float | None
    centred: bool
    solver: Solver
    learn: LearnConfig
    method: Method
    max_images: int

    def beside(self, block_side: int, num_components: int | None) -> "FitSettings":
        """A PCA of the same labels with another block side, for the report."""
        return replace(self, block_side=block_side, num_components=num_components, target_miou_bound=None, solver="pca")

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the solver's own settings; of those that do not matter for it, none."""
        values = asdict(self) if self.solver == PCA else asdict(replace(self, learn=resolved(self.learn, self.solver)))
        for name in ("method", "centred") if self.solver != PCA else ("learn",):
            del values[name]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the blocks of one side are counted and solved.

    Attributes:
        block_side, num_classes: R, C.
        method: `exact` or `krylov`.
        max_components: longest code that it can give.
        worker_bytes: memory of each worker, reserved from Ray.
        solve_bytes: memory of this process.
    """

    block_side: int
    num_classes: int
    method: Literal["exact", "krylov"]
    max_components: int
    worker_bytes: int
    solve_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """The labels of a split, counted; `solve` may be asked for several lengths of code.

    Attributes:
        class_pixels_C: valid pixels per class.
        num_noisy_blocks: blocks that were counted pixel by pixel.
        statistics_digest: SHA-256 of what was counted, the same for any workers.
        solve: label PCA with a number of components.
    """

    class_pixels_C: NDArray[np.int64]
    num_noisy_blocks: int
    statistics_digest: str
    solve: Callable[[int], LabelPCA]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """A label code, and what its manifest says beside it."""

    code: LabelCode
    facts: dict[str, Any]


def make_plan(dataset: PreparedDataset, settings: FitSettings, *, workers: int) -> Plan:
    """Choose the method by the number of entries, and work out its memory.

    Args:
        dataset: whose labels are counted.
        settings: of the fit.
        workers: tasks at a time.

    Raises:
        ValueError: blocks that neither method can take, or that the chosen one cannot.
    """
    num_classes, block_side = dataset.num_classes, settings.block_side
    check_block_shape(block_side=block_side, num_classes=num_classes)
    entries = num_classes * block_side**2
    exact = entries <= MAX_ENTRIES if settings.method == "auto" else settings.method == "exact"
    if exact:
        check_exact_size(block_side=block_side, num_classes=num_classes)
        # Tiles in int32; twice, since noise-like blocks have a second set. A merge adds two of them up in int64.
        return Plan(
            block_side=block_side,
            num_classes=num_classes,
            method="exact",
            max_components=entries,
            worker_bytes=WORKER_BASE_BYTES + 4 * entries**2,
            solve_bytes=solve_bytes(entries),
        )
    factor = coarse_factor(block_side=block_side, num_classes=num_classes)
    max_components = entries // factor**2 - EXTRA_COLUMNS
    if max_components < 1:
        raise ValueError(
            f"blocks of side {block_side} with {num_classes} classes have {entries // factor**2} entries where they "
            f"are subsampled by {factor}, too few for the Krylov method; choose --method exact, or another --block-side"
        )
    num_components = min(settings.num_components or FIRST_COMPONENTS, max_components)
    columns = num_components + EXTRA_COLUMNS + RANDOM_COLUMNS
    rows = ROW_BYTES_PER_PIXEL * sum(dataset.split(settings.split).class_pixels) / workers
    counting = 4 * (entries // factor**2) ** 2 + 2 * rows
    passing = (4 + 4 + 8) * entries * columns
    return Plan(
        block_side=block_side,
        num_classes=num_classes,
        method="krylov",
        max_components=max_components,
        worker_bytes=WORKER_BASE_BYTES + int(max(counting, passing)),
        solve_bytes=krylov_bytes(block_side=block_side, num_classes=num_classes, num_components=num_components),
    )


def announce(plan: Plan, *, workers: int) -> None:
    """Log the choice, and refuse it where memory is too small. Ray is up.

    Raises:
        ValueError: no node, or not this one, has that much memory.
    """
    entries = plan.num_classes * plan.block_side**2
    logger.info(
        "blocks of side %d with %d classes have %d entries: %s, with %.2f GB for each of %d workers, %.2f GB to solve",
        plan.block_side,
        plan.num_classes,
        entries,
        {"exact": "exact Gram matrix", "krylov": f"block Krylov with {PASSES} passes over compressed blocks"}[
            plan.method
        ],
        plan.worker_bytes / 1e9,
        workers,
        plan.solve_bytes / 1e9,
    )
    check_memory(
        task_bytes=plan.worker_bytes,
        driver_bytes=plan.solve_bytes,
        why=f"blocks of side {plan.block_side} with {plan.num_classes} classes",
        remedy="choose a smaller --block-side or --num-components, or machines with more memory",
    )


def held_out(dataset: PreparedDataset, split: str) -> str:
    """The split on which recovery counts: `val`, or the fitted one where there is none."""
    return VALIDATION_SPLIT if VALIDATION_SPLIT in dataset.splits else split


def fit(dataset: PreparedDataset, settings: FitSettings, *, workers: int) -> Fitted:
    """Fit a code to the labels of a split over Ray tasks.

    Raises:
        ValueError: a part or a label is corrupt, memory is too small, or no number of components reaches the target.
    """
    if settings.solver != PCA:
        return _learn(dataset, settings)
    plan = make_plan(dataset, settings, workers=workers)
    announce(plan, workers=workers)
    count = _count_exactly if plan.method == "exact" else _collect_for_krylov
    counted = count(dataset, settings, plan, workers=workers)
    if settings.num_components is None:
        pca = _reach(dataset, settings, counted, plan.max_components, workers=workers)
    else:
        pca = counted.solve(settings.num_components)
    return Fitted(
        code=pca,
        facts={
            "method": plan.method,
            "class_pixels": counted.class_pixels_C.tolist(),
            "num_noisy_blocks": counted.num_noisy_blocks,
            "statistics_digest": counted.statistics_digest,
        },
    )


def score(
    dataset: PreparedDataset,
    split: str,
    code: LabelCode,
    settings: FitSettings,
    *,
    workers: int,
    with_curve: bool = True,
    grid: Sequence[int] = (),
) -> tuple[Recovery, RecoveryCurve]:
    """What comes back of a split's labels, and against the number of components where the code is a PCA.

    Args:
        dataset, split: whose labels.
        code: to score.
        settings: how many images at most.
        workers: tasks at a time.
        with_curve: score other numbers of components too, if the code is a PCA.
        grid: those numbers; default `component_grid`.
    """
    import ray

    if not (with_curve and isinstance(code, LabelPCA)):
        grid = ()
    elif not grid:
        grid = component_grid(code.num_components)
    parts = _first_parts(dataset.split(split).parts, settings.max_images)
    num_images = sum(part.num_rows for part in parts)
    with progress(f"measure recovery of {split}", total=num_images, unit="images") as advance:
        states = run_shares(
            score_labels, share_out(parts, workers), dataset, ray.put(code), grid, on_part=advance, num_results=2
        )
    recovery, curve = Recovery.zero(dataset.num_classes), RecoveryCurve.zero(dataset.num_classes, grid)
    for one, other in zip(*states, strict=True):
        recovery.merge(fetch(one))
        curve.merge(fetch(other))
    return recovery, curve


def _reach(
    dataset: PreparedDataset, settings: FitSettings, counted: Counted, max_components: int, *, workers: int
) -> LabelPCA:
    """The shortest code, in steps of 8, whose recovery of held-out labels reaches the target.

    Raises:
        ValueError: not even the longest does.
    """
    split, target = held_out(dataset, settings.split), settings.target_miou_bound
    assert target is not None
    limit = min(max_components, MAX_CHOSEN_COMPONENTS)
    num_components = min(FIRST_COMPONENTS, limit)
    while True:
        pca = counted.solve(num_components)
        grid = (*range(COMPONENT_STEP, num_components, COMPONENT_STEP), num_components)
        _, curve = score(dataset, split, pca, settings, workers=workers, grid=grid)
        bounds = {components: scores(confusion_CC).mean_iou for components, confusion_CC in curve.confusion.items()}
        for components, bound in bounds.items():
            if bound >= target:
                logger.info("%d components bring %s back with mIoU %.4f", components, split, bound)
                return pca.leading(components)
        if num_components == limit:
            raise ValueError(
                f"--target-miou-bound is {target}, and {limit} components of blocks of side {settings.block_side} "
                f"bring {split} back with mIoU {bounds[limit]:.4f}; lower it, or choose a smaller block side"
            )
        logger.info(
            "%d components reach mIoU %.4f, fewer than asked for: doubling", num_components, bounds[num_components]
        )
        num_components = min(2 * num_components, limit)


def _learn(dataset: PreparedDataset, settings: FitSettings) -> Fitted:
    """A learned code, in one task on one thread: the order of steps is part of the result."""
    assert settings.num_components is not None
    parts = _first_parts(dataset.split(settings.split).parts, settings.max_images)
    num_images = sum(part.num_rows for part in parts)
    with progress(f"read label blocks of {settings.split}", total=num_images, unit="images") as advance:
        ((reference,),) = run_shares(
            learn_labels,
            [parts],
            dataset,
            settings.solver,
            settings.block_side,
            settings.num_components,
            settings.learn,
            on_part=advance,
        )
    return Fitted(code=fetch(reference), facts={"method": "learned", "num_images": num_images})


def _first_parts(parts: tuple[Part, ...], num_images: int) -> tuple[Part, ...]:
    """As many parts as hold `num_images` images."""
    before = np.cumsum([0, *(part.num_rows for part in parts)])[: len(parts)]
    return tuple(part for part, rows_before in zip(parts, before, strict=True) if rows_before < num_images)


def _count_exactly(dataset: PreparedDataset, settings: FitSettings, plan: Plan, *, workers: int) -> Counted:
    parts = dataset.split(settings.split).parts
    with _progress(dataset, settings.split) as advance:
        (counts,) = run_shares(
            count_blocks,
            share_out(parts, workers),
            dataset,
            plan.block_side,
            on_part=advance,
            memory_bytes=plan.worker_bytes,
        )
    merged = merge_tree(counts, merge_counts, memory_bytes=plan.worker_bytes)
    statistics = BlockStatistics.from_arrays(fetch(merged))
    return Counted(
        class_pixels_C=statistics.class_pixels_C,
        num_noisy_blocks=statistics.num_noisy_blocks,
        statistics_digest=statistics.digest(),
        solve=lambda num_components: solve(statistics, num_components=num_components, centred=settings.centred),
    )


def _collect_for_krylov(dataset: PreparedDataset, settings: FitSettings, plan: Plan, *, workers: int) -> Counted:
    """The compressed blocks stay where the workers put them: each pass multiplies them there, and adds up."""
    parts = dataset.split(settings.split).parts
    factor = coarse_factor(block_side=plan.block_side, num_classes=plan.num_classes)
    with _progress(dataset, settings.split) as advance:
        coarse_counts, sums, rows = run_shares(
            collect_rows,
            share_out(parts, workers),
            dataset,
            plan.block_side,
            factor,
            on_part=advance,
            num_results=3,
            memory_bytes=plan.worker_bytes,
        )
    coarse = BlockStatistics.from_arrays(fetch(merge_tree(coarse_counts, merge_counts)))
    total = fetch(merge_tree(sums, add_arrays))
    counts_D, (num_blocks, num_noisy_blocks) = total["counts_D"], total["blocks"].tolist()

    def multiply(block_DL: NDArray[np.int32]) -> NDArray[np.int64]:
        import ray

        block = ray.put(block_DL)
        products = [run_task(multiply_rows, part, block, memory_bytes=plan.worker_bytes) for part in rows]
        product_DL: NDArray[np.int64] = fetch(merge_tree(products, add_arrays))["product_DL"]
        return product_DL

    def solve_for(num_components: int) -> LabelPCA:
        return solve_krylov(
            coarse,
            multiply,
            counts_D=counts_D,
            num_blocks=num_blocks,
            block_side=plan.block_side,
            num_components=num_components,
            centred=settings.centred,
        )

    digest = hashlib.sha256(coarse.digest().encode() + counts_D.astype("<i8").tobytes())
    return Counted(
        class_pixels_C=counts_D.reshape(plan.num_classes, -1).sum(axis=1),
        num_noisy_blocks=num_noisy_blocks,
        statistics_digest=digest.hexdigest(),
        solve=solve_for,
    )


def _progress(dataset: PreparedDataset, split: str) -> Any:
    return progress(f"count label blocks of {split}", total=dataset.split(split).num_images, unit="images")
