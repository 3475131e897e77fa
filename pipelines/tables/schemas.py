"""What `segment` leaves: plain Parquet tables that need no package of ours to be read.

    <tables>/predictions/run_date=2026-11-20/part-<run>-<shard>.parquet   one row per segmented image
    <tables>/masks/run_date=2026-11-20/part-<run>-<shard>.parquet         its mask; joins on `work_id`
    <tables>/failures/run_date=2026-11-20/part-<run>-<shard>.parquet      one row per image that could not be segmented
    <tables>/metrics/run_date=2026-11-20/part-<run>-run.parquet           one row per run and camera, and their drift
    <tables>/comparisons/run_date=2026-11-20/part-<run>-<shard>.parquet   one row per image that a challenger saw too
    <tables>/deletions/run_date=2026-11-20/part-<run>-<shard>.parquet     one row per object that has gone, or come back

`run_date` is a column of every table by the folder's name, as Hive, DuckDB, pandas, pyarrow and Spark read it. It is
not stored inside the files as well: pyarrow and pandas then refuse to read the folder ("incompatible types").

Masks have the size of the upright image: `height`, `width`. `source_height`, `source_width` are those of the stored
one; they are the other way round for EXIF `orientation` 5 to 8. A mask is decoded without this package by
`numpy.repeat(values, lengths).reshape(height, width)`.

An image that was changed, segmented by another model or segmented again by force has a row of each time; that of the
newest run counts: in SQL `SELECT * FROM predictions QUALIFY row_number() OVER (PARTITION BY uri ORDER BY run_id DESC)
= 1`. `work_id` is unique in `predictions`, and joins a row with its mask.

Times are UTC. Class table, palette, ignored value and the model's digest stand in every file's footer, as `segpipe.*`.
A file that `maintain` merged from several runs or models names all of them there, joined by commas.

Class areas of a night from the masks alone, in DuckDB; they equal the sums of `class_pixels`:

    SELECT class, sum(length)::BIGINT AS pixels
    FROM (SELECT unnest("values") AS class, unnest(lengths) AS length
          FROM 'tables/masks/run_date=2026-11-20/*.parquet')
    GROUP BY class ORDER BY class;

    SELECT class - 1 AS class, sum(class_pixels[class])::BIGINT AS pixels
    FROM (SELECT class_pixels, unnest(range(1, len(class_pixels) + 1)) AS class
          FROM 'tables/predictions/run_date=2026-11-20/*.parquet')
    GROUP BY ALL HAVING pixels > 0 ORDER BY class;

These globs see what is committed, night by night and shard by shard. A reader who wants whole nights only, and none
twice while `maintain` exchanges merged files for small ones (`pipelines.tables.compaction`), reads the files of the
newest snapshot; `pipelines.tables.reader` does so in Python.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segcore import IGNORE_INDEX

SCHEMA_VERSION = 2
"""Of the tables. 2: `predictions` has `mean_brightness`; `metrics`, `deletions` and `comparisons`.

A column may be added without a new version: `reader` gives nulls for it in older files. A column that goes, or
that means something else, is a new version: `tests/data/tables/v<n>` then gets files of it beside the old ones, which
are read for ever.
"""

IDENTITY_VERSION = 1
"""Part of the work identity: raise it when images must be segmented again, which a new column is no reason for."""

IMAGE_TABLES = ("predictions", "masks", "failures")
"""They have a file from the first run on, empty or not, so that everybody's queries find one."""

TABLES = (*IMAGE_TABLES, "deletions", "comparisons")
"""What shards add to: every planned image, and every mark of a deletion, is in exactly one of the first, the third and
the fourth. Some predictions have a row of comparisons."""

STAGES = ("list", "fetch", "sniff", "decode", "validate", "infer", "encode", "write")
"""Where an image can fail, in order."""

MASKS_PER_ROW_GROUP = 256  # one huge row group makes fetching one mask 300 times slower
RUNS_PER_ROW_GROUP = 2**18
"""Masks of large images fill fewer rows: one mask is fetched by decoding the row group it is in, 5 bytes a run."""

ROWS_PER_ROW_GROUP = 2**13
"""Of the other tables, once merged: a plan reads only the row groups in whose range of URIs its images lie."""

_INSTANT = pa.timestamp("us")  # UTC; not marked so, because DuckDB's Python client then wants pytz to hand rows out


def _column(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType, *, nulls: bool = False) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=nulls))


PREDICTIONS = pa.schema(
    [
        # identity of this image under this model and these settings; then "-<run>" where a run was forced to repeat it
        _column("work_id", pa.string()),
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
        pa.field("mean_brightness", pa.float32()),  # mean of all R, G and B values, 0 to 1; null before version 2
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

COMPARISONS = pa.schema(
    [
        _column("work_id", pa.string()),  # of the prediction that it is compared with
        _column("uri", pa.string()),
        _column("run_id", pa.string()),
        _column("champion_digest", pa.string()),  # of the model that made the prediction
        _column("challenger_uri", pa.string()),
        _column("challenger_digest", pa.string()),
        pa.field("agreement", pa.float32()),  # share of pixels with one class in both; null where the challenger failed
        _column("confusion", _list(pa.int64())),  # C * C pixels, rows champion, columns challenger; empty likewise
        _column("champion_confidence", pa.float32()),
        pa.field("challenger_confidence", pa.float32()),
        _column("champion_ms", pa.float32()),
        pa.field("challenger_ms", pa.float32()),
        _column("error", pa.string()),  # of the challenger; "" where it did not fail
        _column("created_at", _INSTANT),
    ]
)

METRICS = pa.schema(
    [
        _column("run_id", pa.string()),
        pa.field("prefix", pa.string()),  # folder below the listed one, "" for images in it itself; null: the whole run
        _column("num_images", pa.int64()),  # segmented
        _column("num_failures", pa.int64()),
        pa.field("failure_rate", pa.float64()),
        # Means over images; null, and no classes, without any.
        _column("class_fraction", _list(pa.float64())),
        pa.field("mean_confidence", pa.float64()),
        pa.field("mean_entropy", pa.float64()),
        pa.field("mean_brightness", pa.float64()),
        pa.field("mean_pixels", pa.float64()),
        # Against the model's validation reference (`night_report.drift`); null without images or without a reference.
        pa.field("reference_digest", pa.string()),
        pa.field("class_psi", pa.float64()),  # bins are the classes
        pa.field("class_psi_chance", pa.float64()),  # what chance alone exceeds once in a hundred times
        pa.field("class_js_distance", pa.float64()),  # 0 to 1
        pa.field("class_fraction_psi", _list(pa.float64())),  # of each class; bins are deciles of the reference
        pa.field("confidence_shift", pa.float64()),  # of the mean, in the reference's standard deviations
        pa.field("confidence_psi", pa.float64()),
        pa.field("entropy_shift", pa.float64()),
        pa.field("entropy_psi", pa.float64()),
        pa.field("brightness_shift", pa.float64()),
        pa.field("brightness_psi", pa.float64()),
        pa.field("pixels_shift", pa.float64()),
        pa.field("pixels_psi", pa.float64()),
        pa.field("psi_chance", pa.float64()),  # of every index over deciles
        pa.field("drift", pa.string()),  # the worst band of all but class_fraction_psi: stable, moderate, significant
        _column("created_at", _INSTANT),
    ]
)

DELETIONS = pa.schema(
    [
        _column("work_id", pa.string()),  # of this mark
        _column("uri", pa.string()),
        _column("etag", pa.string()),  # of the version that the tables knew last
        _column("noticed_at", _INSTANT),  # when the run was planned that found it
        _column("run_id", pa.string()),
        _column("reason", pa.string()),  # deleted, or restored: listed again; the newest run's counts
    ]
)

SCHEMAS = {
    "predictions": PREDICTIONS,
    "masks": MASKS,
    "failures": FAILURES,
    "deletions": DELETIONS,
    "comparisons": COMPARISONS,
    "metrics": METRICS,
}


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
    """Rows of `predictions`, `failures` or `metrics`, each a dict with every column.

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
    if len(runs) == 1:  # a huge image is a shard of its own: no copy
        ((values, lengths),) = runs
    else:
        values = np.concatenate([np.empty(0, np.uint8), *(values for values, _ in runs)])
        lengths = np.concatenate([np.empty(0, np.int32), *(lengths for _, lengths in runs)])
    columns = [
        pa.array(work_ids, pa.string()),
        pa.array([height for height, _ in sizes], pa.int32()),
        pa.array([width for _, width in sizes], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(values, pa.uint8()), type=MASKS.field("values").type),
        pa.ListArray.from_arrays(offsets, pa.array(lengths, pa.int32()), type=MASKS.field("lengths").type),
    ]
    return pa.Table.from_arrays(columns, schema=MASKS)


def parquet_bytes(name: str, table: pa.Table, footer: Footer) -> bytes:
    """A finished part file: zstd; masks in row groups of at most `MASKS_PER_ROW_GROUP`, run lengths split by byte."""
    assert table.schema.equals(SCHEMAS[name]), f"not the schema of {name}"
    return parquet_bytes_of_parts(name, [table], footer, schema=table.schema)


def parquet_bytes_of_parts(name: str, parts: Iterable[pa.Table], footer: Footer, *, schema: pa.Schema) -> bytes:
    """The same of rows that come in several tables, of which one is in memory at a time.

    Args:
        name: of the table.
        parts: each of `schema`.
        footer: for the metadata.
        schema: of the table; what is merged from files of older versions may have nulls where it allows none.
    """
    sink = io.BytesIO()
    is_masks = name == "masks"
    with pq.ParquetWriter(
        sink,
        schema.with_metadata(footer.metadata(name)),
        compression="zstd",
        # byte streams: the upper three bytes of most lengths are zero
        use_byte_stream_split=["lengths.list.element"] if is_masks else False,
        use_dictionary=["values.list.element"] if is_masks else True,
    ) as writer:
        for table in parts:
            for group in _mask_groups(table) if is_masks else [table]:
                writer.write_table(group, row_group_size=ROWS_PER_ROW_GROUP)  # a group of masks has fewer rows
    return sink.getvalue()


def _mask_groups(masks: pa.Table) -> Iterator[pa.Table]:
    """Slices for one row group each; one with all rows of a table without any."""
    runs_up_to = np.cumsum([0, *pc.list_value_length(masks["values"]).to_numpy()])
    start = 0
    while start < masks.num_rows or start == 0:
        stop = int(np.searchsorted(runs_up_to, runs_up_to[start] + RUNS_PER_ROW_GROUP, side="right")) - 1
        stop = min(max(stop, start + 1), start + MASKS_PER_ROW_GROUP, masks.num_rows)
        yield masks.slice(start, stop - start)
        if not masks.num_rows:
            return
        start = stop
