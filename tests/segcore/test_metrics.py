"""Scores against the definitions written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.metrics import classification_counts, classification_scores, confusion_matrix, scores


def counted_by_hand(labels: NDArray[np.integer], predictions: NDArray[np.integer], num_classes: int) -> list[list[int]]:
    """Confusion matrix by a loop over pixels."""
    counts = [[0] * num_classes for _ in range(num_classes)]
    for truth, guess in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if truth != IGNORE_INDEX:
            counts[truth][guess] += 1
    return counts


def iou_from_sets(labels: NDArray[np.integer], predictions: NDArray[np.integer], index: int) -> float:
    """Intersection over union of two sets of pixel positions."""
    valid = labels != IGNORE_INDEX
    truth = set(np.flatnonzero(valid & (labels == index)).tolist())
    guess = set(np.flatnonzero(valid & (predictions == index)).tolist())
    return len(truth & guess) / len(truth | guess) if truth | guess else math.nan


def random_pair(seed: int, num_classes: int, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    predictions = np.where(rng.random(shape) < 0.6, labels, rng.integers(0, num_classes, shape)).astype(np.uint8)
    labels[rng.random(shape) < 0.1] = IGNORE_INDEX
    return labels, predictions


def test_published_vector() -> None:
    labels = np.array([[0, 0], [1, IGNORE_INDEX]], dtype=np.uint8)
    predictions = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    confusion_CC = confusion_matrix(labels, predictions, num_classes=2)
    assert confusion_CC.tolist() == [[1, 1], [0, 1]]
    result = scores(confusion_CC)
    assert result.iou_C.tolist() == [0.5, 0.5]
    assert result.mean_iou == 0.5
    assert result.pixel_accuracy == pytest.approx(2 / 3)
    assert result.mean_accuracy == 0.75
    assert result.frequency_weighted_iou == 0.5


@pytest.mark.parametrize("num_classes", [1, 2, 7, 21, 254])
def test_confusion_equals_a_loop_over_pixels(num_classes: int) -> None:
    labels, predictions = random_pair(num_classes, num_classes, (13, 17))
    confusion_CC = confusion_matrix(labels, predictions, num_classes=num_classes)
    assert confusion_CC.dtype == np.int64
    assert confusion_CC.tolist() == counted_by_hand(labels, predictions, num_classes)


def test_scores_equal_set_arithmetic() -> None:
    labels, predictions = random_pair(3, 6, (40, 50))
    result = scores(confusion_matrix(labels, predictions, num_classes=6))
    ious = [iou_from_sets(labels, predictions, index) for index in range(6)]
    valid = labels != IGNORE_INDEX
    frequency = [np.mean(labels[valid] == index) for index in range(6)]
    recall = [np.mean(predictions[labels == index] == index) for index in range(6)]
    np.testing.assert_allclose(result.iou_C, ious)
    np.testing.assert_allclose(result.accuracy_C, recall)
    assert result.mean_iou == pytest.approx(np.mean(ious))
    assert result.mean_accuracy == pytest.approx(np.mean(recall))
    assert result.pixel_accuracy == pytest.approx(np.mean(labels[valid] == predictions[valid]))
    assert result.frequency_weighted_iou == pytest.approx(np.dot(frequency, ious))


def test_ignored_pixels_do_not_enter_the_confusion() -> None:
    labels, predictions = random_pair(5, 4, (20, 20))
    expected = confusion_matrix(labels, predictions, num_classes=4)
    predictions[labels == IGNORE_INDEX] = 3
    assert (confusion_matrix(labels, predictions, num_classes=4) == expected).all()


def test_prediction_under_ignored_truth_may_hold_anything() -> None:
    labels = np.array([0, IGNORE_INDEX], dtype=np.uint8)
    predictions = np.array([0, 200], dtype=np.uint8)
    assert confusion_matrix(labels, predictions, num_classes=2).tolist() == [[1, 0], [0, 0]]


def test_confusions_add_over_images_in_any_grouping() -> None:
    labels, predictions = random_pair(8, 5, (6, 9, 11))
    whole = confusion_matrix(labels, predictions, num_classes=5)
    single = [confusion_matrix(labels[i], predictions[i], num_classes=5) for i in (4, 1, 5, 0, 3, 2)]
    np.testing.assert_array_equal(sum(single[:2]) + sum(single[2:]), whole)


def test_absent_class_is_left_out_of_the_mean() -> None:
    labels = np.array([0, 0, 1, 1])
    predictions = np.array([0, 0, 1, 0])
    result = scores(confusion_matrix(labels, predictions, num_classes=3))
    assert np.isnan(result.iou_C[2])
    assert result.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_class_predicted_where_it_never_occurs_counts_as_zero() -> None:
    labels = np.array([0, 0, 0, 0])
    predictions = np.array([0, 0, 0, 2])
    result = scores(confusion_matrix(labels, predictions, num_classes=3))
    assert result.iou_C[2] == 0.0
    assert np.isnan(result.accuracy_C[2])
    assert result.mean_iou == pytest.approx((3 / 4 + 0) / 2)
    assert result.mean_accuracy == 0.75


def test_scores_of_nothing_are_nan() -> None:
    labels = np.full((3, 3), IGNORE_INDEX, dtype=np.uint8)
    result = scores(confusion_matrix(labels, np.zeros((3, 3), dtype=np.uint8), num_classes=2))
    single = [result.mean_iou, result.pixel_accuracy, result.mean_accuracy, result.frequency_weighted_iou]
    assert all(math.isnan(value) for value in single)


def test_counts_beyond_32_bits_stay_exact() -> None:
    confusion_CC = np.array([[2**40, 1], [0, 2**40]], dtype=np.int64)
    result = scores(confusion_CC)
    assert result.iou_C[0] == 2**40 / (2**40 + 1)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and predictions \(3, 2\)"):
        confusion_matrix(np.zeros((2, 3), dtype=np.uint8), np.zeros((3, 2), dtype=np.uint8), num_classes=2)


@pytest.mark.parametrize(
    ("labels", "predictions", "name"), [([7], [0], "label value 7"), ([0], [7], "predicted value 7")]
)
def test_values_outside_the_class_table_are_refused(labels: list[int], predictions: list[int], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is outside 0\.\.2 .*class table"):
        confusion_matrix(np.array(labels), np.array(predictions), num_classes=3)


def hits_by_sorting(logits_NC: NDArray[np.floating], labels_N: NDArray[np.integer], k: int) -> int:
    """Top-k hits from the definition: the truth stands among the first k of a stable sort by falling score."""
    order_NC = np.argsort(-logits_NC, axis=1, kind="stable")
    return sum(int(label in order[:k]) for order, label in zip(order_NC, labels_N, strict=True))


@pytest.mark.parametrize("num_classes", [2, 5, 6, 40])
def test_top_1_and_top_5_are_those_of_sorting_all_scores(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    logits_NC = rng.integers(-8, 8, (300, num_classes)).astype(np.float32) / 4  # with many equal scores
    labels_N = rng.integers(0, num_classes, 300)
    found = classification_scores(classification_counts(logits_NC, labels_N))
    assert found.top1 == hits_by_sorting(logits_NC, labels_N, 1) / 300 == (logits_NC.argmax(1) == labels_N).mean()
    assert found.top5 == hits_by_sorting(logits_NC, labels_N, 5) / 300
    double = torch.from_numpy(logits_NC.astype(np.float64))
    expected = torch.nn.functional.cross_entropy(double, torch.from_numpy(labels_N))
    assert found.cross_entropy == pytest.approx(float(expected), abs=1e-6)
    for index in range(num_classes):
        own = labels_N == index
        assert found.accuracy_C[index] == (logits_NC.argmax(1)[own] == index).mean()


def test_counts_of_shares_add_up_to_the_counts_of_the_whole_in_any_order() -> None:
    rng = np.random.default_rng(1)
    logits_NC, labels_N = rng.normal(size=(101, 7)) * 20, rng.integers(0, 6, 101)
    whole_C4 = classification_counts(logits_NC, labels_N)
    shares = [classification_counts(logits_NC[n::3], labels_N[n::3]) for n in (2, 0, 1)]
    assert np.array_equal(sum(shares), whole_C4) and whole_C4.dtype == np.int64
    assert np.isnan(classification_scores(whole_C4).accuracy_C[6])


def test_scores_that_are_not_finite_are_no_hits() -> None:
    logits_NC = np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0]])
    found = classification_scores(classification_counts(logits_NC, np.array([0, 0, 0])))
    assert found.top1 == pytest.approx(1 / 3) and found.cross_entropy > 1e5
    nothing = classification_scores(np.zeros((2, 4), dtype=np.int64))
    assert np.isnan(nothing.top1) and np.isnan(nothing.cross_entropy)


def test_labels_that_do_not_belong_to_the_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="label 3 is outside 0..2; check that model and data share classes"):
        classification_counts(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\) and labels \(3,\)"):
        classification_counts(np.zeros((2, 3)), np.array([0, 1, 2]))
