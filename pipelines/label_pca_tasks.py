"""The Ray tasks of `fit_label_pca`: count label blocks, add the counts up, score what a basis gives back.

A worker is one long task over its share of the parts, a generator: it yields the rows of each part when it is done, for
the progress bar, and last its one result. Ray runs the task of a lost worker again, from its start and elsewhere; what
it yielded before is not counted twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines.images import decode_labels
from pipelines.shards import Part, PreparedDataset, read_part
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import LabelPCA
from segcore.label_recovery import Recovery

TASK_RETRIES = 3

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


def merge_counts(first: Arrays, second: Arrays) -> Arrays:
    """Sum of two workers' statistics."""
    statistics = BlockStatistics.from_arrays(first)
    statistics.merge(BlockStatistics.from_arrays(second))
    return statistics.to_arrays()


def score_labels(parts: Sequence[Part], dataset: PreparedDataset, pca: LabelPCA) -> Iterator[int | Recovery]:
    """Recovery of one worker's parts: yields the rows of each part, and last the `Recovery`.

    Raises:
        ValueError: as `count_blocks`.
    """
    recovery = Recovery.zero(dataset.num_classes)
    with threadpool_limits(limits=1):  # other thread counts round differently, which near-ties of scores would show
        for part in parts:
            _for_each_label(dataset, part, lambda labels_HW: recovery.update(pca, labels_HW))
            yield part.num_rows
    yield recovery


def run_shares(
    function: Callable[..., Iterator[Any]],
    shares: Sequence[Sequence[Part]],
    *arguments: Any,
    on_part: Callable[[int], None],
) -> list[Any]:
    """Run `function(share, *arguments)` as one task per share; returns references to the last thing that each yields.

    Raises:
        ValueError: as the tasks.
    """
    import ray
    from ray.exceptions import RayTaskError

    task = ray.remote(num_cpus=1, num_returns="streaming", max_retries=TASK_RETRIES)(function)
    streams: dict[Any, int] = {task.remote(share, *arguments): index for index, share in enumerate(shares)}
    parts_left = [len(share) for share in shares]
    results: list[Any] = [None] * len(shares)
    while streams:
        ready, _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        stream: Any = ready[0]
        index = streams[stream]
        reference = next(stream)
        if parts_left[index] == 0:
            results[index] = reference
            del streams[stream]
            continue
        try:
            on_part(ray.get(reference))
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from error  # the message for the user, without Ray's traceback around it
            raise
        parts_left[index] -= 1
    return results


def merge_tree(references: Sequence[Any]) -> BlockStatistics:
    """The sum of all workers' statistics, added in pairs, pairs of pairs and so on, by tasks."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(merge_counts)
    level = list(references)
    while len(level) > 1:
        pairs = [task.remote(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    arrays: Arrays = ray.get(level[0])
    return BlockStatistics.from_arrays(arrays)


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
