"""The questions to the tables that README.md and docs/nightly.md show, asked as they stand there."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from pipelines import lineage, tracking
from pipelines.tables.reader import read_table

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests" / "data" / "tables" / "v2"


def _queries(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    code = [*re.findall(r"```sql\n(.*?)```", text, re.DOTALL), *re.findall(r"`(SELECT [^`]*)`", text)]
    queries = [query.strip() for block in code for query in block.split(";") if query.strip()]
    return [query.replace("'TABLES/", f"'{TABLES}/").replace("'tables/", f"'{TABLES}/") for query in queries]


def _columns(query: str) -> dict[str, list[Any]]:
    with duckdb.connect() as connection:
        return dict(connection.sql(query).to_arrow_table().to_pydict())


QUERIES = [*_queries("README.md"), *_queries("docs/nightly.md")]


def test_the_documents_have_queries() -> None:
    assert len(QUERIES) >= 9


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_documented_queries_are_answered(query: str) -> None:
    columns = _columns(query.replace("'000042'", "'000001'"))
    assert columns and all(columns.values())


def test_the_documented_area_per_class_is_that_of_the_predictions() -> None:
    (query,) = [query for query in QUERIES if "area per class" in query]
    columns = _columns(query)
    rows = read_table(str(TABLES), "predictions", columns=["class_pixels"], run_id="000001")
    pixels_C = np.sum(rows["class_pixels"].to_pylist(), axis=0)
    assert columns == {"class": np.flatnonzero(pixels_C).tolist(), "pixels": pixels_C[pixels_C > 0].tolist()}


def test_the_documented_lines_of_pandas_give_a_mask() -> None:
    block, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "nightly.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block.replace('"TABLES/', f'"{TABLES}/'), names)
    predictions = names["predictions"].set_index("work_id")
    found = np.bincount(names["mask"].ravel(), minlength=4)
    np.testing.assert_array_equal(found, predictions.loc[names["first"]["work_id"], "class_pixels"])


def test_the_documented_lines_of_lineage_name_what_is_there() -> None:
    """What they give is tested in tests/pipelines/test_lineage.py."""
    _, block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "nightly.md").read_text(), re.DOTALL)
    compile(block, "docs/nightly.md", "exec")
    modules = {"lineage": lineage, "tracking": tracking}
    named = re.findall(r"\b(lineage|tracking)\.(\w+)\(", block)
    assert len(named) == 3 and all(callable(getattr(modules[module], name)) for module, name in named)
    assert "dataset_digest" in {field.name for field in dataclasses.fields(lineage.Origins)}
