"""Segment a folder or bucket of images into the tables `predictions`, `masks`, `failures` (see `pipelines.tables`).

The same command again continues a run that was interrupted, and segments only what the tables do not hold under the
same work identity: URI, version and size of the object, digest of each model, inference settings (`pipelines.commits`).

Every file below `images` is taken for an image until its content says otherwise; hidden files and `.part` files are
left out. Masks have the size of the upright image: an EXIF orientation is applied before the network sees it.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import commits, storage, tracking
from pipelines.checkpoints import ModelCard
from pipelines.cluster import actor_cluster
from pipelines.commits import Run, RunSettings, Snapshot
from pipelines.ensembles import MemberModel, ensemble_digest, ensemble_uri, find_members, load_member, member_from_dict
from pipelines.manifests import code_commit, digest
from pipelines.progress import progress
from pipelines.run_page import write_run_page
from pipelines.segment_plan import INTAKE_VERSION, committed_work, list_images, plan_work, work_ids
from segcore.inference import InferenceConfig, inference_from_dict, inference_to_dict

if TYPE_CHECKING:
    from pipelines.segment_worker import ShardReport

logger = logging.getLogger(__name__)

GPU_BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """Images, a model, and the tables that grow."""

    images: str
    """Folder or bucket of images (path or s3:// URI), searched at any depth; or one image."""
    model: str
    """Model folder (path or URI), models:/name@alias or models:/name/3."""
    tables: str
    """Folder or URI of the tables; new, or with results of a model with the same classes."""
    ensemble: tuple[str, ...] = ()
    """More models, given as --model is, with the same classes: all their class probabilities are averaged with the
    first one's."""
    leave_out: tuple[str, ...] = ()
    """Classes of the models that are not asked for, such as the background that `prepare object_crops` adds to a
    dataset without one: the probabilities of the others then add up to 1."""
    workers: int = 1
    """Actors, each with the model."""
    threads: int = 2
    """CPU threads of each actor's network; each is one logical CPU of Ray. Threads share the model and the caches:
    one actor of two threads is faster than two actors of one."""
    decode_threads: int = 2
    """Threads of each actor that decode images beside the network."""
    batch_size: int = 0
    """Images of one size per network call; 0 = 1 on a CPU, where more only leave its cache, and 8 on a GPU."""
    images_per_shard: int = 64
    """Images per commit at most: what a dead worker loses, and what one part file holds."""
    use_gpu: bool = False
    """One GPU per actor."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How each network is shown an image."""
    recipe_inference: bool = False
    """Show images as each model's recipe says (the paper's scales, mirror images, windows, proposals), in place of
    --inference."""
    abandon_unfinished: bool = False
    """Give up what an earlier, unfinished run has not committed, instead of finishing it with its own model first.
    Its images are planned anew."""
    page: bool = True
    """Write a page with statistics and sample overlays beside the run's plan."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "decode_threads", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more")
        if self.batch_size < 0:
            raise ValueError(f"--batch-size is {self.batch_size}; give 1 or more, or 0 to have it chosen")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentResult:
    """What a finished job left.

    Attributes:
        tables: the tables' folder.
        snapshot: number of the newest published snapshot.
        run_ids: of the runs that this job finished; the last is its own, unless there was nothing new.
        num_images: segmented by this job.
        num_failures: images that ended in the failures table, this job's.
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
    num_present: int
    images_per_second: float
    peak_memory_bytes: int
    page: str
    run_id: str

    @property
    def closing_line(self) -> str:
        if not self.run_ids:
            return f"nothing new: all {self.num_present} images are in {self.tables} (snapshot {self.snapshot})"
        speed = f" at {self.images_per_second:.1f} images/s" if self.num_images + self.num_failures else ""
        page = f"; page {self.page}" if self.page else ""
        return (
            f"segmented {self.num_images} images{speed}, {self.num_failures} failed, {self.num_present} were there "
            f"already; tables {self.tables} (snapshot {self.snapshot}){page}"
        )


@dataclass(slots=True)
class _Job:
    """What one invocation works with, and what its shards reported."""

    config: SegmentConfig
    members: tuple[MemberModel, ...]
    card: ModelCard
    reports: "list[ShardReport]" = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    num_done: int = 0
    """Of the listed images, by this job."""


def segment(config: SegmentConfig) -> SegmentResult:
    """Segment what is new.

    Raises:
        ValueError: an input is missing or broken; the model's class table is not the tables'; the tables cannot be
            written; the cluster is too small; MLflow does not answer.
    """
    config = dataclasses.replace(
        config, images=storage.absolute(config.images), tables=storage.absolute(config.tables)
    )  # workers run in other folders
    listing = _listing(config)
    tracking.connect(config.tracking_uri)
    models = [tracking.resolve_model(model) for model in (config.model, *config.ensemble)]
    members, card = find_members(
        models, config.inference, recipe_inference=config.recipe_inference, leave_out=config.leave_out
    )
    config = dataclasses.replace(config, inference=members[0].inference, recipe_inference=False)
    for member in members:
        load_member(member)  # raises where weights are missing or broken, before anything starts
    _check_tables(config.tables, card, model=ensemble_uri(members))
    tags = {
        tracking.MODEL_FOLDER_TAG: members[0].model_folder,
        tracking.MODEL_DIGEST_TAG: ensemble_digest(members),
    }
    others = {str(number): member.to_dict() for number, member in enumerate(members[1:], start=2)}
    parameters = dataclasses.asdict(config) | {"model": members[0].model_uri, "ensemble": others}
    name = f"segment {config.images.rstrip('/').rsplit('/', 1)[-1]}"
    with tracking.tracked_run(
        experiment=config.experiment, name=name, job="segment", parameters=parameters, tags=tags
    ) as tracked:
        job = _Job(config=config, members=members, card=card)
        with actor_cluster(workers=config.workers, threads=config.threads, use_gpu=config.use_gpu):
            run = _next_run(job, listing)
            if run is not None:
                _execute(job, run)
        result = _result(job, tracked, num_listed=listing.num_rows)
        try:
            commits.sweep(config.tables)
        except OSError as error:  # the night's work is published; old leftovers may wait for the next one
            logger.warning("could not sweep old staged files: %s", error)
        tracked.set_tags({"segpipe.tables": result.tables, "segpipe.snapshot": str(result.snapshot)})
        metrics = {"num_images": result.num_images, "num_failures": result.num_failures}
        tracked.log_metrics(metrics | {"images_per_second": result.images_per_second})
    return result


def _listing(config: SegmentConfig) -> pa.Table:
    if f"{config.tables}/".startswith(f"{config.images.rstrip('/')}/"):
        raise ValueError(
            f"the tables {config.tables!r} lie inside the images {config.images!r}, which would list them as images; "
            "give --tables another place"
        )
    return list_images(config.images)


def _check_tables(tables: str, card: ModelCard, *, model: str) -> None:
    """Refuse tables that cannot be written or that hold another class table."""
    storage.check_writable(tables)
    if not commits.exclusive_create_works(tables):
        logger.warning(
            "the store of %s ignores conditional writes: run one segment job at a time over these tables", tables
        )
    _check_class_table(tables, card, model=model)


def _check_class_table(tables: str, card: ModelCard, *, model: str) -> None:
    known = _class_table(tables)
    if known is None or known == (card.class_names, card.palette):
        return
    names, palette = known
    what = "classes" if names != card.class_names else "colours"
    pairs = (
        zip(names, card.class_names, strict=False) if what == "classes" else zip(palette, card.palette, strict=False)
    )
    differences = (f"{index}: {a!r} there, {b!r} in the model" for index, (a, b) in enumerate(pairs) if a != b)
    detail = next(differences, f"{len(names)} there, {len(card.class_names)} in the model")
    raise ValueError(
        f"the tables {tables!r} and the model {model!r} have different {what} ({detail}); "
        "give --tables another place, or a model with the tables' class table"
    )


def _class_table(tables: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]] | None:
    """Names and palette of the newest run, or None for new tables."""
    run_ids = commits.run_ids(tables)
    snapshot = commits.newest_snapshot(tables)
    if not run_ids:
        return None
    if run_ids[-1] in snapshot.run_ids:
        return snapshot.class_names, snapshot.palette
    settings = commits.read_run(tables, run_ids[-1]).settings
    return settings.class_names, settings.palette


def _next_run(job: _Job, listing: pa.Table) -> Run | None:
    """Finish what is unfinished, then plan what the tables do not hold; None where that is nothing."""
    config, first = job.config, job.members[0]
    identity = {"inference": inference_to_dict(first.inference), "intake": INTAKE_VERSION}
    is_plain = len(job.members) == 1 and not first.leave_out  # one model, all its classes: an identity as ever
    if not is_plain:
        identity["ensemble"] = [member.identity() for member in job.members]
    model_digest, config_digest = ensemble_digest(job.members), digest(identity)
    ids = work_ids(listing, model_digest=model_digest, config_digest=config_digest)
    while True:
        snapshot = _finish_unfinished(job)
        committed = committed_work(config.tables, snapshot)
        plan = plan_work(listing, ids, committed, images_per_shard=config.images_per_shard, workers=config.workers)
        if not plan.num_rows:
            return None
        now = datetime.now(UTC)
        settings = RunSettings(
            run_id=commits.next_run_id(snapshot),
            run_date=now.date().isoformat(),
            created_at=now.isoformat(),
            images=config.images,
            model_uri=ensemble_uri(job.members),
            model_version=first.model_version,
            model_folder=first.model_folder,
            model_digest=model_digest,
            class_names=job.card.class_names,
            palette=job.card.palette,
            inference=inference_to_dict(first.inference),
            config_digest=config_digest,
            code_commit=code_commit(),
            ensemble=() if is_plain else tuple(member.to_dict() for member in job.members),
        )
        run = Run(settings=settings, plan=plan)
        if commits.create_run(config.tables, run):
            return run
        logger.info("another job has planned run %s meanwhile; finishing it first", settings.run_id)
        _check_class_table(config.tables, job.card, model=ensemble_uri(job.members))


def _finish_unfinished(job: _Job) -> Snapshot:
    """Publish every run that has a plan, in order; afterwards the newest snapshot says all that is committed."""
    tables = job.config.tables
    published = commits.newest_snapshot(tables).run_ids
    for run_id in commits.run_ids(tables):
        if run_id in published:
            continue
        run = commits.read_run(tables, run_id)
        if job.config.abandon_unfinished:
            num_shards = commits.abandon(tables, run)
            commits.publish(tables, run)
            logger.warning("gave up %d of %d shards of unfinished run %s", num_shards, run.num_shards, run_id)
        else:
            if not storage.exists(run.settings.images):
                raise ValueError(
                    f"run {run_id} of these tables is not finished and its images {run.settings.images!r} are not "
                    "there; bring them back, or give up what the run has not committed with --abandon-unfinished"
                )
            logger.info("continuing run %s of %s, which is not finished", run_id, run.settings.images)
            _execute(job, run)
    return commits.newest_snapshot(tables)


def _execute(job: _Job, run: Run) -> None:
    """Do the shards of a run that have no commit, and publish it."""
    from pipelines.segment_worker import WorkerJob, segment_shards  # Ray reads its environment at import

    config, run_id = job.config, run.settings.run_id
    done = commits.read_commits(config.tables, run_id)
    left = [shard for shard in range(run.num_shards) if shard not in done]
    if left:
        worker_job = WorkerJob(
            tables=config.tables,
            settings=run.settings,
            members=_planned_members(job, run.settings),
            batch_size=config.batch_size or (GPU_BATCH_SIZE if config.use_gpu else 1),
            threads=config.threads,
            decode_threads=config.decode_threads,
            use_gpu=config.use_gpu,
        )
        num_left = sum(items.num_rows for items in run.shard_items(left))
        with progress(f"segment (run {run_id})", total=num_left, unit="images") as advance:
            for report in segment_shards(run, left, job=worker_job, workers=config.workers):
                job.reports.append(report)
                advance(report.num_images + report.num_failures)
                if run.settings.images == config.images:
                    job.num_done += report.num_images + report.num_failures
    commits.publish(config.tables, run)
    job.run_ids.append(run_id)
    if config.page:
        write_run_page(config.tables, run_id, _page_uri(config.tables, run_id))


def _page_uri(tables: str, run_id: str) -> str:
    return storage.join(tables, "runs", run_id, "page.html")


def _planned_members(job: _Job, settings: RunSettings) -> tuple[MemberModel, ...]:
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


def _result(job: _Job, tracked: tracking.TrackedRun, *, num_listed: int) -> SegmentResult:
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
        num_present=max(0, num_listed - job.num_done),
        images_per_second=(num_images + num_failures) / seconds if seconds else float("nan"),
        peak_memory_bytes=max((report.peak_memory_bytes for report in job.reports), default=0),
        page=_page_uri(config.tables, job.run_ids[-1]) if config.page and job.run_ids else "",
        run_id=tracked.run_id,
    )
