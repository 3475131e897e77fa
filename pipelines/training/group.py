"""Ray Train's settings: one worker group, its rows, its checkpoints, and what its deaths mean."""

import logging
import os
import pickle
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import ray.data
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from pipelines import fault_points, storage
from pipelines.cluster import worker_environment
from pipelines.training.loop import SELECTION_METRIC, train_worker
from pipelines.training.position import checkpoint_name, remove_unregistered, repair_snapshot
from pipelines.training.progress import REASON, ControllerCallback
from pipelines.training.rows import RowsKind, rows_to_train_on
from pipelines.training.step_watch import BATCH_LOG_VARIABLE
from pipelines.training.stopping import checkpoint_on_sigterm
from pipelines.training.worker import TrainJob

MAX_WORKER_DEATHS = 5
"""Restarts from the latest checkpoint before a training gives up, beside those of nodes taken away with notice."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptCheckpoint:
    """A checkpoint folder of a finished training, and the metrics of its epoch."""

    folder: str
    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a finished training came to.

    Attributes:
        best: its best kept checkpoint.
        epochs: that were trained: fewer than the recipe's where it stopped early.
        seconds: spent in epochs over all starts.
    """

    best: KeptCheckpoint
    epochs: int
    seconds: float


def run_group(job: TrainJob, board: Any, *, workers: tuple[int, int], use_gpu: bool) -> Trained:
    """Train until the recipe's last epoch, or until it stops early.

    It begins at the latest checkpoint in the run's folder, if there is one.

    Args:
        job: what to run.
        board: see `pipelines.training.progress`.
        workers: fewest and most; where they differ, as many as the cluster has room for, now and after every change.
        use_gpu: one GPU per worker.

    Raises:
        ValueError: a worker found an input broken, or the loss not finite.
        ray.train.TrainingFailedError: workers died more than `MAX_WORKER_DEATHS` times.
    """
    if repair_snapshot(job.run_folder):
        logger.warning("the list of checkpoints in %s was cut short by a death and is repaired", job.run_folder)
    remove_unregistered(job.run_folder, finished=False)
    trainer = _trainer(job, board, workers=workers, use_gpu=use_gpu)
    try:
        with checkpoint_on_sigterm(board):
            result = trainer.fit()
    except TrainingFailedError as error:
        failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
        for failure in failures:
            if isinstance(failure, ValueError):  # bad input, not a bug: the job says it in one line
                raise ValueError(str(failure)) from error
        raise
    remove_unregistered(job.run_folder, finished=True)
    whole_epochs = [metrics for _, metrics in result.best_checkpoints or () if REASON not in metrics]
    assert whole_epochs and result.metrics, "every epoch reports a checkpoint"
    metrics = max(whole_epochs, key=lambda each: each[SELECTION_METRIC])
    best = storage.join(job.run_folder, checkpoint_name(metrics["epoch"]))
    return Trained(
        best=KeptCheckpoint(folder=best, metrics=metrics),
        epochs=int(result.metrics["epoch"]) + 1,
        seconds=float(result.metrics["train/seconds"]),
    )


def _trainer(job: TrainJob, board: Any, *, workers: tuple[int, int], use_gpu: bool) -> TorchTrainer:
    filesystem, path = storage.arrow_filesystem(job.run_folder)
    folder, _, name = path.rstrip("/").rpartition("/")
    elastic = workers[0] < workers[1]
    environment = worker_environment(use_gpu=use_gpu)
    hooks = {name: os.environ[name] for name in (fault_points.VARIABLE, BATCH_LOG_VARIABLE) if name in os.environ}
    rows = partial(
        rows_to_train_on,
        job.dataset,
        split=job.train_split,
        seed=job.recipe.seed,
        run_folder=job.run_folder,
        without_cpus=elastic,
        image_weights=job.image_weights,
    )
    return TorchTrainer(
        train_worker,
        # As bytes, which Ray's controller passes on without importing the networks (seconds of every start).
        train_loop_config={"job": pickle.dumps(job), "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers if elastic else workers[0],  # type: ignore[arg-type]  # likewise
            use_gpu=use_gpu,
        ),
        # Functions: Ray calls them again for every new worker group, which may start elsewhere.
        datasets={kind: partial(rows, kind=kind) for kind in get_args(RowsKind)},
        # In order, so that the split among the workers depends on nothing but the seed.
        dataset_config=DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train's type stubs are of its first version
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_WORKER_DEATHS),
            checkpoint_config=CheckpointConfig(
                num_to_keep=job.recipe.keep_checkpoints, checkpoint_score_attribute=SELECTION_METRIC
            ),
            callbacks=[ControllerCallback(board, job.run_folder)],  # type: ignore[list-item]  # likewise
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env=environment | {"env_vars": environment.get("env_vars", {}) | hooks},
        ),
    )
