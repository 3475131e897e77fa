"""Run lengths against a plain Python loop, and back again."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.run_lengths import decode, encode, join


def _masks() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    stripes = np.tile(np.array([0, 0, 7, 255], dtype=np.uint8), (9, 5))
    return {
        "one pixel": np.array([[3]], dtype=np.uint8),
        "one row": rng.integers(0, 3, (1, 50), dtype=np.uint8),
        "one column": rng.integers(0, 3, (50, 1), dtype=np.uint8),
        "all equal": np.full((40, 30), 11, dtype=np.uint8),
        "noise": rng.integers(0, 256, (37, 41), dtype=np.uint8),
        "two classes": rng.integers(0, 2, (64, 48), dtype=np.uint8),
        "run over row ends": stripes,
        "not contiguous": np.asfortranarray(stripes)[::2, ::3],
        "several tiles": rng.integers(0, 3, (90, 130), dtype=np.uint8).repeat(rng.integers(1, 9, 130), axis=1),
        "changes where tiles meet": (np.arange(3 * 4096 + 5).reshape(1, -1) // 4096).astype(np.uint8),
        "a change before and after": np.isin(np.arange(8200).reshape(10, 820), [4095, 8192]).astype(np.uint8),
        "uint16": rng.integers(0, 1000, (20, 20)).astype(np.uint16),
    }


@pytest.mark.parametrize("name", _masks())
def test_runs_equal_those_of_a_plain_loop_and_decode_to_the_mask(name: str) -> None:
    mask_HW = _masks()[name]
    values, lengths = encode(mask_HW)
    expected = [(value, len(list(run))) for value, run in groupby(mask_HW.ravel().tolist())]
    assert list(zip(values.tolist(), lengths.tolist(), strict=True)) == expected
    assert values.dtype == mask_HW.dtype and lengths.dtype == np.int32
    height, width = mask_HW.shape
    decoded_HW = decode(values, lengths, height=height, width=width)
    assert decoded_HW.dtype == mask_HW.dtype
    np.testing.assert_array_equal(decoded_HW, mask_HW)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("name", _masks())
def test_runs_of_strips_are_joined_to_those_of_the_mask(name: str, rows: int) -> None:
    mask_HW = _masks()[name]
    parts = [encode(mask_HW[start : start + rows]) for start in range(0, len(mask_HW), rows)]
    before = [lengths.copy() for _, lengths in parts]
    values, lengths = join(parts)
    expected_values, expected_lengths = encode(mask_HW)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(lengths, expected_lengths)
    assert values.dtype == mask_HW.dtype and lengths.dtype == np.int32
    assert all(np.array_equal(a, b) for a, (_, b) in zip(before, parts, strict=True))


def test_a_mask_of_one_class_is_one_run() -> None:
    values, lengths = encode(np.zeros((480, 640), dtype=np.uint8))
    assert values.tolist() == [0] and lengths.tolist() == [480 * 640]


def test_masks_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(ValueError, match="mask is int64 .* expected uint8 or uint16"):
        encode(np.zeros((2, 2), dtype=np.int64))  # type: ignore[type-var]  # what is refused
    with pytest.raises(ValueError, match=r"shape \(0, 5\) has 0 pixels"):
        encode(np.zeros((0, 5), dtype=np.uint8))


def test_runs_that_do_not_fill_the_mask_are_refused() -> None:
    values, lengths = encode(np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="runs hold 16 pixels; expected 4 x 5 = 20"):
        decode(values, lengths, height=4, width=5)
    with pytest.raises(ValueError, match="1 values and 2 lengths"):
        decode(values, np.array([8, 8], dtype=np.int32), height=4, width=4)
    lengths = np.array([20, -10, 6], dtype=np.int32)
    with pytest.raises(ValueError, match="runs hold 16 pixels; expected 4 x 4 = 16, and no length below 0"):
        decode(np.zeros(3, dtype=np.uint8), lengths, height=4, width=4)
    lengths = np.array([2**31 - 1, 2**31 - 1], dtype=np.int32)
    with pytest.raises(ValueError, match="runs hold 4294967294 pixels; expected 4 x 4 = 16"):
        decode(np.zeros(2, dtype=np.uint8), lengths, height=4, width=4)


def test_arrays_that_cannot_be_written_are_taken_and_give_new_ones() -> None:
    """As they come out of Parquet; whoever draws on a decoded mask must not change a buffer."""
    mask_HW = _masks()["noise"]
    values, lengths = encode(mask_HW)
    for array in (mask_HW, values, lengths):
        array.setflags(write=False)
    again = encode(mask_HW)
    decoded_HW = decode(values, lengths, height=37, width=41)
    assert decoded_HW.flags.writeable and again[0].flags.writeable and again[1].flags.writeable
    np.testing.assert_array_equal(decoded_HW, mask_HW)
