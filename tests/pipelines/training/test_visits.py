"""Rows as often as an epoch visits them: numbered without a gap, the same after a resume, wherever it is divided."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from pipelines.shards import PreparedDataset, open_dataset, read_part
from pipelines.training.batches import Pass, training_batches
from pipelines.training.tasks import TASKS
from pipelines.training.visits import IMAGE_WEIGHTS, REPEAT, visited_rows
from segcore.class_balance import visits_of_epoch
from tests.pipelines.learnable_dataset import NUM_TRAIN, tiny_recipe, write_learnable_dataset

SEED = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


def shares() -> NDArray[np.float64]:
    """Most images seldom, a few often."""
    weights_N = np.random.default_rng(0).random(NUM_TRAIN) ** 5 + 0.01
    return np.asarray(weights_N / weights_N.sum())


@pytest.fixture(scope="module")
def weights_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("run") / "image_weights.safetensors"
    path.write_bytes(safetensors.numpy.save({IMAGE_WEIGHTS: shares()}))
    return str(path)


def test_visits_are_numbered_over_all_shards_without_a_gap(weights_uri: str) -> None:
    visits_N = visits_of_epoch(shares(), seed=SEED, epoch=2)
    assert visits_N.max() >= 3 and (visits_N == 0).any()
    numbers: list[int] = []
    for start in range(0, NUM_TRAIN, 8):
        ids = pa.table({"image": list(range(start, min(start + 8, NUM_TRAIN)))})
        rows, own = visited_rows(ids, start=start, image_weights=weights_uri, seed=SEED, epoch=2)
        images, repeats = rows["image"].to_pylist(), rows[REPEAT].to_pylist()
        assert Counter(images) == {image: visits_N[image] for image in ids["image"].to_pylist() if visits_N[image]}
        for image, repeat, number in zip(images, repeats, own.tolist(), strict=True):
            assert number == visits_N[:image].sum() + repeat
        assert repeats == sorted(repeats), "an image comes again after all others of its shard"
        numbers += own.tolist()
    assert sorted(numbers) == list(range(NUM_TRAIN))


Rows = Callable[..., Any]


@pytest.fixture
def rows_of(dataset: PreparedDataset, weights_uri: str, ray_session: None) -> Rows:
    """One worker's share as Ray Train hands it out."""
    import ray.data

    from pipelines.training.rows import shard_rows

    def make(*, first_epoch: int, seen: NDArray[np.bool_] | None = None) -> Any:
        settings: dict[str, Any] = {
            "seed": SEED,
            "first_epoch": first_epoch,
            "seen": seen,
            "image_weights": weights_uri,
        }
        rows = shard_rows(dataset, split="train", **settings)
        rows.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
        (split,) = rows.streaming_split(1, equal=True)
        return split

    return make


def test_each_execution_is_the_next_epoch_and_a_later_start_begins_there(
    dataset: PreparedDataset, rows_of: Rows
) -> None:
    """The number of the execution reaches Ray's tasks by no public way: this would notice a change."""
    ids = [row["image_id"] for part in dataset.splits["train"].parts for row in read_part(dataset, part).to_pylist()]
    split = rows_of(first_epoch=1)
    epochs = [[(row["image_id"], row["row"]) for row in split.iter_rows()] for _ in range(3)]
    for epoch, visited in enumerate(epochs, start=1):
        expected = dict(zip(ids, visits_of_epoch(shares(), seed=SEED, epoch=epoch).tolist(), strict=True))
        assert Counter(image for image, _ in visited) == {image: count for image, count in expected.items() if count}
        assert sorted(number for _, number in visited) == list(range(NUM_TRAIN))
    later = rows_of(first_epoch=3)
    assert [(row["image_id"], row["row"]) for row in later.iter_rows()] == epochs[2]


def test_an_epoch_that_is_divided_anew_leaves_out_the_visits_that_were_made(rows_of: Rows) -> None:
    """Visits, not images: an image that was seen once of three times comes twice more."""
    whole = {row["row"]: row["image_id"] for row in rows_of(first_epoch=2).iter_rows()}
    seen = np.zeros(NUM_TRAIN, dtype=np.bool_)
    seen[[0, 3, 4, 20, 37]] = True
    rest = {row["row"]: row["image_id"] for row in rows_of(first_epoch=2, seen=seen).iter_rows()}
    assert rest == {number: image for number, image in whole.items() if not seen[number]}


def test_visits_of_one_image_have_crops_of_their_own_and_a_resumed_stream_the_same(rows_of: Rows) -> None:
    recipe = tiny_recipe()

    def stream(done: int) -> list[Any]:
        return list(
            training_batches(
                [Pass(rows=rows_of(first_epoch=2), epoch=2, done=done)],
                draw=lambda row, generator: TASKS["segmentation"].training_pair(
                    row, generator, recipe.augment, (1, 2, 3)
                ),
                batch_size=8,
                steps_per_epoch=NUM_TRAIN // 8,
                shuffle_buffer=16,
                seed=SEED,
                rank=0,
                world_size=1,
                num_threads=2,
                pin_memory=False,
            )
        )

    whole, resumed = stream(0), stream(2)
    assert [batch.rows for batch in resumed] == [batch.rows for batch in whole[2:]]
    assert all((one.images_N3HW == two.images_N3HW).all() for one, two in zip(whole[2:], resumed, strict=True))
    crops = [crop.numpy().tobytes() for batch in whole for crop in batch.images_N3HW]
    numbers = [number for batch in whole for number in batch.rows]
    assert len(set(numbers)) == len(numbers) == len(set(crops)) == 32
