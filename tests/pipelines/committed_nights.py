"""Nights that are planned and committed for real, but without a network: every row is made up from its plan."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.nightly.deletions import commit_marks, mark_shards
from pipelines.nightly.listing import LISTING, Listing
from pipelines.nightly.plan import compare, plan_work, work_ids
from pipelines.tables import commits
from pipelines.tables.runs import Run, RunSettings, Snapshot
from pipelines.tables.schemas import TABLES, masks_table, rows_table
from segcore.run_lengths import encode
from tests.pipelines.night_tables import SETTINGS, filled

PREFIX = "s3://cams/"
CLASS_NAMES = ("sky", "road")
PALETTE = ((70, 130, 180), (128, 64, 128))


def listing(etags: Mapping[str, str], *, prefix: str = PREFIX, taken_at: datetime | None = None) -> Listing:
    """Objects of 10 bytes, by name below `PREFIX` and version."""
    rows = [{"uri": f"{PREFIX}{name}", "etag": etag, "size_bytes": 10} for name, etag in sorted(etags.items())]
    return Listing(objects=pa.Table.from_pylist(rows, schema=LISTING), prefix=prefix, taken_at=taken_at)


def plan_night(
    tables: str,
    found: Listing,
    *,
    model: str = "m",
    config: str = "c",
    retry: Collection[str] = (),
    fresh_runs: Collection[str] = (),
    force: bool = False,
    accept_deletions: bool = False,
) -> pa.Table:
    """The plan of the next run."""
    snapshot = commits.newest_snapshot(tables)
    ids = work_ids(found.objects, model_digest=model, config_digest=config)
    comparison = compare(
        found, ids, tables, snapshot, retry=retry, fresh_runs=fresh_runs, accept_deletions=accept_deletions
    )
    run_id = commits.next_run_id(snapshot)
    return plan_work(found, ids, comparison, run_id=run_id, force=force, images_per_shard=500, workers=1)


def create_night(tables: str, plan: pa.Table, *, model: str = "m", config: str = "c", images: str = PREFIX) -> Run:
    """Plan the next run, and no more."""
    settings = replace(
        SETTINGS,
        run_id=commits.next_run_id(commits.newest_snapshot(tables)),
        images=images,
        model_digest=model,
        class_names=CLASS_NAMES,
        palette=PALETTE,
        config_digest=config,
    )
    run = Run(settings=settings, plan=plan)
    assert commits.create_run(tables, run)
    return run


def commit_night(
    tables: str,
    plan: pa.Table,
    *,
    failing: Mapping[str, tuple[str, bool]] | None = None,
    model: str = "m",
    config: str = "c",
) -> Run:
    """Do a planned night and publish it.

    Args:
        tables: URI of the tables' folder.
        plan: see `plan_night`.
        failing: images that end in failures, by name: the stage, and whether it is worth another try.
        model, config: digests, as the plan was made with.
    """
    run = create_night(tables, plan, model=model, config=config)
    marks = mark_shards(run)
    commit_marks(tables, run, sorted(marks))
    for shard in set(range(run.num_shards)) - marks:
        (items,) = run.shard_items([shard])
        rows = _rows(items, run.settings, failing or {})
        planned = items["work_id"].to_pylist()
        attempt = commits.stage(tables, run.settings, shard=shard, planned=planned, rows=rows)
        commits.promote(tables, commits.commit(tables, attempt))
    commits.publish(tables, run)
    return run


def night(tables: str, found: Listing, *, failing: Mapping[str, tuple[str, bool]] | None = None) -> Run:
    """Plan a night and do it."""
    return commit_night(tables, plan_night(tables, found), failing=failing)


def reasons(plan: pa.Table) -> dict[str, str]:
    """Of each planned image or mark, by its name."""
    names = (uri.removeprefix(PREFIX) for uri in plan["uri"].to_pylist())
    return dict(zip(names, plan["reason"].to_pylist(), strict=True))


def read(tables: str, name: str) -> list[dict[str, Any]]:
    """Every live row of a table, in the snapshot's order."""
    snapshot: Snapshot = commits.newest_snapshot(tables)
    paths = [storage.join(tables, file["path"]) for file in snapshot.files if file["table"] == name]
    return [row for path in paths for row in pq.read_table(pa.BufferReader(storage.read_bytes(path))).to_pylist()]


def committed_work_ids(tables: str) -> Counter[str]:
    """Of all that ended in a row; masks apart, which every prediction has one of."""
    return Counter(row["work_id"] for name in TABLES if name != "masks" for row in read(tables, name))


def _rows(items: pa.Table, settings: RunSettings, failing: Mapping[str, tuple[str, bool]]) -> dict[str, pa.Table]:
    predictions, failures = [], []
    for item in items.to_pylist():
        known = {name: item[name] for name in ("work_id", "uri", "etag", "size_bytes")} | {"run_id": settings.run_id}
        failure = failing.get(item["uri"].removeprefix(PREFIX))
        if failure is None:
            predictions.append(filled("predictions", **known))
        else:
            failures.append(filled("failures", **known, stage=failure[0], retryable=failure[1]))
    ids = [row["work_id"] for row in predictions]
    mask_HW = np.zeros((2, 3), dtype=np.uint8)
    return {
        "predictions": rows_table("predictions", predictions),
        "masks": masks_table(ids, [(2, 3)] * len(ids), [encode(mask_HW)] * len(ids)),
        "failures": rows_table("failures", failures),
    }
