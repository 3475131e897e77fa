"""Published nights of `segment` without a network: rows as a worker would have written them, committed as it would."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage
from pipelines.manifests import write_manifest
from pipelines.night_report.drift import Distribution, mean_brightness
from pipelines.night_report.metrics import stage_metrics
from pipelines.night_report.references import QUANTITIES, ModelReference, write_reference
from pipelines.night_report.summary import STAGES, RunSummary, write_summary
from pipelines.pictures import png_bytes
from pipelines.tables import commits
from pipelines.tables.runs import PLAN, Run, RunSettings
from pipelines.tables.schemas import masks_table, rows_table
from segcore.run_lengths import encode
from tests.pipelines.night_tables import SETTINGS, filled
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shot:
    """A segmented image and what its row says."""

    uri: str
    mask_HW: NDArray[np.uint8]
    confidence: float = 0.8
    entropy: float = 0.4
    brightness: float | None = 0.5
    orientation: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A file that could not be segmented."""

    uri: str
    stage: str = "decode"
    error: str = "ImageError"
    message: str = "<b>truncated</b> after 17 bytes"
    retryable: bool = False


@dataclass(kw_only=True, slots=True)
class Nights:
    """Tables that grow night by night.

    Attributes:
        tables, images: their folder, and the listed one.
        model_folder, model_digest: what predicted.
    """

    tables: str
    images: str
    model_folder: str = "models/street"
    model_digest: str = "m" * 64
    runs: list[Run] = field(default_factory=list)

    def add(
        self,
        shots: Sequence[Shot],
        failed: Sequence[Failed] = (),
        *,
        run_date: str = "2026-11-20",
        per_shard: int = 3,
        prefix_depth: int = 1,
        publish: bool = True,
    ) -> Run:
        """Plan, commit and publish one more run, with its row of `metrics`, as `segment` does."""
        settings = replace(
            SETTINGS,
            run_id=f"{len(self.runs) + 1:06d}",
            run_date=run_date,
            created_at=f"{run_date}T03:00:00+00:00",
            images=self.images,
            model_folder=self.model_folder,
            model_digest=self.model_digest,
            class_names=CLASS_NAMES,
            palette=PALETTE,
            config_digest="c" * 64,
        )
        everything: list[Shot | Failed] = [*shots, *failed]
        run = Run(settings=settings, plan=_plan(settings.run_id, everything, per_shard=per_shard))
        assert commits.create_run(self.tables, run)
        for shard, items in enumerate(run.shard_items(list(range(run.num_shards)))):
            work_ids = items["work_id"].to_pylist()
            planned = everything[shard * per_shard : (shard + 1) * per_shard]
            rows = _rows(settings, dict(zip(work_ids, planned, strict=True)))
            attempt = commits.stage(self.tables, settings, shard=shard, planned=work_ids, rows=rows)
            commits.promote(self.tables, commits.commit(self.tables, attempt))
        if publish:
            stage = partial(stage_metrics, self.tables, settings, prefix_depth=prefix_depth)
            commits.publish(self.tables, run, stage_of_run=stage)
        self.runs.append(run)
        return run


def _plan(run_id: str, items: Sequence[Shot | Failed], *, per_shard: int) -> pa.Table:
    rows = [
        {
            "work_id": f"{run_id}-{index:04d}",
            "uri": item.uri,
            "etag": "e",
            "size_bytes": 7,
            "reason": "new",
            "shard": index // per_shard,
        }
        for index, item in enumerate(items)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def _rows(settings: RunSettings, items: dict[str, Shot | Failed]) -> dict[str, pa.Table]:
    shots = {work_id: item for work_id, item in items.items() if isinstance(item, Shot)}
    predictions = [_prediction(settings, work_id, shot) for work_id, shot in shots.items()]
    failures = [
        filled(
            "failures",
            work_id=work_id,
            uri=item.uri,
            stage=item.stage,
            error=item.error,
            message=item.message,
            retryable=item.retryable,
            first_bytes_hex="ffd8ff",
            run_id=settings.run_id,
        )
        for work_id, item in items.items()
        if isinstance(item, Failed)
    ]
    sizes = [(shot.mask_HW.shape[0], shot.mask_HW.shape[1]) for shot in shots.values()]
    return {
        "predictions": rows_table("predictions", predictions),
        "masks": masks_table(list(shots), sizes, [encode(shot.mask_HW) for shot in shots.values()]),
        "failures": rows_table("failures", failures),
    }


def _prediction(settings: RunSettings, work_id: str, shot: Shot) -> dict[str, Any]:
    class_pixels_C = np.bincount(shot.mask_HW.ravel(), minlength=len(CLASS_NAMES))
    return filled(
        "predictions",
        work_id=work_id,
        uri=shot.uri,
        run_id=settings.run_id,
        model_uri=settings.model_uri,
        height=shot.mask_HW.shape[0],
        width=shot.mask_HW.shape[1],
        source_mode="RGB",
        orientation=shot.orientation,
        class_pixels=class_pixels_C.tolist(),
        class_fraction=(class_pixels_C / shot.mask_HW.size).tolist(),
        mean_confidence=shot.confidence,
        mean_entropy=shot.entropy,
        mean_brightness=shot.brightness,
        decode_ms=2.0,
        notes=list(shot.notes),
    )


def stored_shot(
    folder: Path, name: str, pixels_HW3: NDArray[np.uint8], mask_HW: NDArray[np.uint8], *, confidence: float = 0.8
) -> Shot:
    """A shot whose image lies in a folder, with its own brightness."""
    uri = str(folder / name)
    storage.write_atomic(uri, png_bytes(pixels_HW3))
    return Shot(uri=uri, mask_HW=mask_HW, confidence=confidence, brightness=mean_brightness(pixels_HW3))


def reference_of(shots: Sequence[Shot]) -> ModelReference:
    """As if the model had been validated on these."""
    fractions_NC = np.array([np.bincount(shot.mask_HW.ravel(), minlength=4) / shot.mask_HW.size for shot in shots])
    values = {
        "confidence": [shot.confidence for shot in shots],
        "entropy": [shot.entropy for shot in shots],
        "brightness": [shot.brightness or 0.0 for shot in shots],
        "pixels": [shot.mask_HW.size for shot in shots],
    }
    return ModelReference(
        dataset_digest="d" * 64,
        split="val",
        num_images=len(shots),
        inference={"mode": "whole", "scales": [1.0]},
        class_names=CLASS_NAMES,
        class_fractions=tuple(Distribution.of(column.astype(np.float32)) for column in fractions_NC.T),
        quantities={name: Distribution.of(np.array(values[name], dtype=np.float32)) for name in QUANTITIES},
    )


def write_model_reference(folder: Path, reference: ModelReference, *, digest: str = "m" * 64) -> str:
    """A model folder that holds nothing but what a night reads of it; returns its path."""
    write_manifest(str(folder), kind="model", content={"files": {}, "digest": digest})
    write_reference(str(folder), reference)
    return str(folder)


def summary_of(nights: Nights, run_id: str) -> None:
    """Say what a run took: a second more for every stage."""
    seconds = {stage: float(place) for place, stage in enumerate(STAGES)}
    summary = RunSummary(
        run_id=run_id,
        images=5,
        failures=3,
        deletions=0,
        computed=8,
        seconds=sum(seconds.values()),
        images_per_second=12.5,
        workers=2,
        threads=2,
        use_gpu=False,
        peak_memory_bytes=2**30,
        cost_per_hour=3.6,
        predicted_seconds=40.0,
        stages=seconds,
        finished_at="2026-11-20T03:10:00+00:00",
    )
    write_summary(nights.tables, summary)
