"""Columns of the committed rows, file by file: what a plan reads of tables that only ever grow.

A bounded number of rows is in memory, however many there are. Row groups in which no wanted URI can lie, by the
statistics in their file's footer, are not read.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.tables.commits import STORE_THREADS
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import SCHEMAS

READ_AHEAD_ROWS = 2**20
WHOLE_FILE_BYTES = 2 * 2**20
"""Smaller files of a store are fetched whole: one request in place of three."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UriRange:
    """URIs from `first` to `last`, both included, in the order of their code points, which is Parquet's."""

    first: str
    last: str

    @staticmethod
    def below(prefix: str) -> "UriRange":
        """Every URI that begins with `prefix`."""
        return UriRange(first=prefix, last=f"{prefix}\U0010ffff")


def committed_rows(
    tables: str, snapshot: Snapshot, name: str, columns: Sequence[str], uris: UriRange
) -> Iterator[pa.Table]:
    """Some columns of the rows of a table, in the snapshot's order; at least the rows whose URI lies in a range.

    Args:
        tables: URI of the tables' folder.
        snapshot: that lists the files.
        name: of the table; it has a column `uri`.
        columns: of its schema.
        uris: row groups without any of these are left out.
    """
    schema = pa.schema([SCHEMAS[name].field(column) for column in columns])
    waiting: deque[tuple[int, Future[pa.Table]]] = deque()
    num_ahead = 0
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        for part in snapshot.files:
            if part["table"] != name or not part["num_rows"]:
                continue
            while waiting and num_ahead + part["num_rows"] > READ_AHEAD_ROWS:
                num_rows, read = waiting.popleft()
                num_ahead -= num_rows
                yield read.result()
            waiting.append((part["num_rows"], pool.submit(_read, tables, part, schema, uris)))
            num_ahead += part["num_rows"]
        while waiting:
            yield waiting.popleft()[1].result()


def _read(tables: str, part: dict[str, Any], schema: pa.Schema, uris: UriRange) -> pa.Table:
    with _opened(storage.join(tables, part["path"]), part["num_bytes"]) as source:
        file = pq.ParquetFile(source)
        groups = [number for number in range(file.num_row_groups) if _may_hold(file.metadata.row_group(number), uris)]
        if not groups:
            return schema.empty_table()
        return file.read_row_groups(groups, columns=schema.names, use_threads=False).select(schema.names).cast(schema)


def _opened(uri: str, num_bytes: int) -> AbstractContextManager[Any]:
    fs, path = storage.filesystem(uri)
    if storage.is_local(fs):
        return pa.OSFile(path)  # type: ignore[no-any-return]
    if num_bytes <= WHOLE_FILE_BYTES:
        return pa.BufferReader(fs.cat_file(path))  # type: ignore[no-any-return]
    return fs.open(path, "rb")  # type: ignore[no-any-return]  # it is asked for these columns' bytes and no others


def _may_hold(group: Any, uris: UriRange) -> bool:
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "uri":
            known = column.statistics
            if known is None or not known.has_min_max or not isinstance(known.min, str):
                return True
            return bool(known.min <= uris.last and uris.first <= known.max)
    return True
