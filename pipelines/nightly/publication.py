"""What is done once all shards of a run are committed: its metrics, its snapshot, MLflow, its summary, its page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pipelines import storage
from pipelines.night_report.metrics import log_nights, stage_metrics
from pipelines.night_report.page import write_quiet_page, write_run_page
from pipelines.night_report.summary import RunClock, write_summary
from pipelines.tables import commits
from pipelines.tables.runs import Run, ShardCommit, Snapshot

if TYPE_CHECKING:  # Ray reads its environment at import
    from pipelines.nightly.worker_job import ShardReport


def publish_run(
    tables: str, run: Run, *, known: Mapping[int, ShardCommit] | None = None, prefix_depth: int, experiment: str
) -> Snapshot:
    """Publish a run with its rows of `metrics`, and log them; idempotent. Ray must run.

    Args:
        tables: URI of the tables' folder.
        run: the run, all of whose shards have a commit.
        known: commits that need not be read again.
        prefix_depth: folders below the listed one that tell the cameras apart.
        experiment: of MLflow.

    Raises:
        RuntimeError: a shard has no commit.
    """
    stage = partial(stage_metrics, tables, run.settings, prefix_depth=prefix_depth, in_tasks=True)
    snapshot = commits.publish(tables, run, known=known, stage_of_run=stage)
    log_nights(tables, experiment=experiment)
    return snapshot


def record_run(
    tables: str,
    run_id: str,
    snapshot: Snapshot,
    clock: RunClock,
    reports: "Sequence[ShardReport]",
    *,
    workers: int,
    threads: int,
    use_gpu: bool,
    cost_per_hour: float,
    predicted_seconds: float | None,
    with_page: bool,
    prefix_depth: int,
) -> str:
    """Write a published run's summary and its page; returns the page's URI, or "" without one.

    Args:
        tables: URI of the tables' folder.
        run_id: of the run.
        snapshot: that holds it.
        clock: of the job; it counts for the next run afterwards.
        reports: of the shards that the job did.
        workers, threads, use_gpu: as the job was given them.
        cost_per_hour: of the whole cluster; 0 where it is not known.
        predicted_seconds: of the work; None where nothing was predicted.
        with_page: whether there shall be one; a run without images has none.
        prefix_depth: as for `publish_run`.
    """
    counts: Counter[str] = Counter()
    for file in snapshot.files:
        counts[file["table"]] += file["num_rows"] if file["run_id"] == run_id else 0
    summarise = partial(
        clock.summary,
        run_id,
        images=counts["predictions"],
        failures=counts["failures"],
        deletions=counts["deletions"],
        reports=reports,
        workers=workers,
        threads=threads,
        use_gpu=use_gpu,
        cost_per_hour=cost_per_hour or None,
        predicted_seconds=predicted_seconds,
    )
    write_summary(tables, summarise())
    page = ""
    if with_page and counts["predictions"] + counts["failures"]:
        page = storage.join(tables, "runs", run_id, "page.html")
        write_run_page(tables, run_id, page, prefix_depth=prefix_depth)
        clock.lap("page")
        write_summary(tables, summarise())
    clock.start_run()
    return page


def record_quiet_night(tables: str, *, images: str, num_present: int) -> str:
    """Write the page of a job that found nothing new; returns its URI."""
    page = storage.join(tables, "runs", f"nothing-new-{datetime.now(UTC):%Y-%m-%d}.html")
    write_quiet_page(tables, page, images=images, num_present=num_present)
    return page
