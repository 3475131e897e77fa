"""Segment a folder or bucket of images into the tables `predictions`, `masks`, `failures` (`pipelines.tables.schemas`).

The same command again continues a run that was interrupted, and segments only what the tables do not hold under the
same work identity: URI, version and size of the object, digest of each model, inference settings
(`pipelines.tables.commits`).

Every file below `images` is taken for an image until its content says otherwise; hidden files and `.part` files are
left out. A manifest may stand for the listing (`pipelines.nightly.image_manifests`); an image of it that is not there
ends in `failures`, with stage `fetch`. Objects that have gone from the source are marked
(`pipelines.nightly.deletions`). Masks have the size of the upright image: an EXIF orientation is applied before the
network sees it.
"""

import dataclasses
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipelines import storage, tracking
from pipelines.checkpoints import ModelCard, read_card
from pipelines.cluster import actor_cluster
from pipelines.ensembles import (
    MemberModel,
    class_difference,
    ensemble_digest,
    ensemble_uri,
    find_members,
    load_member,
)
from pipelines.exit_codes import JobStoppedError
from pipelines.manifests import code_commit, digest
from pipelines.night_report.summary import RunClock
from pipelines.nightly import attempts, webhook
from pipelines.nightly.challenge import Challenger
from pipelines.nightly.claims import Progress, claimed
from pipelines.nightly.config import SegmentConfig, checked_places
from pipelines.nightly.deletions import num_images
from pipelines.nightly.forecast import forecast_run
from pipelines.nightly.listing import Listing, take_listing
from pipelines.nightly.plan import INTAKE_VERSION, compare, plan_work, work_ids
from pipelines.nightly.publication import publish_run, record_quiet_night
from pipelines.nightly.run import SegmentJob, execute
from pipelines.nightly.table_checks import check_class_table, check_tables
from pipelines.nightly.tracked_night import log_night, note_table_runs, tracked_night
from pipelines.tables import commits
from pipelines.tables.runs import Run, RunSettings, Snapshot
from segcore.inference import inference_to_dict
from segcore.tile_grid import TilingConfig
from segcore.tiling import why_not_tiled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentResult:
    """What a finished job left.

    Attributes:
        tables: the tables' folder.
        snapshot: number of the newest published snapshot.
        run_ids: of the runs that this job finished; the last is its own, unless there was nothing new.
        num_images: segmented by this job.
        num_failures: images that ended in the failures table, this job's.
        num_marks: objects marked as deleted, or as restored, by this job.
        num_present: listed images that the tables held already when this job began.
        images_per_second: of this job's images, start-up apart; NaN without any.
        peak_memory_bytes: of the largest worker; 0 without any.
        page: URI of the last run's page, or "".
        run_id: MLflow run.
    """

    tables: str
    snapshot: int
    run_ids: tuple[str, ...]
    num_images: int
    num_failures: int
    num_marks: int
    num_present: int
    images_per_second: float
    peak_memory_bytes: int
    page: str
    run_id: str

    @property
    def closing_line(self) -> str:
        page = f"; page {self.page}" if self.page else ""
        if not self.run_ids:
            return f"nothing new: all {self.num_present} images are in {self.tables} (snapshot {self.snapshot}){page}"
        speed = f" at {self.images_per_second:.1f} images/s" if self.num_images + self.num_failures else ""
        marks = f"; {self.num_marks} marked as deleted or restored" if self.num_marks else ""
        return (
            f"segmented {self.num_images} images{speed}, {self.num_failures} failed, {self.num_present} were there "
            f"already{marks}; tables {self.tables} (snapshot {self.snapshot}){page}"
        )


def segment(config: SegmentConfig, *, began: float | None = None) -> SegmentResult:
    """Segment what is new.

    Args:
        config: what is asked for.
        began: when the process was started that does nothing else, seconds since 1970; None: now.

    Raises:
        ValueError: an input is missing or broken; the model's class table is not the tables'; the tables cannot be
            written; the cluster is too small; MLflow does not answer.
        JobStoppedError: too many images failed (code `OUTAGE`), or another job works on the same run (`BUSY`).
    """
    assert not config.plan, "nightly.preview plans without running"
    try:
        result = _segment(config, began)
    except BaseException as error:
        if config.webhook:
            webhook.post(config.webhook, _message(config, error))
        raise
    if config.webhook:
        webhook.post(config.webhook, _message(config, result))
    return result


def _message(config: SegmentConfig, outcome: "SegmentResult | BaseException") -> dict[str, object]:
    """What the webhook is told."""
    head: dict[str, object] = {"job": "segment", "images": config.source, "tables": config.tables}
    if isinstance(outcome, SegmentResult):
        return head | {"status": "finished"} | dataclasses.asdict(outcome) | {"summary": outcome.closing_line}
    status = "interrupted" if isinstance(outcome, KeyboardInterrupt) else "failed"
    if isinstance(outcome, JobStoppedError):
        status = "stopped"
    return head | {"status": status, "error": f"{type(outcome).__name__}: {outcome}"}


def _segment(config: SegmentConfig, began: float | None) -> SegmentResult:
    clock = RunClock(began=began)
    asked = checked_places(config)
    tracking.connect(asked.tracking_uri)
    challenger = find_challenger(asked)
    config, members, card = find_models(asked)
    for member in (*members, *([challenger.member] if challenger else [])):
        load_member(member)  # raises where weights are missing or broken, before anything starts
    check_tables(config.tables)
    check_class_table(config.tables, card, model=ensemble_uri(members))
    if challenger is not None:
        _check_comparable(challenger.member, card)
    with tracked_night(asked, config, members) as tracked:
        job = SegmentJob(config=config, members=members, challenger=challenger, clock=clock)
        clock.lap("check")
        with actor_cluster(workers=config.workers, threads=config.threads, use_gpu=config.use_gpu):
            clock.lap("ray")
            listing = take_listing(config.images, config.manifest, in_tasks=True)
            clock.lap("list")
            run = _next_run(job, card, listing)
            if run is not None:
                note_table_runs(tracked, [*job.run_ids, run.settings.run_id])
                execute(job, run)
        num_listed = listing.objects.num_rows
        if not job.run_ids and config.page:
            job.page = record_quiet_night(config.tables, images=config.source, num_present=num_listed)
        result = _result(job, tracked, num_listed=num_listed)
        _tidy(job)
        log_night(tracked, config.tables, job.run_ids, images_per_second=result.images_per_second)
    return result


def _tidy(job: SegmentJob) -> None:
    """Remove what is left over; the night's work is published, and old leftovers may wait for the next one."""
    try:
        commits.sweep(job.config.tables)
        for run_id in job.run_ids:
            attempts.clear(job.config.tables, run_id)
    except OSError as error:
        logger.warning("could not sweep old staged files and markers: %s", error)


def find_models(config: SegmentConfig) -> tuple[SegmentConfig, tuple[MemberModel, ...], ModelCard]:
    """Resolve the models, each alias once; the configuration then says how the first one is shown an image.

    Raises:
        ValueError: a model is missing or broken, or they do not fit one another, or the tiling.
    """
    models = [tracking.resolve_model(model) for model in (config.model, *config.ensemble)]
    members, card = find_members(
        models, config.inference, recipe_inference=config.recipe_inference, leave_out=config.leave_out
    )
    reason = why_not_tiled([member.inference for member in members])
    if reason and config.tiling != TilingConfig():
        raise ValueError(f"--tiling.* have no effect here: {reason}; leave them out")
    if config.use_gpu:
        members = tuple(_at_precision(member, config.gpu_precision) for member in members)
    return dataclasses.replace(config, inference=members[0].inference, recipe_inference=False), members, card


def find_challenger(config: SegmentConfig) -> Challenger | None:
    """Resolve the challenger, if one is asked for, to be shown images as the models are.

    Raises:
        ValueError: it is missing or broken.
    """
    if not config.challenger:
        return None
    resolved = [tracking.resolve_model(config.challenger)]
    (member,), _ = find_members(resolved, config.inference, recipe_inference=config.recipe_inference)
    if config.use_gpu:
        member = _at_precision(member, config.gpu_precision)
    return Challenger(member=member, fraction=config.challenger_fraction, seed=config.challenger_seed)


def _check_comparable(challenger: MemberModel, card: ModelCard) -> None:
    names = read_card(challenger.model_folder)[0].class_names
    if names != card.class_names:
        raise ValueError(
            f"the challenger {challenger.model_uri!r} has another class table than the model: "
            f"{class_difference(names, card.class_names)}; give --challenger a model of the same classes"
        )


def _at_precision(member: MemberModel, precision: Literal["bfloat16", "float32"]) -> MemberModel:
    return dataclasses.replace(member, inference=dataclasses.replace(member.inference, precision=precision))


def identity_digests(members: tuple[MemberModel, ...], tiling: TilingConfig) -> tuple[str, str]:
    """Digests of the models, and of everything else that a mask depends on beside the image."""
    identity: dict[str, object] = {"inference": inference_to_dict(members[0].inference), "intake": INTAKE_VERSION}
    if not _is_plain(members):
        identity["ensemble"] = [member.identity() for member in members]
    if tiling != TilingConfig():  # a default does not change an identity that is older than itself
        identity["tiling"] = dataclasses.asdict(tiling)
    return ensemble_digest(members), digest(identity)


def _is_plain(members: tuple[MemberModel, ...]) -> bool:
    """One model, all its classes: an identity as ever."""
    return len(members) == 1 and not members[0].leave_out


def _next_run(job: SegmentJob, card: ModelCard, listing: Listing) -> Run | None:
    """Finish what is unfinished, then plan what the tables do not hold; None where that is nothing."""
    config, first = job.config, job.members[0]
    model_digest, config_digest = identity_digests(job.members, config.tiling)
    ids = work_ids(listing.objects, model_digest=model_digest, config_digest=config_digest)
    while True:
        snapshot = _finish_unfinished(job)
        run_id = commits.next_run_id(snapshot)
        comparison = compare(
            listing,
            ids,
            config.tables,
            snapshot,
            retry=config.retry,
            fresh_runs=job.run_ids,
            accept_deletions=config.accept_deletions,
        )
        plan = plan_work(
            listing,
            ids,
            comparison,
            run_id=run_id,
            force=config.force,
            images_per_shard=config.images_per_shard,
            workers=config.workers,
        )
        if not plan.num_rows:
            return None
        now = datetime.now(UTC)
        settings = RunSettings(
            run_id=run_id,
            run_date=now.date().isoformat(),
            created_at=now.isoformat(),
            images=config.source,
            model_uri=ensemble_uri(job.members),
            model_version=first.model_version,
            model_folder=first.model_folder,
            model_digest=model_digest,
            class_names=card.class_names,
            palette=card.palette,
            inference=inference_to_dict(first.inference),
            config_digest=config_digest,
            code_commit=code_commit(),
            ensemble=() if _is_plain(job.members) else tuple(member.to_dict() for member in job.members),
            tiling=dataclasses.asdict(config.tiling),
            challenger=job.challenger.to_dict() if job.challenger else {},
        )
        run = Run(settings=settings, plan=plan)
        if commits.create_run(config.tables, run):
            job.predicted_seconds = _predicted_seconds(config, run)
            return run
        logger.info("another job has planned run %s meanwhile; finishing it first", settings.run_id)
        check_class_table(config.tables, card, model=ensemble_uri(job.members))


def _predicted_seconds(config: SegmentConfig, run: Run) -> float | None:
    found = forecast_run(
        config.tables,
        num_images=num_images(run.plan),
        model_digest=run.settings.model_digest,
        config_digest=run.settings.config_digest,
        workers=config.workers,
        threads=config.threads,
        use_gpu=config.use_gpu,
    )
    return found.seconds if found else None


def _finish_unfinished(job: SegmentJob) -> Snapshot:
    """Publish every run that has a plan, in order; afterwards the newest snapshot says all that is committed."""
    tables = job.config.tables
    published = commits.newest_snapshot(tables).run_ids
    for run_id in commits.run_ids(tables):
        if run_id in published:
            continue
        run = commits.read_run(tables, run_id)
        if job.config.abandon_unfinished:
            with claimed(tables, run_id, Progress(num_planned=run.plan.num_rows)):
                num_shards = commits.abandon(tables, run)
                publish_run(tables, run, prefix_depth=job.config.prefix_depth, experiment=job.config.experiment)
            logger.warning("gave up %d of %d shards of unfinished run %s", num_shards, run.num_shards, run_id)
        else:
            if not storage.exists(run.settings.images):
                raise ValueError(
                    f"run {run_id} of these tables is not finished and its images {run.settings.images!r} are not "
                    "there; bring them back, or give up what the run has not committed with --abandon-unfinished"
                )
            logger.info("continuing run %s of %s, which is not finished", run_id, run.settings.images)
            execute(job, run)
    return commits.newest_snapshot(tables)


def _result(job: SegmentJob, tracked: tracking.TrackedRun, *, num_listed: int) -> SegmentResult:
    config = job.config
    num_images = sum(report.num_images for report in job.reports)
    num_failures = sum(report.num_failures for report in job.reports)
    seconds = 0.0
    if job.reports:
        seconds = max(report.ended for report in job.reports) - min(report.began for report in job.reports)
    return SegmentResult(
        tables=config.tables,
        snapshot=commits.newest_snapshot(config.tables).number,
        run_ids=tuple(job.run_ids),
        num_images=num_images,
        num_failures=num_failures,
        num_marks=job.num_marks,
        num_present=max(0, num_listed - job.num_done),
        images_per_second=(num_images + num_failures) / seconds if seconds else float("nan"),
        peak_memory_bytes=max((report.peak_memory_bytes for report in job.reports), default=0),
        page=job.page,
        run_id=tracked.run_id,
    )
