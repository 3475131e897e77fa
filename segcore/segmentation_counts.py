"""All that is counted of predictions beside their truth, as one additive state of integers.

It adds over images, workers and nodes in any order to the same bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.boundaries import BoundaryConfig, BoundaryCounts
from segcore.calibration import CalibrationCounts
from segcore.metrics import confusion_matrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentationCounts:
    """Counts of any number of images.

    Attributes:
        confusion_CC: int64 pixels, rows truth, columns prediction.
        boundaries: near borders.
        calibration: by confidence.
    """

    confusion_CC: NDArray[np.int64]
    boundaries: BoundaryCounts
    calibration: CalibrationCounts

    @staticmethod
    def zero(num_classes: int, config: BoundaryConfig) -> "SegmentationCounts":
        """Of no images."""
        return SegmentationCounts(
            confusion_CC=np.zeros((num_classes, num_classes), dtype=np.int64),
            boundaries=BoundaryCounts.zero(num_classes, config),
            calibration=CalibrationCounts.zero(),
        )

    def update(
        self, labels_HW: NDArray[np.uint8], predictions_HW: NDArray[np.uint8], confidence_HW: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Add an image, in place.

        Args:
            labels_HW: truth; `IGNORE_INDEX` pixels are left out everywhere.
            predictions_HW: classes.
            confidence_HW: their probabilities.

        Returns:
            The image's own confusion_CC.

        Raises:
            ValueError: shapes differ, or a counted value is outside the class table or no probability.
        """
        image_CC = confusion_matrix(labels_HW, predictions_HW, num_classes=len(self.confusion_CC))
        self.confusion_CC[:] += image_CC
        self.boundaries.update(labels_HW, predictions_HW)
        self.calibration.update(labels_HW, predictions_HW, confidence_HW)
        return image_CC

    def merge(self, other: "SegmentationCounts") -> None:
        """Add those of other images, in place."""
        self.confusion_CC[:] += other.confusion_CC
        self.boundaries.merge(other.boundaries)
        self.calibration.merge(other.calibration)

    def flat(self) -> NDArray[np.int64]:
        """All counts in one row, to be sent; `from_flat` reads it."""
        return np.concatenate([part.ravel() for part in self._parts()])

    @staticmethod
    def from_flat(counts: NDArray[np.int64], num_classes: int, config: BoundaryConfig) -> "SegmentationCounts":
        """Inverse of `flat`."""
        state = SegmentationCounts.zero(num_classes, config)
        assert counts.size == state.flat().size, "counts of another class table or other widths"
        position = 0
        for part in state._parts():
            part[:] = counts[position : position + part.size].reshape(part.shape)
            position += part.size
        return state

    def _parts(self) -> tuple[NDArray[np.int64], ...]:
        boundaries = self.boundaries
        return self.confusion_CC, boundaries.boundary_3C, boundaries.bands_BCC, self.calibration.counts_3B
