"""One confusion matrix and every score from it; for image classification, counts of top-1 and top-5 hits.

Both are int64 sums: they add over batches, images, workers and nodes in any order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.metrics_kernel import count_pairs


def confusion_matrix(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], *, num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by true and predicted class.

    Args:
        labels: integer truth, any shape; `IGNORE_INDEX` pixels are left out.
        predictions: integer argmax of the same shape, each in `0..num_classes-1` wherever the truth is not ignored.

    Returns:
        confusion_CC, int64, rows truth, columns prediction.

    Raises:
        ValueError: shapes differ, or a counted value lies outside the class table.
    """
    if labels.shape != predictions.shape or not labels.dtype == predictions.dtype == np.uint8:
        truth, guess = check_pair(labels, predictions, num_classes=num_classes)
        counts = np.bincount(truth * num_classes + guess, minlength=num_classes * num_classes)
        return counts.reshape(num_classes, num_classes)
    confusion_CC = np.zeros((num_classes, num_classes), dtype=np.int64)
    if not count_pairs(np.ascontiguousarray(labels).ravel(), np.ascontiguousarray(predictions).ravel(), confusion_CC):
        check_pair(labels, predictions, num_classes=num_classes)
    return confusion_CC


def check_pair(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], *, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted classes of the pixels whose truth is not ignored, in one row each.

    Raises:
        ValueError: shapes differ, or a counted value lies outside the class table.
    """
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; "
            "compare them at the labels' size (resize scores, never labels)"
        )
    valid = labels != IGNORE_INDEX
    truth = labels[valid].astype(np.int64)
    guess = predictions[valid].astype(np.int64)
    for name, values in (("label", truth), ("predicted", guess)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            wrong = values[(values < 0) | (values >= num_classes)][0]
            raise ValueError(
                f"{name} value {wrong} is outside 0..{num_classes - 1} and is not ignore_index={IGNORE_INDEX}; "
                "check that model and labels share one class table"
            )
    return truth, guess


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one confusion matrix, as fractions of 1.

    Attributes:
        mean_iou: mean of `iou_C` over the classes that occur in truth or prediction; NaN where none does.
        pixel_accuracy: trace / sum.
        mean_accuracy: mean recall over the classes that occur in the truth.
        frequency_weighted_iou: sum over classes of truth frequency times IoU.
        iou_C: intersection over union per class; NaN for a class absent from truth and prediction.
        accuracy_C: recall per class; NaN for a class absent from the truth.
    """

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou_C: NDArray[np.float64]
    accuracy_C: NDArray[np.float64]


def class_counts(confusion_CC: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts that every score but the confusion itself follows from, and that add over images as it does.

    Returns:
        counts_3C, int64: pixels of each class in truth and prediction at once (intersection), in the truth, and in the
        prediction, in this order.
    """
    return np.stack([np.diag(confusion_CC), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)])


def class_iou(counts_3C: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    """IoU of each class from its counts (..., 3, C), see `class_counts`: intersection / (truth + prediction -
    intersection); NaN at 0/0."""
    intersection_C, truth_C, prediction_C = np.moveaxis(np.asarray(counts_3C, dtype=np.float64), -2, 0)
    union_C = truth_C + prediction_C - intersection_C
    iou_C: NDArray[np.float64] = np.divide(
        intersection_C, union_C, out=np.full_like(union_C, np.nan), where=union_C > 0
    )
    return iou_C


def mean_of_present(values_C: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    present_C = ~np.isnan(values_C)
    count = present_C.sum(axis=-1)
    total = np.where(present_C, values_C, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0))


def scores(confusion_CC: NDArray[np.int64]) -> Scores:
    """Score a confusion matrix; see `scores_of_counts`."""
    return scores_of_counts(class_counts(confusion_CC))


def scores_of_counts(counts_3C: NDArray[np.int64]) -> Scores:
    """Score the pixels of each class, summed over any images; see `class_counts`.

    A class absent from both truth and prediction has no IoU (0/0): it is NaN and left out of the mean, neither 0
    (PyTorch-Encoding) nor 1 (segmentation_models.pytorch). torchmetrics shows it as 0, but leaves it out of its mean.

    Source: Long, Shelhamer and Darrell, "Fully convolutional networks", section 5 (the four scores).
    """
    intersection_C, truth_C, _ = counts_3C.astype(np.float64)
    iou_C = class_iou(counts_3C)
    accuracy_C = np.divide(intersection_C, truth_C, out=np.full_like(truth_C, np.nan), where=truth_C > 0)
    total = truth_C.sum()
    if total == 0:
        return Scores(np.nan, np.nan, np.nan, np.nan, iou_C, accuracy_C)
    return Scores(
        mean_iou=float(mean_of_present(iou_C)),
        pixel_accuracy=float(intersection_C.sum() / total),
        mean_accuracy=float(mean_of_present(accuracy_C)),
        frequency_weighted_iou=float((truth_C / total * np.nan_to_num(iou_C)).sum()),
        iou_C=iou_C,
        accuracy_C=accuracy_C,
    )


NUM_COUNTS = 4
"""Columns of `classification_counts`: images, top-1 hits, top-5 hits, cross-entropy in millionths of a nat."""
NATS = 1_000_000
"""Units of the cross-entropy's integer sum, which a sum of floats would make depend on the order of the workers."""
MAX_CROSS_ENTROPY = 1e6
"""What an image counts whose logits are not finite."""


def classification_counts(logits_NC: NDArray[np.floating], labels_N: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count images by true class, and how often the truth was among the best guesses.

    A truth is a top-k hit if fewer than k classes score higher; of equal scores the lower index comes first, as in
    argmax. Logits that are not finite are no hit.

    Returns:
        counts_C4, int64: a row for each true class, columns as `NUM_COUNTS` says.

    Raises:
        ValueError: shapes do not belong together, or a label lies outside the class table.
    """
    num_classes = logits_NC.shape[1]
    if labels_N.shape != logits_NC.shape[:1]:
        raise ValueError(f"logits have shape {logits_NC.shape} and labels {labels_N.shape}; give one class per image")
    if labels_N.size and (labels_N.min() < 0 or labels_N.max() >= num_classes):
        wrong = labels_N[(labels_N < 0) | (labels_N >= num_classes)][0]
        raise ValueError(f"label {wrong} is outside 0..{num_classes - 1}; check that model and data share classes")
    logits = logits_NC.astype(np.float64)
    own_N1 = np.take_along_axis(logits, labels_N[:, None].astype(np.int64), axis=1)
    earlier_NC = np.arange(num_classes) < labels_N[:, None]
    rank_N = ((logits > own_N1) | ((logits == own_N1) & earlier_NC)).sum(axis=1)
    rank_N[~np.isfinite(logits).all(axis=1)] = num_classes
    with np.errstate(invalid="ignore", over="ignore"):
        highest_N1 = logits.max(axis=1, keepdims=True)
        loss_N = np.log(np.exp(logits - highest_N1).sum(axis=1)) - (own_N1 - highest_N1)[:, 0]
    loss_N = np.clip(np.nan_to_num(loss_N, nan=MAX_CROSS_ENTROPY, posinf=MAX_CROSS_ENTROPY), 0, MAX_CROSS_ENTROPY)
    columns = [np.ones_like(rank_N), rank_N < 1, rank_N < 5, np.rint(loss_N * NATS)]
    counts_C4 = np.zeros((num_classes, NUM_COUNTS), dtype=np.int64)
    np.add.at(counts_C4, labels_N.astype(np.int64), np.stack(columns, axis=1).astype(np.int64))
    return counts_C4


@dataclass(frozen=True, slots=True)
class ClassificationScores:
    """Scores of `classification_counts`; NaN where there is no image.

    Attributes:
        top1, top5: shares of the images, 0 to 1. With five classes or fewer top5 is 1.
        cross_entropy: mean over the images, in nats, without label smoothing.
        accuracy_C: share of each class's images whose truth is the best guess.
    """

    top1: float
    top5: float
    cross_entropy: float
    accuracy_C: NDArray[np.float64]


def classification_scores(counts_C4: NDArray[np.int64]) -> ClassificationScores:
    """Score counts, merged over whatever was counted apart."""
    images, first, fifth, nats = (int(total) for total in counts_C4.sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy_C = np.where(counts_C4[:, 0] > 0, counts_C4[:, 1] / counts_C4[:, 0], np.nan)
    if not images:
        return ClassificationScores(np.nan, np.nan, np.nan, accuracy_C)
    return ClassificationScores(first / images, fifth / images, nats / NATS / images, accuracy_C)
