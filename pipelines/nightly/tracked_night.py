"""A night in MLflow: one run from its first start to its end, however often it was interrupted in between."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from pipelines import tracking
from pipelines.ensembles import MemberModel, ensemble_digest, joined_digests, registered_version
from pipelines.nightly.challenge import night_evidence
from pipelines.nightly.config import SegmentConfig
from pipelines.tables import commits

WORK_FIELDS = (
    "images",
    "manifest",
    "tables",
    "model",
    "ensemble",
    "leave_out",
    "inference",
    "recipe_inference",
    "tiling",
    "challenger",
    "challenger_fraction",
    "challenger_seed",
)
"""What was asked for; the rest says how it is computed, which a restart may change. An alias may have moved since."""


def night_work(asked: SegmentConfig) -> dict[str, Any]:
    """What makes two starts one night, unless the first one has finished: JSON values."""
    values = dataclasses.asdict(asked)
    return {name: values[name] for name in WORK_FIELDS}


@contextlib.contextmanager
def tracked_night(
    asked: SegmentConfig, config: SegmentConfig, members: Sequence[MemberModel]
) -> Iterator[tracking.TrackedRun]:
    """Open the MLflow run of a night; see `tracking.tracked_run`.

    Args:
        asked: as given, its places checked.
        config: the same with all that was found.
        members: the models.
    """
    others = {str(number): member.to_dict() for number, member in enumerate(members[1:], start=2)}
    parameters = dataclasses.asdict(config) | {
        "model": members[0].model_uri,
        "ensemble": others,
        "webhook": urlsplit(config.webhook).hostname or "",  # its path is often a secret
    }
    tags = {
        tracking.MODEL_FOLDER_TAG: members[0].model_folder,
        tracking.MODEL_DIGEST_TAG: ensemble_digest(members),
        tracking.MODEL_VERSION_TAG: registered_version(members),
        tracking.MEMBERS_TAG: joined_digests(members),
        tracking.TABLES_TAG: config.tables,
    }
    with tracking.tracked_run(
        experiment=config.experiment,
        name=f"segment {config.source.rstrip('/').rsplit('/', 1)[-1]}",
        job="segment",
        parameters=parameters,
        tags=tags,
        work=night_work(asked),
    ) as tracked:
        yield tracked


def note_table_runs(tracked: tracking.TrackedRun, run_ids: Iterable[str]) -> list[str]:
    """Add runs of the tables to those that the night has worked on, at any start; returns all of them."""
    noted = sorted({*tracked.tag(tracking.TABLE_RUNS_TAG).strip(",").split(","), *run_ids} - {""})
    tracked.set_tags({tracking.TABLE_RUNS_TAG: f",{','.join(noted)}," if noted else ""})
    return noted


def log_night(tracked: tracking.TrackedRun, tables: str, run_ids: Iterable[str], *, images_per_second: float) -> None:
    """Log what the night has done to the tables, all its starts together.

    Args:
        tracked: the night's run.
        tables: URI of the tables' folder.
        run_ids: of the runs that this start published.
        images_per_second: of this start; NaN where it had no images.
    """
    snapshot = commits.newest_snapshot(tables)
    published = [run_id for run_id in note_table_runs(tracked, run_ids) if run_id in snapshot.run_ids]
    tracked.set_tags({tracking.SNAPSHOT_TAG: str(snapshot.number)})
    counts: Counter[str] = Counter()
    for file in snapshot.files:
        counts[file["table"]] += file["num_rows"] if file["run_id"] in published else 0
    metrics = {"num_images": counts["predictions"], "num_failures": counts["failures"]}
    tracked.log_metrics(metrics | {"images_per_second": images_per_second}, step=tracked.starts - 1)
    logged = {step for step, _ in tracked.history("challenger/num_images")}
    for run_id in published:
        evidence = night_evidence(tables, run_id) if int(run_id) not in logged else None
        if evidence is not None:
            tracked.log_metrics(evidence.metrics(), step=int(run_id))
