"""The same images by each model, and each model's speed, measured here one after another under one condition."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.checkpoints import ModelBundle, load_model
from pipelines.comparison.runs import ComparedRun
from pipelines.ensembles import member_of
from pipelines.evaluation.scoring import class_maps
from pipelines.pictures import fit_width, jpeg_bytes, overlay
from pipelines.shards import PreparedDataset, spread_rows
from pipelines.training.batches import decoded
from segcore.cost import count_multiply_adds, count_parameters
from segcore.inference import InferenceConfig, prepare
from segcore.metrics import confusion_matrix, scores

logger = logging.getLogger(__name__)

PICTURE_WIDTH_PX = 480
TIMED_PASSES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SameImage:
    """One image of the split, its truth, and what each model makes of it.

    Attributes:
        image_id: of the image.
        panels: caption and JPEG: the image, the truth, and one per model.
    """

    image_id: str
    panels: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Labelled:
    image_id: str
    image_3HW: Tensor
    labels_HW: NDArray[np.uint8]


def examine_models(
    runs: Sequence[ComparedRun],
    dataset: PreparedDataset,
    *,
    drawn: Collection[str],
    split: str,
    num_images: int,
    threads: int,
) -> tuple[list[ComparedRun], list[SameImage]]:
    """Load each run's model in turn: measure size, cost and speed, and segment the same images.

    Args:
        runs: whose model folders are readable from here.
        dataset: where the images come from.
        drawn: ids of the runs whose masks are shown: one of each row.
        split: name of one of its splits.
        num_images: to show, spread evenly over the split.
        threads: CPU threads.

    Returns:
        The runs with what was measured, and the pictures. A model of another class table is measured but not drawn.
    """
    images = _spread_images(dataset, split, count=max(num_images, 1))
    shown = images[:num_images]
    panels = [
        [
            (image.image_id, page_picture(image_pixels(image.image_3HW))),
            ("truth", page_picture(overlay(image_pixels(image.image_3HW), image.labels_HW, dataset.palette))),
        ]
        for image in shown
    ]
    measured: list[ComparedRun] = []
    with torch_threads(threads):
        for run in runs:
            bundle = load_model(run.model_folder)
            height, width = images[0].labels_HW.shape
            counted = replace(
                run,
                parameters=count_parameters(bundle.model).total,
                multiply_adds=count_multiply_adds(bundle.model, height, width),
                cost_size=(height, width),
            )
            prepare(bundle.model, "cpu")
            measured.append(replace(counted, images_per_second=_speed(bundle, images[0].image_3HW)))
            if run.class_names != dataset.class_names:
                logger.warning("no pictures of %s: its class table is not the dataset's", run.name)
                continue
            if run.run_id not in drawn:
                continue
            for image, row in zip(shown, panels, strict=True):
                row.append(_prediction_panel(run.name, bundle, image, dataset))
    return measured, [
        SameImage(image_id=image.image_id, panels=tuple(row)) for image, row in zip(shown, panels, strict=True)
    ]


def _prediction_panel(name: str, bundle: ModelBundle, image: _Labelled, dataset: PreparedDataset) -> tuple[str, bytes]:
    predictions_HW = class_maps([member_of(bundle, InferenceConfig())], image.image_3HW[None])[0]
    confusion_CC = confusion_matrix(image.labels_HW, predictions_HW, num_classes=dataset.num_classes)
    caption = f"{name}, mIoU of this image {100 * scores(confusion_CC).mean_iou:.1f} %"
    return caption, page_picture(overlay(image_pixels(image.image_3HW), predictions_HW, dataset.palette))


def _speed(bundle: ModelBundle, image_3HW: Tensor) -> float:
    """Images per second of a prepared network, one at a time, as `segment` runs it; the median after two others."""
    seconds: list[float] = []
    for _ in range(TIMED_PASSES + 2):
        started = time.perf_counter()
        class_maps([member_of(bundle, InferenceConfig())], image_3HW[None])
        seconds.append(time.perf_counter() - started)
    return 1 / median(seconds[2:])


def _spread_images(dataset: PreparedDataset, split: str, *, count: int) -> list[_Labelled]:
    """Images at even distances over the whole split."""
    images: list[_Labelled] = []
    for row in spread_rows(dataset, split, count=count, columns=("image_id", "image", "label")):
        image_3HW, labels_HW = decoded(row)
        images.append(_Labelled(row["image_id"], image_3HW, labels_HW.numpy()))
    return images


def image_pixels(image_3HW: Tensor) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of a uint8 image (3, H, W)."""
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())


def page_picture(pixels_HW3: NDArray[np.uint8], *, width: int = PICTURE_WIDTH_PX) -> bytes:
    """JPEG of at most `width` columns."""
    return jpeg_bytes(fit_width(pixels_HW3, width=width))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
