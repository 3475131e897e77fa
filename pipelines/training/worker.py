"""A train worker: its place in the group, its replica of the network, and how both come back from a checkpoint."""

import copy
import os
import posixpath
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipelines import storage
from pipelines.checkpoints import read_state
from pipelines.recipes.recipe import Recipe
from pipelines.shards import PreparedDataset
from pipelines.training.batches import Batch, num_decoding_threads
from pipelines.training.position import read_position
from pipelines.training.state import EpochState, Progress, restore_own, restore_shared
from pipelines.training.tasks import TASKS, TrainingTask
from segcore.backbones import BACKBONES
from segcore.layers import synchronise_batch_norm
from segcore.models.main_loss import set_main_loss
from segcore.networks import restore_network
from segcore.optim import build_optimiser, poly_factor, poly_schedule


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
        run_folder: URI; checkpoints are written there.
        checkpoint_seconds, checkpoint_steps: between two checkpoints within an epoch; 0 each: none for their sake.
        class_weights: of the loss; empty where the recipe has none.
        image_weights, donors: URIs of what `pipelines.training.balance` wrote; "" where the recipe does not ask for it.
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
    run_folder: str
    checkpoint_seconds: float = 0.0
    checkpoint_steps: int = 0
    class_weights: tuple[float, ...] = ()
    image_weights: str = ""
    donors: str = ""

    @property
    def num_images(self) -> int:
        """Of the split to learn from."""
        return self.dataset.splits[self.train_split].num_images


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One worker's place in the group and its replica of the network.

    Attributes:
        board: actor handle, see `pipelines.training.progress`.
        network: the bare network, a `SegmentationModel` or a `Classifier`; `replica` is the same, in DDP where there
            are several workers.
        mean_1311, std_1311: of the backbone's input, in units of uint8.
        averaged: a copy of the network whose weights are a moving average; None where the recipe has none.
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
    averaged: nn.Module | None = None

    @property
    def judged(self) -> nn.Module:
        """The network that is validated, and becomes the model."""
        return self.network if self.averaged is None else self.averaged

    @property
    def task(self) -> TrainingTask:
        """What the recipe's task does in its own way."""
        return TASKS[self.job.recipe.task]

    def share_of(self, batch: Batch) -> float:
        """Weight of this worker's part of a batch in an average over the workers; 1 where all parts are equal.

        Sums over the workers of weight * mean / workers are means over the batch.
        """
        batch_size = self.job.recipe.batch_size
        return 1.0 if batch_size % self.world_size == 0 else len(batch.images_N3HW) * self.world_size / batch_size

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the first group of parameters at a step of the training."""
        optim, total = self.job.recipe.optim, self.job.steps_per_epoch * self.job.recipe.epochs
        factor = poly_factor(step, total_steps=total, warmup_steps=optim.warmup_steps, power=optim.power)
        return float(self.schedule.base_lrs[0]) * factor

    def say(self, line: str) -> None:
        """Put a line into the driver's log; rank 0 speaks for all."""
        if self.rank == 0:
            self.board.say.remote(line)


def start_worker(job: TrainJob, board: Any) -> tuple[Worker, Progress, EpochState | None]:
    """Build this worker's replica, from the latest checkpoint where there is one.

    Returns:
        The worker, where the run stands between two epochs, and the epoch that is under way, if one is.
    """
    recipe = job.recipe
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    neighbours = context.get_local_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # crops have one size
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // neighbours))
    initial = read_state(storage.read_bytes(job.initial_weights), origin=job.initial_weights)
    network = restore_network(recipe.model, job.dataset.num_classes, initial).to(device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if recipe.task == "segmentation":
        set_main_loss(network, recipe.loss, job.class_weights)
    if world_size > 1 and recipe.sync_batch_norm and device.type == "cuda":
        network = synchronise_batch_norm(network)
    averaged = copy.deepcopy(network).requires_grad_(False).eval() if recipe.ema_decay else None
    optimiser = build_optimiser(network, recipe.optim)
    schedule = poly_schedule(optimiser, recipe.optim, total_steps=job.steps_per_epoch * recipe.epochs)
    progress, under_way = _restored(job, network, optimiser, schedule, device, averaged)
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
        averaged=averaged,
    )
    if world_size > 1 and device.type == "cpu":
        worker.say(
            f"CPU workers: each normalises over its own {recipe.batch_size // world_size} images (SyncBatchNorm needs "
            "CUDA); running statistics are averaged over the workers after every epoch"
        )
    if progress.epochs or under_way:
        _say_where_it_continues(worker, progress, under_way)
    return worker, progress, under_way


def _restored(
    job: TrainJob,
    network: nn.Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    device: torch.device,
    averaged: nn.Module | None,
) -> tuple[Progress, EpochState | None]:
    reported = ray.train.get_checkpoint()
    if reported is None:
        return Progress(epochs=0, best_score=-1.0, best_epoch=-1, seconds=0.0), None
    checkpoint = storage.join(job.run_folder, posixpath.basename(reported.path))
    progress = restore_shared(checkpoint, network, optimiser, schedule, device, averaged=averaged)
    position = read_position(checkpoint)
    if not position.steps:
        return progress, None
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    num_images = job.num_images
    under_way = restore_own(
        checkpoint,
        position,
        network,
        num_images=num_images,
        rank=rank,
        world_size=world_size,
        device=device,
        averaged=averaged,
    )
    return progress, under_way


def _say_where_it_continues(worker: Worker, progress: Progress, under_way: EpochState | None) -> None:
    best = percent(progress.best_score) if progress.best_epoch >= 0 else "not validated yet"
    where = f"after epoch {progress.epochs}"
    if under_way:
        where = f"in epoch {progress.epochs + 1}, after {under_way.steps} of {worker.job.steps_per_epoch} steps"
    worker.say(f"continuing {where}; best {worker.task.score_name} so far: {best}")
    if under_way and under_way.first_step == under_way.steps:
        worker.say(
            f"{worker.world_size} worker(s) now, another number than before: the images of this epoch that nobody has "
            "seen yet are divided anew; no step is lost, no image comes twice"
        )


def normalised(worker: Worker, images_N3HW: Tensor) -> Tensor:
    """uint8 images as the backbone wants them, on the worker's device; floats would be four times the copy."""
    layout = torch.channels_last if worker.job.recipe.channels_last else torch.contiguous_format
    on_device = images_N3HW.to(worker.device, non_blocking=True)
    return on_device.to(torch.float32, memory_format=layout).sub_(worker.mean_1311).div_(worker.std_1311)


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


def percent(fraction: float) -> str:
    """A fraction of 1 as it stands in the log."""
    return f"{100 * fraction:.2f} %"
