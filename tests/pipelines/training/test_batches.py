"""Rows and batches of a training: every image once an epoch, the same for the same seed wherever a run resumes."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from pipelines.shards import PreparedDataset, open_dataset
from pipelines.training.batches import Batch, Pass, decoded, started, training_batches, validation_batches
from pipelines.training.tasks import TASKS
from segcore import IGNORE_INDEX
from tests.pipelines.learnable_dataset import NUM_TRAIN, NUM_VAL, tiny_recipe, write_learnable_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


def rows_of(dataset: PreparedDataset, *, first_epoch: int, seed: int) -> Any:
    """One worker's share as Ray Train hands it out."""
    import ray.data

    from pipelines.training.rows import shard_rows

    rows = shard_rows(dataset, split="train", seed=seed, first_epoch=first_epoch)
    rows.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    (split,) = rows.streaming_split(1, equal=True)
    return split


def ids_of_epochs(dataset: PreparedDataset, *, first_epoch: int, epochs: int, seed: int = 5) -> list[list[str]]:
    split = rows_of(dataset, first_epoch=first_epoch, seed=seed)
    return [[row["image_id"] for row in split.iter_rows()] for _ in range(epochs)]


def test_shards_come_in_another_order_every_epoch_and_in_the_same_after_a_resume(
    dataset: PreparedDataset, ray_session: None
) -> None:
    first, second, third = ids_of_epochs(dataset, first_epoch=0, epochs=3)
    assert sorted(first) == sorted(second) == sorted(third)
    assert len(set(first)) == NUM_TRAIN
    assert first != second != third != first
    assert ids_of_epochs(dataset, first_epoch=1, epochs=2) == [second, third]


def stream_of(dataset: PreparedDataset, epochs: range, *, steps_per_epoch: int = NUM_TRAIN // 8) -> Iterator[Batch]:
    rows = rows_of(dataset, first_epoch=epochs.start, seed=1)
    return training_batches(
        [Pass(rows=rows, epoch=epoch) for epoch in epochs],
        draw=lambda row, generator: TASKS["segmentation"].training_pair(
            row, generator, tiny_recipe().augment, (1, 2, 3)
        ),
        batch_size=8,
        steps_per_epoch=steps_per_epoch,
        shuffle_buffer=16,
        seed=1,
        rank=0,
        world_size=1,
        num_threads=2,
        pin_memory=False,
    )


def batches_of(dataset: PreparedDataset, epochs: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.images_N3HW, batch.labels) for batch in stream_of(dataset, epochs)]


def test_batches_are_augmented_uint8_crops_and_a_resumed_stream_goes_on_with_the_same(
    dataset: PreparedDataset, ray_session: None
) -> None:
    batches = batches_of(dataset, range(2))
    assert len(batches) == 2 * (NUM_TRAIN // 8)
    for images, labels in batches:
        assert images.shape == (8, 3, 64, 64) and images.dtype == torch.uint8
        assert labels.shape == (8, 64, 64) and labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORE_INDEX}
    first, second = batches[: NUM_TRAIN // 8], batches[NUM_TRAIN // 8 :]
    assert not torch.equal(first[0][0], second[0][0])
    resumed = batches_of(dataset, range(1, 2))
    assert all(torch.equal(one[0], two[0]) for one, two in zip(second, resumed, strict=True))


@pytest.mark.parametrize("epochs", [range(1), range(2)])
@pytest.mark.parametrize("steps", [1, 3, NUM_TRAIN // 8 + 1])
def test_an_epoch_of_another_length_is_an_error(
    dataset: PreparedDataset, ray_session: None, steps: int, epochs: range
) -> None:
    """The workers would wait for each other for ever. Who takes no more than the batches of one epoch sees it too."""
    with pytest.raises(RuntimeError, match=f"got {NUM_TRAIN // 8} batches in epoch 0, expected {steps}"):
        list(islice(stream_of(dataset, epochs, steps_per_epoch=steps), steps))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
@pytest.mark.parametrize("world_size", [1, 2, 4, 20])
def test_validation_shares_hold_every_image_once_in_order_and_in_the_same_batches(
    dataset: PreparedDataset, world_size: int, batch_size: int
) -> None:
    whole = share(dataset, rank=0, world_size=1, batch_size=batch_size)
    assert [len(labels) for labels in whole[:-1]] == [batch_size] * (len(whole) - 1)
    assert sum(map(len, whole)) == NUM_VAL
    parts = [
        labels
        for rank in range(world_size)
        for labels in share(dataset, rank=rank, world_size=world_size, batch_size=batch_size)
    ]
    assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))


def share(dataset: PreparedDataset, *, rank: int, world_size: int, batch_size: int) -> list[torch.Tensor]:
    """Labels of the batches, cut to one size, as batches of several sizes of image cannot be stacked."""

    def cut(row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        image_3HW, labels_HW = decoded(row)
        return image_3HW[:, :48, :48], labels_HW[:48, :48]

    settings = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
    return [batch.labels for batch in validation_batches(dataset, split="val", decode=cut, num_threads=2, **settings)]


def test_a_generator_runs_ahead_by_its_depth_and_no_further() -> None:
    produced: list[int] = []

    def produce() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            yield number

    stream = started(produce, depth=3)
    deadline = time.monotonic() + 5
    while len(produced) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(produced) == 4  # three wait in the queue and one in the producer's hand
    assert list(stream) == list(range(100))


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def produce() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("shard 3 is broken")

    stream = started(produce, depth=5)
    assert (next(stream), next(stream)) == (1, 2)
    with pytest.raises(ValueError, match="shard 3 is broken"):
        next(stream)


def test_dropping_the_stream_ends_its_thread() -> None:
    closed = threading.Event()

    def produce() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    stream = started(produce, depth=2)
    assert next(stream) == 0
    del stream
    assert closed.wait(timeout=5)


def test_decoded_rows_are_writable_and_aligned(dataset: PreparedDataset) -> None:
    from pipelines.shards import read_part

    row = read_part(dataset, dataset.splits["train"].parts[0]).to_pylist()[0]
    image_3HW, labels_HW = decoded(row)
    assert image_3HW.shape == (3, row["height"], row["width"]) and labels_HW.shape == (row["height"], row["width"])
    counts = Counter(labels_HW.flatten().tolist())
    assert [counts.get(index, 0) for index in range(dataset.num_classes)] == row["class_pixels"]
    labels_HW += 0  # raises on read-only memory
