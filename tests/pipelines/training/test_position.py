"""Where a run stands: names of checkpoints, shares of a batch, images seen, and Ray Train's list after a death."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.training.position import (
    POSITION_FILE,
    SNAPSHOT_COPY,
    SNAPSHOT_FILE,
    Position,
    checkpoint_name,
    images_before,
    keep_snapshot,
    latest_checkpoint,
    pack,
    place_of,
    position_bytes,
    read_position,
    remove_unregistered,
    repair_snapshot,
    unpack,
)


def test_names_of_checkpoints_sort_by_time_and_say_their_place() -> None:
    names = [
        checkpoint_name(2, 1),
        checkpoint_name(2, 120),
        checkpoint_name(2),
        checkpoint_name(3, 7),
        checkpoint_name(3),
    ]
    assert [place_of(name) for name in names] == [(2, 1), (2, 120), (3, 0), (3, 7), (4, 0)]


@pytest.mark.parametrize("batch_size", [1, 6, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_every_batch_is_shared_out_whole_and_evenly(batch_size: int, world_size: int) -> None:
    def share(step: int, rank: int) -> int:
        before, after = (
            images_before(each, batch_size=batch_size, rank=rank, world_size=world_size) for each in (step, step + 1)
        )
        return after - before

    for step in range(20):
        shares = [share(step, rank) for rank in range(world_size)]
        assert sum(shares) == batch_size
        assert max(shares) - min(shares) <= (batch_size % world_size > 0)
    # Ray Data gives each worker a floor of the images; a share of the epoch exceeds that by one at most.
    for rank in range(world_size):
        needed = images_before(20, batch_size=batch_size, rank=rank, world_size=world_size)
        assert needed - 20 * batch_size // world_size in (0, 1)


def test_images_seen_survive_packing() -> None:
    seen = np.random.default_rng(0).random(43) < 0.5
    packed = pack(seen)
    assert packed.nbytes == 6
    assert np.array_equal(unpack(packed, num_images=43), seen)


def write_list(folder: Path, names: list[str]) -> None:
    content = {
        "checkpoint_results": [{"checkpoint_dir_name": name} for name in names],
        "latest_checkpoint_result": {"checkpoint_dir_name": names[-1]},
    }
    storage.write_atomic(str(folder / SNAPSHOT_FILE), storage.json_bytes(content))


def write_checkpoints(folder: Path, names: list[str]) -> None:
    for name in names:
        storage.write_atomic(str(folder / name / "training_state.pt"), b"state")


def test_a_run_resumes_from_the_latest_registered_checkpoint(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert latest_checkpoint(run) is None and read_position(None) == Position(epoch=0)
    write_list(tmp_path, [checkpoint_name(1), checkpoint_name(3)])
    latest = latest_checkpoint(run)
    assert latest == str(tmp_path / "checkpoint-00003") and read_position(latest) == Position(epoch=4)
    within = Position(epoch=4, steps=5, first_step=2, world_size=3)
    write_list(tmp_path, [checkpoint_name(3), checkpoint_name(4, 5)])
    latest = latest_checkpoint(run)
    assert latest is not None
    storage.write_atomic(storage.join(latest, POSITION_FILE), position_bytes(within))
    assert read_position(latest) == within


def test_checkpoints_that_nobody_registered_go_but_those_that_may_still_be(tmp_path: Path) -> None:
    registered = [checkpoint_name(1), checkpoint_name(2, 4)]
    lost, late = [checkpoint_name(0, 7), checkpoint_name(2, 2)], [checkpoint_name(2, 6), checkpoint_name(2)]
    write_checkpoints(tmp_path, registered + lost + late)
    write_list(tmp_path, registered)
    assert remove_unregistered(str(tmp_path), finished=False) == lost
    assert storage.list_folders(str(tmp_path)) == sorted(registered + late)
    assert remove_unregistered(str(tmp_path), finished=True) == sorted(late)
    assert storage.list_folders(str(tmp_path)) == sorted(registered)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_a_list_of_checkpoints_that_was_cut_short_is_repaired(tmp_path: Path) -> None:
    """Ray writes it in place; a controller that is killed there would leave a run that nobody can resume."""
    run = str(tmp_path)
    assert not repair_snapshot(run)
    write_list(tmp_path, [checkpoint_name(0)])
    keep_snapshot(run)
    assert not repair_snapshot(run)
    cut(tmp_path / SNAPSHOT_FILE)
    assert repair_snapshot(run)
    assert latest_checkpoint(run) == str(tmp_path / "checkpoint-00000")


def test_without_a_copy_only_a_run_that_loses_nothing_begins_anew(tmp_path: Path) -> None:
    write_checkpoints(tmp_path, [checkpoint_name(0)])
    write_list(tmp_path, [checkpoint_name(0)])
    cut(tmp_path / SNAPSHOT_FILE)
    assert repair_snapshot(str(tmp_path)) and not (tmp_path / SNAPSHOT_FILE).exists()
    write_checkpoints(tmp_path, [checkpoint_name(1)])
    write_list(tmp_path, [checkpoint_name(0), checkpoint_name(1)])
    cut(tmp_path / SNAPSHOT_FILE)
    with pytest.raises(ValueError, match="is not JSON"):
        repair_snapshot(str(tmp_path))
    assert not (tmp_path / SNAPSHOT_COPY).exists()
