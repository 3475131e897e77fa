"""One confusion matrix, and every score from it.

Confusion matrices are int64 sums: they add over batches, images, workers and nodes in any order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX


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
    counts = np.bincount(truth * num_classes + guess, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


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


def scores(confusion_CC: NDArray[np.int64]) -> Scores:
    """Score a confusion matrix.

    A class absent from both truth and prediction has no IoU (0/0): it is NaN and left out of the mean, neither 0
    (PyTorch-Encoding) nor 1 (segmentation_models.pytorch).

    Source: Long, Shelhamer and Darrell, "Fully convolutional networks", section 5 (the four scores).
    """
    diagonal_C = np.diag(confusion_CC).astype(np.float64)
    truth_C = confusion_CC.sum(axis=1).astype(np.float64)
    predicted_C = confusion_CC.sum(axis=0).astype(np.float64)
    union_C = truth_C + predicted_C - diagonal_C
    total = truth_C.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        iou_C = np.where(union_C > 0, diagonal_C / union_C, np.nan)
        accuracy_C = np.where(truth_C > 0, diagonal_C / truth_C, np.nan)
    if total == 0:
        return Scores(np.nan, np.nan, np.nan, np.nan, iou_C, accuracy_C)
    return Scores(
        mean_iou=float(np.nanmean(iou_C)),
        pixel_accuracy=float(diagonal_C.sum() / total),
        mean_accuracy=float(np.nanmean(accuracy_C)),
        frequency_weighted_iou=float(np.nansum(truth_C / total * np.nan_to_num(iou_C))),
        iou_C=iou_C,
        accuracy_C=accuracy_C,
    )
