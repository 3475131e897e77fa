"""Rows and batches of a training: every image once an epoch, the same for the same seed wherever a run resumes."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.shards import PreparedDataset, open_dataset
from pipelines.training.batches import Batch, Pair, Pass, decoded, started, training_batches, validation_batches
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


def test_an_epoch_is_the_same_however_many_shards_a_task_reads(
    dataset: PreparedDataset, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.training import rows

    parts = dataset.splits["train"].parts
    assert len(parts) > 2 and sum(part.num_bytes for part in parts) < rows.BYTES_PER_TASK
    together = ids_of_epochs(dataset, first_epoch=0, epochs=2)
    monkeypatch.setattr(rows, "BYTES_PER_TASK", 1)
    assert ids_of_epochs(dataset, first_epoch=0, epochs=2) == together


def stream_of(dataset: PreparedDataset, epochs: range, *, steps_per_epoch: int = NUM_TRAIN // 8) -> Iterator[Batch]:
    rows = rows_of(dataset, first_epoch=epochs.start, seed=1)
    return stream_of_passes([Pass(rows=rows, epoch=epoch) for epoch in epochs], steps_per_epoch=steps_per_epoch)


def stream_of_passes(
    passes: list[Pass], *, steps_per_epoch: int = NUM_TRAIN // 8, drawn: list[str] | None = None
) -> Iterator[Batch]:
    def draw(row: dict[str, Any], generator: torch.Generator) -> Pair:
        if drawn is not None:
            drawn.append(row["image_id"])
        return TASKS["segmentation"].training_pair(row, generator, tiny_recipe().augment, (1, 2, 3))

    return drawn_by(draw, passes, steps_per_epoch=steps_per_epoch)


def drawn_by(
    draw: Callable[[dict[str, Any], torch.Generator], Pair],
    passes: list[Pass],
    *,
    steps_per_epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    return training_batches(
        passes,
        draw=draw,
        batch_size=8,
        steps_per_epoch=steps_per_epoch,
        shuffle_buffer=16,
        seed=1,
        rank=rank,
        world_size=world_size,
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


def test_a_stream_that_resumes_within_an_epoch_passes_over_what_was_seen(
    dataset: PreparedDataset, ray_session: None
) -> None:
    """Bit for bit the batches that were not seen, and only they are decoded."""
    drawn: list[str] = []

    def rows_after(done: int) -> list[Batch]:
        rows = rows_of(dataset, first_epoch=2, seed=1)
        passes = [Pass(rows=rows, epoch=2, done=done), Pass(rows=rows, epoch=3)]
        return list(stream_of_passes(passes, drawn=drawn))

    whole = rows_after(0)
    seen = [number for batch in whole[:4] for number in batch.rows]
    assert len(whole) == 8 and len(set(seen)) == 32 and max(seen) < NUM_TRAIN
    drawn.clear()
    resumed = rows_after(3)
    assert [batch.rows for batch in resumed] == [batch.rows for batch in whole[3:]]
    for one, two in zip(whole[3:], resumed, strict=True):
        assert torch.equal(one.images_N3HW, two.images_N3HW) and torch.equal(one.labels, two.labels)
    assert len(drawn) == 5 * 8


def test_images_that_were_seen_are_left_out_of_an_epoch_that_is_divided_anew(
    dataset: PreparedDataset, ray_session: None
) -> None:
    from pipelines.training.rows import shard_rows

    seen = np.zeros(NUM_TRAIN, dtype=np.bool_)
    seen[[0, 5, 7, 8, 9, 37]] = True
    rows = shard_rows(dataset, split="train", seed=1, first_epoch=0, seen=seen, without_cpus=True)
    assert sorted(row["row"] for row in rows.iter_rows()) == np.flatnonzero(~seen).tolist()


class SplitRows:
    """One worker's share as Ray Data's equal split hands it out, without Ray: `count` rows, from `first` on."""

    def __init__(self, first: int, count: int) -> None:
        self.numbers = list(range(first, first + count))

    def iter_batches(self, *, batch_size: int, **settings: Any) -> Iterator[pa.Table]:
        for start in range(0, len(self.numbers), batch_size):
            numbers = self.numbers[start : start + batch_size]
            yield pa.table(
                {"image_id": [str(each) for each in numbers], "row": numbers, "error": [None] * len(numbers)}
            )


def blank(row: dict[str, Any], generator: torch.Generator) -> Pair:
    return torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)


def unequal_share(rank: int, *, num_images: int, done: int = 0) -> list[tuple[int, ...]]:
    share = (num_images - 8 * done) // 3
    rows: Any = SplitRows(100 * rank, share)
    passes = [Pass(rows=rows, epoch=0, first_step=done, done=done)]
    stream = drawn_by(blank, passes, steps_per_epoch=4, rank=rank, world_size=3)
    return [batch.rows for batch in stream]


@pytest.mark.parametrize("num_images", [32, 33, 34, 39])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_three_workers_share_batches_of_eight(num_images: int, done: int) -> None:
    """Ray Data gives each a third of the images, rounded down; a share that lacks the very last repeats one."""
    shares = [unequal_share(rank, num_images=num_images, done=done) for rank in range(3)]
    for step in range(4 - done):
        assert sum(len(share[step]) for share in shares) == 8
    used = [number for share in shares for rows in share for number in rows]
    given = 3 * ((num_images - 8 * done) // 3)
    assert len(used) - len(set(used)) == max(0, len(used) - given)


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


def test_the_next_epochs_rows_are_asked_for_before_the_last_ones_of_an_epoch_are_decoded() -> None:
    """Ray Data takes half a second to begin an epoch; meanwhile there is something to decode."""
    asked, hold = [threading.Event(), threading.Event()], threading.Event()

    class Share(SplitRows):
        def __init__(self, epoch: int) -> None:
            super().__init__(0, 32)
            self.epoch = epoch

        def iter_batches(self, *, batch_size: int, **settings: Any) -> Iterator[pa.Table]:
            asked[self.epoch].set()
            yield from super().iter_batches(batch_size=8)

    def draw(row: dict[str, Any], generator: torch.Generator) -> Pair:
        assert hold.wait(30)
        return blank(row, generator)

    shares: list[Any] = [Share(0), Share(1)]
    stream = drawn_by(draw, [Pass(rows=share, epoch=share.epoch) for share in shares], steps_per_epoch=4)
    early = asked[1].wait(20)
    hold.set()
    assert early, "no image of the first epoch is decoded yet"
    assert [number for batch in stream for number in batch.rows] == 2 * list(range(32))
