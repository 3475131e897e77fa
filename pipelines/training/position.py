"""Where a run stands: which checkpoint is the latest, how far its epoch is, and which of the epoch's images were seen.

    checkpoint-00003/               after epoch 3 (counted from 0): weights and training state
    checkpoint-00004-step-0000120/  within epoch 4, after 120 of its steps; beside those
        position.json               the `Position`
        worker-00000.safetensors    one per worker: random generators, buffers, running sums, images seen

The images of an epoch are divided among the workers once, when the epoch begins. A run that resumes within the epoch
with as many workers as before divides them again in the same way and each worker passes over what it has seen: the
batches are those of a run that nobody stopped. With another number of workers the images that nobody has seen yet are
divided anew: the batches are others, but no image comes twice and no step is lost.

Ray's controller imports this module: nothing heavy here.
"""

import dataclasses
import posixpath
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pipelines import storage

POSITION_FILE = "position.json"
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
"""Where Ray Train keeps what checkpoints there are. No public call tells the controller; the tests resume runs and
would notice a change."""
SNAPSHOT_COPY = "checkpoint_manager_snapshot.copy.json"
ROW = "row"
"""Column that the reader adds: the image's number in the split, in the order of the manifest; of a training that
samples, the visit's number (`pipelines.training.visits`). There are as many visits as images, and what is said here of
images that were seen is said of visits then."""
SEEN, SEEN_BEFORE = "seen", "seen_before"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place in a training.

    Attributes:
        epoch: the epoch that is under way, or that comes next.
        steps: optimiser steps done in it; 0 between two epochs.
        first_step: the step of this epoch at which its images, or what was left of them, were last divided among the
            workers; 0 unless their number has changed within the epoch.
        world_size: workers among which they were divided; 0 between two epochs.
    """

    epoch: int
    steps: int = 0
    first_step: int = 0
    world_size: int = 0


def checkpoint_name(epoch: int, steps: int | None = None) -> str:
    """Folder of the checkpoint after `epoch`, or after `steps` of it, within the run's folder. Names sort by time."""
    if steps is None:
        return f"checkpoint-{epoch:05d}"
    return f"checkpoint-{epoch:05d}-step-{steps:07d}"


def place_of(name: str) -> tuple[int, int]:
    """Epoch and steps that a checkpoint's folder is named after, as a position: (3, 120), or (4, 0) after epoch 3."""
    epoch, _, steps = name.removeprefix("checkpoint-").partition("-step-")
    return (int(epoch), int(steps)) if steps else (int(epoch) + 1, 0)


def worker_file(rank: int) -> str:
    """Name of a worker's own file within a checkpoint."""
    return f"worker-{rank:05d}.safetensors"


def latest_checkpoint(run_folder: str) -> str | None:
    """URI of the checkpoint from which Ray Train will resume this run, or None for a new one."""
    snapshot = storage.join(run_folder, SNAPSHOT_FILE)
    if not storage.exists(snapshot):
        return None
    latest = storage.read_json(snapshot)["latest_checkpoint_result"]
    return storage.join(run_folder, latest["checkpoint_dir_name"]) if latest else None


def read_position(checkpoint: str | None) -> Position:
    """Where a run stands that resumes from `checkpoint` (URI; None: from the start)."""
    if checkpoint is None:
        return Position(epoch=0)
    epoch, steps = place_of(posixpath.basename(checkpoint))
    return Position(**storage.read_json(storage.join(checkpoint, POSITION_FILE))) if steps else Position(epoch=epoch)


def position_bytes(position: Position) -> bytes:
    """Content of `POSITION_FILE`."""
    return storage.json_bytes(dataclasses.asdict(position))


def images_before(step: int, *, batch_size: int, rank: int, world_size: int) -> int:
    """How many images of an epoch's first `step` batches are this worker's.

    floor((step * batch_size + rank) / world_size). Over all ranks that is step * batch_size (Hermite's identity), so
    every batch has `batch_size` images whatever the number of workers; where that divides the batch, all shares are
    equal.
    """
    return (step * batch_size + rank) // world_size


def pack(seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One bit per image."""
    return np.packbits(seen)


def unpack(packed: NDArray[np.uint8], *, num_images: int) -> NDArray[np.bool_]:
    """The inverse of `pack`."""
    return np.unpackbits(packed, count=num_images).astype(np.bool_)


def seen_images(checkpoint: str, position: Position, *, num_images: int, divided_anew: bool) -> NDArray[np.bool_]:
    """Which images of the epoch under way are not to be handed out.

    Args:
        checkpoint: URI.
        position: its position, within an epoch.
        num_images: of the split.
        divided_anew: every image that was seen; else those that were seen before the last division, since the workers
            pass over the later ones themselves.

    Raises:
        FileNotFoundError: a worker's file is missing.
    """
    ranks = range(position.world_size) if divided_anew else range(1)
    seen = np.zeros(num_images, dtype=np.bool_)
    for rank in ranks:
        state = safetensors.numpy.load(storage.read_bytes(storage.join(checkpoint, worker_file(rank))))
        seen |= unpack(state[SEEN_BEFORE], num_images=num_images)
        if divided_anew:
            seen |= unpack(state[SEEN], num_images=num_images)
    return seen


def keep_snapshot(run_folder: str) -> None:
    """Copy Ray Train's list of checkpoints, which it writes in place: a controller killed then leaves half a file.

    The checkpoints that the copy names exist until the next list is complete: Ray removes them after that.
    """
    data = storage.read_bytes(storage.join(run_folder, SNAPSHOT_FILE))
    storage.write_atomic(storage.join(run_folder, SNAPSHOT_COPY), data)


def repair_snapshot(run_folder: str) -> bool:
    """Put the copy in place of a list of checkpoints that was cut short; whether that was needed.

    Raises:
        ValueError: the list is broken, and there is no copy of it but several checkpoints.
    """
    snapshot, copy = storage.join(run_folder, SNAPSHOT_FILE), storage.join(run_folder, SNAPSHOT_COPY)
    if not storage.exists(snapshot):
        return False
    try:
        storage.read_json(snapshot)
    except ValueError:
        if storage.exists(copy):
            storage.write_atomic(snapshot, storage.read_bytes(copy))
        elif len(_checkpoints(run_folder)) > 1:
            raise
        else:  # the first checkpoint was just being registered: without a list Ray starts from the beginning
            storage.remove_file(snapshot)
        return True
    return False


def remove_unregistered(run_folder: str, *, finished: bool) -> list[str]:
    """Remove checkpoints that were written and that Ray Train never heard of, since somebody died in between.

    Args:
        run_folder: URI.
        finished: whether the training has ended; else those that are later than the latest registered one stay, as the
            group of a killed driver may still be about to register them.

    Returns:
        Names of what was removed.
    """
    latest = latest_checkpoint(run_folder)
    if latest is None:
        return []
    results = storage.read_json(storage.join(run_folder, SNAPSHOT_FILE))["checkpoint_results"]
    registered = {each["checkpoint_dir_name"] for each in results}
    reached = place_of(posixpath.basename(latest))
    lost = sorted(name for name in _checkpoints(run_folder) - registered if finished or place_of(name) < reached)
    for name in lost:
        storage.remove_tree(storage.join(run_folder, name))
    return lost


def _checkpoints(run_folder: str) -> set[str]:
    return {name for name in storage.list_folders(run_folder) if name.startswith("checkpoint-")}
