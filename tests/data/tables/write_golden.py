"""Write the golden tables of this schema version: python -m tests.data.tables.write_golden, in the repository's root.

Done once, when a version begins; the files of a version that exists are never written again, since they stand for what
lies in users' buckets. The reader must read those of every version for ever (tests/pipelines/tables/test_reader.py).
"""

import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.tables import commits
from pipelines.tables.reader import read_table
from pipelines.tables.schemas import SCHEMA_VERSION, SCHEMAS
from tests.pipelines.night_tables import blocky_masks, filled, publish_night

FOLDER = Path(__file__).resolve().parent
MODIFIED = datetime(2026, 11, 19, 22, 30, 1, 123456)


def main() -> None:
    """Three nights: masks, failures, a deletion, comparisons with and without an error, metrics with and without
    images, odd names, nulls wherever the schema allows them."""
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
    failed: dict[str, Any] = {
        "agreement": None,
        "confusion": [],
        "challenger_confidence": None,
        "challenger_ms": None,
        "error": "Error",
    }
    others = {
        "deletions": [filled("deletions", work_id="e5", uri="s3://cams/größe 1.jpg", reason="deleted")],
        "comparisons": [
            filled("comparisons", work_id="c3", uri="s3://cams/c3.jpg", confusion=[*range(16)]),
            filled("comparisons", work_id="d4", uri="s3://cams/d4.jpg", **failed),
        ],
    }
    found = filled("metrics", class_fraction=[0.5, 0.25, 0.25, 0.0], class_fraction_psi=[0.1, 0.2, 0.3, 0.0])
    unknown = {field.name: None for field in SCHEMAS["metrics"] if field.nullable}
    of_runs = [
        [found | {"run_id": "000002", "prefix": prefix, "drift": "moderate"} for prefix in (None, "", "größe")],
        [found | unknown | {"run_id": "000003", "class_fraction": [], "num_images": 0}],
    ]
    night = partial(publish_night, tables, model="m2", images_per_shard=3)
    night("000002", rest, run_date="2026-11-21", others=others, metrics=of_runs[0])
    night("000003", {}, failed=["g7"], run_date="2026-11-22", metrics=of_runs[1])
    for leftover in ("_staging", "runs"):
        storage.remove_tree(storage.join(tables, leftover))
    for number in (1, 2):
        storage.remove_file(commits.snapshot_uri(tables, number))
    expected = {name: read_table(tables, name).to_pylist() for name in SCHEMAS}
    text = {
        name: [{key: _plain(value) for key, value in row.items()} for row in rows] for name, rows in expected.items()
    }
    (folder / "expected.json").write_bytes(storage.json_bytes(text))


def _plain(value: object) -> object:
    return value.isoformat() if hasattr(value, "isoformat") else value


if __name__ == "__main__":
    main()
