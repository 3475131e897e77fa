"""Compressed label blocks as an operator, against the exact Gram matrix."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_blocks import BlockStatistics
from segcore.label_rows import LabelRows
from tests.segcore.jagged_labels import jagged_maps


def collected(maps: list[NDArray[np.uint8]], block_side: int, num_classes: int) -> LabelRows:
    rows = LabelRows.zero(block_side, num_classes)
    for labels_HW in maps:
        rows.update(labels_HW)
    return rows


def counted(maps: list[NDArray[np.uint8]], block_side: int, num_classes: int) -> BlockStatistics:
    statistics = BlockStatistics.zero(block_side, num_classes)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return statistics


def random_block(entries: int, columns: int, *, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(-(2**20), 2**20, (entries, columns)).astype(np.int32)


def noise_map(*, height: int, width: int, num_classes: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    labels_HW = rng.integers(0, num_classes, (height, width)).astype(np.uint8)
    labels_HW[rng.random(labels_HW.shape) < 0.1] = IGNORE_INDEX
    return labels_HW


@pytest.mark.parametrize(
    ("block_side", "num_classes", "height", "width", "columns"),
    [
        (8, 3, 40, 40, 5),
        (16, 5, 37, 51, 50),  # R divides neither side; more columns than are multiplied at a time
        (24, 2, 60, 60, 3),
        (4, 6, 33, 31, 1),  # blocks that are not whole words
        (3, 2, 17, 22, 4),
        (5, 1, 31, 20, 2),  # one class
        (1, 3, 9, 9, 2),
        (16, 3, 7, 5, 2),  # smaller than a block
        (2, 254, 24, 24, 2),
    ],
)
def test_the_product_equals_that_with_the_gram_matrix_in_every_bit(
    block_side: int, num_classes: int, height: int, width: int, columns: int
) -> None:
    maps = jagged_maps(3, height=height, width=width, num_classes=num_classes)
    maps.append(noise_map(height=height, width=width, num_classes=num_classes))
    rows, statistics = collected(maps, block_side, num_classes), counted(maps, block_side, num_classes)
    gram_DD = statistics.gram()
    block_DL = random_block(rows.num_entries, columns)
    product_DL = rows.multiply(block_DL)
    assert product_DL.dtype == np.int64
    np.testing.assert_array_equal(product_DL, gram_DD @ block_DL)
    np.testing.assert_array_equal(rows.counts_D(), gram_DD.diagonal())
    assert (rows.num_blocks, rows.num_noisy_blocks) == (statistics.num_blocks, statistics.num_noisy_blocks)


def test_noise_goes_by_pixels_and_stays_exact() -> None:
    rows = collected([noise_map(height=40, width=48, num_classes=6)], 8, 6)
    assert rows.num_noisy_blocks == 30
    assert rows.num_nonzeros == rows.counts_D().sum()
    gram_DD = counted([noise_map(height=40, width=48, num_classes=6)], 8, 6).gram()
    block_DL = random_block(rows.num_entries, 7)
    np.testing.assert_array_equal(rows.multiply(block_DL), gram_DD @ block_DL)


def test_products_are_exact_where_they_leave_32_bits_on_the_way() -> None:
    maps = [*jagged_maps(2, height=64, width=64, num_classes=3), noise_map(height=64, width=64, num_classes=3)]
    rows = collected(maps, 16, 3)
    block_DL = np.zeros((rows.num_entries, 2), np.int32)
    block_DL[:, 0] = 2**31 // 16 // 28  # as long as it may be, since sqrt(D) is nearly 28
    block_DL[5::7, 1] = -(2**23)
    gram_DD = counted(maps, 16, 3).gram()
    np.testing.assert_array_equal(rows.multiply(block_DL), gram_DD @ block_DL)


def test_rows_take_five_bytes_per_corner_and_a_constant_block_has_one() -> None:
    labels_HW = np.zeros((32, 48), np.uint8)
    labels_HW[:, 16:] = 2
    labels_HW[:, 32:] = IGNORE_INDEX
    rows = collected([labels_HW], 16, 3)
    assert (rows.num_blocks, rows.num_nonzeros) == (4, 4)
    labels_HW[8:12, 3:7] = 1  # a rectangle: four corners, of two classes each
    rows = collected([labels_HW], 16, 3)
    assert (rows.num_blocks, rows.num_nonzeros) == (4, 4 + 2 * 4)
    many = collected(jagged_maps(4, height=90, width=120, num_classes=5), 16, 5)
    joined = LabelRows.from_arrays(many.to_arrays())
    assert joined.num_bytes <= 5 * many.num_nonzeros + 8 * (many.num_blocks + 2) <= many.num_bytes + 8 * 2


def test_blocks_and_images_without_a_valid_pixel_are_no_rows() -> None:
    rows = collected([np.full((40, 40), IGNORE_INDEX, np.uint8), np.zeros((0, 5), np.uint8)], 8, 3)
    assert (rows.num_blocks, rows.num_nonzeros, rows.num_bytes) == (0, 0, 0)
    assert not rows.counts_D().any()
    assert not rows.multiply(random_block(rows.num_entries, 3)).any()
    again = LabelRows.from_arrays(rows.to_arrays())
    assert not again.multiply(random_block(rows.num_entries, 3)).any()


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_order_and_sharding_leave_no_trace(num_shards: int) -> None:
    maps = jagged_maps(40, height=35, width=50, num_classes=4)
    maps[7] = noise_map(height=35, width=50, num_classes=4)
    whole = collected(maps, 8, 4)
    block_DL = random_block(whole.num_entries, 9)
    order = np.random.default_rng(num_shards).permutation(len(maps))
    shards = [collected([maps[i] for i in order[shard::num_shards]], 8, 4) for shard in range(num_shards)]
    summed_DL = sum(LabelRows.from_arrays(shard.to_arrays()).multiply(block_DL) for shard in shards)
    merged = LabelRows.zero(8, 4)
    for shard in shards:
        merged.merge(shard)
    product_DL = whole.multiply(block_DL)
    np.testing.assert_array_equal(summed_DL, product_DL)
    np.testing.assert_array_equal(merged.multiply(block_DL), product_DL)
    np.testing.assert_array_equal(merged.counts_D(), whole.counts_D())
    assert (merged.num_blocks, merged.num_noisy_blocks) == (whole.num_blocks, whole.num_noisy_blocks)


def test_transport_uses_the_memory_it_is_given_and_may_go_on() -> None:
    maps = jagged_maps(3, height=35, width=50, num_classes=4)
    arrays = collected(maps[:2], 8, 4).to_arrays()
    for array in arrays.values():
        array.setflags(write=False)
    rows = LabelRows.from_arrays(arrays)
    assert np.shares_memory(rows.to_arrays()["corner_entries"], arrays["corner_entries"])
    rows.update(maps[2])
    np.testing.assert_array_equal(rows.counts_D(), collected(maps, 8, 4).counts_D())


def test_wrong_labels_are_refused_and_nothing_added() -> None:
    rows = LabelRows.zero(8, 3)
    with pytest.raises(ValueError, match=r"label value 3 is outside 0\.\.2 and is not ignore_index=255"):
        rows.update(np.full((16, 16), 3, np.uint8))
    with pytest.raises(ValueError, match="found labels of type int64 and shape"):
        rows.update(np.zeros((16, 16), np.int64))
    assert (rows.num_blocks, rows.num_nonzeros) == (0, 0)
    with pytest.raises(ValueError, match="expected a block side of at least 1 and 1 to 254 classes"):
        LabelRows.zero(8, 255)


def test_states_that_were_cut_differently_do_not_merge() -> None:
    with pytest.raises(ValueError, match="found rows of blocks of side 8 with 3 classes, expected side 8 with 4"):
        LabelRows.zero(8, 4).merge(LabelRows.zero(8, 3))


def test_blocks_of_another_type_shape_or_size_are_refused() -> None:
    rows = collected(jagged_maps(1, height=32, width=32, num_classes=3), 8, 3)
    with pytest.raises(
        ValueError, match=re.escape("type float64 and shape (192, 2); expected int32 of shape (192, L)")
    ):
        rows.multiply(np.zeros((192, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("shape (191, 2); expected int32 of shape (192, L) for 3 classes")):
        rows.multiply(np.zeros((191, 2), np.int32))
    with pytest.raises(ValueError, match=r"norm 1\.\d+e\+11; expected less than 2\*\*31.*scale the block down"):
        rows.multiply(np.full((192, 2), 2**30, np.int32))
