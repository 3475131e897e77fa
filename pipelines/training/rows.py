"""What Ray Data does in a training: read shards in a shuffled order, verify them, hand out their rows, still encoded.

Ray's reader and controller processes import this module and nothing heavier: PyTorch and the networks would cost
each of them five seconds at every start.
"""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.fs
import ray.data
from ray.data import FileShuffleConfig

from pipelines import storage
from pipelines.shards import SCHEMAS, TRAINING_COLUMNS, Part, PreparedDataset, parse_part
from segcore import Task


@dataclass
class EpochShuffle(FileShuffleConfig):
    """Ray Data's order of files, counted from the epoch at which this start of the run begins."""

    first_epoch: int = 0

    def get_seed(self, execution_idx: int = 0) -> int | None:
        """Seed of one pass over the files."""
        return super().get_seed(self.first_epoch + execution_idx)


def shard_rows(dataset: PreparedDataset, *, split: str, seed: int, first_epoch: int) -> ray.data.Dataset:
    """A lazy dataset of `TRAINING_COLUMNS`, images still encoded, and `error`; each execution is one epoch."""
    uris = dataset.part_uris(split)
    fs, _ = storage.filesystem(uris[0])
    paths = [storage.filesystem(uri)[1] for uri in uris]
    parts = dict(zip(paths, dataset.splits[split].parts, strict=True))
    arrow_fs = None if storage.is_local(fs) else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    files = ray.data.read_binary_files(
        paths,
        filesystem=arrow_fs,
        include_paths=True,
        override_num_blocks=len(paths),
        shuffle=EpochShuffle(seed=seed, first_epoch=first_epoch),
    )
    return files.map_batches(
        partial(_parse_shard, parts=parts, task=dataset.task), batch_size=1, batch_format="pyarrow"
    )


def _parse_shard(files: pa.Table, *, parts: dict[str, Part], task: Task) -> pa.Table:
    """Verify and open one shard that was read whole; what is wrong with it travels in `error`, on each of its rows.

    An exception here would reach the worker as Ray's own, without its type.
    """
    path = files["path"][0].as_py()
    part = parts[path]
    columns = TRAINING_COLUMNS[task]
    try:
        rows = parse_part(files["bytes"][0].as_py(), name=path, sha256=part.sha256, columns=columns)
    except ValueError as error:
        broken = {name: pa.nulls(part.num_rows, SCHEMAS[task].field(name).type) for name in columns}
        return pa.table({**broken, "error": pa.repeat(str(error), part.num_rows)})
    return rows.append_column("error", pa.nulls(rows.num_rows, pa.string()))


def start_epoch(run_folder: str) -> int:
    """The epoch at which Ray Train will resume this run, by the state that it keeps there; 0 for a new run."""
    # Ray's controller runs this, where no public call tells; the tests resume a run and would notice a change.
    snapshot = storage.join(run_folder, "checkpoint_manager_snapshot.json")
    if not storage.exists(snapshot):
        return 0
    latest = storage.read_json(snapshot)["latest_checkpoint_result"]
    return int(latest["checkpoint_dir_name"].rsplit("-", 1)[1]) + 1 if latest else 0


def checkpoint_name(epoch: int) -> str:
    """Folder of the checkpoint after `epoch`, within the run's folder."""
    return f"checkpoint-{epoch:05d}"


def rows_from_latest_checkpoint(
    dataset: PreparedDataset, *, split: str, seed: int, run_folder: str
) -> ray.data.Dataset:
    """`shard_rows` from the epoch at which the run will resume; Ray calls it for every new worker group."""
    return shard_rows(dataset, split=split, seed=seed, first_epoch=start_epoch(run_folder))
