"""Training states: what comes back is bit for bit what was, within an epoch too, and for another number of workers."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines import storage
from pipelines.shards import PreparedDataset, open_dataset
from pipelines.training.batches import Batch
from pipelines.training.loop import training_step
from pipelines.training.position import Position, read_position, seen_images
from pipelines.training.state import (
    EpochState,
    Files,
    Progress,
    generator_states,
    new_epoch,
    own_files,
    restore_own,
    restore_shared,
    set_generators,
    shared_files,
)
from pipelines.training.worker import Worker
from segcore.models import DeepLabV3PlusConfig, build_model
from segcore.optim import poly_factor
from tests.pipelines.learnable_dataset import NUM_TRAIN, tiny_recipe, write_learnable_dataset
from tests.pipelines.train_workers import worker_of

CPU = torch.device("cpu")
DONE = Progress(epochs=3, best_score=0.25, best_epoch=1, seconds=7.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


def make_worker(dataset: PreparedDataset, *, rank: int = 0, world_size: int = 1) -> Worker:
    recipe = dataclasses.replace(tiny_recipe(), ema_decay=0.9)
    assert isinstance(recipe.model, DeepLabV3PlusConfig)
    torch.manual_seed(0)
    network = build_model(recipe.model, dataset.num_classes)
    network.get_submodule("head").add_module("dropout", nn.Dropout(0.5))
    worker = worker_of(network, recipe, dataset, rank=rank, world_size=world_size)
    return dataclasses.replace(worker, averaged=copy.deepcopy(network).requires_grad_(False).eval())


def batches(count: int, *, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator),
            torch.randint(0, 3, (4, 64, 64), dtype=torch.uint8, generator=generator),
            tuple(range(4 * step, 4 * step + 4)),
        )
        for step in range(count)
    ]


def steps(worker: Worker, batches: list[Batch], so_far: EpochState) -> list[float]:
    """As the loop makes them; each also draws from the generators, as dropout does."""
    worker.network.train()
    drawn = []
    for batch in batches:
        for name, value in training_step(worker, batch).items():
            so_far.sums[name] = so_far.sums[name] + value if name in so_far.sums else value
        so_far.steps += 1
        so_far.seen[list(batch.rows)] = True
        drawn.append(float(torch.rand(())))
    return drawn


def write(folder: Path, files: Files) -> str:
    for name, data in files.items():
        storage.write_atomic(str(folder / name), data)
    return str(folder)


def files_of(worker: Worker, so_far: EpochState) -> Files:
    files = own_files(
        worker.network,
        so_far,
        epoch=DONE.epochs,
        rank=worker.rank,
        world_size=worker.world_size,
        device=CPU,
        averaged=worker.averaged,
    )
    if worker.rank == 0:
        files |= shared_files(worker.network, worker.optimiser, worker.schedule, DONE, averaged=worker.averaged)
    return files


def restored(folder: str, worker: Worker) -> EpochState:
    progress = restore_shared(folder, worker.network, worker.optimiser, worker.schedule, CPU, averaged=worker.averaged)
    assert progress == DONE
    return restore_own(
        folder,
        read_position(folder),
        worker.network,
        num_images=NUM_TRAIN,
        rank=worker.rank,
        world_size=worker.world_size,
        device=CPU,
        averaged=worker.averaged,
    )


def test_a_state_within_an_epoch_goes_on_with_the_same_bits(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Four steps, and the same four with a new process's state in the middle."""
    straight, all_batches = make_worker(dataset), batches(4, seed=1)
    torch.manual_seed(11)
    expected = new_epoch(NUM_TRAIN)
    drawn = steps(straight, all_batches, expected)

    first = make_worker(dataset)
    torch.manual_seed(11)
    so_far = new_epoch(NUM_TRAIN)
    before = steps(first, all_batches[:2], so_far)
    folder = write(tmp_path / "checkpoint-00003-step-0000002", files_of(first, so_far))
    torch.manual_seed(99)
    second = make_worker(dataset)
    again = restored(folder, second)
    assert (again.steps, again.first_step) == (2, 0)
    set_generators(again.generators, CPU)
    after = steps(second, all_batches[2:], again)

    assert before + after == drawn
    assert again.sums["loss"].item() == expected.sums["loss"].item()
    assert np.array_equal(again.seen, expected.seen) and again.seen.sum() == 16
    assert second.schedule.get_last_lr() == straight.schedule.get_last_lr()
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    for name, value in straight.judged.state_dict().items():
        assert torch.equal(value, second.judged.state_dict()[name]), name
    assert any(
        not torch.equal(value, straight.network.state_dict()[name])
        for name, value in straight.judged.named_parameters()
    )
    first_state, second_state = (next(iter(each.optimiser.state.values())) for each in (straight, second))
    assert torch.equal(first_state["exp_avg"], second_state["exp_avg"])


def checkpoint_of_two(dataset: PreparedDataset, folder: Path) -> tuple[str, list[Worker], list[EpochState]]:
    """Two workers after two steps of their own images, as DDP leaves them: equal weights, buffers of their own."""
    workers = [make_worker(dataset, rank=rank, world_size=2) for rank in range(2)]
    states = []
    for worker in workers:
        so_far = new_epoch(NUM_TRAIN)
        steps(worker, batches(2, seed=worker.rank), so_far)
        so_far.seen = np.roll(so_far.seen, 10 * worker.rank)
        states.append(so_far)
    parameters = dict(workers[0].network.named_parameters())
    with torch.no_grad():
        for name, parameter in workers[1].network.named_parameters():
            parameter.copy_(parameters[name])
    files: Files = {}
    for worker, so_far in zip(workers, states, strict=True):
        files |= files_of(worker, so_far)
    return write(folder / "checkpoint-00003-step-0000002", files), workers, states


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_buffers() if name.endswith(("_mean", "_var"))}


def test_every_worker_gets_its_own_buffers_and_sums_back(dataset: PreparedDataset, tmp_path: Path) -> None:
    folder, workers, states = checkpoint_of_two(dataset, tmp_path)
    for worker, so_far in zip(workers, states, strict=True):
        fresh = make_worker(dataset, rank=worker.rank, world_size=2)
        again = restored(folder, fresh)
        assert again.sums["loss"].item() == so_far.sums["loss"].item()
        assert np.array_equal(again.seen, so_far.seen) and not again.seen_before.any()
        for own, other in ((worker.network, fresh.network), (worker.judged, fresh.judged)):
            for name, value in statistics(own).items():
                assert torch.equal(value, statistics(other)[name]), name
    one, two = (statistics(worker.network) for worker in workers)
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_workers_gets_averages_and_what_nobody_has_seen(
    dataset: PreparedDataset, tmp_path: Path, world_size: int
) -> None:
    folder, workers, states = checkpoint_of_two(dataset, tmp_path)
    fresh = make_worker(dataset, rank=world_size - 1, world_size=world_size)
    again = restored(folder, fresh)
    assert (again.steps, again.first_step, again.generators) == (2, 2, {})
    assert not again.seen.any()
    assert np.array_equal(again.seen_before, states[0].seen | states[1].seen) and again.seen_before.sum() == 16
    # `world_size` equal sums have the mean that the two had
    expected = (states[0].sums["loss"] + states[1].sums["loss"]) / 2
    torch.testing.assert_close(again.sums["loss"], expected)
    for networks, found in (
        ([each.network for each in workers], fresh.network),
        ([each.judged for each in workers], fresh.judged),
    ):
        one, two = map(statistics, networks)
        for name, value in statistics(found).items():
            torch.testing.assert_close(value, (one[name] + two[name]) / 2)
    position = read_position(folder)
    assert position == Position(epoch=3, steps=2, first_step=0, world_size=2)
    handed_out = ~seen_images(folder, position, num_images=NUM_TRAIN, divided_anew=True)
    assert np.array_equal(handed_out, ~again.seen_before)
    assert not seen_images(folder, position, num_images=NUM_TRAIN, divided_anew=False).any()


def test_the_files_hold_no_code(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Tensors, and a zip that is read with weights_only; a state with anything else in it is refused."""
    worker = make_worker(dataset)
    files = files_of(worker, new_epoch(NUM_TRAIN))
    assert {name.rpartition(".")[2] for name in files} == {"safetensors", "pt", "json"}
    torch.save({"progress": Path("x")}, tmp_path / "training_state.pt")
    write(tmp_path, {name: data for name, data in files.items() if name != "training_state.pt"})
    with pytest.raises(Exception, match="weights_only"):
        restore_shared(str(tmp_path), worker.network, worker.optimiser, worker.schedule, CPU)


def test_generators_of_the_cpu_come_back() -> None:
    torch.manual_seed(5)
    states = generator_states(CPU)
    drawn = torch.rand(3)
    set_generators(states, CPU)
    assert torch.equal(torch.rand(3), drawn)


def test_unequal_shares_weigh_by_their_images_and_equal_ones_are_left_alone(dataset: PreparedDataset) -> None:
    """Gradients that DDP averages over three workers are those of the whole batch of 8 images."""
    weights = []
    for rank, images in enumerate((2, 3, 3)):
        worker = make_worker(dataset, rank=rank, world_size=3)
        weights.append(worker.share_of(Batch(torch.zeros(images, 3, 4, 4), torch.zeros(images, 4, 4))))
    assert weights == [2 * 3 / 8, 3 * 3 / 8, 3 * 3 / 8]
    assert make_worker(dataset, world_size=2).share_of(Batch(torch.zeros(4, 3, 4, 4), torch.zeros(4, 4, 4))) == 1
    plain, weighted = make_worker(dataset), make_worker(dataset, world_size=3)
    batch = batches(1, seed=3)[0]
    for worker in (plain, weighted):
        torch.manual_seed(1)  # dropout
        worker.network.train()
        training_step(worker, batch)
    share = weighted.share_of(batch)
    for (name, one), two in zip(plain.network.named_parameters(), weighted.network.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        torch.testing.assert_close(share * one.grad, two.grad, msg=name)


def test_the_learning_rate_of_an_epoch_is_that_of_its_first_step(dataset: PreparedDataset) -> None:
    worker = make_worker(dataset)
    job = dataclasses.replace(worker.job, recipe=dataclasses.replace(worker.job.recipe, epochs=2))
    worker = dataclasses.replace(worker, job=job)
    assert worker.learning_rate_at(0) == worker.optimiser.param_groups[0]["lr"]
    expected = 0.02 * poly_factor(4, total_steps=8, warmup_steps=0, power=0.9)
    assert worker.learning_rate_at(4) == pytest.approx(expected, rel=1e-12)
