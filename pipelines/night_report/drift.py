"""How far a night's images are from those that a model was validated on. Numbers in, numbers out.

Per image there are numbers: the fraction of each class, confidence, entropy, brightness, pixels. Two questions:

*Do the classes take the same share of the picture?* Binned are the classes themselves: each class is a bin, and its
mass is its fraction of an image, averaged over the images, so that a large image weighs no more than a small one. The
population stability index and the Jensen-Shannon distance compare the two distributions. This sees a camera that was
turned, and it works with few images.

*Is a number distributed as it was?* Binned are images: ten bins, cut at the deciles of the reference. This is how the
index is used in credit scoring, where its bands come from, and it sees what an average hides, such as a road that is
missing in half of the images. It is taken for confidence, entropy, brightness and pixels, and for each class's
fraction, where it says which class moved. Beside it stands the shift of the mean, in standard deviations of the
reference.

Bands of the index, as they are customary in credit scoring: below 0.1 *stable*, no action; from 0.1 *moderate*, look
at the images; from 0.25 *significant*, the model sees other images than it was validated on. Few images raise the index
by chance: below what chance alone exceeds once in a hundred times (`psi_chance`, `class_psi_chance`), a value counts as
stable, whatever its size.

Source: the chi-square law of the index is that of Yurdakul and Naranjo, "Statistical properties of the population
stability index", Journal of Risk Model Validation 14 (2020), from memory. Images count as independent draws; frames of
one video are not, and chance alone then gives more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

MODERATE_PSI = 0.1
SIGNIFICANT_PSI = 0.25
CHANCE = 0.01
"""How often chance alone exceeds `psi_chance`."""

NUM_BINS = 10
EMPTY_SHARE = 1e-4
"""Added to the share of every class before shares are compared: a class that never occurred is not infinitely far."""
EMPTY_COUNT = 0.5
"""Added to the images of every bin, for the same reason."""

Band = Literal["stable", "moderate", "significant"]


def mean_brightness(pixels_HW3: NDArray[np.uint8]) -> float:
    """Mean of all red, green and blue values, 0 to 1."""
    return sum(cv2.mean(pixels_HW3)[:3]) / (3 * 255)


def psi(reference_B: NDArray[np.float64], found_B: NDArray[np.float64]) -> float:
    """Population stability index, sum((f - r) ln(f / r)) over bins: symmetric, 0 for equal distributions, unbounded.

    Args:
        reference_B: shares of the bins, above 0, adding up to 1; see `class_shares` and `bin_shares`.
        found_B: likewise.
    """
    return float(((found_B - reference_B) * np.log(found_B / reference_B)).sum())


def js_distance(reference_B: NDArray[np.float64], found_B: NDArray[np.float64]) -> float:
    """Jensen-Shannon distance, the root of the divergence to base 2: 0 for equal distributions, 1 for disjoint ones.

    Args:
        reference_B: shares of the bins, adding up to 1; 0 is allowed.
        found_B: likewise.
    """
    middle_B = (reference_B + found_B) / 2
    divergence = 0.0
    for shares_B in (reference_B, found_B):
        some = shares_B > 0
        divergence += 0.5 * float((shares_B[some] * np.log2(shares_B[some] / middle_B[some])).sum())
    return math.sqrt(max(divergence, 0.0))


def class_shares(mean_fraction_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean class fractions, ready for `psi`: none is 0."""
    added_C = mean_fraction_C + EMPTY_SHARE
    return np.asarray(added_C / added_C.sum(), dtype=np.float64)


def bin_shares(counts_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Images per bin, ready for `psi`: no bin is empty."""
    return np.asarray((counts_B + EMPTY_COUNT) / (counts_B.sum() + EMPTY_COUNT * len(counts_B)), dtype=np.float64)


def psi_chance(num_images: int, num_reference: int, *, num_bins: int = NUM_BINS) -> float:
    """The index over bins of images that chance alone exceeds once in a hundred times, where nothing has changed.

    PSI / (1/N + 1/M) follows the chi-square law with B - 1 degrees of freedom.

    Args:
        num_images: N, of the night.
        num_reference: M, of the reference.
        num_bins: B.
    """
    return float(chdtri(num_bins - 1, CHANCE)) * (1 / num_images + 1 / num_reference)


def class_psi_chance(
    mean_C: NDArray[np.float64], std_C: NDArray[np.float64], num_images: int, num_reference: int
) -> float:
    """The same for the index over classes, whose shares are means over images and no counts.

    To second order PSI is the sum of (f - r)^2 / r, each term of which has the expectation w = s^2 / r (1/N + 1/M). The
    sum is taken for a scaled chi-square variable of its mean and variance (Satterthwaite), the classes for independent.

    Args:
        mean_C: of the reference's class fractions over its images.
        std_C: their standard deviation over its images.
        num_images: N, of the night.
        num_reference: M, of the reference.
    """
    weights_C = std_C**2 / class_shares(mean_C) * (1 / num_images + 1 / num_reference)
    total = float(weights_C.sum())
    if total == 0:
        return 0.0
    freedom = total**2 / float((weights_C**2).sum())
    return total / freedom * float(chdtri(freedom, CHANCE))


def band(value: float, *, chance: float) -> Band:
    """What an index is customarily taken for; `stable` below what chance alone gives."""
    if value < max(MODERATE_PSI, chance):
        return "stable"
    return "moderate" if value < SIGNIFICANT_PSI else "significant"


def worst_band(bands: Sequence[Band]) -> Band:
    """The worst of some."""
    order: tuple[Band, ...] = ("stable", "moderate", "significant")
    return max(bands, key=order.index, default="stable")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """How a number is distributed over the reference's images.

    Attributes:
        mean, std: over the images; the standard deviation of the population.
        cuts: ascending upper bounds of all bins but the last: deciles. A value that a fifth of the images or more have
            is a bin of its own (fraction 0 of a class that is in few images; the one size of all images).
        counts: images of the reference per bin, one more than there are cuts.
    """

    mean: float
    std: float
    cuts: tuple[float, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(values_N: NDArray[np.floating[Any]]) -> "Distribution":
        """Of one value per image; at least one."""
        values_N = np.asarray(values_N, dtype=np.float64)
        # inverted_cdf: deciles are values that occur, so that ties stay ties
        deciles = np.quantile(values_N, np.arange(1, NUM_BINS) / NUM_BINS, method="inverted_cdf")
        distinct, times = np.unique(deciles, return_counts=True)
        below = np.nextafter(distinct[times > 1], -np.inf)
        cuts = np.unique(np.concatenate([distinct, below]))
        found = Distribution(
            mean=float(values_N.mean()), std=float(values_N.std()), cuts=tuple(cuts.tolist()), counts=()
        )
        counts = np.bincount(found.bins(values_N), minlength=len(cuts) + 1)
        return Distribution(mean=found.mean, std=found.std, cuts=found.cuts, counts=tuple(counts.tolist()))

    @property
    def num_images(self) -> int:
        """Of the reference."""
        return sum(self.counts)

    def bins(self, values_N: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Index of each value's bin."""
        return np.searchsorted(np.asarray(self.cuts), values_N, side="left").astype(np.int64)

    def psi(self, counts_B: NDArray[np.int64]) -> float:
        """Index of a night's images per bin; bins that neither side has an image in are left out."""
        own_B = np.asarray(self.counts)
        some = (own_B > 0) | (counts_B > 0)
        return psi(bin_shares(own_B[some]), bin_shares(counts_B[some]))

    def shift(self, mean: float) -> float:
        """A night's mean less the reference's, in its standard deviations; NaN where that is 0 and the means differ."""
        if self.std == 0:
            return 0.0 if math.isclose(mean, self.mean, rel_tol=1e-6) else math.nan
        return (mean - self.mean) / self.std

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `Distribution.from_dict` reads them."""
        return {"mean": self.mean, "std": self.std, "cuts": list(self.cuts), "counts": list(self.counts)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Distribution":
        """Inverse of `to_dict`."""
        return Distribution(
            mean=values["mean"], std=values["std"], cuts=tuple(values["cuts"]), counts=tuple(values["counts"])
        )
