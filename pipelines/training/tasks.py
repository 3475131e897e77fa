"""What a training does in its own way for each task. All the rest is shared: Ray Train and Ray Data, order and threads,
optimiser, checkpoints, the merging of counts, MLflow, the model folder.

| | segmentation | classification |
|---|---|---|
| a row becomes | image and label map | image and class index |
| augmentation | `segcore.augment.augment` | `random_resized_crop` |
| validation sees | one image at a time, whole | 64 centre crops at a time |
| and counts | a confusion matrix of pixels | top-1 and top-5 hits, cross-entropy |
| the best epoch has the highest | `val/mean_iou` | `val/top1` |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.checkpoints import InputPolicy
from pipelines.training.batches import decoded, decoded_image
from segcore import Task
from segcore.augment import augment, centre_crop, random_resized_crop
from segcore.augment_config import AugmentConfig, ClassificationAugmentConfig
from segcore.metrics import NUM_COUNTS, classification_counts, classification_scores, confusion_matrix, scores
from segcore.models import SegmentationOutput

MAX_CLASSES_LOGGED = 50
"""With more classes, accuracy is not logged class by class: ImageNet's 1000 would be most of MLflow's database."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTask:
    """The parts of a training that depend on the task.

    Attributes:
        training_pair: row, generator, augmentation config, fill colour -> augmented uint8 image (3, H, W) and labels.
        validation_pair: row, augmentation config -> image and labels as the score wants them.
        validation_batch: images that are scored at a time. Workers share out whole batches, so that no score depends
            on their number.
        zero: number of classes -> counts of nothing.
        count: network output, labels of the batch, number of classes -> int64 counts, which add up over batches and
            workers.
        metrics: merged counts, class names -> scores by metric name.
        selection: the metric that chooses the best epoch; higher is better.
        score_name: what that is called in a log line.
        cost_size: height and width for which multiply-adds are counted.
    """

    training_pair: Callable[[dict[str, Any], torch.Generator, Any, Colour], tuple[Tensor, Tensor]]
    validation_pair: Callable[[dict[str, Any], Any], tuple[Tensor, Tensor]]
    validation_batch: int
    zero: Callable[[int], NDArray[np.int64]]
    count: Callable[[Any, Tensor, int], NDArray[np.int64]]
    metrics: Callable[[NDArray[np.int64], tuple[str, ...]], dict[str, float]]
    selection: str
    score_name: str
    cost_size: Callable[[InputPolicy], tuple[int, int]]


def _augmented_pair(
    row: dict[str, Any], generator: torch.Generator, config: AugmentConfig, fill: Colour
) -> tuple[Tensor, Tensor]:
    image_3HW, labels_HW = decoded(row)
    return augment(image_3HW, labels_HW, config, generator, fill=fill)


def _whole_pair(row: dict[str, Any], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    return decoded(row)


def _no_confusion(num_classes: int) -> NDArray[np.int64]:
    return np.zeros((num_classes, num_classes), dtype=np.int64)


def _confusion(output: SegmentationOutput, labels_NHW: Tensor, num_classes: int) -> NDArray[np.int64]:
    predictions_NHW = output.logits_NCHW.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return confusion_matrix(labels_NHW.numpy(), predictions_NHW, num_classes=num_classes)


def segmentation_metrics(confusion_CC: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, float]:
    """Scores by metric name; a class that occurs nowhere has no IoU and is left out."""
    result = scores(confusion_CC)
    metrics = {
        "val/mean_iou": result.mean_iou,
        "val/pixel_accuracy": result.pixel_accuracy,
        "val/mean_accuracy": result.mean_accuracy,
        "val/frequency_weighted_iou": result.frequency_weighted_iou,
    }
    metrics |= {f"val/iou/{name}": float(iou) for name, iou in zip(class_names, result.iou_C, strict=True)}
    return {name: value for name, value in metrics.items() if not np.isnan(value) or name == "val/mean_iou"}


def _random_window(
    row: dict[str, Any], generator: torch.Generator, config: ClassificationAugmentConfig, fill: Colour
) -> tuple[Tensor, Tensor]:
    return random_resized_crop(decoded_image(row), config, generator), torch.tensor(row["class_index"])


def _centre(row: dict[str, Any], config: ClassificationAugmentConfig) -> tuple[Tensor, Tensor]:
    return centre_crop(decoded_image(row), config), torch.tensor(row["class_index"])


def _no_hits(num_classes: int) -> NDArray[np.int64]:
    return np.zeros((num_classes, NUM_COUNTS), dtype=np.int64)


def _hits(logits_NC: Tensor, labels_N: Tensor, num_classes: int) -> NDArray[np.int64]:
    return classification_counts(logits_NC.float().cpu().numpy(), labels_N.numpy())


def classification_metrics(counts_C4: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, float]:
    """Scores by metric name; the accuracy of each class where they are few, without those that have no image."""
    result = classification_scores(counts_C4)
    metrics = {"val/top1": result.top1, "val/top5": result.top5, "val/cross_entropy": result.cross_entropy}
    if len(class_names) <= MAX_CLASSES_LOGGED:
        by_class = zip(class_names, result.accuracy_C.tolist(), strict=True)
        metrics |= {f"val/accuracy/{name}": value for name, value in by_class if not np.isnan(value)}
    return metrics


TASKS: dict[Task, TrainingTask] = {
    "segmentation": TrainingTask(
        training_pair=_augmented_pair,
        validation_pair=_whole_pair,
        validation_batch=1,  # images differ in size
        zero=_no_confusion,
        count=_confusion,
        metrics=segmentation_metrics,
        selection="val/mean_iou",
        score_name="mIoU",
        cost_size=lambda policy: (policy.image_height, policy.image_width),
    ),
    "classification": TrainingTask(
        training_pair=_random_window,
        validation_pair=_centre,
        validation_batch=64,
        zero=_no_hits,
        count=_hits,
        metrics=classification_metrics,
        selection="val/top1",
        score_name="top-1 accuracy",
        cost_size=lambda policy: (policy.crop_height, policy.crop_width),
    ),
}
