"""What a checkpoint holds, and how it comes back: the same bits go on after any death. No pickled code is loaded.

model.safetensors           weights and buffers, as in a model folder (of the first worker, within an epoch)
averaged.safetensors        the same of their moving average, where the recipe has one: this becomes the model then
training_state.pt           optimiser, schedule, `Progress`; read with weights_only
position.json, worker-*     within an epoch, see `position`: what differs between the workers
"""

import dataclasses
import io
from dataclasses import dataclass, field

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipelines import storage
from pipelines.checkpoints import WEIGHTS_FILE, read_state, state_bytes
from pipelines.training.position import (
    POSITION_FILE,
    SEEN,
    SEEN_BEFORE,
    Position,
    pack,
    position_bytes,
    unpack,
    worker_file,
)

TRAINING_STATE_FILE = "training_state.pt"
AVERAGED_FILE = "averaged.safetensors"

Files = dict[str, bytes]
"""Content of a folder, or one worker's share of it, by file name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands between two epochs.

    Attributes:
        epochs: epochs done.
        best_score: highest validation score so far (mIoU, top-1), -1 before the first validation.
        best_epoch: index of the epoch that reached it, -1 before the first validation.
        seconds: time spent in epochs, over all starts of the run.
        stale: validations in a row whose score was no better than all before.
    """

    epochs: int
    best_score: float
    best_epoch: int
    seconds: float
    stale: int = 0


@dataclass(kw_only=True, slots=True)
class EpochState:
    """How far this worker is in an epoch; an additive state.

    Attributes:
        steps: optimiser steps done.
        first_step: see `Position`.
        sums: of the loss and its terms over those steps, each weighted by this worker's share of the batch; on the
            worker's device.
        seen: one bool per image of the split: used by this worker since `first_step`.
        seen_before: used by anybody before.
        generators: states of the random generators to go on with, by device; empty where the epoch begins.
    """

    steps: int
    first_step: int
    sums: dict[str, Tensor]
    seen: NDArray[np.bool_]
    seen_before: NDArray[np.bool_]
    generators: dict[str, Tensor] = field(default_factory=dict)


def new_epoch(num_images: int) -> EpochState:
    """An epoch of which nothing is done."""
    nothing = np.zeros(num_images, dtype=np.bool_)
    return EpochState(steps=0, first_step=0, sums={}, seen=nothing.copy(), seen_before=nothing)


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that a step draws from (dropout): of the CPU and of this worker's GPU."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `generator_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def shared_files(
    network: nn.Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    progress: Progress,
    *,
    averaged: nn.Module | None = None,
) -> Files:
    """What is equal on all workers (between two epochs: all of it), as the first of them writes it."""
    data = io.BytesIO()
    state = {
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "progress": dataclasses.asdict(progress),
    }
    torch.save(state, data)
    files = {WEIGHTS_FILE: state_bytes(network.state_dict()), TRAINING_STATE_FILE: data.getvalue()}
    return files | ({AVERAGED_FILE: state_bytes(averaged.state_dict())} if averaged is not None else {})


def own_files(
    network: nn.Module,
    so_far: EpochState,
    *,
    epoch: int,
    rank: int,
    world_size: int,
    device: torch.device,
    averaged: nn.Module | None = None,
) -> Files:
    """What differs between the workers within an epoch; the first also writes the position."""
    tensors = {f"generator/{name}": state for name, state in generator_states(device).items()}
    for prefix, each in _networks(network, averaged).items():
        tensors |= {f"{prefix}/{name}": buffer.detach() for name, buffer in _stored_buffers(each).items()}
    tensors |= {f"sum/{name}": value.detach() for name, value in so_far.sums.items()}
    tensors |= {SEEN: torch.from_numpy(pack(so_far.seen)), SEEN_BEFORE: torch.from_numpy(pack(so_far.seen_before))}
    files = {worker_file(rank): safetensors.torch.save({name: each.cpu().clone() for name, each in tensors.items()})}
    if rank == 0:
        position = Position(epoch=epoch, steps=so_far.steps, first_step=so_far.first_step, world_size=world_size)
        files[POSITION_FILE] = position_bytes(position)
    return files


def restore_shared(
    checkpoint: str,
    network: nn.Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    device: torch.device,
    *,
    averaged: nn.Module | None = None,
) -> Progress:
    """Load what `shared_files` wrote into the folder `checkpoint` (URI)."""
    for file, each in ((WEIGHTS_FILE, network), (AVERAGED_FILE, averaged)):
        if each is not None:
            weights = storage.join(checkpoint, file)
            each.load_state_dict(read_state(storage.read_bytes(weights), origin=weights))
    data = io.BytesIO(storage.read_bytes(storage.join(checkpoint, TRAINING_STATE_FILE)))
    state = torch.load(data, map_location=device, weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return Progress(**state["progress"])


def restore_own(
    checkpoint: str,
    position: Position,
    network: nn.Module,
    *,
    num_images: int,
    rank: int,
    world_size: int,
    device: torch.device,
    averaged: nn.Module | None = None,
) -> EpochState:
    """Load what `own_files` wrote, and this worker's buffers into its network (and its average).

    With another number of workers than wrote it, every worker gets the average of their running statistics and of
    their sums, as at the end of an epoch, and generators that are seeded anew.

    Raises:
        FileNotFoundError: a worker's file is missing.
    """
    same = position.world_size == world_size
    ranks = [rank] if same else range(position.world_size)
    states = [safetensors.torch.load(storage.read_bytes(storage.join(checkpoint, worker_file(each)))) for each in ranks]
    statistics = _running_statistics(network)
    for prefix, each in _networks(network, averaged).items():
        for name, buffer in _stored_buffers(each).items():
            found = [state[f"{prefix}/{name}"] for state in states]
            buffer.copy_(found[0] if name not in statistics or same else torch.stack(found).mean(dim=0))
    sums = {
        name.removeprefix("sum/"): torch.stack([state[name] for state in states]).mean(dim=0).to(device)
        for name in states[0]
        if name.startswith("sum/")
    }
    seen_before = unpack(states[0][SEEN_BEFORE].numpy(), num_images=num_images)
    seen = np.logical_or.reduce([unpack(state[SEEN].numpy(), num_images=num_images) for state in states])
    if not same:
        seen, seen_before = np.zeros(num_images, dtype=np.bool_), seen | seen_before
    generators = {
        name.removeprefix("generator/"): state
        for name, state in states[0].items()
        if same and name.startswith("generator/")
    }
    return EpochState(
        steps=position.steps,
        first_step=position.first_step if same else position.steps,
        sums=sums,
        seen=seen,
        seen_before=seen_before,
        generators=generators,
    )


def _networks(network: nn.Module, averaged: nn.Module | None) -> dict[str, nn.Module]:
    """By the prefix of their buffers' names in a worker's own file."""
    return {"buffer": network} | ({"averaged": averaged} if averaged is not None else {})


def _stored_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of a model folder, by name: those in its state, not what a module only caches."""
    stored = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name in stored}


def _running_statistics(network: nn.Module) -> set[str]:
    """Names of the buffers that each worker averages over its own images."""
    modules = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    return {f"{name}.{buffer}" for name in modules for buffer in ("running_mean", "running_var")}
