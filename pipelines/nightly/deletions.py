"""Objects that have gone from the source are marked, never dropped: rows of the table `deletions`.

A row says that an object which the tables know, below the prefix that was listed, was listed no more (`deleted`), or is
listed again (`restored`). The newest row of a URI counts, by `run_id`. Marks are rows of a run's plan, in shards of
their own, which the driver stages and commits itself: as with images, each planned one ends in exactly one row.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from pipelines.tables import commits
from pipelines.tables.committed_rows import UriRange, committed_rows
from pipelines.tables.runs import PLAN, Run, Snapshot
from pipelines.tables.schemas import DELETIONS

MARKS = ("deleted", "restored")
MARKS_PER_SHARD = 50_000


def uri_hashes(uris: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each URI, in place of the URI itself where millions are to be told apart.

    Two of 10 million URIs have the same with a probability of 3e-6; one of the two could then go unmarked.
    """
    hashes = [hash_array(chunk.to_numpy(zero_copy_only=False), categorize=False) for chunk in uris.chunks if len(chunk)]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def newest_of_each(hashes_N: NDArray[np.uint64], runs_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of rows with equal hashes the place of the one of the newest run; in the order of the hashes."""
    order_N = np.lexsort((runs_N, hashes_N))
    is_last_N = np.ones(len(order_N), dtype=np.bool_)
    is_last_N[:-1] = hashes_N[order_N[1:]] != hashes_N[order_N[:-1]]
    return order_N[is_last_N]


def deleted_hashes(tables: str, snapshot: Snapshot, prefix: str) -> NDArray[np.uint64]:
    """`uri_hashes` of what is marked as deleted below a prefix, in order: 8 bytes for each mark that there ever was."""
    hashes, runs, deleted = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], [np.empty(0, np.bool_)]
    for rows in committed_rows(tables, snapshot, "deletions", ["uri", "run_id", "reason"], UriRange.below(prefix)):
        rows = rows.filter(pc.starts_with(rows["uri"], prefix))
        hashes.append(uri_hashes(rows["uri"]))
        runs.append(run_numbers(rows))
        deleted.append(pc.equal(rows["reason"], "deleted").to_numpy().astype(np.bool_))
    all_hashes: NDArray[np.uint64] = np.concatenate(hashes)
    newest = newest_of_each(all_hashes, np.concatenate(runs))
    gone: NDArray[np.uint64] = all_hashes[newest][np.concatenate(deleted)[newest]]
    return gone


def run_numbers(rows: pa.Table) -> NDArray[np.int32]:
    """Of each row."""
    numbers: NDArray[np.int32] = rows["run_id"].cast(pa.int32()).to_numpy().astype(np.int32)
    return numbers


def are_among(hashes_N: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes are among others that are in order."""
    found_N = np.zeros(len(hashes_N), dtype=np.bool_)
    if len(ordered):
        order_N = np.argsort(hashes_N)  # neighbours then look at the same pages of memory
        asked_N = hashes_N[order_N]
        places_N = np.minimum(np.searchsorted(ordered, asked_N), len(ordered) - 1)
        found_N[order_N] = ordered[places_N] == asked_N
    return found_N


def plan_marks(missing: pa.Table, restored: pa.Table, *, run_id: str, first_shard: int) -> pa.Table:
    """Rows of a plan (`PLAN`).

    Args:
        missing: `uri`, `etag`, `size_bytes` of objects to be marked as deleted.
        restored: the same of objects that are listed again.
        run_id: of the run; part of a mark's work id, since an object may go, come back and go again.
        first_shard: number of the first of the marks' shards.
    """
    columns = ["uri", "etag", "size_bytes"]
    parts = [
        rows.select(columns).append_column("reason", pa.repeat(reason, rows.num_rows))
        for reason, rows in zip(MARKS, (missing, restored), strict=True)
    ]
    rows = pa.concat_tables(parts)
    places = np.arange(rows.num_rows)
    ids = pc.binary_join_element_wise(run_id, "mark", pa.array(places).cast(pa.string()), "-")
    rows = rows.append_column("work_id", ids)
    rows = rows.append_column("shard", pa.array(first_shard + places // MARKS_PER_SHARD, pa.int32()))
    rows = rows.append_column("last_modified", pa.nulls(rows.num_rows, pa.timestamp("us")))
    return rows.select(PLAN.names).cast(PLAN)


def num_images(plan: pa.Table) -> int:
    """Rows of a plan that are no marks."""
    return int(plan.num_rows - pc.sum(pc.is_in(plan["reason"], value_set=pa.array(MARKS)), min_count=0).as_py())


def mark_shards(run: Run) -> set[int]:
    """The shards of a run that hold marks and no images."""
    is_mark = pc.is_in(run.plan["reason"], value_set=pa.array(MARKS))
    return set(pc.unique(run.plan["shard"].filter(is_mark)).to_pylist())


def commit_marks(tables: str, run: Run, shards: Sequence[int]) -> None:
    """Stage, commit and promote some of a run's shards of marks. Two attempts write the same rows."""
    noticed_at = datetime.fromisoformat(run.settings.created_at).replace(tzinfo=None)
    for shard, items in zip(shards, run.shard_items(list(shards)), strict=True):
        count = items.num_rows
        columns = {
            **{name: items[name] for name in ("work_id", "uri", "etag", "reason")},
            "noticed_at": pa.repeat(pa.scalar(noticed_at, pa.timestamp("us")), count),
            "run_id": pa.repeat(run.settings.run_id, count),
        }
        marks = pa.Table.from_arrays([columns[name] for name in DELETIONS.names], schema=DELETIONS)
        planned = items["work_id"].to_pylist()
        attempt = commits.stage(tables, run.settings, shard=shard, planned=planned, rows={"deletions": marks})
        commits.promote(tables, commits.commit(tables, attempt))
