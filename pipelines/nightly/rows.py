"""From what happened to each image of a shard to the rows of the three tables."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.intake.images import DecodedImage
from pipelines.intake.sources import Source
from pipelines.intake.windows import ImageWindows
from pipelines.night_report.drift import mean_brightness
from pipelines.nightly.fetch import Failure
from pipelines.tables.runs import RunSettings
from pipelines.tables.schemas import masks_table, rows_table
from segcore.class_maps import MapStatistics
from segcore.inference import Predictions
from segcore.run_lengths import encode
from segcore.tiling import TiledMap

FIRST_BYTES = 16


@dataclass(kw_only=True, slots=True, eq=False)
class WorkItem:
    """One planned image on its way through a worker.

    Attributes:
        place: its row in the shard.
        planned: its row of the plan, as a dict.
        data: the file's bytes; empty where fetching failed, where the file stays in place, and once it is decoded.
        first_bytes: of the file.
        attempts: how often fetching was tried; or its shard, where earlier attempts say why it cannot be segmented.
        failure: set by the stage that gives the image up.
        image: set by decoding, dropped after the network.
        source: set in place of `image` where the image is to be shown in tiles.
        windows: of that source, once they are open.
        brightness: of that source, once all of it is read (`pipelines.night_report.drift.mean_brightness`).
        decode_ms: spent in decoding.
        comparison: its row of `comparisons`, where a challenger saw it as well.
    """

    place: int
    planned: dict[str, Any]
    data: bytes
    first_bytes: bytes
    attempts: int
    failure: Failure | None = None
    image: DecodedImage | None = None
    source: Source | None = None
    windows: ImageWindows | None = None
    brightness: float | None = None
    decode_ms: float = 0.0
    comparison: dict[str, Any] | None = None


@dataclass(kw_only=True, slots=True)
class ShardRows:
    """Collects the rows of one shard, which come in any order, and gives them in the plan's order."""

    settings: RunSettings
    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, tuple[NDArray[np.uint8], NDArray[np.int32]]] = field(default_factory=dict)
    failures: dict[int, dict[str, Any]] = field(default_factory=dict)
    comparisons: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add_failure(self, item: WorkItem) -> None:
        """An image that some stage gave up."""
        assert item.failure is not None
        for half_done in (self.runs, self.predictions):
            half_done.pop(item.place, None)
        self.failures[item.place] = {
            **{name: item.planned[name] for name in ("work_id", "uri", "etag", "size_bytes")},
            "stage": item.failure.stage,
            "error": item.failure.error,
            "message": item.failure.message,
            "retryable": item.failure.retryable,
            "first_bytes_hex": item.first_bytes.hex(),
            "attempts": item.attempts,
            "run_id": self.settings.run_id,
            "created_at": _now(),
        }

    def add_prediction(self, item: WorkItem, found: Predictions, index: int, *, infer_ms: float) -> None:
        """An image, and its place in the batch that the network saw."""
        started = time.perf_counter()
        runs = encode(found.predictions_NHW[index])
        encode_ms = 1000 * (time.perf_counter() - started)
        num_inputs = int(found.num_inputs_N[index])
        self._add(item, runs, found.statistics(index), num_inputs, infer_ms=infer_ms, encode_ms=encode_ms, notes=())

    def add_tiled(self, item: WorkItem, found: TiledMap, *, notes: Sequence[str]) -> None:
        """An image that was shown in tiles."""
        down, across = found.grid
        self._add(
            item,
            (found.values, found.lengths),
            found.statistics,
            found.num_inputs,
            infer_ms=1000 * found.infer_seconds,
            encode_ms=1000 * found.encode_seconds,
            notes=(f"shown in {down} x {across} tiles of {found.tile_height} x {found.tile_width} pixels", *notes),
        )

    def _add(
        self,
        item: WorkItem,
        runs: tuple[NDArray[np.uint8], NDArray[np.int32]],
        statistics: MapStatistics,
        num_inputs: int,
        *,
        infer_ms: float,
        encode_ms: float,
        notes: Sequence[str],
    ) -> None:
        image = item.image or item.windows
        assert image is not None
        self.runs[item.place] = runs
        class_pixels_C = statistics.class_pixels_C
        settings = self.settings
        self.predictions[item.place] = {
            **{name: item.planned[name] for name in ("work_id", "uri", "etag", "size_bytes", "last_modified")},
            "run_id": settings.run_id,
            "model_uri": settings.model_uri,
            "model_version": settings.model_version,
            "model_digest": settings.model_digest,
            "config_digest": settings.config_digest,
            "code_commit": settings.code_commit,
            "source_height": image.source_height,
            "source_width": image.source_width,
            "source_mode": image.source_mode,
            "orientation": image.orientation,
            "height": image.height,
            "width": image.width,
            "num_tiles": num_inputs,
            "class_pixels": class_pixels_C.tolist(),
            "class_fraction": (class_pixels_C / (image.height * image.width)).tolist(),
            "mean_confidence": statistics.mean_confidence,
            "p05_confidence": statistics.low_confidence,
            "mean_entropy": statistics.mean_entropy,
            "mean_margin": statistics.mean_margin,
            "class_confidence": [None if np.isnan(each) else float(each) for each in statistics.class_confidence_C],
            "decode_ms": item.decode_ms,
            "infer_ms": infer_ms,
            "encode_ms": encode_ms,
            "created_at": _now(),
            "notes": [*image.notes, *notes],
            "mean_brightness": item.brightness if item.image is None else mean_brightness(item.image.pixels_HW3),
        }

    def tables(self) -> dict[str, pa.Table]:
        """The three tables."""
        predictions = [self.predictions[place] for place in sorted(self.predictions)]
        return {
            "predictions": rows_table("predictions", predictions),
            "masks": masks_table(
                [row["work_id"] for row in predictions],
                [(row["height"], row["width"]) for row in predictions],
                [self.runs[place] for place in sorted(self.runs)],
            ),
            "failures": rows_table("failures", [self.failures[place] for place in sorted(self.failures)]),
            "comparisons": rows_table("comparisons", [self.comparisons[place] for place in sorted(self.comparisons)]),
        }


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # UTC, unmarked as in the tables
