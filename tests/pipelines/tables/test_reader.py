"""The reader of the tables: golden files of every version, whole nights only, refusals."""

import io
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.tables import commits, reader, schemas
from pipelines.tables.reader import open_snapshot, read_batches, read_table
from pipelines.tables.schemas import SCHEMA_VERSION, SCHEMAS
from segcore.run_lengths import decode
from tests.pipelines.night_tables import blocky_masks, make_run, publish_night, stage_shard

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "tables"
VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in row.items()} for row in rows
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_of_every_version_are_read(version: str) -> None:
    expected = json.loads((GOLDEN / version / "expected.json").read_text())
    for name in expected:
        found = read_table(str(GOLDEN / version), name)
        assert found.column_names == [*SCHEMAS[name].names, "run_date"]
        for row, wanted in zip(_plain(found.to_pylist()), expected[name], strict=True):
            assert {key: row[key] for key in wanted} == wanted
            assert all(value is None for key, value in row.items() if key not in wanted)


def test_this_version_has_golden_files_and_has_lost_none_of_their_columns() -> None:
    assert VERSIONS[-1] == f"v{SCHEMA_VERSION}", "write them: python -m tests.data.tables.write_golden"
    for name in SCHEMAS:
        paths = list((GOLDEN / VERSIONS[-1] / name).rglob("*.parquet"))
        assert any(pq.read_metadata(path).num_rows for path in paths), f"no golden row of {name}"
        for path in paths:
            for field in pq.read_schema(path):
                assert SCHEMAS[name].field(field.name).type == field.type, f"{name}.{field.name} needs a new version"


@pytest.fixture
def two_nights(tmp_path: Path) -> str:
    """Runs 1 and 2 of two images each and a failure; run 3 is committed in half and not published."""
    folder = str(tmp_path / "tables")
    masks = blocky_masks(6, seed=0)
    publish_night(folder, "000001", {"a": masks[0], "b": masks[1]}, failed=["x"])
    publish_night(folder, "000002", {"c": masks[2], "d": masks[3]}, run_date="2026-11-21")
    run = make_run("000003", [["e"], ["f"]], run_date="2026-11-22")
    commits.create_run(folder, run)
    commits.promote(folder, commits.commit(folder, stage_shard(folder, run, 0, {"e": masks[4]})))
    return folder


def test_a_night_is_there_whole_or_not_at_all(two_nights: str) -> None:
    assert read_table(two_nights, "predictions", columns=["work_id"])["work_id"].to_pylist() == ["a", "b", "c", "d"]
    assert read_table(two_nights, "failures", columns=["work_id"])["work_id"].to_pylist() == ["x"]
    first = open_snapshot(two_nights, 1)
    assert read_table(two_nights, "masks", columns=["work_id"], snapshot=first)["work_id"].to_pylist() == ["a", "b"]


def test_rows_are_chosen_by_run_day_and_value(two_nights: str) -> None:
    found = read_table(two_nights, "predictions", columns=["work_id", "run_date"], run_id="000002")
    assert _plain(found.to_pylist()) == [{"work_id": each, "run_date": "2026-11-21"} for each in ("c", "d")]
    by_day = read_table(
        two_nights,
        "masks",
        columns=["work_id"],
        filter=pc.field("run_date") == pa.scalar("2026-11-20").cast(pa.date32()),
    )
    assert by_day["work_id"].to_pylist() == ["a", "b"]
    of_both = (pc.field("work_id") > "a") & (pc.field("height") == 12)
    assert read_table(two_nights, "masks", columns=["work_id"], filter=of_both)["work_id"].to_pylist() == [
        "b",
        "c",
        "d",
    ]
    nothing = read_table(two_nights, "predictions", columns=["uri"], filter=pc.field("work_id") == "no such")
    assert nothing.num_rows == 0 and nothing.column_names == ["uri"]


def test_batches_hold_the_same_rows(two_nights: str) -> None:
    whole = read_table(two_nights, "masks")
    assert pa.Table.from_batches(read_batches(two_nights, "masks"), whole.schema).equals(whole)
    row = whole.to_pylist()[2]
    mask_HW = decode(np.array(row["values"], np.uint8), np.array(row["lengths"], np.int32), height=12, width=18)
    np.testing.assert_array_equal(mask_HW, blocky_masks(6, seed=0)[2])


def test_tables_in_an_object_store_are_read() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    publish_night(f"{root}/tables", "000001", dict(zip("ab", blocky_masks(2, seed=3), strict=True)))
    found = read_table(f"{root}/tables", "predictions", columns=["work_id", "run_date"])
    storage.remove_tree(root)
    assert _plain(found.to_pylist()) == [{"work_id": each, "run_date": "2026-11-20"} for each in "ab"]


def test_columns_that_an_older_file_lacks_are_null_or_derived(two_nights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = [pa.field("sharpness", pa.float32(), nullable=False), pa.field("megapixels", pa.float64(), nullable=False)]
    new_schemas = SCHEMAS | {"predictions": pa.schema([*SCHEMAS["predictions"], *new])}
    monkeypatch.setattr(schemas, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(reader, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(reader, "SCHEMAS", new_schemas)

    def megapixels(rows: pa.Table) -> pa.Array:
        pixels = pc.multiply(pc.cast(rows["height"], pa.float64()), rows["width"])
        return pc.divide(pixels, 1e6)

    monkeypatch.setattr(reader, "DERIVED", {("predictions", "megapixels"): megapixels})
    found = read_table(
        two_nights,
        "predictions",
        columns=["megapixels", "sharpness", "work_id"],
        filter=pc.field("megapixels") > 0.0001,
        run_id="000001",
    )
    assert found.to_pylist() == [
        {"megapixels": pytest.approx(12 * 18 / 1e6), "sharpness": None, "work_id": each} for each in "ab"
    ]


def test_files_of_a_newer_version_are_refused(two_nights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SCHEMA_VERSION", 0)
    with pytest.raises(ValueError, match=r"part-000001-00000.parquet has schema version \d+; .* up to 0; install"):
        read_table(two_nights, "predictions")
    monkeypatch.setattr(commits, "SCHEMA_VERSION", 0)
    with pytest.raises(ValueError, match=r"00000002.json has schema version \d+; .* up to 0; install"):
        open_snapshot(two_nights)


def test_wrong_paths_columns_and_files_are_refused(two_nights: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' holds no published tables .*check --tables"):
        read_table(str(tmp_path / "nowhere"), "predictions")
    with pytest.raises(ValueError, match="has no snapshot 7; it holds 1 to 2"):
        open_snapshot(two_nights, 7)
    with pytest.raises(ValueError, match="masks has no column uri; it has work_id, height"):
        read_table(two_nights, "masks", columns=["uri"])
    sink = io.BytesIO()
    pq.write_table(pa.table({"work_id": ["a"]}), sink)
    with pytest.raises(ValueError, match=r"x.parquet names no segpipe.schema_version"):
        reader.read_part(sink.getvalue(), "masks", path="masks/run_date=2026-11-20/x.parquet")
