"""What Ray Data does in a training: read shards in a shuffled order, verify them, hand out their rows, still encoded.

Ray's reader and controller processes import this module and nothing heavier: PyTorch and the networks would cost
each of them five seconds at every start.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.shards import SCHEMAS, TRAINING_COLUMNS, Part, PreparedDataset, fetch_part, parse_part
from pipelines.training.position import ROW, latest_checkpoint, pack, read_position, seen_images, unpack
from pipelines.training.visits import visited_rows
from segcore import Task

RowsKind = Literal["whole", "rest", "divided_anew"]
BYTES_PER_TASK = 16 * 2**20
"""Of shards that one task reads. What Ray takes for a task, 50 ms of CPU time over all its processes, is as much as
decoding ten images takes, so that small shards are read several at a time; for large ones it does not matter."""
READERS_WITHOUT_CPUS = 4
"""Tasks that read at once where they hold no logical CPU."""
FETCHES_AT_ONCE = 8
"""Shards that a task fetches at once, in threads, which wait for an object store most of their time."""


def shard_rows(
    dataset: PreparedDataset,
    *,
    split: str,
    seed: int,
    first_epoch: int,
    seen: NDArray[np.bool_] | None = None,
    without_cpus: bool = False,
    image_weights: str = "",
) -> ray.data.Dataset:
    """A lazy dataset of `TRAINING_COLUMNS`, images still encoded, `row` and `error`; each execution is one epoch.

    `row` is the number of the visit; see `pipelines.training.visits`.

    Args:
        dataset, split: what to read.
        seed: of the order of the shards, and of the visits.
        first_epoch: of the first execution.
        seen: one bool per visit; those are left out.
        without_cpus: read in tasks that hold no logical CPU: an elastic group of workers may hold them all.
        image_weights: URI of a file with the shares of the visits; "" visits every image once.
    """
    source = ShardsDatasource(
        dataset, split=split, seed=seed, first_epoch=first_epoch, seen=seen, image_weights=image_weights
    )
    num_tasks = _num_tasks([part.num_bytes for part in dataset.splits[split].parts])
    settings = {"num_cpus": 0, "concurrency": min(READERS_WITHOUT_CPUS, num_tasks)} if without_cpus else {}
    rows: ray.data.Dataset = ray.data.read_datasource(source, override_num_blocks=num_tasks, **settings)
    return rows


class ShardsDatasource(Datasource):
    """A split's shards, each verified and opened by the task that fetches it; see `shard_rows`.

    Ray's own readers would do, but for two copies of each shard and a third to learn its size: several times the work
    of reading it.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        *,
        split: str,
        seed: int,
        first_epoch: int,
        seen: NDArray[np.bool_] | None,
        image_weights: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dataset, self._split = dataset, split
        self._seed, self._first_epoch = seed, first_epoch
        self._seen, self._image_weights = None if seen is None else pack(seen), image_weights

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards: their images stay encoded."""
        return sum(part.num_bytes for part in self._dataset.splits[self._split].parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks of one execution, which is one epoch; each reads some of its shards, in its order."""
        # Ray counts a dataset's executions here, for its own reseeding; no public call tells. The tests compare the
        # epochs of one dataset with those of datasets that begin later, and would notice a change.
        epoch = self._first_epoch + (data_context._execution_idx if data_context else 0)
        parts = self._dataset.splits[self._split].parts
        uris = self._dataset.part_uris(self._split)
        starts = np.cumsum([0] + [part.num_rows for part in parts]).tolist()
        visits = _Visits(
            task=self._dataset.task,
            # Once for all tasks: of a million images it has 125 kB.
            seen=None if self._seen is None else ray.put(self._seen),
            num_images=starts[-1],
            image_weights=self._image_weights,
            seed=self._seed,
            epoch=epoch,
        )
        order = np.random.default_rng([self._seed, epoch]).permutation(len(parts))
        tasks = []
        for numbers in np.array_split(order, min(parallelism, len(parts))):
            shards = [_Shard(uris[number], parts[number], starts[number]) for number in numbers.tolist()]
            size = BlockMetadata(
                num_rows=None,
                size_bytes=sum(shard.part.num_bytes for shard in shards),
                exec_stats=None,
                input_files=None,
            )
            read = partial(_opened_shards, shards, visits)
            tasks.append(ReadTask(read, size, per_task_row_limit=per_task_row_limit))
        return tasks


def _num_tasks(part_bytes: list[int]) -> int:
    """How many tasks read a split; each reads whole parts, as many as any other or one less."""
    return min(len(part_bytes), -(-sum(part_bytes) // BYTES_PER_TASK))


@dataclass(frozen=True, slots=True)
class _Shard:
    """Where a shard lies, what it must be, and how many images lie before it."""

    uri: str
    part: Part
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Visits:
    """What all tasks of an epoch share: which rows of a shard they hand out."""

    task: Task
    seen: "ray.ObjectRef[NDArray[np.uint8]] | None"
    num_images: int
    image_weights: str
    seed: int
    epoch: int


def _opened_shards(shards: list[_Shard], visits: _Visits) -> Iterator[pa.Table]:
    """The rows of each shard. What is wrong with a shard travels in `error`, on each of its rows.

    An exception here would reach the worker as Ray's own, without its type.
    """
    seen = None if visits.seen is None else unpack(ray.get(visits.seen), num_images=visits.num_images)
    with ThreadPoolExecutor(min(FETCHES_AT_ONCE, len(shards))) as pool:
        fetched = [pool.submit(fetch_part, shard.uri) for shard in shards]
        for shard, data in zip(shards, fetched, strict=True):
            yield _opened(shard, data.result, visits, seen)


def _opened(shard: _Shard, fetch: Callable[[], bytes], visits: _Visits, seen: NDArray[np.bool_] | None) -> pa.Table:
    part, problem, columns = shard.part, None, TRAINING_COLUMNS[visits.task]
    try:
        rows = parse_part(fetch(), name=shard.uri, sha256=part.sha256, columns=columns)
    except ValueError as error:
        broken = {name: pa.nulls(part.num_rows, SCHEMAS[visits.task].field(name).type) for name in columns}
        rows, problem = pa.table(broken), str(error)
    numbers = np.arange(shard.start, shard.start + part.num_rows)
    if visits.image_weights:
        rows, numbers = visited_rows(
            rows, start=shard.start, image_weights=visits.image_weights, seed=visits.seed, epoch=visits.epoch
        )
    problems = pa.array([problem] * rows.num_rows, pa.string())
    rows = rows.append_column(ROW, pa.array(numbers, pa.int64())).append_column("error", problems)
    return rows if seen is None else rows.filter(pa.array(~seen[numbers]))


def rows_to_train_on(
    dataset: PreparedDataset,
    *,
    kind: RowsKind,
    split: str,
    seed: int,
    run_folder: str,
    without_cpus: bool,
    image_weights: str,
) -> ray.data.Dataset:
    """`shard_rows` from where the run will resume; Ray calls it for every new worker group.

    Args:
        dataset, split, seed, without_cpus, image_weights: see `shard_rows`.
        kind: "whole": whole epochs, from the first that has not begun. "rest": the epoch under way, to be divided among
            as many workers as before, without what they had seen before that division. "divided_anew": the same for
            another number of workers, without all that was seen. How many there will be is known to the workers alone,
            so they choose; what is not chosen is never read.
        run_folder: URI.
    """
    checkpoint = latest_checkpoint(run_folder)
    position = read_position(checkpoint)
    first_epoch, seen = position.epoch, None
    if checkpoint is not None and position.steps:
        if kind == "whole":
            first_epoch += 1
        else:
            num_images = dataset.splits[split].num_images
            seen = seen_images(checkpoint, position, num_images=num_images, divided_anew=kind == "divided_anew")
    return shard_rows(
        dataset,
        split=split,
        seed=seed,
        first_epoch=first_epoch,
        seen=seen,
        without_cpus=without_cpus,
        image_weights=image_weights,
    )
