"""Charts are PNGs, the same for the same numbers, and what is undefined leaves a gap."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.charts import (
    components_chart,
    confusion_heat_map,
    iou_chart,
    learning_chart,
    pareto_chart,
    protocol_chart,
    recovery_chart,
    reliability_chart,
    share_chart,
    trend_chart,
    trimap_chart,
)
from segcore.calibration import Calibration, CalibrationCounts

PALETTE = ((10, 20, 30), (200, 100, 0), (0, 0, 255))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


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
        pareto_chart(["a", "b"], [5.0, 90.0], [0.6, 0.5], [0.02, np.nan], front=[0], label="ms"),
    ]
    second = [
        trimap_chart([1, 2, 4], [0.4, 0.5, np.nan], everywhere=0.7),
        reliability_chart(calibration()),
        protocol_chart(["single", "crf", "untimed"], [0.1, 1.5, np.nan], [0.6, 0.62, 0.6]),
        pareto_chart(["a", "b"], [5.0, 90.0], [0.6, 0.5], [0.02, np.nan], front=[0], label="ms"),
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


def training(epochs: int, *, rate: float = 0.1) -> dict[str, list[tuple[int, float]]]:
    return {
        "train/loss": [(epoch, 1 / (epoch + 1)) for epoch in range(epochs)],
        "val/mean_iou": [(epoch, 0.5) for epoch in range(1, epochs, 2)],
        "train/learning_rate": [(epoch, rate) for epoch in range(epochs)],
        "val/top1": [],
    }


def test_learning_curves_have_a_panel_for_each_metric_that_is_there() -> None:
    one = learning_chart([("first", training(6))])
    assert one == learning_chart([("first", training(6))])
    two = learning_chart([("first", training(6)), ("second", training(90, rate=0.2))])
    assert two != one
    only_loss = learning_chart([("first", {"train/loss": [(0, 1.0)]})])
    assert drawn(only_loss)[1] < 0.6 * drawn(one)[1]
    with pytest.raises(ValueError, match="no run has a point of train/loss"):
        learning_chart([("first", {"train/loss": []})])


def test_recovery_is_drawn_by_components_and_by_block_side() -> None:
    curves = {8: [(1, 0.3), (32, 0.99)], 16: [(1, 0.2), (32, 0.9)]}
    levels = {"bilinear": {8: 0.95, 16: 0.8}, "nearest": {8: 0.9}}
    assert components_chart(curves, levels) == components_chart(curves, levels)
    assert components_chart(curves, levels) != components_chart(curves, {"bilinear": {8: 0.95}})
    bounds = {"bilinear": {8: 0.9, 16: 0.8, 32: np.nan}, "label PCA": {8: 0.97, 16: 0.92, 32: 0.85}}
    assert recovery_chart(bounds) == recovery_chart(bounds)
    assert recovery_chart(bounds) != recovery_chart(bounds | {"label PCA": {8: 0.97, 16: 0.92, 32: 0.9}})
    assert all(width > 700 and height > 400 for width, height in map(drawn, [recovery_chart(bounds)]))


@pytest.mark.parametrize("num_classes", [1, 11, 150])
def test_heat_map_opens_for_any_class_table(num_classes: int) -> None:
    confusion_CC = np.random.default_rng(0).integers(0, 1000, (num_classes, num_classes))
    names = [f"class {index}" for index in range(num_classes)]
    data = confusion_heat_map(confusion_CC, names)
    assert min(decoded(data).shape[:2]) > 400


def test_heat_map_shows_rows_not_pixel_counts() -> None:
    confusion_CC = np.array([[90, 10], [1, 9]])
    assert confusion_heat_map(confusion_CC, ["a", "b"]) == confusion_heat_map(confusion_CC * [[1000], [7]], ["a", "b"])
    assert confusion_heat_map(confusion_CC, ["a", "b"]) != confusion_heat_map(confusion_CC.T, ["a", "b"])


def test_heat_map_of_a_class_that_never_occurs_draws_without_warning() -> None:
    assert decoded(confusion_heat_map(np.array([[5, 0], [0, 0]]), ["a", "b"])).size


def test_heat_map_refuses_names_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2\) and 3 class names"):
        confusion_heat_map(np.eye(2, dtype=np.int64), ["a", "b", "c"])


def test_iou_chart_takes_absent_classes_and_many_series() -> None:
    series = [(f"run {index}", np.array([0.1 * index, np.nan, 0.9])) for index in range(10)]
    data = iou_chart(series, ["a", "b", "c"])
    assert data == iou_chart(series, ["a", "b", "c"])
    assert decoded(data).shape[1] > 800


def test_iou_chart_refuses_values_that_do_not_match_the_names() -> None:
    with pytest.raises(ValueError, match=r"series of \[2\] values and 3 class names"):
        iou_chart([("run", np.zeros(2))], ["a", "b", "c"])


def test_share_chart_takes_shares_that_are_tiny_or_nothing() -> None:
    data = share_chart(np.array([0.0, 0.9999, 1e-5]), ["a", "b", "c"], PALETTE)
    assert decoded(data).shape[1] > 800
    assert share_chart(np.zeros(3), ["a", "b", "c"], PALETTE) != data
    with pytest.raises(ValueError, match="2 shares, 3 names and 3 colours"):
        share_chart(np.zeros(2), ["a", "b", "c"], PALETTE)


def test_a_trend_has_a_bar_per_night_in_the_classes_colours() -> None:
    shares_NC = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    data = trend_chart(["2026-11-19 (1)", "2026-11-20 (2)"], shares_NC, ["a", "b", "c"], PALETTE)
    pixels = decoded(data)[..., :3].reshape(-1, 3)
    found = [int((pixels == colour).all(axis=1).sum()) for colour in PALETTE]
    assert found[1] / sum(found) == pytest.approx(0.55, abs=0.03)
    assert trend_chart(["n"] * 40, np.full((40, 3), 1 / 3), ["a", "b", "c"], PALETTE) != data
    with pytest.raises(ValueError, match=r"shares of shape \(2, 3\), 1 nights, 3 names and 3 colours"):
        trend_chart(["n"], shares_NC, ["a", "b", "c"], PALETTE)
