"""What an evaluation says, as tables: arrays and names in, Arrow tables and numbers by name out."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.evaluation.groups import ImageGroup
from pipelines.evaluation.protocols import CHEAPEST
from pipelines.evaluation.scoring import SplitScores, image_counts
from segcore.bootstrap import ScoreIntervals, bootstrap_intervals, paired_bootstrap
from segcore.calibration import Calibration
from segcore.metrics import Scores, mean_of_present, scores, scores_of_counts

MIN_IMAGES = 2
"""Of one image there is no interval: every draw is the same."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Summary:
    """Scores of one protocol on a split.

    Attributes:
        total: of all pixels.
        intervals: of `total` over the choice of images.
        boundary_iou_C: of each class; NaN where it has no boundary pixel.
        trimaps: width in pixels, and the scores within it of a border.
        calibration: see there.
        counts_N3C: of each image.
    """

    total: Scores
    intervals: ScoreIntervals
    boundary_iou_C: NDArray[np.float64]
    trimaps: tuple[tuple[int, Scores], ...]
    calibration: Calibration
    counts_N3C: NDArray[np.int64]

    @property
    def boundary_iou(self) -> float:
        """Mean over the classes that have one."""
        return float(mean_of_present(self.boundary_iou_C))


def summarise(result: SplitScores) -> Summary:
    """Everything that follows from the counts of a split."""
    counts_N3C = image_counts(result.images)
    return Summary(
        total=scores(result.confusion_CC),
        intervals=_intervals(counts_N3C),
        boundary_iou_C=result.counts.boundaries.boundary_iou_C(),
        trimaps=tuple(result.counts.boundaries.trimaps()),
        calibration=result.counts.calibration.calibration(),
        counts_N3C=counts_N3C,
    )


def _intervals(counts_N3C: NDArray[np.int64]) -> ScoreIntervals:
    if len(counts_N3C) >= MIN_IMAGES:
        return bootstrap_intervals(counts_N3C)
    return ScoreIntervals(mean_iou=(np.nan, np.nan), iou_C2=np.full((counts_N3C.shape[2], 2), np.nan))


def scores_by_name(summary: Summary, class_names: Sequence[str]) -> dict[str, float]:
    """Scores as fractions of 1 by name; what is NaN, as the IoU of a class that occurs nowhere, is left out."""
    total, (low, high) = summary.total, summary.intervals.mean_iou
    named = {
        "mean_iou": total.mean_iou,
        "pixel_accuracy": total.pixel_accuracy,
        "mean_accuracy": total.mean_accuracy,
        "frequency_weighted_iou": total.frequency_weighted_iou,
        "mean_iou_low": low,
        "mean_iou_high": high,
        "boundary_iou": summary.boundary_iou,
        "calibration_error": summary.calibration.expected_error,
        "overconfidence": summary.calibration.overconfidence,
    }
    named |= {f"trimap_mean_iou/{width}px": within.mean_iou for width, within in summary.trimaps}
    named |= {f"iou/{name}": float(value) for name, value in zip(class_names, total.iou_C, strict=True)}
    boundary = zip(class_names, summary.boundary_iou_C, strict=True)
    named |= {f"boundary_iou/{name}": float(value) for name, value in boundary}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def class_table(confusion_CC: NDArray[np.int64], summary: Summary, names: Sequence[str]) -> pa.Table:
    """One row per class: what `classes.parquet` holds."""
    return pa.table(
        {
            "class_index": pa.array(range(len(names)), pa.int32()),
            "class_name": list(names),
            "iou": _floats(summary.total.iou_C),
            "accuracy": _floats(summary.total.accuracy_C),
            "true_pixels": confusion_CC.sum(axis=1),
            "predicted_pixels": confusion_CC.sum(axis=0),
            "iou_low": _floats(summary.intervals.iou_C2[:, 0]),
            "iou_high": _floats(summary.intervals.iou_C2[:, 1]),
            "boundary_iou": _floats(summary.boundary_iou_C),
        }
    )


def confusion_table(confusion_CC: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    """One row per pair of classes: what `confusion.parquet` holds."""
    truth, predicted = np.indices(confusion_CC.shape)
    return pa.table(
        {
            "true_index": truth.ravel().astype(np.int32),
            "predicted_index": predicted.ravel().astype(np.int32),
            "true_class": [names[index] for index in truth.ravel().tolist()],
            "predicted_class": [names[index] for index in predicted.ravel().tolist()],
            "pixels": confusion_CC.ravel(),
        }
    )


def trimap_table(summary: Summary) -> pa.Table:
    """One row per width: what `trimaps.parquet` holds."""
    return pa.table(
        {
            "within_px": pa.array([width for width, _ in summary.trimaps], pa.int32()),
            "mean_iou": _floats([within.mean_iou for _, within in summary.trimaps]),
            "pixel_accuracy": _floats([within.pixel_accuracy for _, within in summary.trimaps]),
        }
    )


def calibration_table(calibration: Calibration) -> pa.Table:
    """One row per bin: what `calibration.parquet` holds."""
    bins = len(calibration.pixels_B)
    return pa.table(
        {
            "confidence_from": np.arange(bins) / bins,
            "confidence_to": (np.arange(bins) + 1) / bins,
            "pixels": calibration.pixels_B,
            "mean_confidence": _floats(calibration.confidence_B),
            "accuracy": _floats(calibration.accuracy_B),
        }
    )


def group_table(counts_N3C: NDArray[np.int64], groups: Sequence[ImageGroup]) -> pa.Table:
    """One row per group of images: what `groups.parquet` holds."""
    rows = []
    for group in groups:
        counts = counts_N3C[list(group.indices)]
        total_3C = counts.sum(axis=0)
        result, (low, high) = scores_of_counts(total_3C), _intervals(counts).mean_iou
        rows.append(
            {
                "kind": group.kind,
                "group": group.name,
                "num_images": len(group.indices),
                "mean_iou": _or_none(result.mean_iou),
                "mean_iou_low": _or_none(low),
                "mean_iou_high": _or_none(high),
                "pixel_accuracy": _or_none(result.pixel_accuracy),
                "intersection_C": total_3C[0].tolist(),
                "truth_C": total_3C[1].tolist(),
                "prediction_C": total_3C[2].tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=_GROUP_SCHEMA)


def protocol_table(results: Mapping[str, SplitScores], summaries: Mapping[str, Summary]) -> pa.Table:
    """One row per protocol: what `protocols.parquet` holds.

    Times are those of the forward passes up to the class map, relative to the protocol `single`, or to the first one.
    """
    first = next(iter(summaries))
    reference = CHEAPEST if CHEAPEST in results else first
    seconds = {name: 1 / result.network_images_per_second for name, result in results.items()}
    rows = []
    for name, summary in summaries.items():
        low, high = summary.intervals.mean_iou
        row = {
            "protocol": name,
            "mean_iou": _or_none(summary.total.mean_iou),
            "mean_iou_low": _or_none(low),
            "mean_iou_high": _or_none(high),
            "pixel_accuracy": _or_none(summary.total.pixel_accuracy),
            "boundary_iou": _or_none(summary.boundary_iou),
            "calibration_error": _or_none(summary.calibration.expected_error),
            "seconds_per_image": _or_none(seconds[name]),
            "relative_cost": _or_none(seconds[name] / seconds[reference]),
            "inputs_per_image": results[name].network_inputs / results[name].images.num_rows,
        }
        if len(summary.counts_N3C) >= MIN_IMAGES and name != first:
            change = paired_bootstrap(summaries[first].counts_N3C, summary.counts_N3C)
            row |= {
                "difference": _or_none(change.mean_iou),
                "difference_low": _or_none(change.mean_iou_interval[0]),
                "difference_high": _or_none(change.mean_iou_interval[1]),
                "difference_p": _or_none(change.mean_iou_p),
            }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_PROTOCOL_SCHEMA)


def parquet_of(table: pa.Table) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


_GROUP_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("mean_iou", pa.float64()),
        pa.field("mean_iou_low", pa.float64()),
        pa.field("mean_iou_high", pa.float64()),
        pa.field("pixel_accuracy", pa.float64()),
        pa.field("intersection_C", pa.list_(pa.int64()), nullable=False),
        pa.field("truth_C", pa.list_(pa.int64()), nullable=False),
        pa.field("prediction_C", pa.list_(pa.int64()), nullable=False),
    ]
)
_PROTOCOL_SCHEMA = pa.schema(
    [pa.field("protocol", pa.string(), nullable=False)]
    + [
        pa.field(name, pa.float64())
        for name in (
            *("mean_iou", "mean_iou_low", "mean_iou_high", "pixel_accuracy", "boundary_iou", "calibration_error"),
            *("seconds_per_image", "relative_cost", "inputs_per_image"),
            *("difference", "difference_low", "difference_high", "difference_p"),
        )
    ]
)


def _floats(values: NDArray[np.float64] | Sequence[float]) -> pa.Array:
    """NaN becomes null."""
    return pa.array(np.asarray(values, dtype=np.float64), pa.float64(), from_pandas=True)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
