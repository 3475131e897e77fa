"""What Ray Data does in a training: read shards in a shuffled order, verify them, hand out their rows, still encoded.

Ray's reader and controller processes import this module and nothing heavier: PyTorch and the networks would cost
each of them five seconds at every start.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, FileShuffleConfig, TaskPoolStrategy

from pipelines import storage
from pipelines.shards import SCHEMAS, TRAINING_COLUMNS, Part, PreparedDataset, parse_part, reopen_dataset
from pipelines.training.position import ROW, latest_checkpoint, pack, read_position, seen_images, unpack
from pipelines.training.visits import visited_rows
from segcore import Task

RowsKind = Literal["whole", "rest", "divided_anew"]
BYTES_PER_TASK = 16 * 2**20
"""Of shards that one task reads. What Ray takes for a task, 50 ms of CPU time over all its processes, is as much as
decoding ten images takes, so that small shards are read several at a time; for large ones it does not matter."""
READERS_WITHOUT_CPUS = 4
"""Tasks that read at once where they hold no logical CPU."""


@dataclass
class EpochShuffle(FileShuffleConfig):
    """Ray Data's order of files, counted from the epoch at which this start of the run begins."""

    first_epoch: int = 0

    def get_seed(self, execution_idx: int = 0) -> int | None:
        """Seed of one pass over the files."""
        return super().get_seed(self.first_epoch + execution_idx)


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
    uris = dataset.part_uris(split)
    paths = [storage.filesystem(uri)[1] for uri in uris]
    arrow_fs, _ = storage.arrow_filesystem(uris[0])
    read_settings: dict[str, Any] = {}
    parse_settings: dict[str, Any] = {}
    num_tasks = _num_tasks([part.num_bytes for part in dataset.splits[split].parts])
    if without_cpus:
        at_once = min(READERS_WITHOUT_CPUS, num_tasks)
        read_settings = {"num_cpus": 0, "concurrency": at_once}
        parse_settings = {"num_cpus": 0, "compute": TaskPoolStrategy(size=at_once)}
    files = ray.data.read_binary_files(
        paths,
        filesystem=arrow_fs,
        include_paths=True,
        override_num_blocks=num_tasks,
        shuffle=EpochShuffle(seed=seed, first_epoch=first_epoch),
        **read_settings,
    )
    packed = None if seen is None else pack(seen)
    parse = partial(
        _parse_shard,
        dataset=dataset,
        split=split,
        seen=packed,
        seed=seed,
        first_epoch=first_epoch,
        image_weights=image_weights,
    )
    return files.map_batches(parse, batch_size=1, batch_format="pyarrow", **parse_settings)


def _num_tasks(part_bytes: list[int]) -> int:
    """How many tasks read a split; each reads whole parts, as many as any other or one less."""
    return min(len(part_bytes), -(-sum(part_bytes) // BYTES_PER_TASK))


@lru_cache(maxsize=4)
def _places(uri: str, digest: str, task: Task, split: str) -> dict[str, tuple[Part, int]]:
    """Each part by its path, and how many images lie before it; once per process."""
    dataset = reopen_dataset(uri, digest, task)
    found, start = {}, 0
    for part_uri, part in zip(dataset.part_uris(split), dataset.splits[split].parts, strict=True):
        found[storage.filesystem(part_uri)[1]] = (part, start)
        start += part.num_rows
    return found


def _parse_shard(
    files: pa.Table,
    *,
    dataset: PreparedDataset,
    split: str,
    seen: NDArray[np.uint8] | None,
    seed: int = 0,
    first_epoch: int = 0,
    image_weights: str = "",
) -> pa.Table:
    """Verify and open one shard that was read whole; what is wrong with it travels in `error`, on each of its rows.

    An exception here would reach the worker as Ray's own, without its type.
    """
    path = files["path"][0].as_py()
    task = dataset.task
    part, start = _places(dataset.uri, dataset.digest, task, split)[path]
    columns = TRAINING_COLUMNS[task]
    problem: str | None = None
    try:
        rows = parse_part(files["bytes"][0].as_py(), name=path, sha256=part.sha256, columns=columns)
    except ValueError as error:
        broken = {name: pa.nulls(part.num_rows, SCHEMAS[task].field(name).type) for name in columns}
        rows, problem = pa.table(broken), str(error)
    numbers = np.arange(start, start + part.num_rows)
    if image_weights:
        # Ray counts a dataset's executions here, for its own reseeding; no public call tells a task. The tests compare
        # the epochs of one dataset with those of datasets that begin later, and would notice a change.
        epoch = first_epoch + DataContext.get_current()._execution_idx
        rows, numbers = visited_rows(rows, start=start, image_weights=image_weights, seed=seed, epoch=epoch)
    problems = pa.array([problem] * rows.num_rows, pa.string())
    rows = rows.append_column(ROW, pa.array(numbers, pa.int64())).append_column("error", problems)
    if seen is None:
        return rows
    return rows.filter(pa.array(~unpack(seen, num_images=dataset.splits[split].num_images)[numbers]))


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
