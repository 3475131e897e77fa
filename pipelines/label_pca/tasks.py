"""The Ray tasks of `fit_label_pca`: count label blocks, add the counts up, score what a code gives back.

A worker is one long task over its share of the parts, a generator: it yields the rows of each part when it is done, for
the progress bar, and last its results. Ray runs the task of a lost worker again, from its start and elsewhere; what it
yielded before is not counted twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines.cluster import TASK_RETRIES
from pipelines.fault_points import fault_point
from pipelines.intake.labels import decode_labels
from pipelines.shards import Part, PreparedDataset, read_part
from segcore.label_blocks import BlockStatistics
from segcore.label_code import LabelCode
from segcore.label_krylov import coarse_labels
from segcore.label_pca import LabelPCA
from segcore.label_recovery import Recovery, RecoveryCurve
from segcore.label_rows import LabelRows

if TYPE_CHECKING:
    from segcore.label_solvers import LearnConfig

Arrays = dict[str, NDArray[np.integer]]


def count_blocks(parts: Sequence[Part], dataset: PreparedDataset, block_side: int) -> Iterator[int | Arrays]:
    """Statistics of one worker's parts: yields the rows of each part, and last `BlockStatistics.to_arrays()`.

    Raises:
        ValueError: a part or a label is corrupt, or a label value lies outside the class table.
    """
    statistics = BlockStatistics.zero(block_side, dataset.num_classes)
    for part in parts:
        _for_each_label(dataset, part, statistics.update)
        yield part.num_rows
    yield statistics.to_arrays()


def collect_rows(
    parts: Sequence[Part], dataset: PreparedDataset, block_side: int, factor: int
) -> Iterator[int | Arrays]:
    """One worker's label blocks in compressed form, for passes that need no second decoding.

    Yields:
        The rows of each part; then the statistics of the blocks subsampled by `factor`, sums over the blocks, and the
        compressed blocks themselves, each as arrays.

    Raises:
        ValueError: as `count_blocks`.
    """
    rows = LabelRows.zero(block_side, dataset.num_classes)
    coarse = BlockStatistics.zero(block_side // factor, dataset.num_classes)

    def update(labels_HW: NDArray[np.uint8]) -> None:
        rows.update(labels_HW)
        coarse.update(coarse_labels(labels_HW, factor))

    for part in parts:
        _for_each_label(dataset, part, update)
        yield part.num_rows
    yield coarse.to_arrays()
    yield {"counts_D": rows.counts_D(), "blocks": np.array([rows.num_blocks, rows.num_noisy_blocks], np.int64)}
    yield rows.to_arrays()


def multiply_rows(rows: Arrays, block_DL: NDArray[np.int32]) -> Arrays:
    """Product of one worker's Gram matrix with a block of vectors, in integers."""
    return {"product_DL": LabelRows.from_arrays(rows).multiply(block_DL)}


def merge_counts(first: Arrays, second: Arrays) -> Arrays:
    """Sum of two workers' statistics."""
    statistics = BlockStatistics.from_arrays(first)
    statistics.merge(BlockStatistics.from_arrays(second))
    return statistics.to_arrays()


def add_arrays(first: Arrays, second: Arrays) -> Arrays:
    """Sum of two workers' arrays of int64."""
    return {name: first[name] + second[name] for name in first}


def learn_labels(
    parts: Sequence[Part],
    dataset: PreparedDataset,
    solver: str,
    block_side: int,
    num_components: int,
    config: "LearnConfig",
) -> Iterator[int | LabelCode]:
    """Learn a code of the blocks of these parts: yields the rows of each part, and last the code.

    Raises:
        ValueError: as `count_blocks`, or no label block has a valid pixel.
    """
    from segcore.label_solvers import learn_code_of_rows  # PyTorch, which tasks that only count do without

    rows = LabelRows.zero(block_side, dataset.num_classes)
    for part in parts:
        _for_each_label(dataset, part, rows.update)
        yield part.num_rows
    yield learn_code_of_rows(solver, rows, num_components=num_components, config=config)


def score_labels(
    parts: Sequence[Part], dataset: PreparedDataset, code: LabelCode, num_components: Sequence[int] = ()
) -> Iterator[int | Recovery | RecoveryCurve]:
    """What comes back of one worker's labels.

    Args:
        parts: its share.
        dataset: which they belong to.
        code: label PCA or learned code.
        num_components: numbers of leading components to score beside the whole label PCA; empty for a learned code.

    Yields:
        The rows of each part; then a `Recovery` and, for a label PCA, a `RecoveryCurve`.

    Raises:
        ValueError: as `count_blocks`.
    """
    recovery, curve = Recovery.zero(dataset.num_classes), RecoveryCurve.zero(dataset.num_classes, num_components)

    def update(labels_HW: NDArray[np.uint8]) -> None:
        recovery.update(code, labels_HW)
        if num_components:
            assert isinstance(code, LabelPCA)
            curve.update(code, labels_HW)

    with threadpool_limits(limits=1):  # other thread counts round differently, which near-ties of scores would show
        for part in parts:
            _for_each_label(dataset, part, update)
            yield part.num_rows
    yield recovery
    yield curve


def run_shares(
    function: Callable[..., Iterator[Any]],
    shares: Sequence[Sequence[Part]],
    *arguments: Any,
    on_part: Callable[[int], None],
    num_results: int = 1,
    memory_bytes: int = 0,
) -> list[list[Any]]:
    """Run `function(share, *arguments)` as one task per share.

    Args:
        function: yields the rows of each part of its share, then its results.
        shares: parts of each worker.
        arguments: further ones.
        on_part: called with the rows of every part that is done.
        num_results: how many results each task yields.
        memory_bytes: what Ray reserves for each task.

    Returns:
        For each of the results, the references of all tasks.

    Raises:
        ValueError: as the tasks.
    """
    import ray

    task = ray.remote(num_cpus=1, num_returns="streaming", max_retries=TASK_RETRIES, memory=memory_bytes)(function)
    # A share may have many parts, each of 150 bytes: they are put into the object store, not into the task.
    streams: dict[Any, int] = {task.remote(ray.put(share), *arguments): index for index, share in enumerate(shares)}
    parts_left = [len(share) for share in shares]
    results: list[list[Any]] = [[] for _ in shares]
    while streams:
        ready, _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        stream: Any = ready[0]
        index = streams[stream]
        reference = next(stream)
        if parts_left[index] > 0:
            on_part(fetch(reference))
            parts_left[index] -= 1
            continue
        results[index].append(reference)
        if len(results[index]) == num_results:
            del streams[stream]
    return [list(references) for references in zip(*results, strict=True)]


def run_task(function: Callable[..., Any], *arguments: Any, memory_bytes: int = 0) -> Any:
    """Reference of the result of one task, which Ray runs again where its worker is lost."""
    import ray

    return ray.remote(num_cpus=1, max_retries=TASK_RETRIES, memory=memory_bytes)(function).remote(*arguments)


def merge_tree(references: Sequence[Any], add: Callable[[Any, Any], Any], *, memory_bytes: int = 0) -> Any:
    """Reference of the sum of all workers' results, added in pairs, pairs of pairs and so on, by tasks."""
    level = list(references)
    while len(level) > 1:
        pairs = [run_task(add, *level[i : i + 2], memory_bytes=memory_bytes) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0]


def fetch(reference: Any) -> Any:
    """The value of a reference.

    Raises:
        ValueError: of the task, with its message for the user and without Ray's traceback around it.
    """
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from error
        raise


def share_out(parts: Sequence[Part], num_workers: int) -> list[tuple[Part, ...]]:
    """Deal parts to at most `num_workers` workers in turn; nobody is left without."""
    return [tuple(parts[worker::num_workers]) for worker in range(min(num_workers, len(parts)))]


def _for_each_label(dataset: PreparedDataset, part: Part, function: Callable[[NDArray[np.uint8]], None]) -> None:
    table = read_part(dataset, part, columns=("image_id", "label"))
    for image_id, label in zip(table["image_id"].to_pylist(), table["label"], strict=True):
        try:
            labels_HW = decode_labels(label.as_py())
            if labels_HW.dtype != np.uint8:
                raise ValueError("it has 16 bits per pixel, where `prepare` writes 8; prepare the dataset again")
            function(labels_HW.astype(np.uint8, copy=False))
        except ValueError as error:
            raise ValueError(f"label of {image_id!r} in {part.path}: {error}") from error
    fault_point("label_pca.part")
