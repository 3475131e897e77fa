"""The challenger in a worker: it sees some of the images that the night's model has just seen; each leaves a row."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.challenge import Challenger, confusion_of
from pipelines.commits import RunSettings
from pipelines.ensembles import load_member
from pipelines.segment_rows import WorkItem
from segcore.inference import Predictions, predict_ensemble, prepare

logger = logging.getLogger(__name__)


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
            if item.image is not None and self._challenger.samples(item.planned["work_id"]):
                item.comparison = self._compare(item, item.image.pixels_HW3, found, index, infer_ms=infer_ms)

    def _compare(
        self, item: WorkItem, pixels_HW3: NDArray[np.uint8], found: Predictions, index: int, *, infer_ms: float
    ) -> dict[str, Any]:
        num_classes = len(self._settings.class_names)
        row: dict[str, Any] = {
            "work_id": item.planned["work_id"],
            "uri": item.planned["uri"],
            "run_id": self._settings.run_id,
            "champion_digest": self._settings.model_digest,
            "challenger_uri": self._challenger.member.model_uri,
            "challenger_digest": self._challenger.member.model_digest,
            "agreement": None,
            "confusion": [],
            "champion_confidence": float(found.mean_confidence_N[index]),
            "challenger_confidence": None,
            "champion_ms": infer_ms,
            "challenger_ms": None,
            "error": "",
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }
        started = time.perf_counter()
        try:
            images_13HW = torch.from_numpy(pixels_HW3[None]).permute(0, 3, 1, 2)
            theirs = predict_ensemble([self._member], images_13HW, image_ids=[item.planned["uri"]])
        except (RuntimeError, ValueError, MemoryError) as error:  # the night goes on without its opinion
            logger.warning("the challenger failed on an image", exc_info=True)
            return row | {"error": f"{type(error).__name__}: {error}"[:2000]}
        ours_HW, theirs_HW = found.predictions_NHW[index], theirs.predictions_NHW[0]
        return row | {
            "challenger_ms": 1000 * (time.perf_counter() - started),
            "agreement": float((ours_HW == theirs_HW).mean()),
            "confusion": confusion_of(ours_HW, theirs_HW, num_classes),
            "challenger_confidence": float(theirs.mean_confidence_N[0]),
        }
