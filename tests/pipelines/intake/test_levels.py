"""Counts of levels, against numpy's."""

import numpy as np
import pytest

from pipelines.intake import levels
from pipelines.intake.levels import level_counts


@pytest.mark.parametrize("exact", [levels.EXACT, 100])
def test_counts_are_those_of_bincount_in_one_piece_or_several(monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    monkeypatch.setattr(levels, "EXACT", exact)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    for channel in range(3):
        expected = np.bincount(pixels[..., channel].ravel(), minlength=256)
        assert (level_counts(pixels, channel=channel) == expected).all()
    one = pixels[::2, ::3, 1]  # neither contiguous nor three channels
    assert (level_counts(one) == np.bincount(one.ravel(), minlength=256)).all()
    assert level_counts(one).dtype == np.int64
