"""What a network that enlarges by R can reach on these labels at best: true labels, coded in blocks and expanded again.

A sample of training labels fits a label PCA; another sample is coded by it, and by each class's share of a block, which
is enlarged bilinearly (`segcore.label_recovery`). One task per R: the same sample in the same order whoever runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines.datasets.listing import ClassTable, Sample
from pipelines.health.facts import Read
from pipelines.health.survey import TRAIN, Survey
from pipelines.intake.labels import decode_labels
from segcore.label_blocks import BlockStatistics
from segcore.label_krylov import EXTRA_COLUMNS, coarse_factor, coarse_labels, solve_large
from segcore.label_pca import LabelPCA
from segcore.label_recovery import METHODS, Recovery
from segcore.label_rows import LabelRows
from segcore.metrics import scores

BLOCK_SIDES = (8, 16, 32)
NUM_COMPONENTS = 64
BOUND_METHODS = ("bilinear", "basis")
MAX_SCORES = 2**28
"""Pixels times classes of a label that is scored: 1 GiB in single precision. Larger labels are left out."""

RECOVERY_SCHEMA = pa.schema(
    [
        pa.field("block_side", pa.int32(), nullable=False),
        pa.field("method", pa.string(), nullable=False),  # basis: the label PCA
        pa.field("num_components", pa.int32()),  # of the label PCA
        pa.field("mean_iou", pa.float64(), nullable=False),
        pa.field("pixel_accuracy", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverySample:
    """Which labels are fitted, and which scored."""

    fitted: tuple[Sample, ...]
    scored: tuple[Sample, ...]


def choose_sample(survey: Survey, samples: Sequence[Sample], *, num_images: int) -> RecoverySample | None:
    """At most `num_images` sound labels of train, at even distances, and as many of other splits.

    Where no other split has labels, every second one of train is scored. None: there are fewer than two.
    """
    faults, void = survey.values("faults"), survey.values("void_share")
    scores_N = survey.numbers("label_height") * survey.numbers("label_width") * len(survey.class_table.names)
    rows = [row for row in survey.labelled().tolist() if not faults[row] and void[row] < 1]
    rows = [row for row in rows if scores_N[row] <= MAX_SCORES]
    split = TRAIN if TRAIN in survey.splits else survey.splits[0]
    own = [row for row in rows if samples[row].split == split]
    other = [row for row in rows if samples[row].split != split]
    if not other:
        own, other = own[::2], own[1::2]
    if num_images < 1 or not own or not other:
        return None
    return RecoverySample(
        fitted=tuple(samples[row] for row in _evenly(own, num_images)),
        scored=tuple(samples[row] for row in _evenly(other, num_images)),
    )


def recovery_bounds(
    block_side: int, sample: RecoverySample, read: Read, class_table: ClassTable
) -> list[dict[str, Any]]:
    """Rows of RECOVERY_SCHEMA for one block side: the bilinear bound and that of a label PCA."""
    num_classes = len(class_table.names)
    factor = coarse_factor(block_side=block_side, num_classes=num_classes)
    rows = LabelRows.zero(block_side, num_classes)
    coarse = BlockStatistics.zero(block_side // factor, num_classes)
    for one in sample.fitted:
        labels_HW = _labels(one, read, class_table)
        rows.update(labels_HW)
        coarse.update(coarse_labels(labels_HW, factor))
    with threadpool_limits(limits=1):  # other thread counts round differently
        num_components = min(NUM_COMPONENTS, num_classes * (block_side // factor) ** 2 - EXTRA_COLUMNS)
        code = solve_large(rows, coarse, num_components=num_components)
        recovery = _recovery(code, sample, read, class_table)
    found = {method: scores(recovery.confusion[method]) for method in METHODS if method in BOUND_METHODS}
    return [
        {
            "block_side": block_side,
            "method": method,
            "num_components": num_components if method == "basis" else None,
            "mean_iou": found[method].mean_iou,
            "pixel_accuracy": found[method].pixel_accuracy,
        }
        for method in BOUND_METHODS
    ]


def _recovery(code: LabelPCA, sample: RecoverySample, read: Read, class_table: ClassTable) -> Recovery:
    recovery = Recovery.zero(len(class_table.names))
    for one in sample.scored:
        recovery.update(code, _labels(one, read, class_table))
    return recovery


def _labels(sample: Sample, read: Read, class_table: ClassTable) -> NDArray[np.uint8]:
    return class_table.class_indices(decode_labels(read(sample)[1]))


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[place] for place in places]
