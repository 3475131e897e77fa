"""What there is to segment: the listing, less what is committed, cut into shards; each image with its reason.

    new             the tables hold nothing under its URI
    changed         they hold other versions of it: another etag or size
    model_changed   they hold this version of it, by another model, under other settings or in an older schema
    retry           it failed in a way that may pass, or at a stage that was asked for
    forced          it is there, and is done again all the same

The committed rows are streamed past the listing, which is the small side: of the history only what concerns listed
objects leaves a trace, a few bits per object, and memory does not grow with it, apart from 8 bytes for each object that
was deleted below the listed prefix.

A forced image's work id is its identity and the run's number, so that both rows exist, each with its own mask; the
newest run's counts (`pipelines.tables.schemas`). Its first `IDENTITY_LENGTH` characters are the identity in either
case.
"""

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.nightly.deletions import are_among, deleted_hashes, newest_of_each, plan_marks, run_numbers, uri_hashes
from pipelines.nightly.listing import LISTING, Listing
from pipelines.tables.committed_rows import UriRange, committed_rows
from pipelines.tables.runs import PLAN, Snapshot
from pipelines.tables.schemas import IDENTITY_VERSION

INTAKE_VERSION = 2
"""Raise it when `intake.images.decode_image` gives other pixels for the same bytes: masks are then made anew."""

REASONS = ("new", "changed", "model_changed", "retry", "forced")

MAX_SHARD_BYTES = 64 * 2**20
"""Of encoded images, which travel through the object store as one row."""

SHARDS_PER_WORKER = 4  # so that no worker waits long for the last one

IDENTITY_LENGTH = 64

ROWS_AT_ONCE = 2**20
"""Committed rows compared at once: each comparison builds the listing's hash table anew, 0.2 s for a million."""

_COLUMNS = ("uri", "etag", "size_bytes", "work_id", "run_id")


def work_ids(objects: pa.Table, *, model_digest: str, config_digest: str) -> pa.Array:
    """Identity of each listed object under a model and its settings: equal identities would give the same mask."""
    rest = f"\0{model_digest}\0{config_digest}\0{IDENTITY_VERSION}"
    chunks = [pa.array([], pa.string())]
    for batch in objects.to_batches(max_chunksize=65536):  # what is in Python's hands at once
        rows = zip(*(batch[name].to_pylist() for name in ("uri", "etag", "size_bytes")), strict=True)
        ids = [hashlib.sha256(f"{uri}\0{etag}\0{size}{rest}".encode()).hexdigest() for uri, etag, size in rows]
        chunks.append(pa.array(ids, pa.string()))
    return pa.concat_arrays(chunks)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comparison:
    """What the tables hold of a listing of N objects.

    Attributes:
        done_N: under this identity, segmented, or failed in a way that only another file can mend.
        fresh_N: done so by one of the runs that were named.
        failed_N: failed under this identity, worth another try; may be done by now.
        same_N: this version of it, under whatever identity.
        known_N: any version of it.
        restored_N: marked as deleted.
        missing: `LISTING`, of objects below the listing's prefix that it does not show and that no mark says are gone.
    """

    done_N: NDArray[np.bool_]
    fresh_N: NDArray[np.bool_]
    failed_N: NDArray[np.bool_]
    same_N: NDArray[np.bool_]
    known_N: NDArray[np.bool_]
    restored_N: NDArray[np.bool_]
    missing: pa.Table


def compare(
    listing: Listing,
    ids: pa.Array,
    tables: str,
    snapshot: Snapshot,
    *,
    retry: Collection[str] = (),
    fresh_runs: Collection[str] = (),
    accept_deletions: bool = False,
) -> Comparison:
    """Look every committed row up among the listed objects.

    Args:
        listing: N objects.
        ids: their `work_ids`.
        tables: URI of the tables' folder.
        snapshot: what is committed.
        retry: stages whose failures are worth another try, whatever the row says.
        fresh_runs: runs whose work is not asked for again, not even by `retry`.
        accept_deletions: even if more than half of the known objects below the listing's prefix are not listed.

    Raises:
        ValueError: more than half are not, which may be an outage of the listing.
    """
    uris = listing.objects["uri"]
    gone = deleted_hashes(tables, snapshot, listing.prefix) if listing.prefix else np.empty(0, np.uint64)
    restored_N = are_among(uri_hashes(uris), gone) if len(gone) else np.zeros(len(uris), dtype=np.bool_)
    found = {name: np.zeros(len(uris), dtype=np.bool_) for name in ("done", "fresh", "failed", "same", "known")}
    missing = _Missing(listing=listing, gone=gone)
    for rows in _batches(_rows(listing, tables, snapshot, retry, fresh_runs), ROWS_AT_ONCE):
        places = pc.index_in(rows["uri"], value_set=uris).fill_null(-1).to_numpy()
        is_listed = places >= 0
        _note(found, rows.filter(pa.array(is_listed)), places[is_listed], listing.objects, ids)
        if listing.prefix:
            missing.add(rows.filter(pa.array(~is_listed)))
            if not accept_deletions:
                missing.check(num_known=len(uris))  # at most so many
    if not accept_deletions:
        missing.check(num_known=int(found["known"].sum()))
    flags = {f"{name}_N": flags_N for name, flags_N in found.items()}
    return Comparison(**flags, restored_N=restored_N, missing=missing.objects())


@dataclass(kw_only=True, slots=True, eq=False)
class _Missing:
    """Committed rows of objects that a listing should show and does not, and that no mark says are gone."""

    listing: Listing
    gone: NDArray[np.uint64]
    rows: list[pa.Table] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    num_distinct: int = 0
    """At most; exact after `check` has had a reason to count."""

    def add(self, rows: pa.Table) -> None:
        """Rows that are not listed."""
        rows = rows.filter(pc.starts_with(rows["uri"], self.listing.prefix))
        if self.listing.taken_at is not None:  # an object that was segmented since may be younger than the listing
            rows = rows.filter(pc.less(rows["created_at"], pa.scalar(self.listing.taken_at, pa.timestamp("us"))))
        hashes_N = uri_hashes(rows["uri"])
        is_news_N = ~are_among(hashes_N, self.gone)
        if is_news_N.any():
            self.rows.append(rows.filter(pa.array(is_news_N)).select(["uri", "etag", "size_bytes", "run_id"]))
            self.hashes.append(hashes_N[is_news_N])
            self.num_distinct += int(is_news_N.sum())

    def check(self, *, num_known: int) -> None:
        """Refuse where more objects are missing than are known and listed."""
        if self.num_distinct > num_known:
            self.num_distinct = len(np.unique(np.concatenate(self.hashes)))
        if self.num_distinct > num_known:
            raise ValueError(
                f"{self.num_distinct} objects that the tables know below {self.listing.prefix!r} are listed no more, "
                f"and at most {num_known} still are; more than half at once may be an outage of the listing: look at "
                "the store, and if they were deleted, have them marked with --accept-deletions"
            )

    def objects(self) -> pa.Table:
        """`LISTING` of the newest row of each."""
        if not self.rows:
            return LISTING.empty_table()
        rows = pa.concat_tables(self.rows)
        newest = newest_of_each(np.concatenate(self.hashes), run_numbers(rows))
        if len(newest) < rows.num_rows:
            rows = rows.take(pa.array(np.sort(newest)))
        times = pa.nulls(rows.num_rows, LISTING.field("last_modified").type)
        return rows.drop_columns("run_id").append_column("last_modified", times).cast(LISTING)


def _note(
    found: dict[str, NDArray[np.bool_]], rows: pa.Table, places: NDArray[np.int64], objects: pa.Table, ids: pa.Array
) -> None:
    """Set the flags of the listed objects at `places`, to which `rows` belong."""
    listed = objects.select(["etag", "size_bytes"]).take(pa.array(places))
    is_same = _bools(
        pc.and_(pc.equal(rows["etag"], listed["etag"]), pc.equal(rows["size_bytes"], listed["size_bytes"]))
    )
    found["known"][places] = True
    found["same"][places[is_same]] = True
    identity = pc.utf8_slice_codeunits(rows["work_id"], 0, IDENTITY_LENGTH)
    has_identity = _bools(pc.equal(identity, ids.take(pa.array(places))))
    is_final, is_fresh = _bools(rows["is_final"]), _bools(rows["is_fresh"])
    found["done"][places[has_identity & is_final]] = True
    found["fresh"][places[has_identity & is_final & is_fresh]] = True
    found["failed"][places[has_identity & ~is_final]] = True


def _rows(
    listing: Listing, tables: str, snapshot: Snapshot, retry: Collection[str], fresh_runs: Collection[str]
) -> Iterator[pa.Table]:
    """`_COLUMNS` of committed rows, and two flags: nothing is to be tried again; by one of `fresh_runs`."""
    columns = _COLUMNS if listing.taken_at is None else (*_COLUMNS, "created_at")
    if listing.prefix:
        uris = UriRange.below(listing.prefix)
    else:
        span = pc.min_max(listing.objects["uri"])
        uris = UriRange(first=span["min"].as_py(), last=span["max"].as_py())
    runs, stages = pa.array(list(fresh_runs), pa.string()), pa.array(list(retry), pa.string())
    for rows in committed_rows(tables, snapshot, "predictions", columns, uris):
        is_fresh = pc.is_in(rows["run_id"], value_set=runs)
        yield rows.append_column("is_final", pa.repeat(True, rows.num_rows)).append_column("is_fresh", is_fresh)
    for rows in committed_rows(tables, snapshot, "failures", (*columns, "stage", "retryable"), uris):
        is_fresh = pc.is_in(rows["run_id"], value_set=runs)
        asked_for = pc.and_(pc.is_in(rows["stage"], value_set=stages), pc.invert(is_fresh))
        is_final = pc.invert(pc.or_(rows["retryable"], asked_for))
        yield rows.select(columns).append_column("is_final", is_final).append_column("is_fresh", is_fresh)


def _batches(tables: Iterator[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Small tables joined until they have enough rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) >= num_rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def plan_work(
    listing: Listing,
    ids: pa.Array,
    comparison: Comparison,
    *,
    run_id: str,
    force: bool = False,
    images_per_shard: int,
    workers: int,
) -> pa.Table:
    """What a run is to do (`PLAN`): the listed objects whose work is not done, then marks of deletions.

    A shard is the unit of commit: what a dead worker loses. It holds at most `images_per_shard` images and
    `MAX_SHARD_BYTES` (one image at least), and fewer where there are too few images to keep every worker busy.

    Args:
        listing: N objects.
        ids: their `work_ids`.
        comparison: of them with the tables.
        run_id: of the run that is planned.
        force: do again what is done, unless it is fresh.
        images_per_shard, workers: see above.
    """
    is_open_N = ~comparison.fresh_N if force else ~comparison.done_N
    reasons_N = np.select(
        [comparison.done_N, comparison.failed_N, comparison.same_N, comparison.known_N],
        [REASONS.index(reason) for reason in ("forced", "retry", "model_changed", "changed")],
        default=REASONS.index("new"),
    )
    is_open = pa.array(is_open_N)
    rows = listing.objects.filter(is_open).combine_chunks()
    reasons = pa.DictionaryArray.from_arrays(pa.array(reasons_N[is_open_N], pa.int8()), list(REASONS)).cast(pa.string())
    open_ids = ids.filter(is_open)
    forced_ids = pc.binary_join_element_wise(open_ids, run_id, "-")
    rows = rows.append_column("work_id", pc.if_else(pc.equal(reasons, "forced"), forced_ids, open_ids))
    rows = rows.append_column("reason", reasons)
    wanted = math.ceil(rows.num_rows / (SHARDS_PER_WORKER * workers))
    shards = _cut(rows["size_bytes"].to_numpy(), max_rows=max(1, min(images_per_shard, wanted)))
    rows = rows.append_column("shard", pa.array(shards, pa.int32())).select(PLAN.names).cast(PLAN)
    restored = listing.objects.filter(pa.array(comparison.restored_N))
    first_shard = int(shards[-1]) + 1 if len(shards) else 0
    marks = plan_marks(comparison.missing, restored, run_id=run_id, first_shard=first_shard)
    return pa.concat_tables([rows, marks]).combine_chunks()


def _cut(sizes_N: NDArray[np.int64], *, max_rows: int) -> NDArray[np.int32]:
    """Number of the shard of each object; no Python object for each, of which there may be 100 million."""
    ends_N = np.cumsum(sizes_N, dtype=np.int64)
    starts = [0]
    while starts[-1] < len(sizes_N):
        start = starts[-1]
        before = int(ends_N[start - 1]) if start else 0
        full = int(np.searchsorted(ends_N, before + MAX_SHARD_BYTES, side="right"))
        starts.append(min(max(full, start + 1), start + max_rows, len(sizes_N)))
    return np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))


def _bools(flags: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(flags.to_numpy(), dtype=np.bool_)  # without rows it is an array of objects
