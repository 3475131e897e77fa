"""One planned run of `segment`, from its open shards to its page: by one driver at a time, published as a whole."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines import live_metrics, storage
from pipelines.ensembles import MemberModel, load_member, member_from_dict
from pipelines.exit_codes import OUTAGE, JobStoppedError
from pipelines.night_report.summary import RunClock
from pipelines.nightly.challenge import Challenger
from pipelines.nightly.claims import Heartbeat, Progress, claimed
from pipelines.nightly.config import SegmentConfig
from pipelines.nightly.deletions import commit_marks, mark_shards
from pipelines.nightly.publication import publish_run, record_run
from pipelines.nightly.worker_job import ShardReport, WorkerJob
from pipelines.progress import progress
from pipelines.tables import commits
from pipelines.tables.runs import Run, RunSettings, ShardCommit
from segcore.inference import inference_from_dict

GPU_BATCH_SIZE = 8
FEWEST_FAILURES = 20
"""Below this number failures are no outage, however few images a night has."""


@dataclass(slots=True)
class SegmentJob:
    """What one invocation works with, and what its shards reported.

    Attributes:
        config: as given, its places checked.
        members: the models that were asked for.
        challenger: of the run that this job plans.
        clock: of the whole job.
        reports: of all shards that it did.
        run_ids: of the runs that it published.
        num_done: images of the listing, by this job.
        num_marks: objects marked as deleted or restored.
        page: URI of the last run's page, or "".
        predicted_seconds: of the run that this job plans; None where nothing can be said.
    """

    config: SegmentConfig
    members: tuple[MemberModel, ...]
    challenger: Challenger | None
    clock: RunClock
    reports: list[ShardReport] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    num_done: int = 0
    num_marks: int = 0
    page: str = ""
    predicted_seconds: float | None = None


def execute(job: SegmentJob, run: Run) -> None:
    """Do the shards of a run that have no commit, and publish it.

    Raises:
        JobStoppedError: another job works on it; or too many of its images failed, and it stays unpublished.
    """
    config, run_id = job.config, run.settings.run_id
    state = Progress(num_planned=run.plan.num_rows)
    with claimed(config.tables, run_id, state) as heartbeat:
        reports, known = _do_open_shards(job, run, state, heartbeat)
        job.clock.lap_work(reports, workers=config.workers)
        state.state = "publishing"
        snapshot = publish_run(
            config.tables, run, known=known, prefix_depth=config.prefix_depth, experiment=config.experiment
        )
        job.clock.lap("publish")
        job.run_ids.append(run_id)
        page = record_run(
            config.tables,
            run_id,
            snapshot,
            job.clock,
            reports,
            workers=config.workers,
            threads=config.threads,
            use_gpu=config.use_gpu,
            cost_per_hour=config.cost_per_hour,
            predicted_seconds=job.predicted_seconds,
            with_page=config.page,
            prefix_depth=config.prefix_depth,
        )
        job.page = page or job.page


def _do_open_shards(
    job: SegmentJob, run: Run, state: Progress, heartbeat: Heartbeat
) -> tuple[list[ShardReport], dict[int, ShardCommit]]:
    """Marks by this process, images by workers; keeps the progress current and the failures below their limit.

    Returns:
        Reports of what was done now, and the commits that are known by then.
    """
    config = job.config
    done = commits.read_commits(config.tables, run.settings.run_id)
    for table, count in (("predictions", "num_images"), ("failures", "num_failures")):
        setattr(state, count, sum(each.num_rows(table) for each in done.values()))
    left = [shard for shard in range(run.num_shards) if shard not in done]
    of_marks = mark_shards(run)
    marks = [shard for shard in left if shard in of_marks]
    commit_marks(config.tables, run, marks)
    job.num_marks += sum(items.num_rows for items in run.shard_items(marks))
    state.num_planned = sum(items.num_rows for items in run.shard_items(sorted(set(range(run.num_shards)) - of_marks)))
    job.clock.lap("plan")
    reports: list[ShardReport] = []
    num_failures = 0
    for report in _reports(job, run, [shard for shard in left if shard not in of_marks]):
        reports.append(report)
        job.reports.append(report)
        state.num_images += report.num_images
        state.num_failures += report.num_failures
        state.num_here += report.num_images + report.num_failures
        _show(report, state)
        num_failures += report.num_failures
        heartbeat.check()
        _check_failures(config, run, num_failures)
    if run.settings.images == config.source:
        job.num_done += state.num_here
    return reports, done | {report.result.shard: report.result for report in reports}


def _show(report: ShardReport, state: Progress) -> None:
    """Tell Prometheus what a shard gave, and what is left."""
    live_metrics.count("segpipe_shards", 1)
    live_metrics.count("segpipe_images", report.num_images)
    live_metrics.count("segpipe_failures", report.num_failures)
    live_metrics.show("segpipe_images_waiting", state.num_planned - state.num_images - state.num_failures)


def _reports(job: SegmentJob, run: Run, left: list[int]) -> Iterator[ShardReport]:
    """Segment the shards that are left, and report each; Ray starts its actors only where there are some."""
    if not left:
        return
    from pipelines.nightly.worker import segment_shards  # Ray reads its environment at import

    config = job.config
    worker_job = WorkerJob(
        tables=config.tables,
        settings=run.settings,
        members=_planned_members(job, run.settings),
        batch_size=config.batch_size or (GPU_BATCH_SIZE if config.use_gpu else 1),
        threads=config.threads,
        decode_threads=config.decode_threads,
        image_seconds=config.image_seconds,
        use_gpu=config.use_gpu,
        max_pixels=config.max_pixels,
    )
    num_left = sum(items.num_rows for items in run.shard_items(left))
    with progress(f"segment (run {run.settings.run_id})", total=num_left, unit="images") as advance:
        for report in segment_shards(left, job=worker_job, workers=config.workers):
            advance(report.num_images + report.num_failures)
            yield report


def _check_failures(config: SegmentConfig, run: Run, num_failures: int) -> None:
    """Stop a night that is an outage.

    Raises:
        JobStoppedError: code `OUTAGE`.
    """
    num_planned = run.plan.num_rows
    if num_failures > max(FEWEST_FAILURES, config.max_failure_rate * num_planned):
        raise JobStoppedError(
            f"{num_failures} of the {num_planned} images of run {run.settings.run_id} have failed, over "
            f"--max-failure-rate {config.max_failure_rate:g}; the table failures says why "
            f"({storage.join(config.tables, 'failures')}). Mend the cause and give the same command again: it goes on "
            "where this one stopped, and a later run tries again what may pass by itself",
            OUTAGE,
        )


def _planned_members(job: SegmentJob, settings: RunSettings) -> tuple[MemberModel, ...]:
    """A run's models: each where this job has the same one, or where it was when the run was planned.

    Raises:
        ValueError: one is no longer there.
    """
    planned = [member_from_dict(values) for values in settings.ensemble] or [
        MemberModel(
            model_uri=settings.model_uri,
            model_version=settings.model_version,
            model_folder=settings.model_folder,
            model_digest=settings.model_digest,
            inference=inference_from_dict(settings.inference),
        )
    ]
    own = {member.model_digest: member.model_folder for member in job.members}
    found: list[MemberModel] = []
    for member in planned:
        if member.model_digest not in own:
            try:
                load_member(member)
            except ValueError as error:
                raise ValueError(
                    f"run {settings.run_id} of these tables is not finished and needs its model {member.model_uri!r}; "
                    f"put that back, or give up what the run has not committed with --abandon-unfinished ({error})"
                ) from error
        found.append(dataclasses.replace(member, model_folder=own.get(member.model_digest, member.model_folder)))
    return tuple(found)
