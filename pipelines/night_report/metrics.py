"""The table `metrics`: one row per run and camera, and one for the whole run, with its drift (see `drift.py`).

A camera is a prefix: the first folders of an image's URI below the listed one. The rows are computed from the
committed parts of `predictions` and `failures`, some files in memory at a time, after all shards of a run and before
its snapshot. They are staged, committed and promoted as a shard's rows are (`commits.publish`): exactly once.
"""

import dataclasses
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import tracking
from pipelines.checkpoints import KIND
from pipelines.cluster import spread
from pipelines.manifests import read_manifest
from pipelines.night_report.drift import (
    Band,
    band,
    class_psi_chance,
    class_shares,
    js_distance,
    psi,
    psi_chance,
    worst_band,
)
from pipelines.night_report.references import QUANTITIES, ModelReference, read_reference
from pipelines.night_report.statistics import Night, Statistics, count_shards
from pipelines.tables import commits
from pipelines.tables.reader import read_table, table_files
from pipelines.tables.runs import WHOLE_RUN, RunSettings, ShardCommit, Snapshot
from pipelines.tables.schemas import METRICS, rows_table

logger = logging.getLogger(__name__)

MAX_FILES_READ = 60
"""Of earlier runs: two months of nights, or more where runs were compacted."""
MAX_PREFIXES_LOGGED = 50
SHARDS_PER_TASK = 1024
NIGHTS_COMPARED = 28
"""Earlier nights that a night's class areas are compared with, and that trends show."""
JOB = "drift"
"""Of the MLflow run that collects all nights of some tables."""

_LOGGED = ("failure_rate", "mean_confidence", "class_psi", "class_js_distance", "confidence_psi", "confidence_shift")
_LOGGED_OF_RUN = (
    *_LOGGED,
    "num_images",
    "num_failures",
    "mean_entropy",
    "mean_brightness",
    "entropy_psi",
    "entropy_shift",
    "brightness_psi",
    "brightness_shift",
    "pixels_psi",
)


def run_reference(settings: RunSettings) -> ModelReference | None:
    """What a run's images are held against: the reference of its model, or None, with a warning where one is unusable.

    An ensemble has none, and neither has a model that is not asked for all its classes.
    """
    if settings.ensemble:
        return None
    try:
        if read_manifest(settings.model_folder, kind=KIND)["digest"] != settings.model_digest:
            raise ValueError(f"{settings.model_folder!r} holds another model by now")
        reference = read_reference(settings.model_folder)
        if reference is not None and reference.class_names != settings.class_names:
            raise ValueError(f"the reference in {settings.model_folder!r} is of other classes")
    except (ValueError, OSError) as error:
        logger.warning("run %s has nothing to be compared with: %s", settings.run_id, error)
        return None
    return reference


def stage_metrics(
    tables: str, settings: RunSettings, shards: Sequence[ShardCommit], *, prefix_depth: int, in_tasks: bool = False
) -> ShardCommit:
    """Compute a run's rows and stage them, for `commits.publish` to commit and promote.

    Args:
        tables: URI of the tables' folder.
        settings: of the run.
        shards: its committed shards, whose files are in their places.
        prefix_depth: folders below the listed one that make a prefix; 0: no prefixes but "".
        in_tasks: share the work among Ray tasks where there are many shards; Ray must run then.
    """
    reference = run_reference(settings)
    night = Night(settings, reference, prefix_depth=prefix_depth)
    pieces = [shards[start : start + SHARDS_PER_TASK] for start in range(0, len(shards), SHARDS_PER_TASK)]
    count = partial(count_shards, tables, settings, reference, prefix_depth)
    for by_prefix in spread(count, pieces, in_tasks=in_tasks):
        night.add(by_prefix)
    found = [metrics_row(settings, None, night.total(), reference)]
    found += [metrics_row(settings, name, night.by_prefix[name], reference) for name in sorted(night.by_prefix)]
    rows = {"metrics": rows_table("metrics", found)}
    return commits.stage(tables, settings, shard=WHOLE_RUN, planned=[], rows=rows)


def metrics_row(
    settings: RunSettings, prefix: str | None, found: Statistics, reference: ModelReference | None
) -> dict[str, Any]:
    """One row of `metrics`."""
    num_classes = len(settings.class_names)
    mean_Q = found.mean_Q
    means = {f"mean_{name}": _number(mean) for name, mean in zip(QUANTITIES, mean_Q[num_classes:], strict=True)}
    num_all = found.num_images + found.num_failures
    row = dict.fromkeys(METRICS.names) | {
        "run_id": settings.run_id,
        "prefix": prefix,
        "num_images": found.num_images,
        "num_failures": found.num_failures,
        "failure_rate": found.num_failures / num_all if num_all else None,
        "class_fraction": mean_Q[:num_classes].tolist() if found.num_images else [],
        **means,
        "created_at": datetime.now(UTC).replace(tzinfo=None),
    }
    if reference is not None and found.num_images:
        row |= {"reference_digest": reference.digest, **_drift(found, reference)}
    return row


def _drift(found: Statistics, reference: ModelReference) -> dict[str, Any]:
    num_classes = len(reference.class_names)
    mean_C = np.array([each.mean for each in reference.class_fractions])
    std_C = np.array([each.std for each in reference.class_fractions])
    expected_C, seen_C = class_shares(mean_C), class_shares(found.mean_Q[:num_classes])
    class_psi = psi(expected_C, seen_C)
    class_chance = class_psi_chance(mean_C, std_C, found.num_images, reference.num_images)
    chance = psi_chance(found.num_images, reference.num_images)
    bands: list[Band] = [band(class_psi, chance=class_chance)]
    index_Q = [
        each.psi(found.histogram_QB[quantity, : len(each.counts)]) if found.count_Q[quantity] else None
        for quantity, each in enumerate(reference.distributions)
    ]
    values: dict[str, Any] = {}
    for place, name in enumerate(QUANTITIES, start=num_classes):
        index = index_Q[place]
        if index is None:
            continue
        shift = reference.quantities[name].shift(float(found.mean_Q[place]))
        values |= {f"{name}_shift": _number(shift), f"{name}_psi": index}
        bands.append(band(index, chance=chance))
    return values | {
        "class_psi": class_psi,
        "class_psi_chance": class_chance,
        "class_js_distance": js_distance(expected_C, seen_C),
        "class_fraction_psi": index_Q[:num_classes],
        "psi_chance": chance,
        "drift": worst_band(bands),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def read_metrics(tables: str, snapshot: Snapshot) -> pa.Table:
    """The newest rows of `metrics` that a snapshot lists, oldest first; runs of older versions have none."""
    files = table_files(snapshot, "metrics")[-MAX_FILES_READ:]
    found = read_table(tables, "metrics", snapshot=dataclasses.replace(snapshot, files=tuple(files)))
    return found.sort_by([("run_id", "ascending")])


def earlier_fractions(metrics: pa.Table, run_id: str) -> dict[str, NDArray[np.float64]]:
    """Mean class fractions of each prefix over the images of the last `NIGHTS_COMPARED` nights before a run."""
    rows = [row for row in metrics.to_pylist() if row["prefix"] is not None and row["run_id"] < run_id]
    nights = sorted({row["run_id"] for row in rows})[-NIGHTS_COMPARED:]
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if row["run_id"] in nights and row["num_images"]:
            prefix, weighted_C = row["prefix"], row["num_images"] * np.array(row["class_fraction"])
            sums[prefix] = sums.get(prefix, 0.0) + weighted_C
            counts[prefix] = counts.get(prefix, 0) + row["num_images"]
    return {prefix: sums[prefix] / counts[prefix] for prefix in sums}


def log_nights(tables: str, *, experiment: str) -> None:
    """Log the rows that MLflow does not have yet: one MLflow run for all nights of some tables, the night as step.

    A night is a run of the tables; its number is the run's. A night whose job died before this comes with the next one.
    """
    metrics = read_metrics(tables, commits.newest_snapshot(tables)).to_pylist()
    if not metrics:
        return
    runs = tracking.find_runs(experiment=experiment, job=JOB)
    known = [run for run in runs if run.tags.get(tracking.TABLES_TAG) == tables]
    with tracking.tracked_run(
        experiment=experiment,
        name=f"drift of {tables.rstrip('/').rpartition('/')[2]}",
        job=JOB,
        parameters={"tables": tables},
        tags={tracking.TABLES_TAG: tables},
        work={"tables": tables},
        run_id=known[-1].run_id if known else None,
    ) as tracked:
        last = tracked.last_step("num_images") if known else None
        for run_id in sorted({row["run_id"] for row in metrics}):
            if last is None or int(run_id) > last:
                rows = [row for row in metrics if row["run_id"] == run_id]
                tracked.log_metrics(_logged(rows), step=int(run_id))


def _logged(rows: list[dict[str, Any]]) -> dict[str, float]:
    """One run's rows as metrics: of the whole run by their names, of its largest prefixes below the prefix."""
    found: dict[str, float] = {}
    largest = sorted(rows, key=lambda row: -row["num_images"])[: MAX_PREFIXES_LOGGED + 1]
    for row in largest:
        names = _LOGGED_OF_RUN if row["prefix"] is None else _LOGGED
        head = "" if row["prefix"] is None else f"{row['prefix'] or '(top)'}/"
        found |= {f"{head}{name}": row[name] for name in names if row[name] is not None}
    return found
