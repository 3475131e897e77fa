"""MLflow: runs, metrics and registered models. The only package that imports mlflow.

store -> runs, registry
"""

import os
import warnings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow at import
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default, 7 with backoff, waits for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow 3.17 warns about type hints of its own at import
    import mlflow.pyfunc  # noqa: F401

from pipelines.tracking.registry import (
    MODEL_DIGEST_TAG,
    MODEL_FOLDER_TAG,
    MODELS_PREFIX,
    SERVING_PACKAGES,
    ModelVersion,
    ResolvedModel,
    describe_version,
    move_alias,
    register_model,
    resolve_model,
    version_of_alias,
)
from pipelines.tracking.runs import (
    DATASET_DIGEST_TAG,
    JOB_TAG,
    RunRecord,
    TrackedRun,
    attach,
    find_runs,
    flat_parameters,
    metric_name,
    tracked_run,
)
from pipelines.tracking.store import DEFAULT_TRACKING_URI, SUBMITTED_JOB, connect

__all__ = [
    "DATASET_DIGEST_TAG",
    "DEFAULT_TRACKING_URI",
    "JOB_TAG",
    "MODELS_PREFIX",
    "MODEL_DIGEST_TAG",
    "MODEL_FOLDER_TAG",
    "SERVING_PACKAGES",
    "SUBMITTED_JOB",
    "ModelVersion",
    "ResolvedModel",
    "RunRecord",
    "TrackedRun",
    "attach",
    "connect",
    "describe_version",
    "find_runs",
    "flat_parameters",
    "metric_name",
    "move_alias",
    "register_model",
    "resolve_model",
    "tracked_run",
    "version_of_alias",
]
