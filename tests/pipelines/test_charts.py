"""Charts are PNGs, the same for the same numbers, and what is undefined leaves a gap."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.charts import protocol_chart, reliability_chart, trimap_chart
from segcore.calibration import Calibration, CalibrationCounts


def calibration(seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    counts = CalibrationCounts.zero()
    confidence = rng.random(2000).astype(np.float32) * np.float32(0.7)
    right = rng.random(2000) < confidence
    counts.update(np.zeros(2000, np.uint8), (~right).astype(np.uint8), confidence)
    return counts.calibration()


def drawn(data: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and "Software" not in image.info
    return image.size


def test_charts_depend_on_their_numbers_alone() -> None:
    first = [
        trimap_chart([1, 2, 4], [0.4, 0.5, np.nan], everywhere=0.7),
        reliability_chart(calibration()),
        protocol_chart(["single", "crf", "untimed"], [0.1, 1.5, np.nan], [0.6, 0.62, 0.6]),
    ]
    second = [
        trimap_chart([1, 2, 4], [0.4, 0.5, np.nan], everywhere=0.7),
        reliability_chart(calibration()),
        protocol_chart(["single", "crf", "untimed"], [0.1, 1.5, np.nan], [0.6, 0.62, 0.6]),
    ]
    assert first == second
    assert all(width > 500 and height > 300 for width, height in map(drawn, first))
    assert reliability_chart(calibration(1)) != first[1]
    assert trimap_chart([1, 2, 4], [0.4, 0.6, np.nan], everywhere=0.7) != first[0]


@pytest.mark.parametrize("everywhere", [0.0, 1.0, np.nan])
def test_scores_at_the_ends_are_drawn(everywhere: float) -> None:
    drawn(trimap_chart([1, 2], [np.nan, everywhere], everywhere=everywhere))


def test_nothing_counted_is_drawn_empty() -> None:
    drawn(reliability_chart(CalibrationCounts.zero().calibration()))
    drawn(protocol_chart(["single"], [np.nan], [np.nan]))
