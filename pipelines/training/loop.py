"""What every Ray Train worker runs: steps, validation by merged integer counts, checkpoints, metrics."""

import pickle
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train import Checkpoint
from torch import Tensor

from pipelines.training.batches import Batch, Pair, Row, training_batches, validation_batches
from pipelines.training.rows import checkpoint_name
from pipelines.training.worker import (
    Progress,
    TrainJob,
    Worker,
    average_batch_norm,
    normalised,
    percent,
    save_state,
    start_worker,
)
from segcore.backbones import BACKBONES
from segcore.layers import recompute_batch_norm
from segcore.models import SegmentationModel

if TYPE_CHECKING:
    from ray.data import DataIterator

    from pipelines.tracking import TrackedRun

SELECTION_METRIC = "selection"
"""Validation score (mIoU, top-1), or -1 after an epoch without validation: what Ray Train keeps checkpoints by."""
BOARD_SECONDS = 0.5


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry point; `config` holds `job`, a pickled `TrainJob`, and `board`, an actor handle.

    Raises:
        ValueError: a shard or an image is broken, or the loss is not finite any more.
    """
    board = config["board"]
    reason = ray.get(board.reason_to_give_up.remote())
    if reason:  # Ray Train starts workers again after any exception; bad input would only be found again
        raise ValueError(reason)
    try:
        _train(pickle.loads(config["job"]), board)
    except ValueError as error:
        ray.get(board.give_up.remote(str(error)))
        raise


def _train(job: TrainJob, board: Any) -> None:
    recipe = job.recipe
    worker, state = start_worker(job, board)
    first_epoch = state.epochs
    epochs = range(first_epoch, recipe.epochs)
    recomputes = recipe.batch_norm_batches > 0 and len(epochs) > 0  # from batches of one epoch more
    rows = ray.train.get_dataset_shard("train")
    batches = _batches(worker, rows, range(first_epoch, recipe.epochs + recomputes))
    run = _attach(job) if worker.rank == 0 else None
    last_logged = run.last_step("train/loss") if run else None
    worker.say(
        f"{worker.world_size} worker(s) on {worker.device.type}, {job.steps_per_epoch} steps per epoch; "
        f"start-up took {time.time() - job.submitted_at:.1f} s"
    )
    for epoch in epochs:
        began = time.perf_counter()
        metrics = _train_epoch(worker, batches, epoch=epoch, first=epoch == first_epoch)
        if recomputes and epoch + 1 == recipe.epochs:
            recompute_from_batches(worker, batches)
        if worker.world_size > 1:
            average_batch_norm(worker.network)
        validated = (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs
        if validated:
            counts = _sum_over_workers(validate_share(worker), worker)
            metrics |= worker.task.metrics(counts, job.dataset.class_names)
        score = metrics.get(worker.task.selection, -1.0)
        state = _advanced(state, score, seconds=time.perf_counter() - began)
        metrics["train/seconds"] = state.seconds
        if run and (last_logged is None or epoch > last_logged):  # a repeated epoch would log its step twice
            run.log_metrics(metrics, step=epoch)
        worker.say(_epoch_line(metrics, state, worker))
        _report(worker, state, metrics, score)


def _attach(job: TrainJob) -> "TrackedRun":
    from pipelines import tracking  # mlflow takes seconds to import, while the first batches are on their way

    return tracking.attach(job.tracking_uri, job.run_id)


def _batches(worker: Worker, rows: "DataIterator", epochs: range) -> Iterator[Batch]:
    recipe = worker.job.recipe
    mean = BACKBONES[recipe.model.backbone].mean
    fill = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
    training_pair = worker.task.training_pair
    return training_batches(
        rows,
        draw=lambda row, generator: training_pair(row, generator, recipe.augment, fill),
        batch_size=recipe.batch_size // worker.world_size,
        steps_per_epoch=worker.job.steps_per_epoch,
        shuffle_buffer=recipe.shuffle_buffer,
        seed=recipe.seed,
        epochs=epochs,
        rank=worker.rank,
        num_threads=worker.num_threads,
        pin_memory=worker.device.type == "cuda",
    )


def _train_epoch(worker: Worker, batches: Iterator[Batch], *, epoch: int, first: bool) -> dict[str, float]:
    """One epoch of optimiser steps; `first` is the first one of this start, whose first step is timed apart."""
    job, recipe = worker.job, worker.job.recipe
    torch.manual_seed(_epoch_seed(recipe.seed, epoch, worker.rank))  # dropout; makes resumed runs repeat themselves
    worker.network.train()
    learning_rate = worker.optimiser.param_groups[0]["lr"]
    sums: dict[str, Tensor] = {}
    waited_seconds, last_shown = 0.0, 0.0
    began = asked = time.perf_counter()
    steps = 0
    metrics: dict[str, float] = {}
    for batch in islice(batches, job.steps_per_epoch):
        waited_seconds += time.perf_counter() - asked
        for name, value in training_step(worker, batch).items():
            sums[name] = sums[name] + value if name in sums else value
        steps += 1
        asked = time.perf_counter()
        if first and steps == 1:
            _synchronise(worker.device)
            computed = time.perf_counter() - began - waited_seconds
            worker.say(f"first batch came after {waited_seconds:.1f} s, first step took {computed:.1f} s")
            metrics["train/startup_seconds"] = time.time() - job.submitted_at
            began = asked = time.perf_counter()
            waited_seconds = 0.0
        if worker.rank == 0 and asked - last_shown > BOARD_SECONDS:
            last_shown = asked
            worker.board.advance.remote(epoch * job.steps_per_epoch + steps)
    losses = {name: _mean_over_workers(value / steps, worker.world_size) for name, value in sums.items()}  # waits
    loss = losses["loss"]
    seconds = time.perf_counter() - began
    if not np.isfinite(loss):
        raise ValueError(
            f"the training loss became {loss} in epoch {epoch + 1}; lower --optim.learning-rate, raise "
            "--optim.warmup-steps, or train in float32 (--precision float32)"
        )
    timed_steps = steps - 1 if first else steps
    metrics |= {f"train/{name}": value for name, value in losses.items()} | {"train/learning_rate": learning_rate}
    if timed_steps:
        metrics["train/images_per_second"] = timed_steps * recipe.batch_size / seconds
        metrics["train/data_wait_fraction"] = waited_seconds / seconds
    temperature = getattr(getattr(worker.network, "head", None), "temperature", None)
    if temperature is not None:
        metrics["train/temperature"] = float(temperature)
    if worker.rank == 0:
        worker.board.advance.remote((epoch + 1) * job.steps_per_epoch)
    return metrics


def training_step(worker: Worker, batch: Batch) -> dict[str, Tensor]:
    """One optimiser step; the loss, and its terms where there are several, come back on the device, not waited for."""
    images_N3HW = normalised(worker, batch.images_N3HW)
    labels = batch.labels.to(worker.device, non_blocking=True)
    model = cast(SegmentationModel, worker.network)  # or a Classifier, whose loss takes its own output and labels
    with _autocast(worker):
        terms = model.loss(worker.replica(images_N3HW), labels)
    worker.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(terms.total)  # `loss.backward()`, with types
    worker.optimiser.step()
    worker.schedule.step()
    parts = {f"loss_{name}": value for name, value in terms.terms.items()} if len(terms.terms) > 1 else {}
    return {"loss": terms.total.detach()} | parts


def recompute_from_batches(worker: Worker, batches: Iterator[Batch]) -> None:
    """Statistics of batch normalisation from the next training batches, as many as the recipe says."""
    count = min(worker.job.recipe.batch_norm_batches, worker.job.steps_per_epoch)
    with _autocast(worker):
        used = recompute_batch_norm(
            worker.network, (normalised(worker, batch.images_N3HW) for batch in islice(batches, count))
        )
    worker.say(f"batch normalisation: means and variances computed anew from {used} training batches")


def validate_share(worker: Worker) -> NDArray[np.int64]:
    """Counts over this worker's share of the validation split.

    In float32 and in batches that do not depend on the number of workers: nor do the counts, and those of a
    segmentation (one image at a time, at its own size) are what jobs/evaluate.py will find.
    """
    job, task = worker.job, worker.task
    num_classes = job.dataset.num_classes
    counts = task.zero(num_classes)
    batches = validation_batches(
        job.dataset,
        split=job.validation_split,
        decode=partial(_validation_pair, worker),
        batch_size=task.validation_batch,
        rank=worker.rank,
        world_size=worker.world_size,
        num_threads=worker.num_threads,
    )
    worker.network.eval()
    # Every size of image would be tuned anew.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
        for batch in batches:
            # forward, past torch.compile: it would compile anew for every size of image
            output = worker.network.forward(normalised(worker, batch.images_N3HW))
            counts += task.count(output, batch.labels, num_classes)
    return counts


def _validation_pair(worker: Worker, row: Row) -> Pair:
    return worker.task.validation_pair(row, worker.job.recipe.augment)


def _sum_over_workers(counts: NDArray[np.int64], worker: Worker) -> NDArray[np.int64]:
    if worker.world_size == 1:
        return counts
    on_device = torch.from_numpy(counts).to(worker.device)
    dist.all_reduce(on_device)
    total: NDArray[np.int64] = on_device.cpu().numpy()
    return total


def _advanced(state: Progress, score: float, *, seconds: float) -> Progress:
    """The state after one more epoch; the score is -1 where there was no validation."""
    epoch = state.epochs
    better = score >= state.best_score and score >= 0  # of equals the later, as Ray Train keeps them
    return Progress(
        epochs=epoch + 1,
        best_score=score if better else state.best_score,
        best_epoch=epoch if better else state.best_epoch,
        seconds=state.seconds + seconds,
    )


def _report(worker: Worker, state: Progress, metrics: dict[str, float], score: float) -> None:
    """Hand metrics and a checkpoint to Ray Train; rank 0 alone has the checkpoint, all must call."""
    reported = {**metrics, "epoch": state.epochs - 1, SELECTION_METRIC: score}
    if worker.rank:
        ray.train.report(reported)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), worker, state)
        name = checkpoint_name(state.epochs - 1)
        ray.train.report(reported, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def _autocast(worker: Worker) -> torch.autocast:
    enabled = worker.job.recipe.precision == "bfloat16"
    return torch.autocast(worker.device.type, dtype=torch.bfloat16, enabled=enabled)


def _mean_over_workers(value: Tensor, world_size: int) -> float:
    if world_size > 1:
        dist.all_reduce(value)
    return float(value) / world_size


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(1)[0])


def _epoch_line(metrics: dict[str, float], state: Progress, worker: Worker) -> str:
    line = f"epoch {state.epochs}/{worker.job.recipe.epochs}: loss {metrics['train/loss']:.4f}"
    if "train/images_per_second" in metrics:
        line += f", {metrics['train/images_per_second']:.1f} images/s"
    if worker.task.selection in metrics:
        line += f", val {worker.task.score_name} {percent(metrics[worker.task.selection])}"
        line += " (best)" if state.best_epoch == state.epochs - 1 else f" (best {percent(state.best_score)})"
    return line
