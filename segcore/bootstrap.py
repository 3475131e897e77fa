"""How far a score may be off by the choice of the images: bootstrap intervals, and whether one network beats another.

The images of a split are drawn again, as many as there are, with replacement, many times over; the score of each draw
comes from the summed pixels of its images, as that of the split does. Only how often each image was drawn enters, so
that a draw is one row of a matrix product: draws x images times images x counts. All are integers below 2^53, which
products of float64 hold exactly: equal input gives equal intervals on any machine.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals (chapter 13); two networks
are drawn as pairs, since they met the same images (section 8.4 draws matched data so). Holm, "A simple sequentially
rejective multiple test procedure", Scandinavian Journal of Statistics 1979 (several pairs at once).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.metrics import class_iou, mean_of_present

DRAWS = 1000
LEVEL = 0.95
_EXACT = 2**53
_BLOCK_ENTRIES = 2**22
"""Draws x images, and draws x counts, that are held at once: 32 MiB each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoreIntervals:
    """Intervals that hold the central `level` of the draws, as fractions of 1.

    Attributes:
        mean_iou: low and high; NaN where no draw has a labelled pixel.
        iou_C2: low and high of each class, over the draws in which it has an IoU; NaN where none has.
    """

    mean_iou: tuple[float, float]
    iou_C2: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairedDifference:
    """The second network's scores minus the first one's, on the same images, as fractions of 1.

    Attributes:
        mean_iou: difference of the mean IoU over all images.
        mean_iou_interval: low and high of it over the draws.
        mean_iou_p: two-sided p-value of "no difference": see `paired_bootstrap`.
        iou_C, iou_C2, iou_p_C: the same for each class; NaN where either network has no IoU.
    """

    mean_iou: float
    mean_iou_interval: tuple[float, float]
    mean_iou_p: float
    iou_C: NDArray[np.float64]
    iou_C2: NDArray[np.float64]
    iou_p_C: NDArray[np.float64]


def bootstrap_intervals(
    counts_N3C: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> ScoreIntervals:
    """Percentile intervals of the mean IoU and of each class's IoU over the choice of images.

    Args:
        counts_N3C: `segcore.metrics.class_counts` of each image.
        draws: how often the images are drawn again.
        seed: of the draws.
        level: share of the draws that an interval holds, 0 to 1.

    Raises:
        ValueError: there is no image; the counts have another shape, are negative or too large; a setting is out of
            range.
    """
    counts_N3C = _checked(counts_N3C, draws, level)
    iou_DC = np.concatenate([class_iou(counts) for (counts,) in _drawn([counts_N3C], draws, seed)])
    return ScoreIntervals(
        mean_iou=_interval(mean_of_present(iou_DC), level),
        iou_C2=np.array([_interval(values, level) for values in iou_DC.T]).reshape(-1, 2),
    )


def paired_bootstrap(
    first_N3C: NDArray[np.int64],
    second_N3C: NDArray[np.int64],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> PairedDifference:
    """Compare two networks on the same images: both are scored on each draw, and their difference is looked at.

    The p-value is 2 (k + 1) / (draws + 1), at most 1, with k the draws whose difference is zero or on the side that is
    rarer: it is small where nearly all draws agree on the better network, as an interval without zero says. Two
    networks with equal counts have difference 0 and p-value 1. It cannot be below 2 / (draws + 1).

    Args:
        first_N3C: `segcore.metrics.class_counts` of each image by one network.
        second_N3C: of the same images, in the same order, by the other.
        draws, seed, level: see `bootstrap_intervals`.

    Raises:
        ValueError: as there; or the two do not have the same images with the same labels.
    """
    return paired_bootstrap_of_seeds([first_N3C], [second_N3C], draws=draws, seed=seed, level=level)


def paired_bootstrap_of_seeds(
    first_SN3C: Sequence[NDArray[np.int64]],
    second_SN3C: Sequence[NDArray[np.int64]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> PairedDifference:
    """`paired_bootstrap` of two networks that were trained with several seeds each.

    A network's score, of all images and of each draw, is the mean of its seeds' scores. Images are drawn, seeds are
    not: the interval says how much the choice of images matters to these trainings, not what other seeds would give.

    Args:
        first_SN3C: `segcore.metrics.class_counts` of each image by each seed of one network.
        second_SN3C: likewise by the other, whose number of seeds may be another. A class that one seed has no IoU of
            has none over the seeds.
        draws, seed, level: see `bootstrap_intervals`.

    Raises:
        ValueError: as `paired_bootstrap`; or a network has no seed.
    """
    if not len(first_SN3C) or not len(second_SN3C):
        raise ValueError(
            f"{len(first_SN3C)} and {len(second_SN3C)} seeds; give the counts of one or more of each network"
        )
    checked = [_checked(counts, draws, level) for counts in (*first_SN3C, *second_SN3C)]
    for other_N3C in checked[1:]:
        _check_paired(checked[0], other_N3C)
    num_first = len(first_SN3C)
    differences = [_difference(drawn[:num_first], drawn[num_first:]) for drawn in _drawn(checked, draws, seed)]
    mean_D, iou_DC = (np.concatenate(parts) for parts in zip(*differences, strict=True))
    whole = [counts.sum(axis=0) for counts in checked]
    whole_mean, whole_C = _difference(whole[:num_first], whole[num_first:])
    return PairedDifference(
        mean_iou=float(whole_mean),
        mean_iou_interval=_interval(mean_D, level),
        mean_iou_p=_p_value(mean_D),
        iou_C=whole_C,
        iou_C2=np.array([_interval(values, level) for values in iou_DC.T]).reshape(-1, 2),
        iou_p_C=np.array([_p_value(values) for values in iou_DC.T]),
    )


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests: each is multiplied by how many are left at its turn, smallest first.

    Whoever calls those below 0.05 differences errs in one or more of them with a probability of at most 0.05, however
    the tests depend on each other. NaN is no test and stays NaN.
    """
    adjusted = [float("nan")] * len(p_values)
    tested = sorted(
        (index for index, value in enumerate(p_values) if value == value), key=lambda index: p_values[index]
    )
    highest = 0.0
    for turn, index in enumerate(tested):
        highest = max(highest, min(1.0, p_values[index] * (len(tested) - turn)))
        adjusted[index] = highest
    return adjusted


def _check_paired(first_N3C: NDArray[np.int64], second_N3C: NDArray[np.int64]) -> None:
    if first_N3C.shape != second_N3C.shape:
        raise ValueError(
            f"counts of shapes {first_N3C.shape} and {second_N3C.shape} are not paired; score both networks on the "
            "same images with one class table"
        )
    differing = np.flatnonzero((first_N3C[:, 1] != second_N3C[:, 1]).any(axis=1))
    if differing.size:
        raise ValueError(
            f"image {differing[0]} has other labels for the one network than for the other ({differing.size} images "
            "differ); score both on the same split of one dataset, images in the same order"
        )


def _difference(
    first_SD3C: Sequence[NDArray[np.integer] | NDArray[np.floating]],
    second_SD3C: Sequence[NDArray[np.integer] | NDArray[np.floating]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the mean IoU and of each class's, means over the seeds; a class in which any seed has none is NaN."""
    first_SDC, second_SDC = (class_iou(np.stack(counts)) for counts in (first_SD3C, second_SD3C))
    means = [_mean_over_seeds(mean_of_present(iou_SDC)) for iou_SDC in (first_SDC, second_SDC)]
    return means[1] - means[0], _mean_over_seeds(second_SDC) - _mean_over_seeds(first_SDC)


def _mean_over_seeds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis, sorted before: the same seeds in another order give the same bits."""
    return np.asarray(np.sort(values, axis=0).mean(axis=0))


def _drawn(networks: list[NDArray[np.int64]], draws: int, seed: int) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Summed counts (draws of this block, 3, C) of each network; all see the same draws."""
    num_images, _, num_classes = networks[0].shape
    flat = [counts_N3C.reshape(num_images, -1).astype(np.float64) for counts_N3C in networks]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // max(num_images, 3 * num_classes))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        times_DN = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=count).astype(np.float64)
        yield tuple((times_DN @ counts).reshape(count, 3, num_classes) for counts in flat)


def _checked(counts_N3C: NDArray[np.int64], draws: int, level: float) -> NDArray[np.int64]:
    counts_N3C = np.asarray(counts_N3C)
    if counts_N3C.ndim != 3 or counts_N3C.shape[1] != 3 or not len(counts_N3C):
        raise ValueError(f"counts have shape {counts_N3C.shape}; expected (images, 3, classes) of one image or more")
    if not np.issubdtype(counts_N3C.dtype, np.integer) or counts_N3C.min(initial=0) < 0:
        raise ValueError(
            f"counts of dtype {counts_N3C.dtype} from {counts_N3C.min(initial=0)} on; expected pixels, in integers of "
            "0 or more"
        )
    largest = int(counts_N3C.max(initial=0))
    if largest * len(counts_N3C) >= _EXACT:
        raise ValueError(
            f"{len(counts_N3C)} images of up to {largest} pixels a class may add up to 2^53 or more, which is not "
            "exact any more; draw groups of images apart"
        )
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws are {draws} and level is {level}; expected 1 or more, and a share between 0 and 1")
    return counts_N3C


def _interval(values_D: NDArray[np.float64], level: float) -> tuple[float, float]:
    present = values_D[~np.isnan(values_D)]
    if not present.size:
        return float("nan"), float("nan")
    low, high = np.quantile(present, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _p_value(differences_D: NDArray[np.float64]) -> float:
    present = differences_D[~np.isnan(differences_D)]
    if not present.size:
        return float("nan")
    rarer = min(int((present <= 0).sum()), int((present >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (present.size + 1))
