"""Lists of images that somebody else has made: a user's manifest of URIs, or an inventory that the object store wrote.

    *.parquet, *.csv, *.csv.gz   a column `uri`, and, where they are known, `etag`, `size_bytes`, `last_modified` (UTC)
    manifest.json                an S3 Inventory, its parts in Parquet or CSV.gz: bucket, key, size, last_modified_date,
                                 e_tag; of an inventory of all versions, the current ones count

Paths in a user's manifest that are neither absolute nor URIs begin at the manifest's folder and cannot leave it. Keys
are URL-encoded in an inventory's CSV and plain in its Parquet:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import gzip
import posixpath
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines import storage

MANIFEST = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", pa.timestamp("us")),
    ]
)

READ_THREADS = 4  # a part of an inventory holds up to some million rows

_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)  # the last two: a truncated .gz

_INVENTORY_NAMES = {"e_tag": "etag", "size": "size_bytes", "last_modified_date": "last_modified"}
_CSV_NAMES = {
    "Bucket": "bucket",
    "Key": "key",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageManifest:
    """What a manifest says.

    Attributes:
        rows: `MANIFEST`, in its order; null where it does not say.
        taken_at: when an inventory was begun, UTC without a mark: what was written since may be missing. None for a
            user's manifest, which says nothing of what it does not name.
    """

    rows: pa.Table
    taken_at: datetime | None


def read_image_manifest(uri: str) -> ImageManifest:
    """Read a manifest or an inventory, by its suffix.

    Raises:
        ValueError: it cannot be read or lacks a column; a path leads out of its folder.
    """
    if uri.endswith(".json"):
        return _inventory(uri)
    return ImageManifest(rows=_user_rows(uri), taken_at=None)


def _user_rows(uri: str) -> pa.Table:
    if not uri.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(
            f"the manifest {uri!r} is neither .parquet, .csv or .csv.gz nor an S3 Inventory's manifest.json; "
            "--images lists a folder"
        )
    expected = ", ".join(f"{field.name} ({field.type})" for field in MANIFEST) + "; all but uri may be missing"
    try:
        data = storage.read_bytes(uri)
        found = _read_parquet(data) if uri.endswith(".parquet") else _read_csv(data)
        rows = _as_manifest(found)
    except _UNREADABLE as error:
        raise ValueError(f"the manifest {uri!r} cannot be read: {error}; expected {expected}") from error
    if "uri" not in found.column_names:
        raise ValueError(f"the manifest {uri!r} has no column uri; expected {expected}")
    if rows["uri"].null_count:
        raise ValueError(f"the manifest {uri!r} has {rows['uri'].null_count} rows without a uri; remove them")
    return rows.set_column(0, MANIFEST.field("uri"), _absolute(rows["uri"], uri))


def _read_parquet(data: bytes) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    return file.read(columns=[name for name in names if name in (*MANIFEST.names, *_CSV_NAMES.values())])


def _read_csv(data: bytes, *, column_names: list[str] | None = None) -> pa.Table:
    """Every column as text, null where a field is empty; without `column_names` the first line has them."""
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    text = dict.fromkeys((*MANIFEST.names, *_CSV_NAMES), pa.string())
    options = pacsv.ConvertOptions(column_types=text, null_values=[""], strings_can_be_null=True)
    read = pacsv.ReadOptions(column_names=column_names)
    return pacsv.read_csv(pa.BufferReader(data), read_options=read, convert_options=options)


def _as_manifest(found: pa.Table) -> pa.Table:
    """Columns by their names, in the manifest's types; a missing one is all null."""
    columns = []
    for field in MANIFEST:
        if field.name not in found.column_names:
            columns.append(pa.nulls(found.num_rows, field.type))
        elif field.name == "last_modified":
            columns.append(_instants(found["last_modified"]))
        else:
            columns.append(found[field.name].cast(field.type))
    rows = pa.Table.from_arrays(columns, schema=MANIFEST)
    return rows.set_column(1, MANIFEST.field("etag"), pc.utf8_trim(rows["etag"], '"'))


def _instants(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """UTC without a mark, as the tables hold it, from text in ISO 8601 or from a timestamp of any unit and zone."""
    unmarked = pa.timestamp("us")
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        return pc.replace_substring_regex(times, r"(Z|\+00:?00)$", "").cast(unmarked)
    if pa.types.is_timestamp(times.type) and times.type.tz:
        return times.cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64()).cast(unmarked)
    return times.cast(unmarked, safe=False)


def _absolute(uris: pa.ChunkedArray, manifest: str) -> pa.Array:
    """Relative paths from the manifest's folder on; absolute ones and URIs as they are."""
    fs, path = storage.filesystem(manifest)
    folder = posixpath.dirname(path)
    folder = folder if storage.is_local(fs) else fs.unstrip_protocol(folder)
    uris = pc.replace_substring_regex(uris, "^file://", "").combine_chunks()
    is_relative = pc.invert(pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/")))
    with_dots = pc.and_(is_relative, pc.match_substring_regex(uris, r"(^|/)\.{0,2}(/|$)"))
    if pc.any(with_dots).as_py():  # few, if any
        plain = [posixpath.normpath(each) for each in uris.filter(with_dots).to_pylist()]
        for before, after in zip(uris.filter(with_dots).to_pylist(), plain, strict=True):
            if after.split("/")[0] == "..":
                raise ValueError(
                    f"the path {before!r} in the manifest {manifest!r} leads out of the manifest's folder; "
                    "give it as an absolute path or URI"
                )
        uris = pc.replace_with_mask(uris, with_dots, pa.array(plain, pa.string()))
    return pc.if_else(is_relative, pc.binary_join_element_wise(folder.rstrip("/"), uris, "/"), uris)


def _inventory(uri: str) -> ImageManifest:
    values = storage.read_json(uri)
    try:
        bucket, kind, schema = values["sourceBucket"], values["fileFormat"], values["fileSchema"]
        keys = [file["key"] for file in values["files"]]
        taken_at = datetime.fromtimestamp(int(values["creationTimestamp"]) / 1000, UTC).replace(tzinfo=None)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{uri!r} is no manifest of an S3 Inventory ({type(error).__name__}: {error}); "
            "give a .csv or .parquet manifest, or the inventory's manifest.json"
        ) from error
    if kind not in ("CSV", "Parquet"):
        raise ValueError(f"the inventory {uri!r} has parts in {kind}; configure it to write CSV or Parquet")
    names = [name.strip() for name in schema.split(",")] if kind == "CSV" else None
    base = _bucket_uri(uri, bucket)

    def read(key: str) -> pa.Table:
        return _inventory_rows(_part_uri(uri, values, key), base, column_names=names)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        parts = list(pool.map(read, keys))
    return ImageManifest(rows=pa.concat_tables([MANIFEST.empty_table(), *parts]), taken_at=taken_at)


def _bucket_uri(manifest: str, bucket: str) -> str:
    """URI of the inventory's source, as a listing gives it; of an inventory that was copied to a folder, on S3."""
    scheme = manifest.partition("://")[0] if "://" in manifest else "s3"
    fs, path = storage.filesystem(f"{scheme}://{bucket}")
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _part_uri(manifest: str, values: dict[str, Any], key: str) -> str:
    """Beside the manifest's folder in `data/` where the inventory was copied to a folder, as S3 lays it out."""
    if "://" in manifest:
        return f"{_bucket_uri(manifest, values['destinationBucket'].rpartition(':')[2])}/{key}"
    return posixpath.join(posixpath.dirname(posixpath.dirname(manifest)), "data", posixpath.basename(key))


def _inventory_rows(part: str, base: str, *, column_names: list[str] | None) -> pa.Table:
    try:
        data = storage.read_bytes(part)
        if column_names is None:
            found = _read_parquet(data)
        else:
            found = _read_csv(data, column_names=column_names)
            found = found.select([name for name in column_names if name in _CSV_NAMES])
            found = found.rename_columns([_CSV_NAMES[name] for name in found.column_names])
        keys = found["key"].cast(pa.string()).combine_chunks()
    except (*_UNREADABLE, KeyError) as error:
        raise ValueError(
            f"the part {part!r} of the inventory cannot be read: {type(error).__name__}: {error}; "
            "copy the whole inventory, or wait for the next one"
        ) from error
    if column_names is not None:
        encoded = pc.match_substring_regex(keys, "[%+]")
        plain = [unquote_plus(key) for key in keys.filter(encoded).to_pylist()]
        keys = pc.replace_with_mask(keys, encoded, pa.array(plain, pa.string()))
    rows = found.rename_columns([_INVENTORY_NAMES.get(name, name) for name in found.column_names])
    rows = _as_manifest(rows.append_column("uri", pc.binary_join_element_wise(base, keys, "/")))
    for name, of_old_versions in (("is_latest", "false"), ("is_delete_marker", "true")):
        if name in found.column_names:  # of an inventory of all versions
            is_old = pc.equal(found[name].cast(pa.string()), of_old_versions).fill_null(False)
            rows, found = rows.filter(pc.invert(is_old)), found.filter(pc.invert(is_old))
    return rows
