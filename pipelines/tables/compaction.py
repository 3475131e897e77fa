"""Small part files of the tables merged into large ones, and files that nobody names any more found.

A reader by snapshot sees every row exactly once at any moment; a merged file takes the place of its small ones from one
snapshot to the next. Readers that glob `<table>/*/*.parquet` know no snapshots, and no store exchanges several files
at once. So a merged file lives twice:

1. Merge    `_compacted/<table>/run_date=<day>/merged-....parquet`, where no glob looks, is created exclusively. Its
            name comes from the files that it replaces: who was killed here, or does the same beside us, finds it.
2. Publish  a snapshot that names it in place of the small files, with their names (`replaces`). Globs see the small.
3. Reveal   once no kept snapshot names the small files: a copy at `<table>/run_date=<day>/`, and the small files are
            removed at once. A snapshot that names the copy is published; the first goes when its snapshots expire.

What a globbing reader can see: between the two halves of step 3, for the time that removing some files takes, the rows
of one merged file twice (`SELECT DISTINCT ON (work_id)` mends it), never too few; a process killed there leaves them
twice until `maintain` runs again. A query that is under way at that moment may end with a missing file. At all other
times each row is there once.
"""

import dataclasses
import hashlib
import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.tables import commits
from pipelines.tables.reader import read_part
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import SCHEMAS, Footer, parquet_bytes_of_parts

HIDDEN = "_compacted/"
BUCKET_BYTES = 64 * 2**20
"""Of masks in memory, uncompressed, while they are sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Files that leave the tables together, by path, and the entry of the one that takes their place, if any."""

    old: frozenset[str]
    new: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Small files of one table and day that become one."""

    table: str
    run_date: str
    files: tuple[dict[str, Any], ...]

    @property
    def num_bytes(self) -> int:
        return sum(file["num_bytes"] for file in self.files)

    @property
    def num_rows(self) -> int:
        return sum(file["num_rows"] for file in self.files)

    @property
    def run_ids(self) -> list[str]:
        """Runs whose rows it holds."""
        return sorted({run_id for file in self.files for run_id in file["run_id"].split(",")})

    @property
    def path(self) -> str:
        """Where the merged file lies at first; another set of files gives another name."""
        names = "\n".join(sorted(file["path"] for file in self.files))
        name = f"merged-{self.run_ids[0]}-{self.run_ids[-1]}-{hashlib.sha256(names.encode()).hexdigest()[:16]}.parquet"
        return f"{HIDDEN}{self.table}/run_date={self.run_date}/{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expiry:
    """What the age of the snapshots allows.

    Attributes:
        expired: numbers of the snapshots that go, oldest first.
        revealed: files of the newest snapshot whose small ones no kept snapshot names.
        removed: paths that no kept snapshot names, the small ones of `revealed` apart.
    """

    expired: tuple[int, ...]
    revealed: tuple[dict[str, Any], ...]
    removed: tuple[str, ...]

    @property
    def num_removed(self) -> int:
        """Data files that go."""
        return len(self.removed) + sum(len(file["replaces"]) for file in self.revealed)


def run_date_of(path: str) -> str:
    """The day of a part file: "2026-11-20"."""
    found = re.search(r"/run_date=(\d{4}-\d\d-\d\d)/", path)
    assert found, f"{path} is in no folder run_date=YYYY-MM-DD"
    return found[1]


def paths_of(snapshot: Snapshot) -> Iterator[str]:
    """Every path that a snapshot names, and those that its hidden files replace."""
    for file in snapshot.files:
        yield from (file["path"], *file.get("replaces", ()))


def changed(snapshot: Snapshot, changes: Sequence[Change]) -> Snapshot | None:
    """The snapshot that follows when some files are replaced; None where there is nothing to replace.

    A change whose old files are not all there is left out: somebody else has made it, or another one.
    """
    present = {file["path"] for file in snapshot.files}
    wanted = [change for change in changes if change.old <= present]
    if not wanted:
        return None
    number_of_path = {path: number for number, change in enumerate(wanted) for path in change.old}
    files: list[dict[str, Any]] = []
    placed: set[int] = set()
    for file in snapshot.files:
        number = number_of_path.get(file["path"])
        if number is None:
            files.append(file)
        elif number not in placed:  # the first of a change's files: the new one takes its place
            placed.add(number)
            new = wanted[number].new
            files += [new] if new else []
    return dataclasses.replace(snapshot, number=snapshot.number + 1, files=tuple(files))


def replace_files(tables: str, changes: Sequence[Change]) -> None:
    """Publish a snapshot with some files in place of others; beside jobs that publish runs, and idempotent."""
    while following := changed(commits.newest_snapshot(tables), changes):
        commits.create_snapshot(tables, following)  # and look again: it may have been another writer's number


def plan_merges(snapshot: Snapshot, *, target_bytes: int) -> list[Merge]:
    """Groups of two files or more that are smaller than half of `target_bytes`, each group about that large at most."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in snapshot.files:
        if 2 * file["num_bytes"] < target_bytes and file["table"] in SCHEMAS:
            groups.setdefault((file["table"], run_date_of(file["path"])), []).append(file)
    found = []
    for (table, run_date), files in sorted(groups.items()):
        for part in _cut(files, target_bytes):
            if len(part) > 1:
                found.append(Merge(table=table, run_date=run_date, files=tuple(part)))
    return found


def write_merged(tables: str, merge: Merge, snapshot: Snapshot) -> Change:
    """Write the merged file where no glob looks, or find it there.

    Masks are sorted by work id and other rows by URI, so that the footer's statistics tell where some can lie.

    Raises:
        ValueError: a file is not what the snapshot says, or of a newer version.
        FileNotFoundError: a file is gone; another `maintain` was here first.
    """
    uri = storage.join(tables, merge.path)
    data = b"" if storage.exists(uri) else _merged_bytes(tables, merge, snapshot)
    if not data or not storage.create_exclusive(uri, data):
        data = storage.read_bytes(uri)  # of a process that was killed, or of one beside us
    num_rows = pq.read_metadata(io.BytesIO(data)).num_rows
    if num_rows != merge.num_rows:
        raise ValueError(f"{uri} holds {num_rows} rows, expected {merge.num_rows}; remove it and run maintain again")
    # Of a hidden file that is merged again: what globs see in its place, and its copy, should a process reveal it now.
    replaced = [path for file in merge.files for path in [*file.get("replaces", ()), file["path"].removeprefix(HIDDEN)]]
    entry = {
        "table": merge.table,
        "path": merge.path,
        "num_rows": num_rows,
        "num_bytes": len(data),
        "sha256": storage.sha256(data),
        "run_id": ",".join(merge.run_ids),
        "replaces": replaced,
    }
    return Change(old=frozenset(file["path"] for file in merge.files), new=entry)


def reveal(tables: str, file: dict[str, Any]) -> Change:
    """Put a merged file where globs look, and remove the small ones that it replaces; again, if it must be.

    Raises:
        ValueError: the file is not what the snapshot says.
    """
    path = file["path"].removeprefix(HIDDEN)
    data = storage.read_bytes(storage.join(tables, file["path"]))
    _check_digest(tables, file, data)
    storage.create_exclusive(storage.join(tables, path), data)  # there already: of a process that was killed here
    for small in file["replaces"]:
        storage.remove_file(storage.join(tables, small))
    entry = {key: value for key, value in file.items() if key != "replaces"} | {"path": path}
    return Change(old=frozenset([file["path"]]), new=entry)


def plan_expiry(snapshots: Sequence[Snapshot], *, before: datetime) -> Expiry:
    """What may go when nobody reads a snapshot any more that was replaced by the next one before some time.

    Args:
        snapshots: all that there are, oldest first.
        before: time zone aware.
    """
    replaced_at = [datetime.fromisoformat(snapshot.created_at) for snapshot in snapshots[1:]]
    num_expired = next((index for index, time in enumerate(replaced_at) if time > before), len(replaced_at))
    expired, kept = snapshots[:num_expired], snapshots[num_expired:]
    named = {file["path"] for snapshot in kept for file in snapshot.files}
    hidden = [file for file in kept[-1].files if "replaces" in file]
    revealed = tuple(file for file in hidden if not named.intersection(file["replaces"]))
    # What globs see in place of a hidden file stays until that is revealed, and goes with it.
    awaited = {path for file in hidden for path in file["replaces"]}
    seen = {path for snapshot in expired for path in paths_of(snapshot)}
    return Expiry(
        expired=tuple(snapshot.number for snapshot in expired),
        revealed=revealed,
        removed=tuple(sorted(seen - named - awaited)),
    )


def _cut(files: Sequence[dict[str, Any]], target_bytes: int) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for file in files:
        if part and sum(each["num_bytes"] for each in part) + file["num_bytes"] > target_bytes:
            yield part
            part = []
        part.append(file)
    yield part


def _merged_bytes(tables: str, merge: Merge, snapshot: Snapshot) -> bytes:
    contents: list[tuple[str, bytes]] = []
    digests: set[str] = set()
    columns = set(SCHEMAS[merge.table].names)
    for file in merge.files:
        data = storage.read_bytes(storage.join(tables, file["path"]))
        _check_digest(tables, file, data)
        metadata = pq.read_metadata(io.BytesIO(data)).metadata
        _check_class_table(tables, file["path"], metadata, snapshot)
        digests.update(metadata[b"segpipe.model_digest"].decode().split(","))
        columns &= set(pq.read_schema(io.BytesIO(data)).names)
        contents.append((file["path"], data))
    schema = pa.schema(  # a column that an older file lacks is null there
        [field.with_nullable(field.nullable or field.name not in columns) for field in SCHEMAS[merge.table]]
    )
    parts: Iterable[pa.Table] = (
        read_part(data, merge.table, path=path).select(schema.names).cast(schema) for path, data in contents
    )
    if merge.table == "masks":
        parts = _sorted_masks(parts, schema, _bucket_edges([data for _, data in contents]))
    else:
        rows = pa.concat_tables(parts)
        parts = [rows.sort_by("uri") if "uri" in schema.names else rows]
    footer = Footer(
        class_names=snapshot.class_names,
        palette=snapshot.palette,
        model_digest=",".join(sorted(digests)),
        run_id=",".join(merge.run_ids),
    )
    return parquet_bytes_of_parts(merge.table, parts, footer, schema=schema)


def _bucket_edges(contents: Sequence[bytes]) -> list[str]:
    """Work ids that cut the masks of some files into buckets of equally many, each about `BUCKET_BYTES` in memory."""
    ids: list[str] = []
    num_bytes = 0
    for data in contents:
        parquet = pq.ParquetFile(io.BytesIO(data))
        ids += parquet.read(columns=["work_id"])["work_id"].to_pylist()
        groups = range(parquet.metadata.num_row_groups)
        num_bytes += sum(parquet.metadata.row_group(group).total_byte_size for group in groups)
    per_bucket = -(-len(ids) * BUCKET_BYTES // max(num_bytes, 1))
    return sorted(ids)[per_bucket::per_bucket]


def _sorted_masks(parts: Iterable[pa.Table], schema: pa.Schema, edges: Sequence[str]) -> Iterator[pa.Table]:
    """All rows by work id, one bucket in memory at a time, the others compressed: runs take 30 times their file's size.

    Rows of equal ids keep their order.
    """
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    sinks = [pa.BufferOutputStream() for _ in range(len(edges) + 1)]
    writers = [pa.ipc.new_stream(sink, schema, options=options) for sink in sinks]
    for part in parts:
        buckets = pa.array([bisect_right(edges, work_id) for work_id in part["work_id"].to_pylist()], pa.int64())
        for bucket in pc.unique(buckets).to_pylist():
            writers[bucket].write_table(part.filter(pc.equal(buckets, bucket)))
    for number, sink in enumerate(sinks):
        writers[number].close()
        rows = pa.ipc.open_stream(sink.getvalue()).read_all()
        if rows.num_rows or not edges:
            yield rows.take(pc.sort_indices(rows["work_id"]))


def _check_digest(tables: str, file: dict[str, Any], data: bytes) -> None:
    if storage.sha256(data) != file["sha256"]:
        raise ValueError(
            f"{storage.join(tables, file['path'])} has not the SHA-256 of its snapshot: it was changed or damaged; "
            "restore it, or leave --compact out"
        )


def _check_class_table(tables: str, path: str, metadata: dict[bytes, bytes], snapshot: Snapshot) -> None:
    names = tuple(json.loads(metadata[b"segpipe.class_names"]))
    palette = tuple(tuple(colour) for colour in json.loads(metadata[b"segpipe.palette"]))
    if (names, palette) != (snapshot.class_names, snapshot.palette):
        raise ValueError(f"{storage.join(tables, path)} has another class table than its snapshot; leave --compact out")
