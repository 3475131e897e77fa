"""Whether a network is as sure as it is right: pixels by confidence, as sums that add over images and workers.

The confidence of a pixel is the probability of its predicted class, after all averaging (and the CRF, where there is
one). Of the pixels with confidence 0.8 a calibrated network has 80 % right.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599: equations 1 to 3, 15 bins;
a pixel here is a sample there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.metrics_kernel import CONFIDENCE_UNITS, count_confidence

BINS = 15
"""Of equal width from 0 to 1; a bin holds its lower end, the last one 1 too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrationCounts:
    """An additive state.

    Attributes:
        counts_3B: int64, of the pixels of each bin the sum of confidences (in 2^-24), hits, and their number.
    """

    counts_3B: NDArray[np.int64]

    @staticmethod
    def zero(bins: int = BINS) -> "CalibrationCounts":
        """Of no pixels."""
        return CalibrationCounts(counts_3B=np.zeros((3, bins), dtype=np.int64))

    def update(
        self, labels: NDArray[np.uint8], predictions: NDArray[np.uint8], confidence: NDArray[np.float32]
    ) -> None:
        """Add pixels, in place.

        Args:
            labels: truth, any shape; `IGNORE_INDEX` pixels are left out.
            predictions: classes of the same shape.
            confidence: probabilities of these, likewise.

        Raises:
            ValueError: shapes differ; a confidence that counts is no probability.
        """
        if not labels.shape == predictions.shape == confidence.shape:
            raise ValueError(
                f"labels, predictions and confidence have shapes {labels.shape}, {predictions.shape} and "
                f"{confidence.shape}; give one confidence per pixel"
            )
        counted = count_confidence(
            np.ascontiguousarray(labels, dtype=np.uint8).ravel(),
            np.ascontiguousarray(predictions, dtype=np.uint8).ravel(),
            np.ascontiguousarray(confidence, dtype=np.float32).ravel(),
            _LARGEST,
            self.counts_3B,
        )
        if not counted:
            valid = confidence[labels != IGNORE_INDEX]
            wrong = valid[~((valid >= 0) & (valid <= np.float32(_LARGEST)))]
            raise ValueError(f"a confidence is {wrong[0]}; expected a probability from 0 to 1")

    def merge(self, other: "CalibrationCounts") -> None:
        """Add those of other pixels, in place."""
        self.counts_3B[:] += other.counts_3B

    def calibration(self) -> "Calibration":
        """Of all pixels so far."""
        units_B, hits_B, pixels_B = self.counts_3B.astype(np.float64)
        empty = np.full_like(pixels_B, np.nan)
        confidence_B = np.divide(units_B / CONFIDENCE_UNITS, pixels_B, out=empty.copy(), where=pixels_B > 0)
        accuracy_B = np.divide(hits_B, pixels_B, out=empty.copy(), where=pixels_B > 0)
        total = pixels_B.sum()
        gap = np.abs(hits_B - units_B / CONFIDENCE_UNITS).sum()
        lead = (units_B / CONFIDENCE_UNITS - hits_B).sum()
        return Calibration(
            expected_error=float(gap / total) if total else float("nan"),
            overconfidence=float(lead / total) if total else float("nan"),
            confidence_B=confidence_B,
            accuracy_B=accuracy_B,
            pixels_B=self.counts_3B[2].copy(),
        )


_LARGEST = 1.0001
"""Averaged probabilities may exceed 1 by their rounding; the kernel takes them for 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What `CalibrationCounts` say, as fractions of 1; NaN where there is no pixel.

    Attributes:
        expected_error: ECE, the mean over pixels of |accuracy - mean confidence| of their bin.
        overconfidence: mean confidence minus accuracy; above 0 the network is surer than it is right.
        confidence_B: mean confidence of each bin.
        accuracy_B: share of its pixels that are right.
        pixels_B: int64, how many it has.
    """

    expected_error: float
    overconfidence: float
    confidence_B: NDArray[np.float64]
    accuracy_B: NDArray[np.float64]
    pixels_B: NDArray[np.int64]
