"""One reader for the tables of `segment`, whichever version of them wrote a file.

Whole nights or nothing: the files of one snapshot are read, so that a run that is still at work, a merged file beside
the small ones that it replaces, or a file that is only half in place are never seen. Columns that a file of an older
version does not have are derived from those it has (`DERIVED`) or null; files of a newer version are refused.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from pipelines import storage
from pipelines.tables import commits
from pipelines.tables.commits import STORE_THREADS
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import SCHEMA_VERSION, SCHEMAS

RUN_DATE = pa.field("run_date", pa.date32())
"""The folder's name as a column, of the type that DuckDB gives it; in no file."""

DERIVED: Mapping[tuple[str, str], Callable[[pa.Table], pa.Array]] = {}
"""(table, column) -> its values from an older file's rows, which have every column of today, nulls where they have
none. Version 1 is the first, so that nothing needs deriving yet."""

BATCHES_AHEAD = 2  # of one row group each; the default of 16 would hold 16 row groups of masks


def open_snapshot(tables: str, number: int | None = None) -> Snapshot:
    """The newest snapshot of some tables, or the one of this number.

    Raises:
        ValueError: there is none; the message says what to do.
    """
    numbers = commits.snapshot_numbers(tables)
    if not numbers:
        raise ValueError(
            f"{tables!r} holds no published tables (no snapshots/<n>.json); check --tables, or wait until the first "
            "run of jobs/segment.py is finished"
        )
    if number is not None and number not in numbers:
        raise ValueError(
            f"{tables!r} has no snapshot {number}; it holds {numbers[0]} to {numbers[-1]} (older ones expire, see "
            "jobs/maintain.py)"
        )
    return commits.read_snapshot(tables, numbers[-1] if number is None else number)


def read_schema(name: str) -> pa.Schema:
    """Columns as they are read: those of the table, all nullable, and `run_date`."""
    return pa.schema([field.with_nullable(True) for field in SCHEMAS[name]]).append(RUN_DATE)


def table_files(snapshot: Snapshot, name: str, *, run_id: str | None = None) -> list[dict[str, Any]]:
    """A table's files in a snapshot, oldest first; those that hold rows of a run."""
    files = [file for file in snapshot.files if file["table"] == name]
    return [file for file in files if run_id is None or run_id in file["run_id"].split(",")]


def read_table(
    tables_uri: str,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    run_id: str | None = None,
    snapshot: Snapshot | None = None,
) -> pa.Table:
    """A table, in memory.

    Args:
        tables_uri: what `segment` wrote to.
        name: predictions, masks, failures.
        columns: of the table, or `run_date`; None: all.
        filter: on any columns, say `pc.field("mean_confidence") < 0.6`; row groups that cannot fulfil it are not read.
        run_id: rows of this run alone.
        snapshot: None: the newest.

    Raises:
        ValueError: there are no tables, a column is not one of the table's, or a file is of a newer version.
    """
    scanners = _scanners(tables_uri, name, columns, filter, run_id, snapshot)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        parts = list(pool.map(lambda scanner: scanner().to_table(), scanners))
    return pa.concat_tables([_selected_schema(name, columns).empty_table(), *parts])


def read_batches(
    tables_uri: str,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    run_id: str | None = None,
    snapshot: Snapshot | None = None,
) -> Iterator[pa.RecordBatch]:
    """As `read_table`, a row group or less at a time: for tables larger than memory, such as all masks."""
    for scanner in _scanners(tables_uri, name, columns, filter, run_id, snapshot):
        yield from scanner().to_batches()


def read_part(data: bytes, name: str, *, path: str) -> pa.Table:
    """All columns of a table, and `run_date`, from the bytes of one of its files.

    Args:
        data: the file.
        name: of the table.
        path: where it lies, for its `run_date` and for messages.

    Raises:
        ValueError: it is no file of these tables, or one of a newer version.
    """
    return _scanner(_fragment(pa.py_buffer(data), None, path), name, None, None).to_table()


def check_version(metadata: Mapping[bytes, bytes], path: str) -> None:
    """Refuse a file, by its footer, that this version cannot read.

    Raises:
        ValueError: it is no file of these tables, or one of a newer version.
    """
    version = metadata.get(b"segpipe.schema_version")
    if version is None:
        raise ValueError(f"{path} names no segpipe.schema_version in its footer; it is no file of these tables")
    if int(version) > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {int(version)}; this package reads up to {SCHEMA_VERSION}; install the version "
            "of segpipe that wrote it, or a later one"
        )


def _scanners(
    tables: str,
    name: str,
    columns: Sequence[str] | None,
    filter: pc.Expression | None,
    run_id: str | None,
    snapshot: Snapshot | None,
) -> list[Callable[[], ds.Scanner]]:
    """One per file; each opens its file when it is called."""
    snapshot = snapshot or open_snapshot(tables)
    _selected_schema(name, columns)  # raises for columns that are not there
    filesystem, root = storage.arrow_filesystem(tables)
    files = table_files(snapshot, name, run_id=run_id)
    if run_id is not None and any(file["run_id"] != run_id for file in files):  # merged from several runs
        of_run = _rows_of_run(tables, name, run_id, snapshot)
        filter = of_run if filter is None else filter & of_run
    paths = [storage.join(root, file["path"]) for file in files]
    return [partial(_open_scanner, filesystem, path, name, columns, filter) for path in paths]


def _rows_of_run(tables: str, name: str, run_id: str, snapshot: Snapshot) -> pc.Expression:
    if "run_id" in SCHEMAS[name].names:
        return pc.field("run_id") == run_id
    of_run = read_table(tables, "predictions", columns=["work_id"], run_id=run_id, snapshot=snapshot)
    return pc.field("work_id").isin(of_run["work_id"].combine_chunks())


def _selected_schema(name: str, columns: Sequence[str] | None) -> pa.Schema:
    schema = read_schema(name)
    if columns is None:
        return schema
    unknown = [column for column in columns if column not in schema.names]
    if unknown:
        raise ValueError(f"{name} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}")
    return pa.schema([schema.field(column) for column in columns])


def _open_scanner(
    filesystem: pa.fs.FileSystem, path: str, name: str, columns: Sequence[str] | None, filter: pc.Expression | None
) -> ds.Scanner:
    return _scanner(_fragment(path, filesystem, path), name, columns, filter)


def _fragment(source: Any, filesystem: pa.fs.FileSystem | None, path: str) -> ds.ParquetFileFragment:
    found = re.search(r"(?:^|/)run_date=([^/]+)/", path)
    of_day = pc.field(RUN_DATE.name) == pa.scalar(found[1], pa.string()).cast(RUN_DATE.type) if found else None
    fragment = ds.ParquetFileFormat().make_fragment(source, filesystem=filesystem, partition_expression=of_day)
    check_version(fragment.metadata.metadata or {}, path)
    return fragment


def _scanner(
    fragment: ds.ParquetFileFragment, name: str, columns: Sequence[str] | None, filter: pc.Expression | None
) -> ds.Scanner:
    """Rows with the columns of today."""
    schema = read_schema(name)
    columns = _selected_schema(name, columns).names
    present = {*fragment.physical_schema.names, RUN_DATE.name}
    derived = [column for column in schema.names if (name, column) in DERIVED and column not in present]
    if not derived:
        return fragment.scanner(schema=schema, columns=columns, filter=filter, batch_readahead=BATCHES_AHEAD)
    table = fragment.to_table(schema=schema)
    for column in derived:
        values = DERIVED[name, column](table)
        table = table.set_column(schema.get_field_index(column), schema.field(column), values)
    return ds.dataset(table).scanner(columns=columns, filter=filter)
