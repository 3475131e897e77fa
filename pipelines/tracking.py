"""MLflow: runs, metrics and registered models. The only module that imports mlflow.

Everything goes through `MlflowClient` with explicit run ids: MLflow's "active run" is a global of one thread, and a run
here is written by a driver and a Ray worker at once.
"""

import contextlib
import logging
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow at import
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default, 7 with backoff, waits for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow 3.17 warns about type hints of its own at import
    import mlflow
    import mlflow.pyfunc
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines import storage
from pipelines.manifests import read_manifest

logger = logging.getLogger(__name__)

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
SERVER_WAIT_SECONDS = 12.0
JOB_TAG = "segpipe.job"
MODEL_FOLDER_TAG = "segpipe.model_folder"
MODEL_DIGEST_TAG = "segpipe.model_digest"
DATASET_DIGEST_TAG = "segpipe.dataset_digest"
SQLITE_PREFIX = "sqlite:///"
MODELS_PREFIX = "models:/"
SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for the driver of a submitted job."""
SERVING_PACKAGES = (
    "torch",
    "timm",
    "safetensors",
    "fsspec",
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "threadpoolctl",
    "pillow",
    "opencv-contrib-python-headless",
    "pandas",
)
"""What `pipelines.serving` imports, directly or not, beside mlflow and its own requirements."""


def connect(tracking_uri: str | None) -> str:
    """Choose the MLflow store of this process, prove that it answers, and return its absolute URI.

    Args:
        tracking_uri: a server (`http://...`) or a SQLite file (`sqlite:///mlflow.db`); None means MLFLOW_TRACKING_URI,
            or else `sqlite:///mlflow.db` in the current folder, with artifacts in `mlruns` beside it.

    Raises:
        ValueError: the server does not answer within `SERVER_WAIT_SECONDS`, or the SQLite file cannot be written.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    if uri == DEFAULT_TRACKING_URI and SUBMITTED_JOB in os.environ:
        raise ValueError(
            "a submitted job runs in a copy of this folder that Ray removes, and its MLflow runs would go with it; "
            "give --tracking-uri an MLflow server (http://host:5000) or an absolute file (sqlite:////home/me/mlflow.db)"
        )
    if uri.startswith(("http://", "https://")):
        _wait_for_server(uri)
    elif uri.startswith(SQLITE_PREFIX):
        # absolute, since Ray workers run in another folder
        file = Path(uri.removeprefix(SQLITE_PREFIX)).resolve()
        storage.check_writable(str(file.parent))
        uri = f"{SQLITE_PREFIX}{file}"
    else:
        raise ValueError(
            f"tracking URI {uri!r} is neither an MLflow server (http://host:5000) nor a SQLite file "
            "(sqlite:///mlflow.db); MLflow no longer writes plain folders"
        )
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if uri.startswith(SQLITE_PREFIX):
        with FileLock(f"{file}.lock"):  # two processes that create MLflow's tables at once spoil each other's
            MlflowClient().search_experiments(max_results=1)
    return uri


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
        run = client.create_run(_experiment_id(client, experiment), run_name=name, tags={JOB_TAG: job, **tags})
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A model that a job was asked for, fixed once on the driver.

    Attributes:
        folder_uri: the model folder, readable by every worker.
        version: of the registered model, or "" for a plain folder.
        model_uri: `models:/name/version`, or the folder.
    """

    folder_uri: str
    version: str
    model_uri: str


def resolve_model(uri: str) -> ResolvedModel:
    """Turn `models:/name@alias`, `models:/name/3` or a folder into a model folder.

    An alias can move while a job runs: call this once on the driver and pass the result on.

    Raises:
        ValueError: no such model, alias or version; or its model folder is gone or holds another model by now.
    """
    if not uri.startswith(MODELS_PREFIX):
        return ResolvedModel(folder_uri=uri, version="", model_uri=uri)
    name, alias, number = _parse_model_uri(uri)
    client = MlflowClient()
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise ValueError(f"MLflow cannot resolve {uri!r}: {error.message}; registered models: {known}") from error
    folder = version.tags.get(MODEL_FOLDER_TAG)
    if folder is None:
        raise ValueError(f"{uri!r} has no tag {MODEL_FOLDER_TAG}: jobs/train.py did not register it; give its folder")
    manifest = read_manifest(folder, kind="model")
    if manifest["digest"] != version.tags.get(MODEL_DIGEST_TAG):
        raise ValueError(f"{folder!r} no longer holds version {version.version} of {name!r}; register the folder again")
    return ResolvedModel(
        folder_uri=folder, version=str(version.version), model_uri=f"{MODELS_PREFIX}{name}/{version.version}"
    )


def register_model(folder_uri: str, *, name: str, alias: str, run_id: str) -> str:
    """Register a model folder as a new version of `name`, point `alias` at it, and return the version.

    The version holds a copy of the folder and of this code as a pyfunc model:
    `mlflow.pyfunc.load_model("models:/name@alias").predict(images)` gives class maps (see `pipelines.serving`).
    The same folder content registered again returns its version and only moves the alias.

    Raises:
        ValueError: the folder is not a finished model.
    """
    folder_digest = str(read_manifest(folder_uri, kind="model")["digest"])
    client = MlflowClient()
    with contextlib.suppress(MlflowException):  # it exists: a later version
        client.create_registered_model(name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(MODEL_DIGEST_TAG) == folder_digest and known.tags.get(MODEL_FOLDER_TAG) == folder_uri:
            client.set_registered_model_alias(name, alias, known.version)
            return str(known.version)
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch, "pyfunc")
        _pack_pyfunc(folder_uri, Path(scratch, "model"), packed)
        client.log_artifacts(run_id, str(packed), "model")
    tags = {MODEL_FOLDER_TAG: folder_uri, MODEL_DIGEST_TAG: folder_digest}
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    version = client.create_model_version(name, source, run_id=run_id, tags=tags)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """A registered version, as `promote` needs it.

    Attributes:
        version: its number.
        model_digest: of its model folder; "" where `train` did not register it.
        run_id: MLflow run that trained it, or "".
        description: Markdown.
    """

    version: str
    model_digest: str
    run_id: str
    description: str


def version_of_alias(name: str, alias: str) -> ModelVersion | None:
    """The version of a registered model that an alias points at; None where there is no such model or alias."""
    try:
        found = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no alias
            return None
        raise
    return ModelVersion(
        version=str(found.version),
        model_digest=found.tags.get(MODEL_DIGEST_TAG, ""),
        run_id=found.run_id or "",
        description=found.description or "",
    )


def move_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; from then on `models:/name@alias` is that one."""
    MlflowClient().set_registered_model_alias(name, alias, version)


def describe_version(name: str, version: str, description: str) -> None:
    """Replace a version's description (Markdown)."""
    MlflowClient().update_model_version(name, version, description)


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses (anything but letters, digits, `_-. :/`) replaced by `_`."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _pack_pyfunc(folder_uri: str, local_folder: Path, packed: Path) -> None:
    """Save a pyfunc model with a loader module: MLflow's other ways pickle the class."""
    local_folder.mkdir(parents=True)
    for uri in storage.list_files(folder_uri):
        Path(local_folder, uri.rsplit("/", 1)[1]).write_bytes(storage.read_bytes(uri))
    root = Path(__file__).resolve().parent.parent
    mlflow.pyfunc.save_model(
        path=str(packed),
        loader_module="pipelines.serving",
        data_path=str(local_folder),
        code_paths=[str(root / "segcore"), str(root / "pipelines")],
        # given, since MLflow would otherwise load the model in a second process to find out
        pip_requirements=[f"{package}=={package_version(package)}" for package in SERVING_PACKAGES],
    )


def _wait_for_server(uri: str) -> None:
    """Ask `/health` until it answers; mlflow itself would retry in silence."""
    deadline = time.monotonic() + SERVER_WAIT_SECONDS
    reason = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=3.0):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return  # it answers; a proxy may hide /health, and a wrong password is told by the first real call
            reason = f"HTTP {error.code} {error.reason}"
        except OSError as error:
            reason = str(getattr(error, "reason", error))
        time.sleep(0.5)
    raise ValueError(
        f"the MLflow server {uri} did not answer for {SERVER_WAIT_SECONDS:.0f} s ({reason}); start it, correct "
        f"--tracking-uri or MLFLOW_TRACKING_URI, or use a file: --tracking-uri {DEFAULT_TRACKING_URI}"
    )


def _experiment_id(client: MlflowClient, experiment: str) -> str:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        uri = mlflow.get_tracking_uri()
        location = None
        if uri.startswith(SQLITE_PREFIX):  # a server decides for itself; a file would take the folder of the moment
            location = (Path(uri.removeprefix(SQLITE_PREFIX)).parent / "mlruns").as_uri()
        try:
            return str(client.create_experiment(experiment, artifact_location=location))
        except MlflowException:  # created by another job since we looked
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow experiment {experiment!r} was deleted; restore it (mlflow experiments restore) or use another"
        )
    return str(found.experiment_id)


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


def _parse_model_uri(uri: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise ValueError(f"model URI {uri!r} is none of models:/name@alias, models:/name/3, or a model folder")
    name, alias, number = match.groups()
    return name, alias or "", number or ""
