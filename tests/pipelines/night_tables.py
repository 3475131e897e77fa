"""Tables of whole nights, written through the commit protocol without a network, a cluster or images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.tables import commits
from pipelines.tables.runs import PLAN, WHOLE_RUN, Run, RunSettings, ShardCommit, Snapshot
from pipelines.tables.schemas import SCHEMAS, masks_table, rows_table
from segcore.run_lengths import encode

Mask = NDArray[np.uint8]

CLASS_NAMES = ("road", "sky", "tree", "car")
PALETTE = ((128, 64, 128), (70, 130, 180), (107, 142, 35), (0, 0, 142))
NOW = datetime(2026, 11, 20, 3, 0, 0)
DEFAULTS: dict[str, Any] = {
    "string": "x",
    "int64": 7,
    "int32": 1,
    "float": 0.5,
    "double": 0.5,
    "bool": False,
    "timestamp[us]": NOW,
}

SETTINGS = RunSettings(
    run_id="000001",
    run_date="2026-11-20",
    created_at="2026-11-20T03:00:00+00:00",
    images="s3://cams",
    model_uri="models:/street/3",
    model_version="3",
    model_folder="s3://models/street",
    model_digest="m",
    class_names=CLASS_NAMES,
    palette=PALETTE,
    inference={"mode": "whole", "scales": [1.0]},
    config_digest="c",
    code_commit="abc",
)
"""Of a run; tests replace what they are about."""


def blocky_masks(count: int, *, seed: int, height: int = 12, width: int = 18) -> list[Mask]:
    """Masks of a few areas each, all classes of the table."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, len(CLASS_NAMES), (count, -(-height // 3), -(-width // 3)), dtype=np.uint8)
    return list(coarse.repeat(3, axis=1).repeat(3, axis=2)[:, :height, :width])


def filled(table: str, **values: Any) -> dict[str, Any]:
    """A row with every column of the schema, the given ones as given."""
    row = {field.name: DEFAULTS.get(str(field.type), []) for field in SCHEMAS[table]}
    assert set(values) <= set(row)
    return row | values


def make_run(run_id: str, shards: Sequence[Sequence[str]], *, run_date: str = "2026-11-20", model: str = "m1") -> Run:
    """A planned run, given the work ids of each shard."""
    settings = replace(
        SETTINGS, run_id=run_id, run_date=run_date, created_at=f"{run_date}T03:00:00+00:00", model_digest=model
    )
    rows = [
        {"work_id": work_id, "uri": f"s3://cams/{work_id}.jpg", "etag": "e", "size_bytes": 1, "reason": "new"}
        | {"shard": shard}
        for shard, ids in enumerate(shards)
        for work_id in ids
    ]
    return Run(settings=settings, plan=pa.Table.from_pylist(rows, schema=PLAN))


def stage_shard(
    tables: str,
    run: Run,
    shard: int,
    masks: Mapping[str, Mask],
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    others: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> ShardCommit:
    """An attempt at a shard: images with a mask are segmented, others failed; `columns` changes rows of predictions.

    `others` are rows of `deletions`, whose images have not failed, and of `comparisons`.
    """
    rows_of_others = {name: rows_table(name, list(rows)) for name, rows in (others or {}).items()}
    deleted = rows_of_others["deletions"]["work_id"].to_pylist() if "deletions" in rows_of_others else []
    planned = run.shard_items([shard])[0]["work_id"].to_pylist()
    segmented = [work_id for work_id in planned if work_id in masks]
    predictions = []
    for work_id in segmented:
        height, width = masks[work_id].shape
        class_pixels = np.bincount(masks[work_id].ravel(), minlength=len(CLASS_NAMES))
        row = filled(
            "predictions",
            work_id=work_id,
            uri=f"s3://cams/{work_id}.jpg",
            run_id=run.settings.run_id,
            model_digest=run.settings.model_digest,
            height=height,
            width=width,
            class_pixels=class_pixels.tolist(),
            class_fraction=(class_pixels / masks[work_id].size).tolist(),
        )
        predictions.append(row | dict((columns or {}).get(work_id, {})))
    failures = [
        filled("failures", work_id=work_id, uri=f"s3://cams/{work_id}.jpg", run_id=run.settings.run_id)
        for work_id in planned
        if work_id not in masks and work_id not in deleted
    ]
    rows = {
        "predictions": rows_table("predictions", predictions),
        "masks": masks_table(
            segmented,
            [masks[work_id].shape for work_id in segmented],
            [encode(masks[work_id]) for work_id in segmented],
        ),
        "failures": rows_table("failures", failures),
        **rows_of_others,
    }
    return commits.stage(tables, run.settings, shard=shard, planned=planned, rows=rows)


def publish_night(
    tables: str,
    run_id: str,
    masks: Mapping[str, Mask],
    *,
    failed: Sequence[str] = (),
    run_date: str = "2026-11-20",
    images_per_shard: int = 2,
    model: str = "m1",
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    others: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    metrics: Sequence[dict[str, Any]] = (),
) -> Snapshot:
    """Plan, segment, commit and publish a run; `others` are rows of its first shard."""
    ids = [*masks, *failed, *(row["work_id"] for row in (others or {}).get("deletions", ()))]
    shards = [ids[start : start + images_per_shard] for start in range(0, len(ids), images_per_shard)]
    run = make_run(run_id, shards, run_date=run_date, model=model)
    assert commits.create_run(tables, run)
    for shard in range(run.num_shards):
        of_shard = others if shard == 0 else None
        attempt = stage_shard(tables, run, shard, masks, columns, others=of_shard)
        commits.promote(tables, commits.commit(tables, attempt))
    of_run = {"metrics": rows_table("metrics", list(metrics))}
    stage_of_run = partial(commits.stage, tables, run.settings, shard=WHOLE_RUN, planned=[], rows=of_run)
    return commits.publish(tables, run, stage_of_run=(lambda _: stage_of_run()) if metrics else None)
