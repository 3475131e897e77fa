"""What is merged with what, and how rows lie in a merged file; `test_maintain` has the whole job."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.maintain import MaintainConfig, maintain
from pipelines.tables import commits, schemas
from pipelines.tables.compaction import plan_merges
from pipelines.tables.reader import read_table
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import SCHEMAS, parquet_bytes, rows_table
from tests.pipelines.night_tables import filled, make_run

DAYS = ("2026-11-20", "2026-11-21")


def test_every_table_is_merged_and_rows_are_ordered_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "ROWS_PER_ROW_GROUP", 2)
    tables, settings = str(tmp_path), make_run("000001", []).settings
    others = [name for name in SCHEMAS if name != "masks"]
    files = []
    for name in others:
        for part, uris in (("00000", "ca"), ("00001", "db"), ("run", "a")):
            columns = {"uri", "prefix"} & set(SCHEMAS[name].names)
            rows = rows_table(name, [filled(name, **dict.fromkeys(columns, uri)) for uri in uris])
            data = parquet_bytes(name, rows, settings.footer)
            path = f"{name}/run_date={DAYS[0]}/part-000001-{part}.parquet"
            storage.write_atomic(storage.join(tables, path), data)
            files.append(
                {"table": name, "path": path, "num_rows": len(uris), "num_bytes": len(data), "run_id": "000001"}
                | {"sha256": storage.sha256(data)}
            )
    snapshot = Snapshot(
        number=1,
        run_ids=("000001",),
        files=tuple(files),
        class_names=settings.class_names,
        palette=settings.palette,
    )
    commits.create_snapshot(tables, snapshot)
    before = {name: read_table(tables, name).to_pylist() for name in others}
    for days in (0, 8):
        config = MaintainConfig(tables=tables, compact=True, expire_snapshots_days=7, apply=True)
        maintain(config, now=datetime.now(UTC) + timedelta(days=days))
    for name in others:
        (merged,) = tmp_path.glob(f"{name}/*/*.parquet")
        rows = read_table(tables, name).to_pylist()
        if name == "metrics":  # of no image
            assert rows == before[name]
        else:
            assert rows == sorted(before[name], key=lambda row: str(row["uri"]))
            metadata = pq.read_metadata(merged)
            place = SCHEMAS[name].get_field_index("uri")
            statistics = [metadata.row_group(group).column(place).statistics for group in range(3)]
            assert [(each.min, each.max) for each in statistics] == [("a", "a"), ("b", "c"), ("d", "d")]


def test_small_files_are_cut_into_groups_of_the_target_size() -> None:
    files = [
        {"table": "masks", "path": f"masks/run_date={day}/part-000001-{shard:05d}.parquet", "num_bytes": size}
        | {"num_rows": 1, "run_id": "000001"}
        for day in DAYS
        for shard, size in enumerate((40, 30, 60, 20, 45, 30, 49, 3))
    ]
    snapshot = Snapshot(number=1, run_ids=("000001",), files=tuple(files), class_names=(), palette=())
    merges = plan_merges(snapshot, target_bytes=100)
    sizes = [[file["num_bytes"] for file in merge.files] for merge in merges]
    assert sizes == 2 * [[40, 30, 20], [45, 30], [49, 3]]  # 60 is large enough already
    assert len({merge.path for merge in merges}) == 6
