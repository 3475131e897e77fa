"""What there is to segment: the listing of a folder or bucket, less what is committed, cut into shards."""

import hashlib
import logging
import math
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.commits import PLAN, STORE_THREADS, Snapshot
from pipelines.tables import SCHEMA_VERSION, SCHEMAS

logger = logging.getLogger(__name__)

INTAKE_VERSION = 1
"""Raise it when `pipelines.images.decode_image` gives other pixels for the same bytes: masks are then made anew."""

MAX_SHARD_BYTES = 64 * 2**20
"""Of encoded images, which travel through the object store as one row."""

SHARDS_PER_WORKER = 4  # so that no worker waits long for the last one

LISTING = pa.schema([PLAN.field(name) for name in ("uri", "etag", "size_bytes", "last_modified")])

_MODIFIED_KEYS = ("LastModified", "mtime", "last_modified", "updated", "created")  # S3, local, Azure, GCS, memory


def list_images(images: str) -> pa.Table:
    """Every file below a folder or bucket (`LISTING`), ordered by URI, whatever its suffix: contents decide.

    Left out are hidden files and folders (a name that begins with a dot), unfinished ones (`.part`), folders that are
    symbolic links (files are followed) and S3's markers of empty folders. Everything else that is not an image ends in
    the failures table.

    Raises:
        ValueError: nothing lies there, or a folder cannot be read.
    """
    fs, root = storage.filesystem(images)
    if not fs.exists(root):
        raise ValueError(f"there is no folder, bucket or image at {images!r}; check --images")
    local = storage.is_local(fs)
    files = dict(_local_files(root)) if local else fs.find(root, detail=True)
    found = {
        path: info
        for path, info in sorted(files.items())
        if _is_wanted(path.removeprefix(root).lstrip("/") or posixpath.basename(path), info)
    }
    if not found:
        raise ValueError(f"{images!r} holds no files (hidden and .part files do not count); check --images")
    modified = [_modified(info) for info in found.values()]
    columns = [
        pa.array([path if local else fs.unstrip_protocol(path) for path in found], pa.string()),
        pa.array([_etag(info, when) for info, when in zip(found.values(), modified, strict=True)], pa.string()),
        pa.array([info["size"] or 0 for info in found.values()], pa.int64()),
        pa.array(modified, pa.timestamp("us")),
    ]
    return pa.Table.from_arrays(columns, schema=LISTING)


def work_ids(listing: pa.Table, *, model_digest: str, config_digest: str) -> pa.Array:
    """Identity of each listed object under a model and its settings: equal identities would give the same mask."""
    rest = f"\0{model_digest}\0{config_digest}\0{SCHEMA_VERSION}"
    rows = zip(*(listing[name].to_pylist() for name in ("uri", "etag", "size_bytes")), strict=True)
    ids = [hashlib.sha256(f"{uri}\0{etag}\0{size}{rest}".encode()).hexdigest() for uri, etag, size in rows]
    return pa.array(ids, pa.string())


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedWork:
    """Work ids of live rows.

    Attributes:
        done: segmented, or failed in a way that only another file can mend.
        to_retry: failed in a way that may pass by itself, in any run; may be in `done` by now.
    """

    done: pa.ChunkedArray
    to_retry: pa.ChunkedArray


def committed_work(tables: str, snapshot: Snapshot) -> CommittedWork:
    """What the tables hold; reads two columns at most."""

    def read(name: str, columns: list[str]) -> pa.Table:
        uris = [storage.join(tables, file["path"]) for file in snapshot.files if file["table"] == name]
        with ThreadPoolExecutor(STORE_THREADS) as pool:
            parts = list(pool.map(lambda uri: _read_columns(uri, columns), uris))
        schema = pa.schema([SCHEMAS[name].field(column) for column in columns])
        return pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()

    segmented = read("predictions", ["work_id"])["work_id"]
    failed = read("failures", ["work_id", "retryable"])
    final = failed.filter(pc.invert(failed["retryable"]))["work_id"]
    done = pa.chunked_array([*segmented.chunks, *final.chunks], pa.string())
    return CommittedWork(done=done, to_retry=failed.filter(failed["retryable"])["work_id"])


def plan_work(
    listing: pa.Table, ids: pa.Array, committed: CommittedWork, *, images_per_shard: int, workers: int
) -> pa.Table:
    """The listed objects whose work is not done, cut into shards (`PLAN`), each with its reason: `new` or `retry`.

    A shard is the unit of commit: what a dead worker loses. It holds at most `images_per_shard` images and
    `MAX_SHARD_BYTES` (one image at least), and fewer where there are too few images to keep every worker busy.
    """
    rows = listing.append_column(PLAN.field("work_id"), ids)
    rows = rows.filter(pc.invert(pc.is_in(ids, value_set=committed.done)))
    wanted = math.ceil(rows.num_rows / (SHARDS_PER_WORKER * workers))
    shards = _cut(rows["size_bytes"].to_pylist(), max_rows=max(1, min(images_per_shard, wanted)))
    rows = rows.append_column(PLAN.field("shard"), pa.array(shards, pa.int32()))
    failed_before = pc.is_in(rows["work_id"], value_set=committed.to_retry)
    rows = rows.append_column(PLAN.field("reason"), pc.if_else(failed_before, "retry", "new"))
    return rows.select(PLAN.names).cast(PLAN).combine_chunks()


def _cut(sizes: list[int], *, max_rows: int) -> list[int]:
    shards: list[int] = []
    shard, rows, total = 0, 0, 0
    for size in sizes:
        if rows == max_rows or (rows and total + size > MAX_SHARD_BYTES):
            shard, rows, total = shard + 1, 0, 0
        shards.append(shard)
        rows, total = rows + 1, total + size
    return shards


def _local_files(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What lies below a folder, folders apart, as fsspec tells it (which passes over links and unreadable folders)."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"the folder {error.filename!r} cannot be listed ({error.strerror}); give this user access")

    below = (os.path.join(folder, name) for folder, _, names in os.walk(root, onerror=refuse) for name in names)
    for path in [root] if os.path.isfile(root) else below:
        try:
            path.encode()
            status = os.stat(path)
        except UnicodeEncodeError:
            logger.warning("left out, since its name is not UTF-8: %s; rename it", path.encode(errors="replace"))
        except FileNotFoundError:
            logger.warning("left out, since it has gone or is a link to nowhere: %s", path)
        else:
            kind = "file" if stat.S_ISREG(status.st_mode) else "other"  # as fsspec calls pipes, sockets and devices
            yield path, {"type": kind, "size": status.st_size, "mtime": status.st_mtime}


def _is_wanted(relative_path: str, info: Mapping[str, Any]) -> bool:
    parts = relative_path.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return info["type"] == "file" and not hidden and not relative_path.endswith((storage.UNFINISHED_SUFFIX, "/"))


def _modified(info: Mapping[str, Any]) -> datetime | None:
    """Time of the last change, UTC without a mark, as the tables hold it."""
    for key in _MODIFIED_KEYS:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.astimezone(UTC).replace(tzinfo=None)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC).replace(tzinfo=None)
    return None


def _etag(info: Mapping[str, Any], modified: datetime | None) -> str:
    """The store's version of an object, or else its time of change."""
    for key in ("VersionId", "ETag", "etag"):
        if info.get(key):
            return str(info[key]).strip('"')
    return modified.isoformat() if modified else ""


def _read_columns(uri: str, columns: list[str]) -> pa.Table:
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as file:  # an object store is asked for these columns' bytes and no others
        return pq.read_table(file, columns=columns)
