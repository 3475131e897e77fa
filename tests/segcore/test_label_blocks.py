"""Integer block statistics against a dense product of one-hot blocks."""

import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX, label_blocks
from segcore.label_blocks import BlockStatistics, check_exact_size, pad_to_blocks


def one_hot_rows(labels_HW: NDArray[np.uint8], block_side: int, num_classes: int) -> NDArray[np.float64]:
    """Blocks M x D by way of torch: one-hot planes, then pixel_unshuffle, which defines the order of the D entries."""
    height, width = labels_HW.shape
    padded = np.full(
        (-(-height // block_side) * block_side, -(-width // block_side) * block_side), IGNORE_INDEX, np.uint8
    )
    padded[:height, :width] = labels_HW
    planes = torch.from_numpy((padded[None] == np.arange(num_classes)[:, None, None]).astype(np.float64))
    blocks: NDArray[np.float64] = torch.nn.functional.pixel_unshuffle(planes, block_side).flatten(1).T.numpy()
    return blocks


def dense_gram(maps: list[NDArray[np.uint8]], block_side: int, num_classes: int) -> NDArray[np.float64]:
    rows = np.concatenate([one_hot_rows(labels_HW, block_side, num_classes) for labels_HW in maps])
    gram: NDArray[np.float64] = rows.T @ rows
    return gram


def patchy_map(
    rng: np.random.Generator, *, height: int, width: int, num_classes: int, patch: int, speckle: float = 0.05
) -> NDArray[np.uint8]:
    """Patches of random classes and of ignored pixels, with some single pixels among them."""
    coarse = rng.integers(0, num_classes + 1, (height // patch + 2, width // patch + 2))
    labels_HW = coarse.repeat(patch, axis=0).repeat(patch, axis=1)[patch // 2 :, patch // 3 :][:height, :width]
    labels_HW = np.where(labels_HW == num_classes, IGNORE_INDEX, labels_HW)
    speckles = rng.random((height, width)) < speckle
    return np.where(speckles, rng.integers(0, num_classes, (height, width)), labels_HW).astype(np.uint8)


def counted(maps: list[NDArray[np.uint8]], block_side: int, num_classes: int) -> BlockStatistics:
    statistics = BlockStatistics.zero(block_side, num_classes)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return statistics


@pytest.mark.parametrize(
    ("block_side", "num_classes", "height", "width", "patch"),
    [
        (8, 3, 40, 40, 8),
        (8, 5, 37, 51, 5),  # R divides neither side
        (16, 4, 50, 70, 9),
        (24, 2, 60, 60, 4),  # three words a row
        (4, 6, 33, 31, 3),  # blocks that are not whole words
        (3, 2, 17, 22, 2),
        (12, 3, 40, 30, 5),
        (5, 1, 31, 20, 6),  # one class
        (1, 3, 9, 9, 2),
        (16, 3, 7, 5, 3),  # smaller than a block
        (2, 254, 24, 24, 5),  # every byte value
    ],
)
def test_the_gram_equals_a_dense_product_of_one_hot_blocks(
    block_side: int, num_classes: int, height: int, width: int, patch: int
) -> None:
    rng = np.random.default_rng(block_side * 1000 + num_classes)
    maps = [patchy_map(rng, height=height + i, width=width, num_classes=num_classes, patch=patch) for i in range(3)]
    statistics = counted(maps, block_side, num_classes)
    gram_DD = statistics.gram()
    assert gram_DD.dtype == np.int64
    np.testing.assert_array_equal(gram_DD, dense_gram(maps, block_side, num_classes))
    np.testing.assert_array_equal(statistics.moments(), gram_DD)
    blocks = np.concatenate([one_hot_rows(labels_HW, block_side, num_classes) for labels_HW in maps])
    assert statistics.num_blocks == (blocks.sum(axis=1) > 0).sum()


def test_trace_and_diagonal_count_the_valid_pixels() -> None:
    rng = np.random.default_rng(5)
    labels_HW = patchy_map(rng, height=45, width=64, num_classes=4, patch=7)
    statistics = counted([labels_HW], 8, 4)
    gram_DD = statistics.gram()
    valid = labels_HW[labels_HW != IGNORE_INDEX]
    assert np.trace(gram_DD) == valid.size
    np.testing.assert_array_equal(statistics.class_pixels_C, np.bincount(valid, minlength=4))
    # Entry (c, row, column) of the diagonal counts the blocks whose pixel (row, column) is of class c.
    position = gram_DD.diagonal().reshape(4, 8, 8)
    assert position[2, 3, 5] == (labels_HW[3::8, 5::8] == 2).sum()


def test_noise_goes_by_pixels_and_stays_exact() -> None:
    rng = np.random.default_rng(0)
    noise_HW = rng.integers(0, 6, (40, 48)).astype(np.uint8)
    noise_HW[rng.random(noise_HW.shape) < 0.1] = IGNORE_INDEX
    half_HW = noise_HW.copy()
    half_HW[:20] = 3
    for labels_HW in (noise_HW, half_HW):
        statistics = counted([labels_HW], 8, 6)
        np.testing.assert_array_equal(statistics.gram(), dense_gram([labels_HW], 8, 6))
    assert counted([noise_HW], 8, 6).num_noisy_blocks == 30
    assert 0 < counted([half_HW], 8, 6).num_noisy_blocks < 30


def test_values_under_ignored_pixels_and_ignored_images_leave_no_trace() -> None:
    rng = np.random.default_rng(2)
    labels_HW = patchy_map(rng, height=32, width=48, num_classes=3, patch=6)
    statistics = counted([labels_HW], 8, 3)
    before = statistics.digest()
    statistics.update(np.full((40, 40), IGNORE_INDEX, np.uint8))
    statistics.update(np.zeros((0, 5), np.uint8))
    assert statistics.digest() == before
    assert statistics.num_blocks > 0


def test_order_and_sharding_leave_no_trace() -> None:
    rng = np.random.default_rng(3)
    maps = [patchy_map(rng, height=30, width=41, num_classes=4, patch=p) for p in (2, 3, 5, 8, 13, 4)]
    maps.append(rng.integers(0, 4, (24, 24)).astype(np.uint8))
    whole = counted(maps, 8, 4)
    shuffled = counted([maps[i] for i in rng.permutation(len(maps))], 8, 4)
    digests = {whole.digest(), shuffled.digest()}
    for num_shards in (1, 3, 40):
        merged = BlockStatistics.zero(8, 4)
        for shard in range(num_shards):
            part = counted(maps[shard::num_shards], 8, 4)
            merged.merge(BlockStatistics.from_arrays(part.to_arrays()))
        digests.add(merged.digest())
        np.testing.assert_array_equal(merged.gram(), whole.gram())
        assert (merged.num_blocks, merged.num_noisy_blocks) == (whole.num_blocks, whole.num_noisy_blocks)
    assert len(digests) == 1
    assert counted(maps[1:], 8, 4).digest() != whole.digest()


def test_an_update_after_a_merge_and_a_second_transport_still_count() -> None:
    rng = np.random.default_rng(4)
    maps = [patchy_map(rng, height=30, width=41, num_classes=4, patch=p) for p in (3, 5, 8)]
    state = counted(maps[:1], 8, 4)
    state.merge(counted(maps[1:2], 8, 4))
    state = BlockStatistics.from_arrays(BlockStatistics.from_arrays(state.to_arrays()).to_arrays())
    state.update(maps[2])
    assert state.digest() == counted(maps, 8, 4).digest()


def test_counts_move_to_64_bits_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    maps = [patchy_map(rng, height=30, width=41, num_classes=4, patch=p) for p in (2, 3, 5, 8)]
    expected = counted(maps, 8, 4)
    monkeypatch.setattr(label_blocks, "INT32_SAFE_BLOCKS", 30)  # one map has 24 blocks
    flushed = counted(maps, 8, 4)
    assert flushed.to_arrays()["corners"].dtype == np.int64
    assert expected.to_arrays()["corners"].dtype == np.int32
    assert flushed.digest() == expected.digest()
    np.testing.assert_array_equal(flushed.gram(), expected.gram())


def test_read_only_and_strided_maps_are_counted() -> None:
    rng = np.random.default_rng(7)
    wide_HW = patchy_map(rng, height=32, width=96, num_classes=3, patch=6)
    strided_HW = wide_HW[:, ::2]
    frozen_HW = strided_HW.copy()
    frozen_HW.setflags(write=False)
    assert counted([strided_HW], 8, 3).digest() == counted([frozen_HW], 8, 3).digest()


@pytest.mark.parametrize("value", [3, 200, 254])
def test_a_value_outside_the_class_table_is_refused_and_nothing_added(value: int) -> None:
    statistics = BlockStatistics.zero(8, 3)
    labels_HW = np.zeros((16, 16), np.uint8)
    labels_HW[9, 9] = value
    with pytest.raises(ValueError, match=rf"label value {value} is outside 0\.\.2 and is not ignore_index=255"):
        statistics.update(labels_HW)
    assert statistics.digest() == BlockStatistics.zero(8, 3).digest()


def test_labels_of_another_type_or_shape_are_refused() -> None:
    statistics = BlockStatistics.zero(8, 3)
    with pytest.raises(ValueError, match="found labels of type int64 and shape"):
        statistics.update(np.zeros((16, 16), np.int64))
    with pytest.raises(ValueError, match=re.escape("shape (1, 16, 16); expected uint8 class indices")):
        statistics.update(np.zeros((1, 16, 16), np.uint8))


def test_states_that_were_counted_differently_do_not_merge() -> None:
    with pytest.raises(ValueError, match="found statistics of blocks of side 8 with 3 classes, expected side 8 with 4"):
        BlockStatistics.zero(8, 4).merge(BlockStatistics.zero(8, 3))


def test_blocks_too_long_for_exact_statistics_are_refused_with_the_memory_they_need() -> None:
    with pytest.raises(ValueError, match=r"153,600 entries; exact statistics of them need 330 GB.*smaller block side"):
        check_exact_size(block_side=32, num_classes=150)
    with pytest.raises(ValueError, match="expected a block side of at least 1 and 1 to 254 classes"):
        check_exact_size(block_side=8, num_classes=255)
    check_exact_size(block_side=32, num_classes=11)


def test_padding_adds_ignored_pixels_at_the_bottom_and_right_only() -> None:
    labels_HW = np.arange(15, dtype=np.uint8).reshape(3, 5)
    padded_HW = pad_to_blocks(labels_HW, 4)
    assert padded_HW.shape == (4, 8)
    np.testing.assert_array_equal(padded_HW[:3, :5], labels_HW)
    assert (padded_HW[3] == IGNORE_INDEX).all()
    assert (padded_HW[:, 5:] == IGNORE_INDEX).all()
    assert pad_to_blocks(padded_HW, 4) is padded_HW
