"""A few images beside their truth and prediction, to look at in MLflow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipelines.checkpoints import ModelBundle
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.pictures import Panel, Pixels, classes_in, colourise, png_bytes, strip, with_legend
from pipelines.serving import ServedModel
from pipelines.shards import TRAINING_COLUMNS, PreparedDataset, read_part
from segcore import Task
from segcore.augment import centre_crop
from segcore.augment_config import ClassificationAugmentConfig


def sample_pictures(bundle: ModelBundle, dataset: PreparedDataset, *, split: str, count: int) -> dict[str, bytes]:
    """PNG files by image id: image, truth and prediction side by side, spread over the split's first shard."""
    rows = read_part(dataset, dataset.splits[split].parts[0], columns=TRAINING_COLUMNS[dataset.task])
    chosen = np.unique(np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows)).astype(int))
    draw = _PICTURES[dataset.task]
    return {
        row["image_id"].replace("/", "_"): png_bytes(draw(bundle, dataset, row))
        for row in rows.take(chosen).to_pylist()
    }


def _segmented(bundle: ModelBundle, dataset: PreparedDataset, row: dict[str, Any]) -> Pixels:
    pixels_HW3 = decode_image(row["image"]).pixels_HW3
    labels_HW, prediction_HW = decode_labels(row["label"]), np.asarray(ServedModel(bundle).predict(pixels_HW3))
    panels = (
        Panel(row["image_id"], pixels_HW3),
        Panel("truth", colourise(labels_HW, dataset.palette)),
        Panel("prediction", colourise(prediction_HW, dataset.palette)),
    )
    there = classes_in(labels_HW, prediction_HW)
    return with_legend(strip(panels), dataset.class_names, dataset.palette, classes=there)


def _classified(bundle: ModelBundle, dataset: PreparedDataset, row: dict[str, Any]) -> Pixels:
    """The whole image, and the crop that was classified, as validation does it."""
    pixels_HW3 = decode_image(row["image"]).pixels_HW3
    config = ClassificationAugmentConfig(**bundle.card.recipe["augment"])
    crop_3HW = centre_crop(torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1), config)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.card.mean, bundle.card.std))
    with torch.inference_mode():
        probabilities_C = bundle.model(((crop_3HW / 255 - mean) / std)[None])[0].softmax(dim=0)
    share, best = probabilities_C.max(dim=0)
    panels = (
        Panel(f"truth: {dataset.class_names[row['class_index']]}", pixels_HW3),
        Panel(f"{dataset.class_names[int(best)]}, {100 * float(share):.0f} %", crop_3HW.permute(1, 2, 0).numpy()),
    )
    return strip(panels)


_PICTURES: dict[Task, Callable[[ModelBundle, PreparedDataset, dict[str, Any]], Pixels]] = {
    "segmentation": _segmented,
    "classification": _classified,
}
