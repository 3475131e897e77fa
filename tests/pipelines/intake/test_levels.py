"""Counts of levels, against numpy's."""

import numpy as np
import pytest

from pipelines.intake import levels
from pipelines.intake.levels import channel_sums, label_counts, level_counts


@pytest.mark.parametrize("exact", [levels.EXACT, 100])
def test_counts_are_those_of_bincount_in_one_piece_or_several(monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    monkeypatch.setattr(levels, "EXACT", exact)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    for channel in range(3):
        expected = np.bincount(pixels[..., channel].ravel(), minlength=256)
        assert (level_counts(pixels[..., channel]) == expected).all()
    one = pixels[::2, ::3, 1]  # neither contiguous nor three channels
    assert (level_counts(one) == np.bincount(one.ravel(), minlength=256)).all()
    assert level_counts(one).dtype == np.int64


@pytest.mark.parametrize("exact", [levels.EXACT, 100])
@pytest.mark.parametrize("length", [1, 3, 40, 5000])
def test_counts_of_labels_are_those_of_bincount_for_short_runs_and_long(
    monkeypatch: pytest.MonkeyPatch, exact: int, length: int
) -> None:
    monkeypatch.setattr(levels, "EXACT", exact)
    values = np.random.default_rng(length).choice(np.array([0, 3, 254, 255], dtype=np.uint8), 3000)
    labels_HW = values.repeat(length)[: 50 * 60].reshape(50, 60)
    for some in (labels_HW, labels_HW[::2, 1::3], labels_HW[:1, :1]):
        assert (label_counts(some) == np.bincount(some.ravel(), minlength=256)).all()
        assert label_counts(some).dtype == np.int64


@pytest.mark.parametrize("largest", [0, 1, 14, 29, 30, 31, 61, 62, 63, 64, 126, 127, 253, 254])
@pytest.mark.parametrize("void", [0, 255])
@pytest.mark.parametrize("size", [(37, 53), (32, 64), (1, 7), (3, 3)])
def test_counts_of_labels_are_those_of_bincount_whatever_bits_the_values_leave_free(
    largest: int, void: int, size: tuple[int, int]
) -> None:
    labels_HW = np.random.default_rng(largest).integers(0, largest + 1, size).astype(np.uint8)
    labels_HW[0, 0], labels_HW[-1, -1] = largest, void
    before = labels_HW.copy()
    assert label_counts(labels_HW).tolist() == np.bincount(labels_HW.ravel(), minlength=256).tolist()
    assert (labels_HW == before).all()


@pytest.mark.parametrize("piece", [levels.PIECE, 100, 1])
@pytest.mark.parametrize("largest", [1, 256])
def test_sums_of_channels_are_exact(monkeypatch: pytest.MonkeyPatch, piece: int, largest: int) -> None:
    monkeypatch.setattr(levels, "PIECE", piece)
    pixels_HW3 = 256 - np.random.default_rng(0).integers(1, largest + 1, (37, 53, 3))
    sums, squares = channel_sums(pixels_HW3.astype(np.uint8))
    wide = pixels_HW3.astype(np.uint8).astype(np.int64).reshape(-1, 3)
    assert sums == wide.sum(axis=0).tolist() and squares == (wide**2).sum(axis=0).tolist()


def test_sums_of_channels_are_exact_in_a_piece_that_is_one_long_row() -> None:
    """Whose sum of squares, 1.1e12, single precision does not hold."""
    white_HW3 = np.broadcast_to(np.uint8(255), (1, 2**24 + 1, 3))
    sums, squares = channel_sums(np.ascontiguousarray(white_HW3))
    assert sums == [255 * (2**24 + 1)] * 3 and squares == [255**2 * (2**24 + 1)] * 3
