"""What the page of a run says of its images and failures: one pass over its rows, some files in memory at a time."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.night_report.statistics import run_pieces
from pipelines.tables.runs import Snapshot

SAMPLE_COLUMNS = ("work_id", "uri", "height", "width", "mean_confidence", "class_fraction", "notes")
"""What a sample's row holds."""
COLUMNS = (
    *SAMPLE_COLUMNS,
    "size_bytes",
    "source_mode",
    "orientation",
    "class_pixels",
    "decode_ms",
    "infer_ms",
    "encode_ms",
    "created_at",
)
FAILURE_COLUMNS = ("uri", "stage", "error", "message", "first_bytes_hex", "size_bytes", "retryable")
MAX_REASONS = 200
SAMPLES_PER_REASON = 3
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+(?:[.,]\d+)*")
"""What differs between messages of one reason: quoted words, paths, numbers."""


@dataclass(slots=True, eq=False)
class RunTotals:
    """Sums over a run's prediction rows.

    Attributes:
        class_pixels_C: predicted pixels per class.
        num_images, num_bytes, num_pixels: sums.
        confidence_sum: of the images' mean confidences.
        milliseconds: sums of `decode_ms`, `infer_ms`, `encode_ms`.
        kinds: images by stored pixel format and orientation.
        first, last: earliest and latest `created_at`.
    """

    class_pixels_C: NDArray[np.int64]
    num_images: int = 0
    num_bytes: int = 0
    num_pixels: int = 0
    confidence_sum: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "infer", "encode"), 0.0))
    kinds: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, rows: pa.Table) -> None:
        """Rows with `COLUMNS`; at least one."""
        class_pixels = rows["class_pixels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self.class_pixels_C += class_pixels.reshape(rows.num_rows, -1).sum(axis=0)
        self.num_images += rows.num_rows
        self.num_bytes += int(rows["size_bytes"].to_numpy().sum())
        self.num_pixels += int((rows["height"].to_numpy().astype(np.int64) * rows["width"].to_numpy()).sum())
        self.confidence_sum += float(rows["mean_confidence"].to_numpy().sum(dtype=np.float64))
        for stage in self.milliseconds:
            self.milliseconds[stage] += float(rows[f"{stage}_ms"].to_numpy().sum(dtype=np.float64))
        for mode, orientation in zip(rows["source_mode"].to_pylist(), rows["orientation"].to_pylist(), strict=True):
            self.kinds[mode if orientation == 1 else f"{mode}, EXIF orientation {orientation}"] += 1
        created = rows["created_at"].to_pylist()
        self.first = min([*created, self.first] if self.first else created)
        self.last = max([*created, self.last] if self.last else created)


@dataclass(slots=True)
class FailureReason:
    """Failures whose stage, error and message are the same, but for names and numbers in it.

    Attributes:
        stage, error: see the table `failures`.
        count: of the images.
        num_retryable: that the next run tries again.
        samples: the first rows.
    """

    stage: str
    error: str
    count: int = 0
    num_retryable: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)


def read_predictions(
    tables: str, run_id: str, snapshot: Snapshot, *, also: Sequence[Callable[[pa.Table, str], None]] = ()
) -> RunTotals:
    """Add up a run's prediction rows.

    Args:
        tables: URI of the tables' folder.
        run_id: of a run that the snapshot holds.
        snapshot: of the tables.
        also: called with the rows (`COLUMNS`) of each piece, and the path of the file that they are in.
    """
    totals = RunTotals(class_pixels_C=np.zeros(len(snapshot.class_names), dtype=np.int64))
    for rows, path in run_pieces(tables, "predictions", run_id, snapshot, COLUMNS):
        totals.add(rows)
        for visit in also:
            visit(rows, path)
    return totals


def read_failures(tables: str, run_id: str, snapshot: Snapshot) -> list[FailureReason]:
    """A run's failures by reason, the most frequent first; what comes after `MAX_REASONS` reasons is one."""
    reasons: dict[tuple[str, str, str], FailureReason] = {}
    for rows, _ in run_pieces(tables, "failures", run_id, snapshot, FAILURE_COLUMNS):
        for row in rows.to_pylist():
            key = (row["stage"], row["error"], _VARYING.sub("*", row["message"]))
            if key not in reasons and len(reasons) >= MAX_REASONS:
                key = ("", "other reasons", "")
            reason = reasons.setdefault(key, FailureReason(stage=key[0], error=key[1]))
            reason.count += 1
            reason.num_retryable += bool(row["retryable"])
            if len(reason.samples) < SAMPLES_PER_REASON:
                reason.samples.append(row)
    return sorted(reasons.values(), key=lambda reason: -reason.count)
