"""Images chosen from the tables in SQL: a condition on `predictions`, an order, a number.

DuckDB evaluates it on the columns that it mentions, in memory, with no access to files or the network: whatever stands
in the condition can only compute.
"""

import re
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.tables.reader import read_schema, read_table
from pipelines.tables.runs import Snapshot

ALWAYS = ("work_id", "uri", "run_date", "run_id", "height", "width", "orientation")
"""Columns that every selection has."""


def select_images(
    tables_uri: str, snapshot: Snapshot, *, where: str = "", order_by: str = "", limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of `predictions` that fulfil a condition, with the columns `ALWAYS` and those that are mentioned.

    An image that was segmented again under the same work id counts once, with its newest row.

    Args:
        tables_uri: what `segment` wrote to.
        snapshot: of these tables.
        where: condition in DuckDB's SQL, "mean_confidence < 0.6 AND run_date = '2026-11-20'"; empty: all.
        order_by: columns or expressions, "mean_confidence" or "mean_entropy DESC"; ties, and all where it is empty,
            by `run_date`, `uri`, `work_id`.
        limit: rows at most.

    Raises:
        ValueError: the SQL is wrong; the message is DuckDB's, and names the columns that there are.
    """
    names = read_schema("predictions").names
    words = {word.lower() for word in re.findall(r"\w+", f"{where} {order_by}")}
    columns = [name for name in names if name in ALWAYS or name in words]
    predictions = _newest_rows(read_table(tables_uri, "predictions", columns=columns, snapshot=snapshot))
    # Line breaks end a comment in the user's part.
    order = [f"{order_by}\n"] if order_by.strip() else []
    query = (
        f"SELECT {', '.join(columns)} FROM predictions WHERE (\n{where.strip() or 'true'}\n)\n"
        f"ORDER BY {', '.join([*order, 'run_date', 'uri', 'work_id'])}"
    )
    if limit is not None:
        query += f"\nLIMIT {limit:d}"
    try:
        rows = _run(query, predictions)
    except duckdb.Error as error:
        raise ValueError(
            f"--where {where!r} --order-by {order_by!r}: {error}; predictions has the columns {', '.join(names)}"
        ) from error
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _newest_rows(predictions: pa.Table) -> pa.Table:
    """One row per work id; nearly always all of them."""
    if pc.count_distinct(predictions["work_id"]).as_py() == predictions.num_rows:
        return predictions
    numbered = predictions.append_column("row", pa.array(range(predictions.num_rows), pa.int64()))
    newest = numbered.group_by("work_id").aggregate([("row", "max")])["row_max"]  # files stand in the order of runs
    return predictions.take(newest.combine_chunks().sort())


def _run(query: str, predictions: pa.Table) -> Sequence[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        connection.register("predictions", predictions)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        if len(connection.extract_statements(query)) != 1:
            raise ValueError("--where and --order-by are parts of one SELECT; leave out the semicolon")
        return connection.execute(query).fetchall()
