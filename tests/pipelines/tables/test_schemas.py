"""The tables as strangers read them: schemas, encodings, footers, and programs that never import this package."""

import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.maintain import MaintainConfig, maintain
from pipelines.tables import schemas
from pipelines.tables.schemas import FAILURES, MASKS, PREDICTIONS, Footer, masks_table, parquet_bytes, rows_table
from segcore.run_lengths import decode, encode
from tests.pipelines.night_tables import blocky_masks, publish_night

FOOTER = Footer(class_names=("road", 'größe "x"'), palette=((1, 2, 3), (255, 0, 7)), model_digest="d1", run_id="000001")
NOW = datetime(2026, 11, 20, 3, 4, 5)


def _prediction(work_id: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(PREDICTIONS.names, 1) | dict.fromkeys(
        ("uri", "etag", "run_id", "model_uri", "model_version", "model_digest", "config_digest"), "x"
    )
    row |= {"work_id": work_id, "code_commit": "c", "source_mode": "RGB", "last_modified": NOW, "created_at": NOW}
    row |= {"class_pixels": [3, 1], "class_fraction": [0.75, 0.25], "class_confidence": [0.5, None], "notes": []}
    return row | changes


def _failure(work_id: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(FAILURES.names, "x")
    return row | {"work_id": work_id, "size_bytes": 3, "attempts": 1, "retryable": False, "created_at": NOW}


def _masks(count: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    masks = {}
    for index in range(count):
        height, width = int(rng.integers(1, 30)), int(rng.integers(1, 30))
        coarse_HW = rng.integers(0, 2, (height, width), dtype=np.uint8)
        masks[f"image-{index}"] = np.repeat(np.repeat(coarse_HW, 3, axis=0), 2, axis=1)
    return masks


def _write(folder: Path, masks: dict[str, np.ndarray[Any, np.dtype[np.uint8]]]) -> None:
    runs = [encode(mask_HW) for mask_HW in masks.values()]
    sizes = [(mask_HW.shape[0], mask_HW.shape[1]) for mask_HW in masks.values()]
    tables = {
        "predictions": rows_table("predictions", [_prediction(work_id) for work_id in masks]),
        "masks": masks_table(list(masks), sizes, runs),
        "failures": rows_table("failures", [_failure("broken")]),
    }
    for day in ("2026-11-20", "2026-11-21"):
        for name, table in tables.items():
            part = folder / name / f"run_date={day}" / "part-000001-00000.parquet"
            part.parent.mkdir(parents=True)
            part.write_bytes(parquet_bytes(name, table, FOOTER))


def test_the_tables_have_the_documented_columns() -> None:
    predictions = """work_id uri etag size_bytes last_modified run_id model_uri model_version model_digest config_digest
        code_commit source_height source_width source_mode orientation height width num_tiles class_pixels
        class_fraction mean_confidence p05_confidence mean_entropy mean_margin class_confidence decode_ms infer_ms
        encode_ms created_at notes mean_brightness"""
    failures = """work_id uri etag stage error message first_bytes_hex size_bytes attempts retryable run_id
        created_at"""
    assert PREDICTIONS.names == predictions.split()
    assert MASKS.names == ["work_id", "height", "width", "values", "lengths"]
    assert FAILURES.names == failures.split()


def test_masks_are_compressed_by_byte_streams_in_row_groups_of_256() -> None:
    masks = _masks(600)
    runs = [encode(mask_HW) for mask_HW in masks.values()]
    sizes = [(mask_HW.shape[0], mask_HW.shape[1]) for mask_HW in masks.values()]
    data = parquet_bytes("masks", masks_table(list(masks), sizes, runs), FOOTER)
    file = pq.ParquetFile(io.BytesIO(data))
    assert [file.metadata.row_group(index).num_rows for index in range(3)] == [256, 256, 88]
    columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    lengths = next(column for column in columns if column.path_in_schema.startswith("lengths"))
    assert "BYTE_STREAM_SPLIT" in lengths.encodings
    for row, mask_HW in zip(file.read().to_pylist(), masks.values(), strict=True):
        values, run_lengths = np.array(row["values"], np.uint8), np.array(row["lengths"], np.int32)
        decoded_HW = decode(values, run_lengths, height=row["height"], width=row["width"])
        np.testing.assert_array_equal(decoded_HW, mask_HW)


def test_large_masks_fill_smaller_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching one decodes a whole group."""
    monkeypatch.setattr(schemas, "RUNS_PER_ROW_GROUP", 100)
    num_runs = [30, 40, 30, 1, 99, 1, 250, 5]
    runs = [(np.arange(count).astype(np.uint8) % 2, np.ones(count, np.int32)) for count in num_runs]
    masks = masks_table([str(index) for index in range(8)], [(1, count) for count in num_runs], runs)
    metadata = pq.read_metadata(io.BytesIO(parquet_bytes("masks", masks, FOOTER)))
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert rows == [3, 2, 1, 1, 1]
    empty = pq.ParquetFile(io.BytesIO(parquet_bytes("masks", masks.slice(0, 0), FOOTER)))
    assert empty.metadata.num_rows == 0 and empty.schema_arrow.names == MASKS.names


def test_a_row_that_does_not_fit_the_schema_is_refused() -> None:
    row = _prediction("a")
    del row["height"]
    with pytest.raises(ValueError, match="a row of predictions lacks or adds: height"):
        rows_table("predictions", [row])
    with pytest.raises(ValueError, match="column uri of predictions holds a null"):
        rows_table("predictions", [_prediction("a", uri=None)])


STRANGER = """
import json, sys
import duckdb, numpy, pandas, pyarrow.dataset, pyarrow.parquet

root = sys.argv[1]
found = {}
for table in ("predictions", "masks", "failures"):
    folder = f"{root}/{table}"
    by_duckdb = duckdb.sql(f"select *, typeof(run_date) as day_type from '{folder}/*/*.parquet'").fetchall()
    by_pandas = pandas.read_parquet(folder)
    by_pyarrow = pyarrow.parquet.read_table(folder)
    by_dataset = pyarrow.dataset.dataset(folder, partitioning="hive").to_table()
    found[table] = [len(by_duckdb), len(by_pandas), by_pyarrow.num_rows, by_dataset.num_rows]
    assert "run_date" in by_pandas and "run_date" in by_pyarrow.column_names and by_duckdb[0][-1] == "DATE"

masks = {}
part = f"{root}/masks/run_date=2026-11-20/part-000001-00000.parquet"
for row in pandas.read_parquet(part).itertuples():
    masks[row.work_id] = numpy.repeat(row.values, row.lengths).reshape(row.height, row.width).tolist()
for work_id, height, width, values, lengths in duckdb.sql(
    f"select work_id, height, width, values, lengths from '{part}'"
).fetchall():
    assert numpy.repeat(values, lengths).reshape(height, width).tolist() == masks[work_id]
areas = duckdb.sql(
    f"with runs as (select unnest(values) as class, unnest(lengths) as length from '{part}') "
    "select class, sum(length)::bigint from runs group by class order by class"
).fetchall()
footer = {
    key.decode(): value.decode()
    for key, value in pyarrow.parquet.ParquetFile(part).metadata.metadata.items()
    if key.startswith(b"segpipe.")
}
ours = [name for name in sys.modules if name.split(".")[0] in ("segcore", "pipelines", "ray", "torch")]
print(json.dumps({"rows": found, "masks": masks, "areas": areas, "footer": footer, "ours": ours}))
"""


def test_duckdb_pandas_and_pyarrow_read_the_tables_without_this_package(tmp_path: Path) -> None:
    masks = _masks(10)
    _write(tmp_path, masks)
    program = tmp_path / "stranger.py"
    program.write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ours"] == []
    assert found["rows"] == {"predictions": [20] * 4, "masks": [20] * 4, "failures": [2] * 4}
    assert found["masks"] == {work_id: mask_HW.tolist() for work_id, mask_HW in masks.items()}
    total_C = np.bincount(np.concatenate([mask_HW.ravel() for mask_HW in masks.values()]), minlength=2)
    assert found["areas"] == [[0, int(total_C[0])], [1, int(total_C[1])]]
    assert json.loads(found["footer"]["segpipe.class_names"]) == list(FOOTER.class_names)
    assert json.loads(found["footer"]["segpipe.palette"]) == [[1, 2, 3], [255, 0, 7]]
    assert found["footer"]["segpipe.ignore_index"] == "255"
    assert found["footer"]["segpipe.model_digest"] == "d1"
    assert found["footer"]["segpipe.table"] == "masks"


@pytest.mark.parametrize("merged", [False, True])
def test_class_areas_of_a_night_come_from_the_masks_alone_by_the_documented_query(tmp_path: Path, merged: bool) -> None:
    nights = ("2026-11-20", "2026-11-21")
    for number, day in enumerate(nights):
        night = {f"{day}-{index}": mask for index, mask in enumerate(blocky_masks(7, seed=number))}
        publish_night(str(tmp_path), f"{number + 1:06d}", night, run_date=day, images_per_shard=3)
    if merged:
        config = MaintainConfig(tables=str(tmp_path), compact=True, expire_snapshots_days=1, apply=True)
        for days in (0, 2):
            maintain(config, now=datetime.now(UTC) + timedelta(days=days))
        assert [path.name[:7] for path in tmp_path.glob("masks/*/*.parquet")] == ["merged-"] * 2
    blocks = [block for block in (schemas.__doc__ or "").split("\n\n") if block.lstrip().startswith("SELECT class")]
    queries = [block.replace("'tables/", f"'{tmp_path}/").replace(nights[0], nights[1]) for block in blocks]
    by_masks, by_predictions = (duckdb.sql(query).fetchall() for query in queries)
    pixels_C = np.bincount(np.concatenate([mask.ravel() for mask in blocky_masks(7, seed=1)]))
    assert by_masks == by_predictions == list(enumerate(pixels_C.tolist()))
