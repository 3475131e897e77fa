"""What every Ray Train worker runs: steps, validation by one merged confusion matrix, checkpoints, metrics."""

import dataclasses
import io
import logging
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train import Checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipelines import storage
from pipelines.checkpoints import WEIGHTS_FILE, read_state, state_bytes
from pipelines.recipes.recipe import Recipe
from pipelines.shards import PreparedDataset
from pipelines.training_data import Batch, num_decoding_threads, training_batches, validation_images
from pipelines.training_rows import checkpoint_name
from segcore.backbones import BACKBONES
from segcore.layers import synchronise_batch_norm
from segcore.metrics import confusion_matrix, scores
from segcore.models import SegmentationModel, restore_model
from segcore.optim import build_optimiser, poly_schedule

if TYPE_CHECKING:
    from pipelines.tracking import TrackedRun

logger = logging.getLogger(__name__)

TRAINING_STATE_FILE = "training_state.pt"
SELECTION_METRIC = "selection"
"""Validation mIoU, or -1 after an epoch without validation: what Ray Train keeps checkpoints by."""
BOARD_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """All that a worker is told.

    Attributes:
        recipe: what to run.
        dataset: where from.
        train_split, validation_split: names of its splits.
        initial_weights: URI of the state that every worker starts from.
        run_id, tracking_uri: the MLflow run that the driver opened.
        steps_per_epoch: equal on all workers.
        submitted_at: seconds since 1970, to tell start-up from training.
    """

    recipe: Recipe
    dataset: PreparedDataset
    train_split: str
    validation_split: str
    initial_weights: str
    run_id: str
    tracking_uri: str
    steps_per_epoch: int
    submitted_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One worker's place in the group and its replica of the network.

    Attributes:
        board: actor handle, see `pipelines.training_progress`.
        network: the bare network, a `SegmentationModel`; `replica` is the same, in DDP where there are several workers.
        mean_1311, std_1311: of the backbone's input, in units of uint8.
    """

    job: TrainJob
    board: Any
    rank: int
    world_size: int
    num_threads: int
    device: torch.device
    network: nn.Module
    replica: nn.Module
    optimiser: Optimizer
    schedule: LRScheduler
    mean_1311: Tensor
    std_1311: Tensor

    def say(self, line: str) -> None:
        """Put a line into the driver's log; rank 0 speaks for all."""
        if self.rank == 0:
            self.board.say.remote(line)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands between two epochs.

    Attributes:
        epochs: epochs done.
        best_mean_iou: highest validation mIoU so far, -1 before the first validation.
        best_epoch: index of the epoch that reached it, -1 before the first validation.
        seconds: time spent in epochs, over all starts of the run.
    """

    epochs: int
    best_mean_iou: float
    best_epoch: int
    seconds: float


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry point; `config` holds `job`, a pickled `TrainJob`, and `board`, an actor handle.

    Raises:
        ValueError: a shard or an image is broken, or the loss is not finite any more.
    """
    job: TrainJob = pickle.loads(config["job"])
    recipe = job.recipe
    worker, state = _start(job, config["board"])
    first_epoch = state.epochs
    rows = ray.train.get_dataset_shard("train")
    batches = _batches(worker, rows, first_epoch)
    run = _attach(job) if worker.rank == 0 else None
    last_logged = run.last_step("train/loss") if run else None
    worker.say(
        f"{worker.world_size} worker(s) on {worker.device.type}, {job.steps_per_epoch} steps per epoch; "
        f"start-up took {time.time() - job.submitted_at:.1f} s"
    )
    for epoch in range(first_epoch, recipe.epochs):
        began = time.perf_counter()
        metrics = _train_epoch(worker, batches, epoch=epoch, first=epoch == first_epoch)
        if epoch + 1 < recipe.epochs:
            batches = _batches(worker, rows, epoch + 1)  # it fills up while we validate
        if worker.world_size > 1:
            average_batch_norm(worker.network)
        validated = (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs
        if validated:
            confusion_CC = _sum_over_workers(validate_share(worker), worker)
            metrics |= validation_metrics(confusion_CC, job.dataset.class_names)
        state = _advanced(state, metrics, seconds=time.perf_counter() - began)
        metrics["train/seconds"] = state.seconds
        if run and (last_logged is None or epoch > last_logged):  # a repeated epoch would log its step twice
            run.log_metrics(metrics, step=epoch)
        worker.say(_epoch_line(metrics, state, recipe.epochs))
        _report(worker, state, metrics)


def _attach(job: TrainJob) -> "TrackedRun":
    from pipelines import tracking  # mlflow takes seconds to import, while the first batches are on their way

    return tracking.attach(job.tracking_uri, job.run_id)


def _start(job: TrainJob, board: Any) -> tuple[Worker, Progress]:
    """Build this worker's replica, from the latest checkpoint where there is one."""
    recipe = job.recipe
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    neighbours = context.get_local_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // neighbours))
    initial = read_state(storage.read_bytes(job.initial_weights), origin=job.initial_weights)
    network = restore_model(recipe.model, job.dataset.num_classes, initial).to(device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if world_size > 1 and recipe.sync_batch_norm and device.type == "cuda":
        network = synchronise_batch_norm(network)
    optimiser = build_optimiser(network, recipe.optim)
    schedule = poly_schedule(optimiser, recipe.optim, total_steps=job.steps_per_epoch * recipe.epochs)
    checkpoint = ray.train.get_checkpoint()
    progress = Progress(epochs=0, best_mean_iou=-1.0, best_epoch=-1, seconds=0.0)
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            progress = _restore(Path(folder), network, optimiser, schedule, device)
    if recipe.compile:
        network.compile()
    replica: nn.Module = network
    if world_size > 1:
        # Buffers are not broadcast at every step: `average_batch_norm` joins them before anybody uses them.
        devices = [device] if device.type == "cuda" else None
        replica = DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)
    spec = BACKBONES[recipe.model.backbone]
    worker = Worker(
        job=job,
        board=board,
        rank=rank,
        world_size=world_size,
        num_threads=num_decoding_threads(workers_on_this_machine=neighbours, use_gpu=device.type == "cuda"),
        device=device,
        network=network,
        replica=replica,
        optimiser=optimiser,
        schedule=schedule,
        mean_1311=torch.tensor(spec.mean, device=device).view(1, 3, 1, 1) * 255,
        std_1311=torch.tensor(spec.std, device=device).view(1, 3, 1, 1) * 255,
    )
    if world_size > 1 and device.type == "cpu":
        worker.say(
            f"CPU workers: each normalises over its own {recipe.batch_size // world_size} images (SyncBatchNorm needs "
            "CUDA); running statistics are averaged over the workers after every epoch"
        )
    if progress.epochs:
        worker.say(f"continuing after epoch {progress.epochs}; best so far {_percent(progress.best_mean_iou)} mIoU")
    return worker, progress


def _batches(worker: Worker, rows: ray.data.DataIterator, epoch: int) -> Iterator[Batch]:
    recipe = worker.job.recipe
    mean = BACKBONES[recipe.model.backbone].mean
    return training_batches(
        rows,
        augment_config=recipe.augment,
        fill=(round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255)),
        batch_size=recipe.batch_size // worker.world_size,
        shuffle_buffer=recipe.shuffle_buffer,
        seed=recipe.seed,
        epoch=epoch,
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
    loss_sum = torch.zeros((), device=worker.device)
    waited_seconds, last_shown = 0.0, 0.0
    began = asked = time.perf_counter()
    steps = 0
    metrics: dict[str, float] = {}
    for batch in batches:
        waited_seconds += time.perf_counter() - asked
        loss_sum += _step(worker, batch)
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
    loss = _mean_over_workers(loss_sum / max(steps, 1), worker.world_size)  # waits for the device
    seconds = time.perf_counter() - began
    if steps != job.steps_per_epoch:
        raise RuntimeError(f"worker {worker.rank} got {steps} batches in epoch {epoch}, expected {job.steps_per_epoch}")
    if not np.isfinite(loss):
        raise ValueError(
            f"the training loss became {loss} in epoch {epoch + 1}; lower --optim.learning-rate, raise "
            "--optim.warmup-steps, or train in float32 (--precision float32)"
        )
    timed_steps = steps - 1 if first else steps
    metrics |= {"train/loss": loss, "train/learning_rate": learning_rate}
    if timed_steps:
        metrics["train/images_per_second"] = timed_steps * recipe.batch_size / seconds
        metrics["train/data_wait_fraction"] = waited_seconds / seconds
    temperature = getattr(worker.network, "temperature", None)
    if temperature is not None:
        metrics["train/temperature"] = float(temperature)
    if worker.rank == 0:
        worker.board.advance.remote((epoch + 1) * job.steps_per_epoch)
    return metrics


def _step(worker: Worker, batch: Batch) -> Tensor:
    """One optimiser step; the loss comes back on the device, not waited for."""
    images_N3HW = normalised(worker, batch.images_N3HW)
    labels_NHW = batch.labels_NHW.to(worker.device, non_blocking=True)
    model = cast(SegmentationModel, worker.network)
    with _autocast(worker):
        loss = model.loss(worker.replica(images_N3HW), labels_NHW).total
    worker.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)  # `loss.backward()`, with types
    worker.optimiser.step()
    worker.schedule.step()
    return loss.detach()


def normalised(worker: Worker, images_N3HW: Tensor) -> Tensor:
    """uint8 images as the backbone wants them, on the worker's device; floats would be four times the copy."""
    layout = torch.channels_last if worker.job.recipe.channels_last else torch.contiguous_format
    on_device = images_N3HW.to(worker.device, non_blocking=True)
    return on_device.to(torch.float32, memory_format=layout).sub_(worker.mean_1311).div_(worker.std_1311)


def validate_share(worker: Worker) -> NDArray[np.int64]:
    """Confusion of this worker's share of the validation split, every image at its own size.

    One image at a time: the counts then do not depend on how the images fall among the workers.
    """
    job = worker.job
    num_classes = job.dataset.num_classes
    confusion_CC = np.zeros((num_classes, num_classes), dtype=np.int64)
    images = validation_images(
        job.dataset,
        split=job.validation_split,
        rank=worker.rank,
        world_size=worker.world_size,
        num_threads=worker.num_threads,
    )
    worker.network.eval()
    with torch.inference_mode():
        for image_3HW, labels_HW in images:
            with _autocast(worker):
                output = worker.network(normalised(worker, image_3HW[None]))
            predictions_HW = output.logits_NCHW[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
            confusion_CC += confusion_matrix(labels_HW.numpy(), predictions_HW, num_classes=num_classes)
    return confusion_CC


def _sum_over_workers(confusion_CC: NDArray[np.int64], worker: Worker) -> NDArray[np.int64]:
    if worker.world_size == 1:
        return confusion_CC
    counts = torch.from_numpy(confusion_CC).to(worker.device)
    dist.all_reduce(counts)
    total_CC: NDArray[np.int64] = counts.cpu().numpy()
    return total_CC


def validation_metrics(confusion_CC: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, float]:
    """Scores by metric name; a class that occurs nowhere has no IoU and is left out."""
    result = scores(confusion_CC)
    metrics = {
        "val/mean_iou": result.mean_iou,
        "val/pixel_accuracy": result.pixel_accuracy,
        "val/mean_accuracy": result.mean_accuracy,
        "val/frequency_weighted_iou": result.frequency_weighted_iou,
    }
    metrics |= {f"val/iou/{name}": float(iou) for name, iou in zip(class_names, result.iou_C, strict=True)}
    return {name: value for name, value in metrics.items() if not np.isnan(value) or name == "val/mean_iou"}


def average_batch_norm(network: nn.Module) -> None:
    """Replace every running mean and variance by its average over the workers.

    Each worker has seen its own images; without this the score and the saved model would be rank 0's alone. The average
    of variances leaves out the spread between the workers' means, which is small for shuffled images.
    """
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, values in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def _advanced(state: Progress, metrics: dict[str, float], *, seconds: float) -> Progress:
    """The state after one more epoch."""
    epoch, mean_iou = state.epochs, metrics.get("val/mean_iou", -1.0)
    better = mean_iou >= state.best_mean_iou and mean_iou >= 0  # of equals the later, as Ray Train keeps them
    return Progress(
        epochs=epoch + 1,
        best_mean_iou=mean_iou if better else state.best_mean_iou,
        best_epoch=epoch if better else state.best_epoch,
        seconds=state.seconds + seconds,
    )


def _report(worker: Worker, state: Progress, metrics: dict[str, float]) -> None:
    """Hand metrics and a checkpoint to Ray Train; rank 0 alone has the checkpoint, all must call."""
    reported = {**metrics, "epoch": state.epochs - 1, SELECTION_METRIC: metrics.get("val/mean_iou", -1.0)}
    if worker.rank:
        ray.train.report(reported)
        return
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder), worker, state)
        name = checkpoint_name(state.epochs - 1)
        ray.train.report(reported, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def _save(folder: Path, worker: Worker, state: Progress) -> None:
    """Weights as in a model folder, and apart from them what only a resumed training needs."""
    (folder / WEIGHTS_FILE).write_bytes(state_bytes(worker.network.state_dict()))
    training_state = {
        "optimiser": worker.optimiser.state_dict(),
        "schedule": worker.schedule.state_dict(),
        "progress": dataclasses.asdict(state),
    }
    torch.save(training_state, folder / TRAINING_STATE_FILE)


def _restore(
    folder: Path, network: nn.Module, optimiser: Optimizer, schedule: LRScheduler, device: torch.device
) -> Progress:
    weights = folder / WEIGHTS_FILE
    network.load_state_dict(read_state(weights.read_bytes(), origin=str(weights)))
    data = io.BytesIO((folder / TRAINING_STATE_FILE).read_bytes())
    state = torch.load(data, map_location=device, weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return Progress(**state["progress"])


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


def _epoch_line(metrics: dict[str, float], state: Progress, epochs: int) -> str:
    line = f"epoch {state.epochs}/{epochs}: loss {metrics['train/loss']:.4f}"
    if "train/images_per_second" in metrics:
        line += f", {metrics['train/images_per_second']:.1f} images/s"
    if "val/mean_iou" in metrics:
        line += f", val mIoU {_percent(metrics['val/mean_iou'])}"
        line += " (best)" if state.best_epoch == state.epochs - 1 else f" (best {_percent(state.best_mean_iou)})"
    return line


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
