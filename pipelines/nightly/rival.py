"""The challenger in a worker: it sees some of the images that the night's model has just seen; each leaves a row."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.ensembles import load_member
from pipelines.intake.sources import Source
from pipelines.nightly.challenge import Challenger, confusion_of, confusion_of_runs
from pipelines.nightly.rows import WorkItem
from pipelines.tables.runs import RunSettings
from segcore.inference import Member, Predictions, predict_ensemble, prepare
from segcore.tiling import TiledMap

logger = logging.getLogger(__name__)

ShowTiled = Callable[[Sequence[Member], Sequence[WorkItem]], Mapping[int, TiledMap]]
"""`pipelines.nightly.tiles.segment_tiled`, with its settings."""


class Rival:
    """A challenger, loaded. Build it where the models are loaded, and call it from the network's thread.

    Args:
        challenger: who, and which images.
        settings: of the run.
        device: of the night's models.

    Raises:
        ValueError: its model folder is gone or holds another model by now.
    """

    def __init__(self, challenger: Challenger, settings: RunSettings, *, device: str) -> None:
        self._challenger, self._settings = challenger, settings
        self._member = load_member(challenger.member)
        prepare(self._member.model, device)

    def look_at(self, items: Sequence[WorkItem], found: Predictions, *, infer_ms: float) -> None:
        """Set `comparison` of the sampled ones among some images of one size.

        Args:
            items: images, decoded.
            found: what the night's model said of each.
            infer_ms: that it took for an image.
        """
        for index, item in enumerate(items):
            if item.image is not None and self._samples(item):
                confidence = float(found.mean_confidence_N[index])
                row = self._row(item, confidence, infer_ms)
                item.comparison = row | self._opinion(item, item.image.pixels_HW3, found.predictions_NHW[index])

    def look_at_tiled(self, items: Sequence[WorkItem], found: Mapping[int, TiledMap], show: ShowTiled) -> None:
        """Set `comparison` of the sampled ones among images that were shown in tiles, and read them once more.

        Args:
            items: the images; those whose file stayed in place are read from there.
            found: what the night's model said, by the items' places.
            show: shows images to networks in the same tiles.
        """
        for item in items:
            ours = found.get(item.place)
            if ours is not None and self._samples(item):
                row = self._row(item, float(ours.statistics.mean_confidence), 1000 * ours.infer_seconds)
                item.comparison = row | self._opinion_of_tiles(item, ours, show)

    def _samples(self, item: WorkItem) -> bool:
        return self._challenger.samples(item.planned["work_id"])

    def _row(self, item: WorkItem, confidence: float, infer_ms: float) -> dict[str, Any]:
        """Without the challenger's opinion."""
        return {
            "work_id": item.planned["work_id"],
            "uri": item.planned["uri"],
            "run_id": self._settings.run_id,
            "champion_digest": self._settings.model_digest,
            "challenger_uri": self._challenger.member.model_uri,
            "challenger_digest": self._challenger.member.model_digest,
            "agreement": None,
            "confusion": [],
            "champion_confidence": confidence,
            "challenger_confidence": None,
            "champion_ms": infer_ms,
            "challenger_ms": None,
            "error": "",
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }

    def _opinion(self, item: WorkItem, pixels_HW3: NDArray[np.uint8], ours_HW: NDArray[np.uint8]) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            images_13HW = torch.from_numpy(pixels_HW3[None]).permute(0, 3, 1, 2)
            theirs = predict_ensemble([self._member], images_13HW, image_ids=[item.planned["uri"]])
        except (RuntimeError, ValueError, MemoryError) as error:  # the night goes on without its opinion
            logger.warning("the challenger failed on an image", exc_info=True)
            return _failed(type(error).__name__, str(error))
        infer_ms = 1000 * (time.perf_counter() - started)
        confusion = confusion_of(ours_HW, theirs.predictions_NHW[0], self._num_classes)
        return self._compared(confusion, float(theirs.mean_confidence_N[0]), infer_ms)

    def _opinion_of_tiles(self, item: WorkItem, ours: TiledMap, show: ShowTiled) -> dict[str, Any]:
        source = None if item.image is not None else Source(uri=item.planned["uri"])
        again = dataclasses.replace(item, source=source, windows=None)
        try:
            theirs = show([self._member], [again]).get(item.place)
        except (RuntimeError, ValueError, MemoryError) as error:  # as above; a ValueError where it cannot have tiles
            logger.warning("the challenger failed on the tiles of an image", exc_info=True)
            return _failed(type(error).__name__, str(error))
        if theirs is None:
            assert again.failure is not None
            return _failed(again.failure.error, again.failure.message)
        confusion = confusion_of_runs((ours.values, ours.lengths), (theirs.values, theirs.lengths), self._num_classes)
        return self._compared(confusion, float(theirs.statistics.mean_confidence), 1000 * theirs.infer_seconds)

    @property
    def _num_classes(self) -> int:
        return len(self._settings.class_names)

    def _compared(self, confusion: list[int], confidence: float, infer_ms: float) -> dict[str, Any]:
        same = sum(confusion[:: self._num_classes + 1])
        return {
            "agreement": same / sum(confusion),
            "confusion": confusion,
            "challenger_confidence": confidence,
            "challenger_ms": infer_ms,
        }


def _failed(error: str, message: str) -> dict[str, Any]:
    return {"error": f"{error}: {message}"[:2000]}
