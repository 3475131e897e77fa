"""What there is to segment, as one table (`LISTING`): a folder or bucket that is listed, or a manifest that says it.

A local folder is walked in this process. Of an object store, folders are listed level by level until there are enough
of them; what lies below each is then listed by a Ray task or, without Ray, a thread. One flat folder is one listing,
page after page, whatever there is beside it.

An object that a manifest names and that is not there stays in the listing, with an empty etag and no bytes: it is
planned, and ends in `failures` with stage `fetch`.
"""

import logging
import os
import posixpath
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from pipelines import storage
from pipelines.cluster import spread
from pipelines.nightly.image_manifests import read_image_manifest
from pipelines.tables.runs import PLAN

logger = logging.getLogger(__name__)

LISTING = pa.schema([PLAN.field(name) for name in ("uri", "etag", "size_bytes", "last_modified")])

LIST_THREADS = 16
ENOUGH_FOLDERS = 64
"""Folders to share among tasks; with fewer, the next level is looked at, `MAX_LEVELS` deep."""
MAX_LEVELS = 4
MAX_PIECES = 512  # tasks, however many folders there are
OBJECTS_PER_CHUNK = 65536  # what fsspec says of one takes about a kilobyte until it stands in a table

LOOK_UPS_PER_TASK = 2000
LOOK_UP_ATTEMPTS = 3

_MODIFIED_KEYS = ("LastModified", "mtime", "last_modified", "updated", "created")  # S3, local, Azure, GCS, memory
_UNWANTED = rf"(^|/)\.|\{storage.UNFINISHED_SUFFIX}$"  # hidden, unfinished


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Listing:
    """What is there.

    Attributes:
        objects: `LISTING`, each URI once, in order.
        prefix: below this URI nothing else was there; empty where that is not known.
        taken_at: when the listing was begun, UTC without a mark, if that is not just now.
    """

    objects: pa.Table
    prefix: str
    taken_at: datetime | None = None


def check_source(images: str, manifest: str) -> None:
    """Refuse what cannot be listed, before anything is started.

    Raises:
        ValueError: nothing lies there.
    """
    if manifest and not storage.exists(manifest):
        raise ValueError(f"there is no manifest at {manifest!r}; check --manifest")
    if not manifest and not storage.exists(images):
        raise ValueError(f"there is no folder, bucket or image at {images!r}; check --images")


def take_listing(images: str, manifest: str = "", *, in_tasks: bool = False) -> Listing:
    """List a folder or bucket; or take what a manifest says, of which only what lies below `images`, if that is given.

    Args:
        images: folder, bucket or one image.
        manifest: see `pipelines.nightly.image_manifests`; empty: list `images`.
        in_tasks: share the work among Ray tasks where there is enough of it; Ray must run then.

    Raises:
        ValueError: nothing lies there; a folder or the manifest cannot be read.
    """
    if not manifest:
        objects, prefix = list_images(images, in_tasks=in_tasks), _prefix(images)
        return Listing(objects=objects, prefix=prefix if prefix.endswith("/") else "")  # else: one image
    check_source(images, manifest)
    found = read_image_manifest(manifest)
    rows, prefix = found.rows, _prefix(images) if images else ""
    if prefix:
        rows = rows.filter(pc.starts_with(rows["uri"], prefix))
    is_inventory = found.taken_at is not None
    if is_inventory:
        rows = _wanted(rows, prefix)
    if not rows.num_rows:
        raise ValueError(f"the manifest {manifest!r} names no image{' below ' * bool(prefix)}{prefix}; check it")
    objects = _completed(_each_once(rows), in_tasks=in_tasks)
    return Listing(objects=objects, prefix=prefix if is_inventory else "", taken_at=found.taken_at)


def list_images(images: str, *, in_tasks: bool = False) -> pa.Table:
    """Every file below a folder or bucket (`LISTING`), ordered by URI, whatever its suffix: contents decide.

    Left out are hidden files and folders (a name that begins with a dot), unfinished ones (`.part`), folders that are
    symbolic links (files are followed) and S3's markers of empty folders. Everything else that is not an image ends in
    the failures table.

    Raises:
        ValueError: nothing lies there, or a folder cannot be read.
    """
    check_source(images, "")
    fs, root = storage.filesystem(images)
    if storage.is_local(fs):
        objects = _table(fs, _local_files(root))
    else:
        objects = _list_store(str(fs.unstrip_protocol(root)), in_tasks=in_tasks)
    objects = _wanted(objects, _prefix(images))
    if not objects.num_rows:
        raise ValueError(f"{images!r} holds no files (hidden and .part files do not count); check --images")
    return objects.sort_by("uri").combine_chunks()


def _prefix(images: str) -> str:
    """What the URI of everything below `images` begins with; of one image its own URI."""
    fs, root = storage.filesystem(images)
    uri = root if storage.is_local(fs) else str(fs.unstrip_protocol(root))
    return uri if fs.isfile(root) else f"{uri.rstrip('/')}/"


def _wanted(rows: pa.Table, prefix: str) -> pa.Table:
    """Without hidden and unfinished files, and a store's markers of folders; names above `prefix` do not count."""
    above = prefix.rpartition("/")[0]
    relative = pc.utf8_slice_codeunits(rows["uri"], len(above) + 1) if above else rows["uri"]
    is_marker = pc.ends_with(rows["uri"], "/")
    return rows.filter(pc.invert(pc.or_(is_marker, pc.match_substring_regex(relative, _UNWANTED))))


def _list_store(root: str, *, in_tasks: bool) -> pa.Table:
    tables: list[pa.Table] = []
    folders = [root]
    for _ in range(MAX_LEVELS):
        levels = spread(_list_level, folders, in_tasks=in_tasks)
        tables += [objects for objects, _ in levels]
        folders = [folder for _, below in levels for folder in below]
        if not folders or len(folders) >= ENOUGH_FOLDERS:
            break
    size = -(-len(folders) // MAX_PIECES) or 1
    pieces = [folders[start : start + size] for start in range(0, len(folders), size)]
    tables += spread(_list_below, pieces, in_tasks=in_tasks)
    return pa.concat_tables(tables)


def _list_level(folder: str) -> tuple[pa.Table, list[str]]:
    """Objects directly in a folder of a store, and the folders in it that are not hidden."""
    fs, path = storage.filesystem(folder)
    below: list[str] = []

    def files() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for entry in storage.entries(folder):
            name = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                yield entry["name"], entry
            elif name != path.rstrip("/") and not posixpath.basename(name).startswith("."):
                below.append(str(fs.unstrip_protocol(name)))

    return _table(fs, files()), below


def _list_below(folders: Sequence[str]) -> pa.Table:
    """Every object below some folders of a store."""
    tables = []
    for folder in folders:
        fs, _ = storage.filesystem(folder)
        found = storage.entries(folder, recursive=True)
        tables.append(_table(fs, ((entry["name"], entry) for entry in found)))
    return pa.concat_tables(tables)


def _table(fs: AbstractFileSystem, files: Iterable[tuple[str, Mapping[str, Any]]]) -> pa.Table:
    """`LISTING` of what fsspec says of some files; anything else is left out."""
    remaining = iter(files)
    tables = [LISTING.empty_table()]
    while chunk := list(islice(remaining, OBJECTS_PER_CHUNK)):
        found = [(path, info) for path, info in chunk if info["type"] == "file"]
        modified = [_modified(info) for _, info in found]
        columns = [
            pa.array([path if storage.is_local(fs) else fs.unstrip_protocol(path) for path, _ in found], pa.string()),
            pa.array([_etag(info, when) for (_, info), when in zip(found, modified, strict=True)], pa.string()),
            pa.array([info["size"] or 0 for _, info in found], pa.int64()),
            pa.array(modified, pa.timestamp("us")),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=LISTING))
    return pa.concat_tables(tables)


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


def _each_once(rows: pa.Table) -> pa.Table:
    """Ordered by URI; of equal ones the first counts."""
    order = pc.sort_indices(rows["uri"])  # stable
    rows = rows.take(order).combine_chunks()
    uris = rows["uri"].combine_chunks()
    is_first = np.ones(len(uris), dtype=bool)
    if len(uris) > 1:
        is_first[1:] = pc.not_equal(uris[1:], uris[:-1]).to_numpy(zero_copy_only=False)
    if not is_first.all():
        logger.warning("%d rows of the manifest name an image again; the first of each counts", (~is_first).sum())
    return rows.filter(pa.array(is_first))


def _completed(rows: pa.Table, *, in_tasks: bool) -> pa.Table:
    """`LISTING`: ask the store for what a manifest does not say of the objects' identity.

    A time of change alone is not asked for: nothing depends on it.
    """
    is_open = pc.or_(pc.is_null(rows["etag"]), pc.is_null(rows["size_bytes"])).combine_chunks()
    uris = rows["uri"].filter(is_open).to_pylist()
    if uris:
        logger.info("looking up %d of the manifest's images", len(uris))
        size = LOOK_UPS_PER_TASK if in_tasks else len(uris)  # a piece has threads of its own
        pieces = [uris[start : start + size] for start in range(0, len(uris), size)]
        found = pa.concat_tables(spread(_look_up, pieces, in_tasks=in_tasks)).combine_chunks()
        num_missing = pc.sum(pc.is_null(found["size_bytes"])).as_py()
        if num_missing:
            logger.warning("%d of the manifest's images were not found; they will stand in failures", num_missing)
        for place, field in enumerate(LISTING):
            if field.name != "uri":
                empty = pa.nulls(rows.num_rows, field.type)
                looked_up = pc.replace_with_mask(empty, is_open, found[field.name].combine_chunks())
                rows = rows.set_column(place, field, pc.coalesce(rows[field.name], looked_up))
    columns = [rows["uri"], pc.fill_null(rows["etag"], ""), pc.fill_null(rows["size_bytes"], 0), rows["last_modified"]]
    return pa.Table.from_arrays(columns, schema=LISTING).combine_chunks()


def _look_up(uris: list[str]) -> pa.Table:
    """Etag, size and time of change of some objects; null where they are not there or cannot be reached."""
    with ThreadPoolExecutor(LIST_THREADS) as pool:
        rows = list(pool.map(_info, uris))
    columns = zip(*rows, strict=True)
    schema = pa.schema([LISTING.field(name).with_nullable(True) for name in LISTING.names[1:]])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _info(uri: str) -> tuple[str | None, int | None, datetime | None]:
    fs, path = storage.filesystem(uri)
    for attempt in range(1, LOOK_UP_ATTEMPTS + 1):
        try:
            info = fs.info(path)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            break
        except Exception:  # a trust boundary: object stores raise their own types
            logger.debug("cannot look up %s", uri, exc_info=True)
            time.sleep(0.2 * attempt)
        else:
            if info["type"] not in ("file", "directory"):  # who opened a pipe would wait for ever
                raise ValueError(f"the manifest's image {uri!r} is a pipe, socket or device; remove it")
            modified = _modified(info)
            return _etag(info, modified), info["size"] or 0, modified
    return None, None, None
