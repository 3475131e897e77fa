"""What `segment` leaves: three plain Parquet tables that need no package of ours to be read.

    <tables>/predictions/run_date=2026-11-20/part-<run>-<shard>.parquet   one row per segmented image
    <tables>/masks/run_date=2026-11-20/part-<run>-<shard>.parquet         its mask; joins on `work_id`
    <tables>/failures/run_date=2026-11-20/part-<run>-<shard>.parquet      one row per image that could not be segmented

`run_date` is a column of every table by the folder's name, as Hive, DuckDB, pandas, pyarrow and Spark read it. It is
not stored inside the files as well: pyarrow and pandas then refuse to read the folder ("incompatible types").

Masks have the size of the upright image: `height`, `width`. `source_height`, `source_width` are those of the stored
one; they are the other way round for EXIF `orientation` 5 to 8. A mask is decoded without this package by
`numpy.repeat(values, lengths).reshape(height, width)`.

Times are UTC. Class table, palette, ignored value and the model's digest stand in every file's footer, as `segpipe.*`.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segcore import IGNORE_INDEX

SCHEMA_VERSION = 1
"""Of the three tables; part of the work identity, since a new one means that images must be segmented again."""

TABLES = ("predictions", "masks", "failures")

STAGES = ("list", "fetch", "sniff", "decode", "validate", "infer", "encode", "write")
"""Where an image can fail, in order."""

MASKS_PER_ROW_GROUP = 256  # one huge row group makes fetching one mask 300 times slower

_INSTANT = pa.timestamp("us")  # UTC; not marked so, because DuckDB's Python client then wants pytz to hand rows out


def _column(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType, *, nulls: bool = False) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=nulls))


PREDICTIONS = pa.schema(
    [
        _column("work_id", pa.string()),  # identity of this image under this model and these settings
        _column("uri", pa.string()),
        _column("etag", pa.string()),  # the store's version of the object; a local file's modification time
        _column("size_bytes", pa.int64()),
        pa.field("last_modified", _INSTANT),
        _column("run_id", pa.string()),
        _column("model_uri", pa.string()),  # models:/name/3, or the model folder
        _column("model_version", pa.string()),  # of the registered model; empty for a folder
        _column("model_digest", pa.string()),
        _column("config_digest", pa.string()),  # of everything else that a mask depends on
        _column("code_commit", pa.string()),
        _column("source_height", pa.int32()),  # as stored in the file
        _column("source_width", pa.int32()),
        _column("source_mode", pa.string()),  # Pillow's name of the stored pixel format
        _column("orientation", pa.int32()),  # EXIF, 1 to 8
        _column("height", pa.int32()),  # upright: the mask's size
        _column("width", pa.int32()),
        _column("num_tiles", pa.int32()),  # network inputs: windows, scales, mirror images, proposals
        _column("class_pixels", _list(pa.int64())),  # by class index, length C
        _column("class_fraction", _list(pa.float32())),
        _column("mean_confidence", pa.float32()),  # largest class probability, mean over pixels
        _column("p05_confidence", pa.float32()),  # its 5th percentile
        _column("mean_entropy", pa.float32()),  # nats, 0 to ln C
        _column("mean_margin", pa.float32()),  # largest minus second largest probability
        _column("class_confidence", _list(pa.float32(), nulls=True)),  # over that class's pixels; null without any
        _column("decode_ms", pa.float32()),
        _column("infer_ms", pa.float32()),  # its batch's time, divided by the batch's images
        _column("encode_ms", pa.float32()),
        _column("created_at", _INSTANT),
        _column("notes", _list(pa.string())),  # what intake did to the pixels, in words
    ]
)

MASKS = pa.schema(
    [
        _column("work_id", pa.string()),
        _column("height", pa.int32()),
        _column("width", pa.int32()),
        _column("values", _list(pa.uint8())),  # class of each run
        _column("lengths", _list(pa.int32())),  # pixels of each run, row-major, running on from row to row
    ]
)

FAILURES = pa.schema(
    [
        _column("work_id", pa.string()),
        _column("uri", pa.string()),
        _column("etag", pa.string()),
        _column("stage", pa.string()),  # one of STAGES
        _column("error", pa.string()),  # the exception's type
        _column("message", pa.string()),
        _column("first_bytes_hex", pa.string()),  # the first 16; empty where nothing was fetched
        _column("size_bytes", pa.int64()),
        _column("attempts", pa.int32()),
        _column("retryable", pa.bool_()),  # the next run tries again, though the file is the same
        _column("run_id", pa.string()),
        _column("created_at", _INSTANT),
    ]
)

SCHEMAS = {"predictions": PREDICTIONS, "masks": MASKS, "failures": FAILURES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What every file of the tables says about its values, once.

    Attributes:
        class_names: by class index.
        palette: RGB, 0..255, by class index.
        model_digest: of the model folder that predicted.
        run_id: the run that wrote the file.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    model_digest: str
    run_id: str

    def metadata(self, table: str) -> dict[str, str]:
        """Key-value metadata of one table's files; lists as JSON."""
        return {
            "segpipe.table": table,
            "segpipe.schema_version": str(SCHEMA_VERSION),
            "segpipe.class_names": json.dumps(self.class_names),
            "segpipe.palette": json.dumps(self.palette),
            "segpipe.ignore_index": str(IGNORE_INDEX),
            "segpipe.model_digest": self.model_digest,
            "segpipe.run_id": self.run_id,
        }


def rows_table(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of `predictions` or `failures`, each a dict with every column.

    Raises:
        ValueError: a row lacks a column, has an unknown one, or a null where none is allowed.
    """
    schema = SCHEMAS[name]
    for row in rows:
        if row.keys() != set(schema.names):
            wrong = ", ".join(sorted(row.keys() ^ set(schema.names)))
            raise ValueError(f"a row of {name} lacks or adds: {wrong}; give exactly the columns of the schema")
    table = pa.Table.from_pylist(list(rows), schema=schema)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"column {field.name} of {name} holds a null; it must not")
    return table


def masks_table(
    work_ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    runs: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32]]],
) -> pa.Table:
    """Rows of `masks`.

    Args:
        work_ids: one per mask.
        sizes: height, width of each.
        runs: values and lengths of each, as `segcore.run_lengths.encode` gives them.
    """
    offsets = pa.array(np.cumsum([0] + [len(lengths) for _, lengths in runs]), pa.int32())
    values = np.concatenate([values for values, _ in runs]) if runs else np.empty(0, np.uint8)
    lengths = np.concatenate([lengths for _, lengths in runs]) if runs else np.empty(0, np.int32)
    columns = [
        pa.array(work_ids, pa.string()),
        pa.array([height for height, _ in sizes], pa.int32()),
        pa.array([width for _, width in sizes], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(values, pa.uint8()), type=MASKS.field("values").type),
        pa.ListArray.from_arrays(offsets, pa.array(lengths, pa.int32()), type=MASKS.field("lengths").type),
    ]
    return pa.Table.from_arrays(columns, schema=MASKS)


def parquet_bytes(name: str, table: pa.Table, footer: Footer) -> bytes:
    """A finished part file: zstd, masks in row groups of `MASKS_PER_ROW_GROUP`, run lengths split by byte."""
    assert table.schema.equals(SCHEMAS[name]), f"not the schema of {name}"
    sink = io.BytesIO()
    is_masks = name == "masks"
    with pq.ParquetWriter(
        sink,
        table.schema.with_metadata(footer.metadata(name)),
        compression="zstd",
        # byte streams: the upper three bytes of most lengths are zero
        use_byte_stream_split=["lengths.list.element"] if is_masks else False,
        use_dictionary=["values.list.element"] if is_masks else True,
    ) as writer:
        writer.write_table(table, row_group_size=MASKS_PER_ROW_GROUP if is_masks else None)
    return sink.getvalue()
