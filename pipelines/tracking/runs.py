"""MLflow runs: opened by a driver, written by it and its workers, found again.

Everything goes through `MlflowClient` with explicit run ids: MLflow's "active run" is a global of one thread, and a run
here is written by a driver and a Ray worker at once.
"""

import contextlib
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
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.tracking.store import SQLITE_PREFIX, connect, experiment_id

logger = logging.getLogger(__name__)

JOB_TAG = "segpipe.job"
DATASET_DIGEST_TAG = "segpipe.dataset_digest"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that this process may write to. Build it by `tracked_run` on the driver and `attach` in a worker."""

    run_id: str
    client: MlflowClient

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics in one call; NaN (a class that occurs nowhere) is left out."""
        now = int(time.time() * 1000)
        present = {metric_name(key): float(value) for key, value in metrics.items() if not math.isnan(value)}
        batch = [Metric(key, value, now, step) for key, value in present.items()]
        if batch:
            self.client.log_batch(self.run_id, metrics=batch)

    def last_step(self, metric: str) -> int | None:
        """The highest step logged for `metric`, or None; a resumed job logs only what lies beyond it."""
        return max((step for step, _ in self.history(metric)), default=None)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Every logged (step, value) of `metric`, by step."""
        points = self.client.get_metric_history(self.run_id, metric_name(metric))
        return sorted((point.step, point.value) for point in points)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag set twice keeps the last value."""
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

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
    run_id: str | None = None,
) -> Iterator[TrackedRun]:
    """Open a run of the store that `connect` chose; it ends FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM.

    Args:
        experiment: created where it does not exist.
        name: shown in MLflow's list.
        job: `train`, `evaluate`, `segment`: the run's `segpipe.job` tag.
        parameters: nested dictionaries are flattened to dotted names.
        tags: more tags.
        run_id: continue this run instead; its name and parameters stay as they are.

    Raises:
        ValueError: the experiment or the run was deleted.
    """
    client = MlflowClient()
    if run_id is None:
        run = client.create_run(experiment_id(client, experiment), run_name=name, tags={JOB_TAG: job, **tags})
        tracked = TrackedRun(run.info.run_id, client)
        client.log_batch(tracked.run_id, params=[Param(*each) for each in flat_parameters(parameters).items()])
    else:
        tracked = _reopened(client, run_id)
    try:
        yield tracked
    except KeyboardInterrupt:
        _end(tracked, "KILLED")
        raise
    except BaseException:
        _end(tracked, "FAILED")
        raise
    client.set_terminated(tracked.run_id, "FINISHED")


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
    """One run as `find_runs` reads it; `metrics` are the last values, times are seconds since 1970."""

    run_id: str
    name: str
    status: str
    start_time: float
    duration_seconds: float | None
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def find_runs(*, experiment: str, job: str | None) -> list[RunRecord]:
    """Every run of an experiment, newest first; of one job, or of all (`None`).

    Raises:
        ValueError: there is no such experiment; the message lists those that exist.
    """
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
        raise ValueError(f"MLflow has no experiment {experiment!r}; it has: {known}")
    condition = f"tags.`{JOB_TAG}` = '{job}'" if job else ""
    records: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs([found.experiment_id], condition, order_by=["start_time DESC"], page_token=token)
        records.extend(_record(run) for run in page)
        token = page.token
        if not token:
            return records


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses (anything but letters, digits, `_-. :/`) replaced by `_`."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _reopened(client: MlflowClient, run_id: str) -> TrackedRun:
    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            raise ValueError(
                f"MLflow run {run_id} was deleted; restore it (mlflow runs restore) or start under a new --name"
            )
    except MlflowException as error:
        raise ValueError(
            f"MLflow has no run {run_id} that this job started ({error.message}); "
            "give the --tracking-uri of the first start, or start under a new --name"
        ) from error
    client.update_run(run_id, status="RUNNING")
    return TrackedRun(run_id, client)


def _end(tracked: TrackedRun, status: str) -> None:
    """End a run on the way out of an exception, which a failing server must not hide."""
    try:
        tracked.client.set_terminated(tracked.run_id, status)
    except Exception:
        logger.warning("MLflow run %s could not be set to %s", tracked.run_id, status, exc_info=True)


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
    ended = run.info.end_time
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        start_time=run.info.start_time / 1000,
        duration_seconds=(ended - run.info.start_time) / 1000 if ended else None,
        parameters=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
    )
