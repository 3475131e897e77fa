"""Ray Train's settings: one worker group, its rows, its checkpoints, and what its deaths mean."""

import pickle
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.fs
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

from pipelines import storage
from pipelines.cluster import worker_environment
from pipelines.training.loop import SELECTION_METRIC, train_worker
from pipelines.training.progress import SayFailures
from pipelines.training.rows import checkpoint_name, rows_from_latest_checkpoint
from pipelines.training.worker import TrainJob

MAX_WORKER_DEATHS = 2
"""Restarts from the latest checkpoint before a training gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptCheckpoint:
    """A checkpoint folder of a finished training, and the metrics of its epoch."""

    folder: str
    metrics: dict[str, Any]


def run_group(
    job: TrainJob, board: Any, *, run_folder: str, workers: int, use_gpu: bool
) -> tuple[KeptCheckpoint, float]:
    """Train until the recipe's last epoch, from the latest checkpoint in the run's folder if there is one.

    Returns:
        The best kept checkpoint, and the seconds spent in epochs over all starts.

    Raises:
        ValueError: a worker found an input broken, or the loss not finite.
        ray.train.TrainingFailedError: workers died more than `MAX_WORKER_DEATHS` times.
    """
    fs, path = storage.filesystem(run_folder)
    folder, _, name = path.rstrip("/").rpartition("/")
    trainer = TorchTrainer(
        train_worker,
        # As bytes, which Ray's controller passes on without importing the networks (seconds of every start).
        train_loop_config={"job": pickle.dumps(job), "board": board},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        # A function: Ray calls it again for every new worker group, which may start at a later epoch.
        datasets={
            "train": partial(
                rows_from_latest_checkpoint,
                job.dataset,
                split=job.train_split,
                seed=job.recipe.seed,
                run_folder=run_folder,
            )
        },
        # In order, so that the split among the workers depends on nothing but the seed.
        dataset_config=DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train's type stubs are of its first version
            name=name,
            storage_path=folder,
            storage_filesystem=None if storage.is_local(fs) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=FailureConfig(max_failures=MAX_WORKER_DEATHS),
            checkpoint_config=CheckpointConfig(
                num_to_keep=job.recipe.keep_checkpoints, checkpoint_score_attribute=SELECTION_METRIC
            ),
            callbacks=[SayFailures(board)],  # type: ignore[list-item]  # likewise
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env=worker_environment(use_gpu=use_gpu),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
        for failure in failures:
            if isinstance(failure, ValueError):  # bad input, not a bug: the job says it in one line
                raise ValueError(str(failure)) from error
        raise
    assert result.best_checkpoints and result.metrics, "every epoch reports a checkpoint"
    _, metrics = max(result.best_checkpoints, key=lambda kept: kept[1][SELECTION_METRIC])
    best = storage.join(run_folder, checkpoint_name(metrics["epoch"]))
    return KeptCheckpoint(folder=best, metrics=metrics), float(result.metrics["train/seconds"])
