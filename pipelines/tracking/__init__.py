"""MLflow: runs, metrics and registered models. The only package that imports mlflow.

store -> runs, registry; claims -> runs; runs -> histories
"""

import os
import warnings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow at import
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default, 7 with backoff, waits for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow 3.17 warns about type hints of its own at import
    import mlflow.pyfunc  # noqa: F401

from pipelines.tracking.claims import RECORDED_TAG
from pipelines.tracking.histories import metric_histories
from pipelines.tracking.presence import LOST_TAG
from pipelines.tracking.registry import (
    MODELS_PREFIX,
    SERVING_PACKAGES,
    ModelVersion,
    ResolvedModel,
    describe_version,
    move_alias,
    register_model,
    resolve_model,
    version_of_alias,
    versions_of_model,
)
from pipelines.tracking.runs import (
    CODE_TAG,
    DATASET_DIGEST_TAG,
    JOB_TAG,
    LABEL_PCA_DIGEST_TAG,
    MEMBERS_TAG,
    MODEL_DIGEST_TAG,
    MODEL_FOLDER_TAG,
    MODEL_VERSION_TAG,
    SNAPSHOT_TAG,
    STARTS_TAG,
    TABLE_RUNS_TAG,
    TABLES_TAG,
    RunRecord,
    TrackedRun,
    attach,
    find_runs,
    find_runs_by_tag,
    flat_parameters,
    metric_name,
    read_artifact,
    settle,
    tracked_run,
)
from pipelines.tracking.store import (
    DEFAULT_TRACKING_URI,
    connect,
    without_password,
)

__all__ = [
    "CODE_TAG",
    "DATASET_DIGEST_TAG",
    "DEFAULT_TRACKING_URI",
    "JOB_TAG",
    "LABEL_PCA_DIGEST_TAG",
    "LOST_TAG",
    "MEMBERS_TAG",
    "MODELS_PREFIX",
    "MODEL_DIGEST_TAG",
    "MODEL_FOLDER_TAG",
    "MODEL_VERSION_TAG",
    "RECORDED_TAG",
    "SERVING_PACKAGES",
    "SNAPSHOT_TAG",
    "STARTS_TAG",
    "TABLES_TAG",
    "TABLE_RUNS_TAG",
    "ModelVersion",
    "ResolvedModel",
    "RunRecord",
    "TrackedRun",
    "attach",
    "connect",
    "describe_version",
    "find_runs",
    "find_runs_by_tag",
    "flat_parameters",
    "metric_histories",
    "metric_name",
    "move_alias",
    "read_artifact",
    "register_model",
    "resolve_model",
    "settle",
    "tracked_run",
    "version_of_alias",
    "versions_of_model",
    "without_password",
]
