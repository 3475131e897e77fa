"""From what happened to each image of a shard to the rows of the three tables."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.commits import RunSettings
from pipelines.images import DecodedImage
from pipelines.segment_fetch import Failure
from pipelines.tables import masks_table, rows_table
from segcore.inference import Predictions
from segcore.run_lengths import encode

FIRST_BYTES = 16


@dataclass(kw_only=True, slots=True, eq=False)
class WorkItem:
    """One planned image on its way through a worker.

    Attributes:
        place: its row in the shard.
        planned: its row of the plan, as a dict.
        data: the file's bytes; empty where fetching failed, and once the image is decoded.
        first_bytes: of the file.
        attempts: how often fetching was tried.
        failure: set by the stage that gives the image up.
        image: set by decoding, dropped after the network.
        decode_ms: spent in decoding.
    """

    place: int
    planned: dict[str, Any]
    data: bytes
    first_bytes: bytes
    attempts: int
    failure: Failure | None = None
    image: DecodedImage | None = None
    decode_ms: float = 0.0


@dataclass(kw_only=True, slots=True)
class ShardRows:
    """Collects the rows of one shard, which come in any order, and gives them in the plan's order."""

    settings: RunSettings
    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, tuple[NDArray[np.uint8], NDArray[np.int32]]] = field(default_factory=dict)
    failures: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add_failure(self, item: WorkItem) -> None:
        """An image that some stage gave up."""
        assert item.failure is not None
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
        image = item.image
        assert image is not None
        started = time.perf_counter()
        self.runs[item.place] = encode(found.predictions_NHW[index])
        encode_ms = 1000 * (time.perf_counter() - started)
        height, width = image.pixels_HW3.shape[:2]
        class_pixels_C = found.class_pixels_NC[index]
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
            "height": height,
            "width": width,
            "num_tiles": int(found.num_inputs_N[index]),
            "class_pixels": class_pixels_C.tolist(),
            "class_fraction": (class_pixels_C / (height * width)).tolist(),
            "mean_confidence": float(found.mean_confidence_N[index]),
            "p05_confidence": float(found.low_confidence_N[index]),
            "mean_entropy": float(found.mean_entropy_N[index]),
            "mean_margin": float(found.mean_margin_N[index]),
            "class_confidence": [None if np.isnan(each) else float(each) for each in found.class_confidence_NC[index]],
            "decode_ms": item.decode_ms,
            "infer_ms": infer_ms,
            "encode_ms": encode_ms,
            "created_at": _now(),
            "notes": list(image.notes),
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
        }


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # UTC, unmarked as in the tables
