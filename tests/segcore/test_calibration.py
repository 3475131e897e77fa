"""Calibration against a loop over pixels."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.boundaries import BoundaryConfig
from segcore.calibration import BINS, CalibrationCounts
from segcore.segmentation_counts import SegmentationCounts

Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]


def pixels(seed: int, shape: tuple[int, ...]) -> Pixels:
    """Labels with ignored pixels, predictions, and confidences that are partly on the borders of bins."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    confidence = rng.random(shape).astype(np.float32)
    confidence[rng.random(shape) < 0.2] = 1.0
    confidence[rng.random(shape) < 0.1] = 0.2
    right = rng.random(shape) < confidence
    predictions = np.where(right, labels, (labels + 1) % 3).astype(np.uint8)
    labels[rng.random(shape) < 0.1] = IGNORE_INDEX
    return labels, predictions, confidence


def test_calibration_equals_a_loop_over_pixels() -> None:
    labels, predictions, confidence = pixels(0, (50, 41))
    counts = CalibrationCounts.zero()
    counts.update(labels, predictions, confidence)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    rows = zip(labels.ravel().tolist(), predictions.ravel().tolist(), confidence.ravel().tolist(), strict=True)
    for truth, guess, sure in rows:
        if truth != IGNORE_INDEX:
            bins[min(BINS - 1, int(sure * BINS))].append((sure, truth == guess))
    found = counts.calibration()
    assert found.pixels_B.tolist() == [len(each) for each in bins]
    expected = 0.0
    for index, each in enumerate(bins):
        sure, right = (sum(values) / len(each) for values in zip(*each, strict=True))
        assert found.confidence_B[index] == pytest.approx(sure, abs=1e-7)
        assert found.accuracy_B[index] == right
        expected += len(each) / sum(map(len, bins)) * abs(right - sure)
    assert found.expected_error == pytest.approx(expected, abs=1e-7)


def test_a_network_that_is_as_sure_as_it_is_right_has_no_error_and_a_boaster_has() -> None:
    labels, predictions, confidence = pixels(1, (600, 600))
    counts, boaster = CalibrationCounts.zero(), CalibrationCounts.zero()
    counts.update(labels, predictions, confidence)
    boaster.update(labels, predictions, np.minimum(1, confidence + np.float32(0.2)))
    assert counts.calibration().expected_error < 0.01 and abs(counts.calibration().overconfidence) < 0.01
    assert boaster.calibration().overconfidence > 0.1
    assert boaster.calibration().expected_error == pytest.approx(boaster.calibration().overconfidence, abs=0.01)


def test_counts_are_integers_that_add_up_in_any_order() -> None:
    labels, predictions, confidence = pixels(2, (7, 30, 20))
    whole = CalibrationCounts.zero()
    whole.update(labels, predictions, confidence)
    merged = CalibrationCounts.zero()
    for index in (4, 1, 6, 0, 3, 2, 5):
        one = CalibrationCounts.zero()
        one.update(labels[index], predictions[index], confidence[index])
        merged.merge(one)
    assert whole.counts_3B.dtype == np.int64 and np.array_equal(whole.counts_3B, merged.counts_3B)


def test_empty_bins_and_no_pixels_are_nan() -> None:
    nothing = CalibrationCounts.zero().calibration()
    assert math.isnan(nothing.expected_error) and math.isnan(nothing.overconfidence)
    assert np.isnan(nothing.accuracy_B).all()
    one = CalibrationCounts.zero()
    one.update(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.ones(1, np.float32))
    found = one.calibration()
    assert (found.expected_error, found.confidence_B[-1]) == (0.0, 1.0) and np.isnan(found.confidence_B[:-1]).all()


def test_rounding_above_1_is_taken_for_1_and_other_numbers_are_refused() -> None:
    label = np.zeros(2, np.uint8)
    counts = CalibrationCounts.zero()
    counts.update(label, label, np.array([1.0000002, 1.0], np.float32))
    assert counts.calibration().expected_error == 0
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"a confidence is .*; expected a probability"):
            counts.update(label, label, np.array([wrong, 1.0], np.float32))
        ignored = np.array([IGNORE_INDEX, 0], np.uint8)
        counts.update(ignored, label, np.array([wrong, 1.0], np.float32))  # where nothing is counted
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(2,\) and \(3,\)"):
        counts.update(label, label, np.ones(3, np.float32))


def test_one_thread_and_several_count_alike_and_refuse_alike() -> None:
    before = torch.get_num_threads()
    states = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            state = SegmentationCounts.zero(3, BoundaryConfig())
            state.update(*pixels(5, (60, 70)))
            states.append(state.flat().tolist())
            with pytest.raises(ValueError, match=r"predicted value \d+ is outside 0\.\.2"):
                labels, predictions, confidence = pixels(6, (20, 20))
                state.update(labels, predictions + np.uint8(9), confidence)
    finally:
        torch.set_num_threads(before)
    assert states[0] == states[1]


def test_all_counts_travel_in_one_row_and_back() -> None:
    config = BoundaryConfig(trimap_px=(1, 2))
    state = SegmentationCounts.zero(3, config)
    image_CC = state.update(*pixels(3, (20, 30)))
    assert np.array_equal(image_CC, state.confusion_CC)
    state.update(*pixels(4, (10, 30)))
    back = SegmentationCounts.from_flat(state.flat(), 3, config)
    assert np.array_equal(back.flat(), state.flat()) and state.flat().dtype == np.int64
    assert back.calibration.counts_3B[2].sum() == back.confusion_CC.sum()
    back.merge(state)
    assert np.array_equal(back.flat(), 2 * state.flat())
    with pytest.raises(AssertionError, match="another class table"):
        SegmentationCounts.from_flat(state.flat(), 4, config)
