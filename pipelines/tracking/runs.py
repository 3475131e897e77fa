"""MLflow runs: opened by a driver, written by it and its workers, found again.

Everything goes through `MlflowClient` with explicit run ids: MLflow's "active run" is a global of one thread, and a run
here is written by a driver and a Ray worker at once.
"""

import contextlib
import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.manifests import code_commit, digest
from pipelines.tracking.claims import CLAIM_PARAMETER, WORK_TAG, held_run, hold_run
from pipelines.tracking.presence import Presence, mark_if_lost, mark_lost_runs, others_work_on
from pipelines.tracking.store import SQLITE_PREFIX, connect, experiment_id, without_password

logger = logging.getLogger(__name__)

JOB_TAG = "segpipe.job"
STARTS_TAG = "segpipe.starts"
CHANGED_TAG = "segpipe.changed_parameters"
CODE_TAG = "segpipe.code_commit"
MAX_CHANGED_LENGTH = 200
DATASET_DIGEST_TAG = "segpipe.dataset_digest"
LABEL_PCA_DIGEST_TAG = "segpipe.label_pca_digest"
MODEL_FOLDER_TAG = "segpipe.model_folder"
MODEL_DIGEST_TAG = "segpipe.model_digest"
MODEL_VERSION_TAG = "segpipe.model_version"
MEMBERS_TAG = "segpipe.member_digests"
"""Digests of all models that were asked: `,<sha256>,<sha256>,`; the digest of several together is another."""
TABLES_TAG = "segpipe.tables"
TABLE_RUNS_TAG = "segpipe.table_runs"
"""Runs of the tables that a night published, and the one that it works on: `,000041,000042,`."""
SNAPSHOT_TAG = "segpipe.snapshot"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that this process may write to. Build it by `tracked_run` on the driver and `attach` in a worker."""

    run_id: str
    client: MlflowClient
    starts: int = 1
    """How often the work was started, this time included; in a worker 1."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics in one call; NaN (a class that occurs nowhere) is left out."""
        now = int(time.time() * 1000)
        present = {metric_name(key): float(value) for key, value in metrics.items() if not math.isnan(value)}
        batch = [Metric(key, value, now, step) for key, value in present.items()]
        if batch:
            self.client.log_batch(self.run_id, metrics=batch)

    def log_once(self, metrics: Mapping[str, float]) -> None:
        """Log metrics that a run has once, except those that an earlier start came to."""
        logged = self.client.get_run(self.run_id).data.metrics
        self.log_metrics({key: value for key, value in metrics.items() if metric_name(key) not in logged})

    def last_step(self, metric: str) -> int | None:
        """The highest step logged for `metric`, or None; a resumed job logs only what lies beyond it."""
        return max((step for step, _ in self.history(metric)), default=None)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Every logged (step, value) of `metric`, by step."""
        points = self.client.get_metric_history(self.run_id, metric_name(metric))
        return sorted((point.step, point.value) for point in points)

    def tag(self, name: str) -> str:
        """The value of a tag, or "" where the run has none."""
        return str(self.client.get_run(self.run_id).data.tags.get(name, ""))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag set twice keeps the last value."""
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_dataset(self, uri: str, *, digest: str, split: str, context: str) -> None:
        """Name a split of a prepared dataset as an input of the run; MLflow shows and filters runs by these.

        Args:
            uri: of the dataset.
            digest: of the dataset; MLflow keeps 36 characters, the tag all.
            split: name.
            context: `training`, `validation`, `evaluation`.
        """
        uri = without_password(uri)
        scheme, separator, _ = uri.partition("://")
        dataset = Dataset(
            name=f"{uri.rstrip('/').rpartition('/')[2]}/{split}",
            digest=digest[:36],
            source_type=scheme if separator else "local",
            source=json.dumps({"uri": uri}),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_file(self, local_path: str | Path, folder: str = "") -> None:
        """Store a local file as an artifact below `folder`."""
        self.client.log_artifact(self.run_id, str(local_path), folder or None)

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store bytes as an artifact; `name` may hold folders: `pictures/validation-0.png`."""
        folder, _, file_name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, file_name)
            path.write_bytes(data)
            self.log_file(path, folder)


@contextlib.contextmanager
def tracked_run(
    *,
    experiment: str,
    name: str,
    job: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    work: Mapping[str, Any] | None = None,
    run_id: str | None = None,
) -> Iterator[TrackedRun]:
    """Open a run of the store that `connect` chose; it ends FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM.

    One piece of work has one run, whoever starts it how often: a run that is not FINISHED yet is found by a digest of
    `work` (tag `segpipe.work`) and continued. Of drivers that begin at the same moment one keeps its run and the others
    join it (`pipelines.tracking.claims`).

    Runs of this experiment whose jobs have died are marked on the way (`pipelines.tracking.presence`).

    Args:
        experiment: created where it does not exist.
        name: shown in MLflow's list.
        job: `train`, `evaluate`, `segment`: the run's `segpipe.job` tag.
        parameters: nested dictionaries are flattened to dotted names. Those of the first start stay; what a later one
            was given otherwise stands in the tag `segpipe.changed_parameters`. Passwords in URIs are left out.
        tags: more tags; of a continued run too.
        work: JSON values that make the work this work; None: a run of its own.
        run_id: continue this run instead, whatever became of it.

    Raises:
        ValueError: the experiment or the run was deleted.
    """
    client = MlflowClient()
    presence = Presence(client)
    all_tags = {JOB_TAG: job, CODE_TAG: code_commit(), **_without_passwords(tags)}
    if work is not None:
        all_tags[WORK_TAG] = digest({"job": job, "work": work})
    tracked = _opened(client, experiment, name, all_tags, presence, run_id)
    presence.start(tracked.run_id)
    try:
        _log_parameters(tracked, _without_passwords(flat_parameters(parameters)))
        mark_lost_runs(client, beside=tracked.run_id, noticed_by=f"{job} {name!r}")
        yield tracked
    except KeyboardInterrupt:
        _end(tracked, presence, "KILLED")
        raise
    except BaseException:
        _end(tracked, presence, "FAILED")
        raise
    try:
        client.set_terminated(tracked.run_id, "FINISHED")
    finally:
        presence.stop()


def _opened(
    client: MlflowClient, experiment: str, name: str, tags: dict[str, str], presence: Presence, run_id: str | None
) -> TrackedRun:
    """Continue the run that the work has, or create it."""
    if run_id is not None:
        return _continued(client, run_id, tags, presence)
    where, key = experiment_id(client, experiment), tags.get(WORK_TAG, "")
    first = {**tags, STARTS_TAG: "1", presence.tag: presence.value}

    def create() -> str:
        return str(client.create_run(where, run_name=name, tags=first).info.run_id)

    if not key:
        return TrackedRun(create(), client)
    found = held_run(client, where, key)
    if found is None:
        found, own = hold_run(client, where, key, create)
        if own:
            return TrackedRun(found, client)
        logger.info("another job has begun the same work at this moment; joining its MLflow run")
    return _continued(client, found, tags, presence)


def _continued(client: MlflowClient, run_id: str, tags: Mapping[str, str], presence: Presence) -> TrackedRun:
    """Set a run to RUNNING again, one start later."""
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise ValueError(
                f"MLflow run {run_id} was deleted; restore it (mlflow runs restore) or start under a new --name"
            )
    except MlflowException as error:
        raise ValueError(
            f"MLflow has no run {run_id} that this job started ({error.message}); "
            "give the --tracking-uri of the first start, or start under a new --name"
        ) from error
    mark_if_lost(client, run_id, noticed_by="the next start of the same work")
    starts = int(run.data.tags.get(STARTS_TAG, "1")) + 1
    now = {**tags, STARTS_TAG: str(starts), presence.tag: presence.value}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in now.items()])
    client.update_run(run_id, status="RUNNING")
    return TrackedRun(run_id, client, starts)


def _log_parameters(tracked: TrackedRun, parameters: Mapping[str, str]) -> None:
    """Log what the run lacks: all at its first start, or what a driver that died at once did not come to.

    MLflow refuses to change a parameter, and rightly: the first start's are those of most of the work.
    """
    logged = tracked.client.get_run(tracked.run_id).data.params
    missing = [Param(key, value) for key, value in parameters.items() if key not in logged]
    if missing:
        tracked.client.log_batch(tracked.run_id, params=missing)
    changed = {
        key: value[:MAX_CHANGED_LENGTH]
        for key, value in parameters.items()
        if key in logged and value[:MAX_CHANGED_LENGTH] != logged[key][:MAX_CHANGED_LENGTH]
    }
    if changed:
        tracked.set_tags({CHANGED_TAG: json.dumps(changed, sort_keys=True)})


def _without_passwords(values: Mapping[str, str]) -> dict[str, str]:
    return {key: without_password(value) for key, value in values.items()}


def attach(tracking_uri: str, run_id: str) -> TrackedRun:
    """Write to a run that the driver opened, from another process; the driver ends it.

    Raises:
        ValueError: the server does not answer, or this machine does not see the SQLite file.
    """
    file = Path(tracking_uri.removeprefix(SQLITE_PREFIX))
    if tracking_uri.startswith(SQLITE_PREFIX) and not file.exists():
        raise ValueError(
            f"this worker's machine does not see the tracking file {file}, which the driver opened on another; "
            "give --tracking-uri an MLflow server (http://host:5000), or a file on storage that all machines share"
        )
    connect(tracking_uri)
    return TrackedRun(run_id, MlflowClient())


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run as `find_runs` reads it: what its job was given, the last value of each metric, seconds since 1970."""

    run_id: str
    name: str
    status: str
    start_time: float
    duration_seconds: float | None
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def find_runs(*, experiment: str, job: str | None, condition: str = "") -> list[RunRecord]:
    """Every run of an experiment, newest first; of one job, or of all (`None`).

    Args:
        experiment: name.
        job: value of the run's `segpipe.job` tag.
        condition: more that must hold, in MLflow's filter language: `params.weights = 'timm' AND metrics.x > 0.5`.

    Raises:
        ValueError: there is no such experiment (the message lists those that exist), or MLflow does not understand the
            condition.
    """
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
        raise ValueError(f"MLflow has no experiment {experiment!r}; it has: {known}")
    conditions = [f"tags.`{JOB_TAG}` = '{job}'"] if job else []
    if not condition:
        return _search(client, [found.experiment_id], " AND ".join(conditions))
    try:
        return _search(client, [found.experiment_id], " AND ".join([*conditions, condition]))
    except MlflowException as error:
        raise ValueError(
            f"MLflow refuses the filter {condition!r}: {error.message}; it takes comparisons joined by AND, names with "
            "dots in backquotes: params.`recipe.model.network` = 'enet' AND metrics.`val/mean_iou` > 0.5"
        ) from error


def read_artifact(run_id: str, name: str) -> bytes:
    """A file that a run logged.

    Raises:
        ValueError: there is no such run or file, or its store does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(MlflowClient().download_artifacts(run_id, name, scratch)).read_bytes()
        except (MlflowException, OSError) as error:
            raise ValueError(f"MLflow run {run_id} gives no artifact {name!r}: {error}") from error


def settle(run_id: str) -> None:
    """End a run as FINISHED whose work is done though its driver died, or lost the server, before it could say so."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException:  # of another store; nothing depends on it
        return
    if run.info.status != "FINISHED" and not others_work_on(run):
        client.set_terminated(run_id, "FINISHED")


def find_runs_by_tag(tag: str, value: str, *, job: str) -> list[RunRecord]:
    """Every run of a job, in any experiment, one of whose tags is `value` (`%` stands for anything); newest first."""
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    quote = '"' if "'" in value else "'"
    operator = "LIKE" if "%" in value else "="
    return _search(client, experiments, f"tags.`{JOB_TAG}` = '{job}' AND tags.`{tag}` {operator} {quote}{value}{quote}")


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses (anything but letters, digits, `_-. :/`) replaced by `_`."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _search(client: MlflowClient, experiments: list[str], condition: str) -> list[RunRecord]:
    records: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, condition, order_by=["start_time DESC"], page_token=token)
        records.extend(_record(run) for run in page)
        token = page.token
        if not token:
            return records


def _end(tracked: TrackedRun, presence: Presence, status: str) -> None:
    """End a run on the way out of an exception, which a failing server must not hide.

    Where another driver works on the same run, as when this one was refused as the second, the run goes on.
    """
    try:
        if not others_work_on(tracked.client.get_run(tracked.run_id), presence):
            tracked.client.set_terminated(tracked.run_id, status)
    except Exception as error:
        logger.warning("MLflow run %s could not be set to %s: %s", tracked.run_id, status, error)
    finally:
        presence.stop()


def flat_parameters(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters as a run records them: nested dictionaries are flattened to dotted names, values are text."""
    parameters: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            parameters |= flat_parameters(value, f"{prefix}{key}.")
        else:
            parameters[f"{prefix}{key}"] = str(value)
    return parameters


def _record(run: Run) -> RunRecord:
    ended = run.info.end_time if run.info.status != "RUNNING" else None  # a continued run keeps that of its last start
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        start_time=run.info.start_time / 1000,
        duration_seconds=(ended - run.info.start_time) / 1000 if ended else None,
        parameters={name: value for name, value in run.data.params.items() if name != CLAIM_PARAMETER},
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
    )
