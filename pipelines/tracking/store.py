"""The MLflow store of a process: a server or a SQLite file, which is asked for an answer before work depends on it."""

import logging
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines import storage
from pipelines.cluster import SUBMITTED_JOB

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
SERVER_WAIT_SECONDS = 12.0
SQLITE_PREFIX = "sqlite:///"


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
            f"tracking URI {without_password(uri)!r} is neither an MLflow server (http://host:5000) nor a SQLite file "
            "(sqlite:///mlflow.db); MLflow no longer writes plain folders"
        )
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if uri.startswith(SQLITE_PREFIX):
        with FileLock(f"{file}.lock"):  # two processes that create MLflow's tables at once spoil each other's
            MlflowClient().search_experiments(max_results=1)
    return uri


def without_password(text: str) -> str:
    """`text` with `user:password@` in front of a URI's host replaced by `***@`."""
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def experiment_id(client: MlflowClient, experiment: str) -> str:
    """The id of an experiment, which is created where it does not exist.

    Raises:
        ValueError: it was deleted.
    """
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
        f"the MLflow server {without_password(uri)} did not answer for {SERVER_WAIT_SECONDS:.0f} s ({reason}); start "
        f"it, correct --tracking-uri or MLFLOW_TRACKING_URI, or use a file: --tracking-uri {DEFAULT_TRACKING_URI}"
    )
