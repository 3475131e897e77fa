"""What a worker is given at once; images of one size share a batch, and what waits for others is bounded."""

from typing import Any

import numpy as np
import pytest

from pipelines.intake.images import DecodedImage
from pipelines.nightly.rows import WorkItem
from pipelines.nightly.worker import MAX_STRETCH, batches_of_one_size, stretches


def _item(place: int, *, height: int, width: int) -> WorkItem:
    image = DecodedImage(
        pixels_HW3=np.zeros((height, width, 3), dtype=np.uint8),
        source_height=height,
        source_width=width,
        source_mode="RGB",
        orientation=1,
        notes=(),
    )
    return WorkItem(place=place, planned={}, data=b"", first_bytes=b"", attempts=1, image=image)


def _places(batches: list[list[WorkItem]]) -> list[list[int]]:
    return [[item.place for item in batch] for batch in batches]


def test_images_of_one_size_share_a_batch_and_none_is_lost() -> None:
    heights = [4, 8, 4, 8, 4, 4, 8]
    items = [_item(place, height=height, width=4) for place, height in enumerate(heights)]
    batches = list(batches_of_one_size(items, batch_size=3, pending_bytes=10**9))
    assert _places(batches) == [[0, 2, 4], [1, 3, 6], [5]]


def test_waiting_images_stay_below_their_budget() -> None:
    items = [_item(place, height=4 + place % 5, width=10) for place in range(50)]
    waiting = 0
    budget = 6 * 8 * 10 * 3

    def counted() -> Any:
        nonlocal waiting
        for item in items:
            assert item.image is not None
            waiting += item.image.pixels_HW3.nbytes
            assert waiting <= budget + item.image.pixels_HW3.nbytes
            yield item

    seen = []
    for batch in batches_of_one_size(counted(), batch_size=1000, pending_bytes=budget):
        waiting -= sum(item.image.pixels_HW3.nbytes for item in batch if item.image is not None)
        seen += [item.place for item in batch]
    assert sorted(seen) == list(range(50))


@pytest.mark.parametrize(
    ("num_shards", "workers", "most"),
    [
        (0, 2, 0),
        (1, 8, 1),
        (20, 2, 20),
        (1500, 3, 1500),
        (10_000, 4, 700),
        (100_000, 100, 5000),
        (100_000, 1000, 20_000),
    ],
)
def test_stretches_hold_every_shard_once_in_order_and_are_few(num_shards: int, workers: int, most: int) -> None:
    shards = list(range(7, 7 + num_shards))
    found = [list(stretch) for stretch in stretches(shards, workers=workers)]
    assert [shard for stretch in found for shard in stretch] == shards
    assert len(found) <= most
    assert all(1 <= len(stretch) <= MAX_STRETCH for stretch in found)


def test_the_last_stretches_are_single_shards_so_that_all_workers_end_together() -> None:
    lengths = [len(stretch) for stretch in stretches(list(range(100_000)), workers=10)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == MAX_STRETCH and lengths[-40:] == [1] * 40
