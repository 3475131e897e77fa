"""Run lengths against a plain Python loop, and back again."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.run_lengths import decode, encode


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
