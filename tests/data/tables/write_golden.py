"""Write the golden tables of this schema version: python -m tests.data.tables.write_golden, in the repository's root.

Done once, when a version begins; the files of a version that exists are never written again, since they stand for what
lies in users' buckets. The reader must read those of every version for ever (tests/pipelines/test_table_reader.py).
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import commits, storage
from pipelines.table_reader import read_table
from pipelines.tables import SCHEMA_VERSION, TABLES
from tests.pipelines.night_tables import blocky_masks, publish_night

FOLDER = Path(__file__).resolve().parent
MODIFIED = datetime(2026, 11, 19, 22, 30, 1, 123456)


def main() -> None:
    """Two nights: masks, a failure, odd names, nulls wherever the schema allows them."""
    folder = FOLDER / f"v{SCHEMA_VERSION}"
    if folder.exists():
        sys.exit(f"{folder} exists; golden files are never written again")
    masks = dict(zip(("a1", "b2", "c3"), blocky_masks(3, seed=1), strict=True))
    masks["d4"] = np.full((5, 7), 2, dtype=np.uint8)
    columns: dict[str, dict[str, Any]] = {
        "a1": {"uri": "s3://cams/größe 1.jpg", "last_modified": MODIFIED, "class_confidence": [0.5, None, 0.25, 1.0]},
        "b2": {"last_modified": None, "notes": ["turned upright", "first of 3 frames"]},
    }
    tables = str(folder)
    first = {name: masks[name] for name in ("a1", "b2")}
    publish_night(tables, "000001", first, failed=["f1", "f2", "f3"], images_per_shard=4, columns=columns)
    rest = {name: masks[name] for name in ("c3", "d4")}
    publish_night(tables, "000002", rest, run_date="2026-11-21", model="m2")
    for leftover in ("_staging", "runs"):
        storage.remove_tree(storage.join(tables, leftover))
    storage.remove_file(commits.snapshot_uri(tables, 1))
    expected = {name: read_table(tables, name).to_pylist() for name in TABLES}
    text = {
        name: [{key: _plain(value) for key, value in row.items()} for row in rows] for name, rows in expected.items()
    }
    (folder / "expected.json").write_bytes(storage.json_bytes(text))


def _plain(value: object) -> object:
    return value.isoformat() if hasattr(value, "isoformat") else value


if __name__ == "__main__":
    main()
