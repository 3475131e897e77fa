"""What every Ray Train worker runs: steps, validation by merged integer counts, checkpoints, metrics."""

import contextlib
import dataclasses
import pickle
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipelines.fault_points import fault_point
from pipelines.recipes.recipe import Recipe
from pipelines.training.batches import Batch, Pair, Pass, Row, training_batches, validation_batches
from pipelines.training.donors import Draw, pasting
from pipelines.training.position import checkpoint_name
from pipelines.training.progress import REASON
from pipelines.training.saving import Saver
from pipelines.training.state import EpochState, Progress, new_epoch, own_files, set_generators, shared_files
from pipelines.training.step_watch import StepWatch, log_batch
from pipelines.training.worker import (
    TrainJob,
    Worker,
    average_batch_norm,
    normalised,
    percent,
    start_worker,
)
from segcore import IGNORE_INDEX
from segcore.augment_config import AugmentConfig
from segcore.backbones import BACKBONES
from segcore.layers import recompute_batch_norm
from segcore.models import SegmentationModel
from segcore.weight_average import update_average

if TYPE_CHECKING:
    from pipelines.tracking import TrackedRun

SELECTION_METRIC = "selection"
"""Validation score (mIoU, top-1), or -1 after an epoch without validation: what Ray Train keeps checkpoints by."""
NOT_VALIDATED = -1.0
UNFINISHED = -2.0
"""The same of a checkpoint within an epoch: below every other, so that it goes once it is not the latest any more."""


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
    worker, state, under_way = start_worker(job, board)
    first_epoch = state.epochs
    # Of a run that had stopped early when its driver died nothing is left to do.
    epochs = range(first_epoch, first_epoch if stops_early(recipe, state) else recipe.epochs)
    recomputes = recipe.batch_norm_batches > 0 and len(epochs) > 0  # from batches of one epoch more
    batches = _batches(worker, _passes(range(epochs.start, epochs.stop + recomputes), under_way))
    run = _attach(job) if worker.rank == 0 else None
    last_logged = run.last_step("train/loss") if run else None
    saver = Saver(
        board,
        run_folder=job.run_folder,
        rank=worker.rank,
        seconds=job.checkpoint_seconds,
        every_steps=job.checkpoint_steps,
    )
    watch = StepWatch(worker)
    worker.say(
        f"{worker.world_size} worker(s) on {worker.device.type}, {job.steps_per_epoch} steps per epoch; "
        f"start-up took {time.time() - job.submitted_at:.1f} s"
    )
    for epoch in epochs:
        began = time.perf_counter()
        metrics = _train_epoch(worker, batches, saver, watch, state, under_way or new_epoch(job.num_images))
        if recomputes and epoch + 1 == recipe.epochs:
            recompute_from_batches(worker, batches)
        if worker.world_size > 1:
            # In one order on all workers; without a moving average both are one.
            for network in dict.fromkeys((worker.network, worker.judged)):
                average_batch_norm(network)
        validated = (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs
        if validated:
            counts = _sum_over_workers(validate_share(worker), worker)
            metrics |= worker.task.metrics(counts, job.dataset.class_names)
        score = metrics.get(worker.task.selection, NOT_VALIDATED)
        state = _advanced(state, score, seconds=time.perf_counter() - began)
        metrics["train/seconds"] = state.seconds
        if run and (last_logged is None or epoch > last_logged):  # a repeated epoch would log its step twice
            run.log_metrics(metrics, step=epoch)
        worker.say(_epoch_line(metrics, state, worker))
        _save_epoch(worker, saver, state, metrics, score)
        under_way = None
        if stops_early(recipe, state):
            worker.say(f"stopped after epoch {epoch + 1}: the last {state.stale} validation(s) brought no better score")
            break


def stops_early(recipe: Recipe, state: Progress) -> bool:
    """Whether the score has been no better for so many validations that the recipe's patience is at its end."""
    return 0 < recipe.patience <= state.stale


def _passes(epochs: range, under_way: EpochState | None) -> list[Pass]:
    """What to read: the rest of the epoch under way, and whole epochs. All workers must ask for the same rows."""
    if under_way is None:
        rest = []
    else:
        # With as many workers as before they divide as before, and each passes over what it has seen.
        kind = "divided_anew" if under_way.first_step == under_way.steps else "rest"
        rows = ray.train.get_dataset_shard(kind)
        rest = [Pass(rows=rows, epoch=epochs.start, first_step=under_way.first_step, done=under_way.steps)]
        epochs = epochs[1:]
    if not epochs:
        return rest
    rows = ray.train.get_dataset_shard("whole")
    return rest + [Pass(rows=rows, epoch=epoch) for epoch in epochs]


def _attach(job: TrainJob) -> "TrackedRun":
    from pipelines import tracking  # mlflow takes seconds to import, while the first batches are on their way

    return tracking.attach(job.tracking_uri, job.run_id)


def _batches(worker: Worker, passes: list[Pass]) -> Iterator[Batch]:
    recipe = worker.job.recipe
    mean = BACKBONES[recipe.model.backbone].mean
    fill = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
    training_pair = worker.task.training_pair

    def draw(row: Row, generator: torch.Generator) -> Pair:
        return training_pair(row, generator, recipe.augment, fill)

    return training_batches(
        passes,
        draw=_with_donors(worker, draw, fill) if recipe.copy_paste.classes else draw,
        batch_size=recipe.batch_size,
        steps_per_epoch=worker.job.steps_per_epoch,
        shuffle_buffer=recipe.shuffle_buffer,
        seed=recipe.seed,
        rank=worker.rank,
        world_size=worker.world_size,
        num_threads=worker.num_threads,
        pin_memory=worker.device.type == "cuda",
    )


def _with_donors(worker: Worker, draw: Draw, fill: tuple[int, int, int]) -> Draw:
    recipe = worker.job.recipe
    assert isinstance(recipe.augment, AugmentConfig), "the recipe has checked it"
    return pasting(
        draw,
        worker.job.donors,
        recipe.copy_paste,
        dataset=worker.job.dataset,
        augmentation=recipe.augment,
        fill=fill,
    )


def _train_epoch(
    worker: Worker,
    batches: Iterator[Batch],
    saver: Saver,
    watch: StepWatch,
    state: Progress,
    so_far: EpochState,
) -> dict[str, float]:
    """The optimiser steps of one epoch, or of its rest; metrics of all of it, but speeds of this start's steps."""
    job, epoch = worker.job, state.epochs
    if so_far.generators:
        set_generators(so_far.generators, worker.device)
    else:  # dropout; makes resumed runs repeat themselves
        torch.manual_seed(_epoch_seed(job.recipe.seed, epoch, worker.rank, so_far.steps))
    worker.network.train()
    saver.begin_epoch(so_far.steps)
    watch.begin_epoch()
    for batch in islice(batches, job.steps_per_epoch - so_far.steps):
        done = epoch * job.steps_per_epoch + so_far.steps
        fault_point("train.step", count=done)
        watch.got_batch()
        log_batch(batch.rows, epoch=epoch, step=so_far.steps, rank=worker.rank)
        share = worker.share_of(batch)
        for name, value in training_step(worker, batch).items():
            so_far.sums[name] = so_far.sums[name] + share * value if name in so_far.sums else share * value
        so_far.steps += 1
        so_far.seen[list(batch.rows)] = True
        watch.made_step(done + 1)
        if so_far.steps < job.steps_per_epoch and (reason := saver.reason_after(so_far.steps)):
            _save_within(worker, saver, state, so_far, reason, seconds=state.seconds + watch.seconds)
    # In one order on all workers: sums that come from a checkpoint's file come in any.
    means = {name: so_far.sums[name] / so_far.steps for name in sorted(so_far.sums)}
    losses = {name: _mean_over_workers(each, worker.world_size) for name, each in means.items()}
    if not np.isfinite(losses["loss"]):  # waited for the device to know
        raise ValueError(
            f"the training loss became {losses['loss']} in epoch {epoch + 1}; lower --optim.learning-rate, raise "
            "--optim.warmup-steps, or train in float32 (--precision float32)"
        )
    metrics = {f"train/{name}": value for name, value in losses.items()} | watch.metrics()
    metrics["train/learning_rate"] = worker.learning_rate_at(epoch * job.steps_per_epoch)
    temperature = getattr(getattr(worker.network, "head", None), "temperature", None)
    if temperature is not None:
        metrics["train/temperature"] = float(temperature)
    if worker.rank == 0:
        worker.board.advance.remote((epoch + 1) * job.steps_per_epoch)
    return metrics


def training_step(worker: Worker, batch: Batch) -> dict[str, Tensor]:
    """One optimiser step. The loss, its terms where there are several, and the gradients' norm where it is limited come
    back on the device, not waited for."""
    worker.optimiser.zero_grad(set_to_none=True)
    parts = parts_of(batch, worker.job.recipe.accumulation)
    share = worker.share_of(batch)
    sums: dict[str, Tensor] = {}
    for number, (part, weight) in enumerate(parts, start=1):
        # Gradients are averaged over the workers once, when they are complete.
        replica = worker.replica
        waits = number < len(parts) and isinstance(replica, DistributedDataParallel)
        with cast(DistributedDataParallel, replica).no_sync() if waits else contextlib.nullcontext():
            for name, value in _add_gradients(worker, part, share * weight).items():
                sums[name] = sums[name] + weight * value if name in sums else weight * value
    optim = worker.job.recipe.optim
    if optim.clip_gradient_norm:
        parameters = [each for group in worker.optimiser.param_groups for each in group["params"]]
        sums["gradient_norm"] = torch.nn.utils.clip_grad_norm_(parameters, optim.clip_gradient_norm)
    worker.optimiser.step()
    worker.schedule.step()
    if worker.averaged is not None:
        decay = worker.job.recipe.ema_decay
        update_average(worker.averaged, worker.network, step=worker.schedule.last_epoch, decay=decay)
    return sums


def _add_gradients(worker: Worker, batch: Batch, weight: float) -> dict[str, Tensor]:
    """Forward and backward of a batch, or of a part; its loss is multiplied by `weight` in the gradients alone."""
    images_N3HW = normalised(worker, batch.images_N3HW)
    labels = batch.labels.to(worker.device, non_blocking=True)
    model = cast(SegmentationModel, worker.network)  # or a Classifier, whose loss takes its own output and labels
    with _autocast(worker):
        terms = model.loss(worker.replica(images_N3HW), labels)
    # `loss.backward()`, with types; DDP averages gradients over the workers, whatever their shares
    torch.autograd.backward(terms.total if weight == 1 else weight * terms.total)
    parts = {f"loss_{name}": value for name, value in terms.terms.items()} if len(terms.terms) > 1 else {}
    return {"loss": terms.total.detach()} | parts


def parts_of(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """At most `count` equal parts of a batch, and the weight of each: the sum of weight * mean is the batch's mean.

    A loss is a mean over valid pixels, so a part weighs as many as it has (of a classifier: images). In a batch without
    any all weigh the same.
    """
    if count == 1:
        return [(batch, 1.0)]
    count = min(count, len(batch.images_N3HW))
    images, labels = (each.tensor_split(count) for each in (batch.images_N3HW, batch.labels))
    sizes = [int((part != IGNORE_INDEX).sum()) if part.ndim == 3 else len(part) for part in labels]
    if not any(sizes):
        sizes = [1] * count
    parts = (Batch(*pair) for pair in zip(images, labels, strict=True))
    return [(part, size / sum(sizes)) for part, size in zip(parts, sizes, strict=True)]


def recompute_from_batches(worker: Worker, batches: Iterator[Batch]) -> None:
    """Statistics of batch normalisation from the next training batches, as many as the recipe says."""
    count = min(worker.job.recipe.batch_norm_batches, worker.job.steps_per_epoch)
    with _autocast(worker):
        used = recompute_batch_norm(
            worker.judged, (normalised(worker, batch.images_N3HW) for batch in islice(batches, count))
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
    network = worker.judged.eval()
    # Every size of image would be tuned anew.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
        for batch in batches:
            # forward, past torch.compile: it would compile anew for every size of image
            output = network.forward(normalised(worker, batch.images_N3HW))
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
    """The state after one more epoch."""
    epoch = state.epochs
    stale = 0 if score > state.best_score else state.stale + 1
    better = score >= state.best_score and score >= 0  # of equals the later, as Ray Train keeps them
    return Progress(
        epochs=epoch + 1,
        best_score=score if better else state.best_score,
        best_epoch=epoch if better else state.best_epoch,
        seconds=state.seconds + seconds,
        stale=state.stale if score == NOT_VALIDATED else stale,
    )


def _save_within(
    worker: Worker, saver: Saver, state: Progress, so_far: EpochState, reason: str, *, seconds: float
) -> None:
    """A checkpoint within an epoch; every worker has a part of it."""
    epoch, steps_per_epoch = state.epochs, worker.job.steps_per_epoch
    worker.say(f"checkpoint in epoch {epoch + 1} after {so_far.steps} of {steps_per_epoch} steps: {reason}")
    files = own_files(
        worker.network,
        so_far,
        epoch=epoch,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        averaged=worker.averaged,
    )
    if worker.rank == 0:
        now = dataclasses.replace(state, seconds=seconds)
        files |= shared_files(worker.network, worker.optimiser, worker.schedule, now, averaged=worker.averaged)
    metrics = {"epoch": epoch, "step": so_far.steps, SELECTION_METRIC: UNFINISHED, REASON: reason}
    name = checkpoint_name(epoch, so_far.steps)
    saver.save(files, metrics, name, count=epoch * steps_per_epoch + so_far.steps)


def _save_epoch(worker: Worker, saver: Saver, state: Progress, metrics: dict[str, float], score: float) -> None:
    """A checkpoint between two epochs, where all workers are equal: the first writes it, all must report."""
    files = {}
    if worker.rank == 0:
        files = shared_files(worker.network, worker.optimiser, worker.schedule, state, averaged=worker.averaged)
    reported = {**metrics, "epoch": state.epochs - 1, SELECTION_METRIC: score}
    saver.save(files, reported, checkpoint_name(state.epochs - 1), count=state.epochs * worker.job.steps_per_epoch)


def _autocast(worker: Worker) -> torch.autocast:
    enabled = worker.job.recipe.precision == "bfloat16"
    return torch.autocast(worker.device.type, dtype=torch.bfloat16, enabled=enabled)


def _mean_over_workers(value: Tensor, world_size: int) -> float:
    if world_size > 1:
        dist.all_reduce(value)
    return float(value) / world_size


def _epoch_seed(seed: int, epoch: int, rank: int, steps: int) -> int:
    """Of the generators from that step of the epoch on; 0 but where another number of workers goes on within it."""
    return int(np.random.SeedSequence([seed, epoch, rank, 1] + ([steps] if steps else [])).generate_state(1)[0])


def _epoch_line(metrics: dict[str, float], state: Progress, worker: Worker) -> str:
    line = f"epoch {state.epochs}/{worker.job.recipe.epochs}: loss {metrics['train/loss']:.4f}"
    if "train/images_per_second" in metrics:
        line += f", {metrics['train/images_per_second']:.1f} images/s"
    if worker.task.selection in metrics:
        line += f", val {worker.task.score_name} {percent(metrics[worker.task.selection])}"
        line += " (best)" if state.best_epoch == state.epochs - 1 else f" (best {percent(state.best_score)})"
    return line
