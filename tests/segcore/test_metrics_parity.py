"""Scores beside torchmetrics' and beside a loop over pixels, on random maps with ignored pixels and absent classes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from segcore import IGNORE_INDEX
from segcore.metrics import Scores, class_counts, class_iou, confusion_matrix, mean_of_present, scores

NUM_CLASSES = 9
ABSENT = 4
"""In neither truth nor prediction."""
PREDICTED_ALONE = 7
"""In the prediction, never in the truth."""
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def random_pair(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    classes = [index for index in range(NUM_CLASSES) if index not in (ABSENT, PREDICTED_ALONE)]
    labels = rng.choice(classes, (41, 37)).astype(np.uint8)
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.choice(classes, labels.shape)).astype(np.uint8)
    predictions[rng.random(labels.shape) < 0.03] = PREDICTED_ALONE
    ignored = rng.random(labels.shape) < 0.15
    labels[ignored] = IGNORE_INDEX
    predictions[ignored & (rng.random(labels.shape) < 0.5)] = ABSENT  # where nothing counts
    return labels, predictions


def by_loops(labels: NDArray[np.uint8], predictions: NDArray[np.uint8]) -> Scores:
    """All scores from the sets of pixels of each class."""
    pairs = [
        (t, g) for t, g in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True) if t != IGNORE_INDEX
    ]
    iou: list[float] = []
    recall: list[float] = []
    weighted = 0.0
    for index in range(NUM_CLASSES):
        both = sum(1 for t, g in pairs if t == index and g == index)
        either = sum(1 for t, g in pairs if t == index or g == index)
        truth = sum(1 for t, _ in pairs if t == index)
        iou.append(both / either if either else math.nan)
        recall.append(both / truth if truth else math.nan)
        weighted += truth / len(pairs) * (both / either if either else 0)
    present = [value for value in iou if not math.isnan(value)]
    known = [value for value in recall if not math.isnan(value)]
    return Scores(
        mean_iou=sum(present) / len(present),
        pixel_accuracy=sum(1 for t, g in pairs if t == g) / len(pairs),
        mean_accuracy=sum(known) / len(known),
        frequency_weighted_iou=weighted,
        iou_C=np.array(iou),
        accuracy_C=np.array(recall),
    )


@pytest.fixture
def torchmetrics_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """It rounds its counts by `Tensor.float()`, to seven digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def by_torchmetrics(function: Callable[..., torch.Tensor], pair: Pair, **settings: object) -> torch.Tensor:
    labels, predictions = (torch.from_numpy(each.astype(np.int64)) for each in pair)
    return function(predictions, labels, num_classes=NUM_CLASSES, ignore_index=IGNORE_INDEX, **settings)


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_a_loop_over_pixels(seed: int) -> None:
    labels, predictions = random_pair(seed)
    found, expected = (
        scores(confusion_matrix(labels, predictions, num_classes=NUM_CLASSES)),
        by_loops(labels, predictions),
    )
    for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "iou_C", "accuracy_C"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
    assert np.isnan(found.iou_C[ABSENT]) and found.iou_C[PREDICTED_ALONE] == 0
    assert np.isnan(found.accuracy_C[PREDICTED_ALONE])


@pytest.mark.usefixtures("torchmetrics_in_float64")
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_torchmetrics(seed: int) -> None:
    pair = random_pair(seed)
    confusion_CC = confusion_matrix(*pair, num_classes=NUM_CLASSES)
    assert by_torchmetrics(multiclass_confusion_matrix, pair).tolist() == confusion_CC.tolist()
    found = scores(confusion_CC)
    # its mean leaves an absent class out, as ours; a class that is predicted alone counts as 0 in both
    assert float(by_torchmetrics(multiclass_jaccard_index, pair)) == pytest.approx(found.mean_iou, abs=1e-12)
    weighted = by_torchmetrics(multiclass_jaccard_index, pair, average="weighted")
    assert float(weighted) == pytest.approx(found.frequency_weighted_iou, abs=1e-12)
    accuracy = by_torchmetrics(multiclass_accuracy, pair, average="micro")
    assert float(accuracy) == pytest.approx(found.pixel_accuracy, abs=1e-12)


@pytest.mark.usefixtures("torchmetrics_in_float64")
def test_torchmetrics_shows_an_absent_class_as_0_or_as_told_and_ours_is_nan() -> None:
    pair = random_pair(0)
    found = scores(confusion_matrix(*pair, num_classes=NUM_CLASSES))
    for instead in (0.0, 1.0):  # 1: what segmentation_models.pytorch counts
        theirs = by_torchmetrics(multiclass_jaccard_index, pair, average="none", zero_division=instead).numpy()
        np.testing.assert_allclose(theirs, np.nan_to_num(found.iou_C, nan=instead), rtol=0, atol=1e-12)
    assert np.isnan(found.iou_C).tolist() == [index == ABSENT for index in range(NUM_CLASSES)]
    with_zero = float(np.nan_to_num(found.iou_C).mean())
    assert found.mean_iou == pytest.approx(with_zero * NUM_CLASSES / (NUM_CLASSES - 1), abs=1e-12)


@pytest.mark.usefixtures("torchmetrics_in_float64")
def test_mean_accuracy_leaves_out_a_class_that_is_predicted_alone_where_torchmetrics_counts_0() -> None:
    pair = random_pair(1)
    found = scores(confusion_matrix(*pair, num_classes=NUM_CLASSES))
    theirs = float(by_torchmetrics(multiclass_accuracy, pair, average="macro"))
    present = NUM_CLASSES - 2
    assert theirs == pytest.approx(found.mean_accuracy * present / (present + 1), abs=1e-12)


def test_bytes_and_wider_integers_are_counted_alike() -> None:
    labels, predictions = random_pair(2)
    expected = confusion_matrix(labels.astype(np.int64), predictions.astype(np.int64), num_classes=NUM_CLASSES)
    assert confusion_matrix(labels, predictions, num_classes=NUM_CLASSES).tolist() == expected.tolist()
    assert (
        confusion_matrix(labels[::2, 1::3], predictions[::2, 1::3], num_classes=NUM_CLASSES).tolist()
        != expected.tolist()
    )
    one = confusion_matrix(labels.T, predictions.T, num_classes=NUM_CLASSES)
    assert one.tolist() == expected.tolist() and one.dtype == np.int64
    wide = confusion_matrix(labels, predictions, num_classes=300)
    assert wide[:NUM_CLASSES, :NUM_CLASSES].tolist() == expected.tolist() and wide.sum() == expected.sum()


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_maps_of_few_pixels_are_counted(size: int) -> None:
    labels = np.arange(size, dtype=np.uint8)
    assert np.diag(confusion_matrix(labels, labels, num_classes=4)).tolist() == [1] * size + [0] * (4 - size)


def test_a_wrong_byte_is_named_as_a_wrong_wide_integer_is() -> None:
    labels, predictions = random_pair(3)
    for dtype in (np.uint8, np.int32):
        wrong: NDArray[np.integer] = predictions.astype(dtype)
        wrong[np.unravel_index((labels != IGNORE_INDEX).argmax(), labels.shape)] = 200
        with pytest.raises(ValueError, match=r"predicted value 200 is outside 0\.\.8 and is not ignore_index=255"):
            confusion_matrix(labels.astype(dtype), wrong, num_classes=NUM_CLASSES)


def test_iou_and_means_of_many_tables_at_once() -> None:
    counts = np.stack(
        [class_counts(confusion_matrix(*random_pair(seed), num_classes=NUM_CLASSES)) for seed in range(3)]
    )
    single = [class_iou(each) for each in counts]
    np.testing.assert_array_equal(class_iou(counts), single)
    np.testing.assert_array_equal(mean_of_present(class_iou(counts)), [mean_of_present(each) for each in single])
    assert np.isnan(mean_of_present(np.full((2, 3), np.nan))).all()
