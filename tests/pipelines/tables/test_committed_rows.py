"""Committed rows are streamed file by file, and row groups that cannot matter are not read."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.tables import committed_rows as module
from pipelines.tables.committed_rows import UriRange, committed_rows
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import DELETIONS

EVERYTHING = UriRange.below("")


def _write(tables: str, parts: list[list[str]], *, row_group_size: int = 2, statistics: bool = True) -> Snapshot:
    """Deletions of some URIs, one file for each list."""
    files: list[dict[str, Any]] = []
    for number, uris in enumerate(parts):
        rows = [dict.fromkeys(DELETIONS.names, "x") | {"uri": uri, "noticed_at": 0} for uri in uris]
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(rows, schema=DELETIONS)
        pq.write_table(table, sink, row_group_size=row_group_size, write_statistics=statistics)
        path = f"deletions/part-{number}.parquet"
        data = sink.getvalue().to_pybytes()
        storage.write_atomic(storage.join(tables, path), data)
        files.append({"table": "deletions", "path": path, "num_rows": len(uris), "num_bytes": len(data)})
    return Snapshot(number=1, run_ids=("000001",), files=tuple(files), class_names=(), palette=())


def _read(tables: str, snapshot: Snapshot, uris: UriRange) -> list[list[str]]:
    found = committed_rows(tables, snapshot, "deletions", ["uri", "reason"], uris)
    return [rows["uri"].to_pylist() for rows in found]


def test_row_groups_without_a_wanted_uri_are_not_read(tmp_path: Path) -> None:
    tables = str(tmp_path)
    snapshot = _write(tables, [["a", "b", "c", "d"], ["é", "z"], ["b", "m"], []])
    assert _read(tables, snapshot, EVERYTHING) == [["a", "b", "c", "d"], ["é", "z"], ["b", "m"]]
    assert _read(tables, snapshot, UriRange(first="c", last="c")) == [["c", "d"], [], ["b", "m"]]
    assert _read(tables, snapshot, UriRange(first="é", last="é")) == [[], ["é", "z"], []]
    assert _read(tables, snapshot, UriRange.below("zz")) == [[], ["é", "z"], []], "z < zz < é"
    unknown = _write(tables, [["a", "b"]], statistics=False)
    assert _read(tables, unknown, UriRange(first="q", last="r")) == [["a", "b"]]


@pytest.mark.parametrize("whole_file_bytes", [0, 10**6])
def test_a_store_is_read_whole_or_in_ranges(monkeypatch: pytest.MonkeyPatch, whole_file_bytes: int) -> None:
    monkeypatch.setattr(module, "WHOLE_FILE_BYTES", whole_file_bytes)
    tables = "memory://committed-rows/tables"
    snapshot = _write(tables, [["a", "b", "c"], ["d"]])
    assert _read(tables, snapshot, EVERYTHING) == [["a", "b", "c"], ["d"]]
    storage.remove_tree("memory://committed-rows")


def test_no_more_rows_are_read_ahead_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = _write(str(tmp_path), [[f"{number}a", f"{number}b"] for number in range(30)])
    monkeypatch.setattr(module, "READ_AHEAD_ROWS", 6)
    read, started, lock = module._read, [], threading.Lock()

    def counted(*arguments: Any) -> pa.Table:
        with lock:
            started.append(1)
        return read(*arguments)

    monkeypatch.setattr(module, "_read", counted)
    for number, _ in enumerate(committed_rows(str(tmp_path), snapshot, "deletions", ["uri"], EVERYTHING)):
        assert len(started) <= number + 4  # the one in hand, and three ahead
    assert len(started) == 30
