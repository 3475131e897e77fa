"""The class map of an image from a network's scores, and how sure the network was.

An image is worked off in strips of rows, so that class probabilities at the image's full size never exist at once. On a
CPU a compiled kernel does all in one pass, as many threads side by side as PyTorch uses; elsewhere PyTorch's own
operations run on the device, and a map of one byte per pixel and a few numbers come back.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.class_map_kernel import describe_rows
from segcore.layers import resize

CONFIDENCE_BINS = 1000
LOW_PERCENTILE = 0.05

SMALLEST_PROBABILITY = 1e-30
"""Where a logarithm is taken, smaller ones count as this."""

_NOT_ASKED_FOR = np.empty((0, 0), np.float32)
_STRIP_BYTES_CPU = 2**20
_STRIP_BYTES_DEVICE = 2**26


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapStatistics:
    """How sure the network was of an image.

    Attributes:
        class_pixels_C: predicted pixels per class, int64.
        mean_confidence: mean over pixels of the largest probability.
        low_confidence: its 5th percentile, to 1 / `CONFIDENCE_BINS`.
        mean_entropy: mean over pixels of -sum(p ln p), in nats, 0 to ln C.
        mean_margin: mean over pixels of the largest minus the second largest probability; 1 where C = 1.
        class_confidence_C: mean largest probability over the pixels of each predicted class; NaN without any.
    """

    class_pixels_C: NDArray[np.int64]
    mean_confidence: float
    low_confidence: float
    mean_entropy: float
    mean_margin: float
    class_confidence_C: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassMap:
    """What the network said of one image.

    Attributes:
        classes_HW: argmax over classes, uint8, at the image's size.
        statistics: of all its pixels.
        confidence_HW: the largest probability of each pixel, float32, where it was asked for.
    """

    classes_HW: NDArray[np.uint8]
    statistics: MapStatistics
    confidence_HW: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MapSums:
    """Sums over some pixels of an image, an additive state; see `class_map_kernel.describe_rows` for each."""

    pixels_C: NDArray[np.int64]
    confidence_C: NDArray[np.float64]
    histogram_B: NDArray[np.int64]
    sums_3: NDArray[np.float64]

    @staticmethod
    def zeros(num_classes: int) -> "MapSums":
        """Of no pixels."""
        return MapSums(
            np.zeros(num_classes, np.int64),
            np.zeros(num_classes, np.float64),
            np.zeros(CONFIDENCE_BINS, np.int64),
            np.zeros(3, np.float64),
        )

    def add(self, other: "MapSums") -> None:
        """Those of further pixels, in place."""
        self.pixels_C[:] += other.pixels_C
        self.confidence_C[:] += other.confidence_C
        self.histogram_B[:] += other.histogram_B
        self.sums_3[:] += other.sums_3

    def statistics(self) -> MapStatistics:
        """Of the pixels so far, at least one.

        Raises:
            ValueError: a score was NaN or infinite.
        """
        if not np.isfinite(self.sums_3).all():
            raise ValueError("the network's scores are not finite; try --inference.precision float32, or other weights")
        num_pixels = int(self.pixels_C.sum())
        confidence, entropy, margin = (self.sums_3 / num_pixels).tolist()
        low_bin = int(np.searchsorted(self.histogram_B.cumsum(), LOW_PERCENTILE * num_pixels))
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no pixel of this class
            class_confidence_C = self.confidence_C / self.pixels_C
        return MapStatistics(
            class_pixels_C=self.pixels_C,
            mean_confidence=confidence,
            low_confidence=(low_bin + 0.5) / CONFIDENCE_BINS,
            mean_entropy=entropy,
            mean_margin=margin,
            class_confidence_C=class_confidence_C,
        )


def class_map(
    scores_Chw: Tensor, *, are_logits: bool, height: int, width: int, with_confidence: bool = False
) -> ClassMap:
    """Class map at an image's size, and the confidence of each pixel if asked for; see `describe`.

    Raises:
        ValueError: a score is NaN or infinite; logits of -inf are fine where another class has more.
    """
    confidence_HW = np.empty((height, width) if with_confidence else (0, 0), np.float32)
    classes_HW, sums = describe(
        scores_Chw, are_logits=are_logits, height=height, width=width, confidence_HW=confidence_HW
    )
    statistics = sums.statistics()
    return ClassMap(
        classes_HW=classes_HW, statistics=statistics, confidence_HW=confidence_HW if with_confidence else None
    )


def describe(
    scores_Chw: Tensor,
    *,
    are_logits: bool,
    height: int,
    width: int,
    confidence_HW: NDArray[np.float32] = _NOT_ASKED_FOR,
) -> tuple[NDArray[np.uint8], MapSums]:
    """Classes (H, W) of an image, or of a part of one, and what it adds to the sums.

    Probabilities are compared by their logarithms on a CPU: of two that differ in the last digit, the first class wins.

    Args:
        scores_Chw: float32 logits or probabilities; probabilities are resized bilinearly where the size differs.
        are_logits: which of them.
        height: of the result.
        width: likewise.
        confidence_HW: where the largest probability of each pixel is written, if given.
    """
    on_cpu = scores_Chw.device.type == "cpu"
    return (_describe_on_cpu if on_cpu else _describe_on_device)(scores_Chw, are_logits, height, width, confidence_HW)


def _describe_on_cpu(
    scores_Chw: Tensor, are_logits: bool, height: int, width: int, confidence_HW: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], MapSums]:
    num_classes = len(scores_Chw)
    classes_HW = np.empty((height, width), np.uint8)
    total = MapSums.zeros(num_classes)
    threads = torch.get_num_threads()
    in_place = are_logits and scores_Chw.shape[-2:] == (height, width)  # else every strip is a copy
    rows_at_once = height if in_place else max(1, _STRIP_BYTES_CPU // (4 * num_classes * width))

    def describe_part(
        logits_Crw: NDArray[np.float32], classes_rw: NDArray[np.uint8], confidence_rw: NDArray[np.float32]
    ) -> MapSums:
        sums = MapSums.zeros(num_classes)
        describe_rows(
            logits_Crw, classes_rw, sums.pixels_C, sums.confidence_C, sums.histogram_B, sums.sums_3, confidence_rw
        )
        return sums

    with ThreadPoolExecutor(threads) as pool:
        for rows, strip_Crw, strip_are_logits in _strips(scores_Chw, are_logits, height, width, rows_at_once):
            if not strip_are_logits:
                strip_Crw = strip_Crw.clamp_min(SMALLEST_PROBABILITY).log_()
            logits = np.array_split(strip_Crw.numpy(), threads, axis=1)
            written = [np.array_split(each[rows], threads) for each in (classes_HW, confidence_HW)]
            for sums in pool.map(describe_part, logits, *written):
                total.add(sums)
    return classes_HW, total


def _describe_on_device(
    scores_Chw: Tensor, are_logits: bool, height: int, width: int, confidence_HW: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], MapSums]:
    num_classes, device = len(scores_Chw), scores_Chw.device
    classes_HW = torch.empty(height, width, dtype=torch.uint8, device=device)
    largest_HW = torch.empty(confidence_HW.shape, dtype=torch.float32, device=device)
    pixels_C = torch.zeros(num_classes, dtype=torch.int64, device=device)
    confidence_C = torch.zeros(num_classes, dtype=torch.float64, device=device)
    histogram_B = torch.zeros(CONFIDENCE_BINS, dtype=torch.float64, device=device)
    sums_3 = torch.zeros(3, dtype=torch.float64, device=device)
    rows_at_once = max(1, _STRIP_BYTES_DEVICE // (4 * num_classes * width))
    for rows, strip_Crw, strip_are_logits in _strips(scores_Chw, are_logits, height, width, rows_at_once):
        p_CM = strip_Crw.flatten(1)
        p_CM = p_CM.softmax(dim=0) if strip_are_logits else p_CM
        largest_M, class_M = p_CM.max(dim=0)  # NaN, which the caller refuses, has a valid index
        second_M = p_CM.scatter(0, class_M[None], 0.0).amax(dim=0)
        entropy_M = -torch.special.xlogy(p_CM, p_CM).sum(dim=0)
        classes_HW[rows] = class_M.view(-1, width)
        if confidence_HW.size:
            largest_HW[rows] = largest_M.view(-1, width)
        pixels_C += torch.bincount(class_M, minlength=num_classes)
        confidence_C += torch.bincount(class_M, weights=largest_M.double(), minlength=num_classes)
        histogram_B += torch.histc(largest_M, bins=CONFIDENCE_BINS, min=0.0, max=1.0)
        sums_3 += torch.stack([largest_M.sum(), entropy_M.sum(), (largest_M - second_M).sum()])
    sums = (pixels_C, confidence_C, histogram_B.long(), sums_3)
    if confidence_HW.size:
        confidence_HW[:] = largest_HW.cpu().numpy()
    return classes_HW.cpu().numpy(), MapSums(*(each.cpu().numpy() for each in sums))


def _strips(
    scores_Chw: Tensor, are_logits: bool, height: int, width: int, rows_at_once: int
) -> Iterator[tuple[slice, Tensor, bool]]:
    """Rows of the image, their scores (C, rows, W), and whether those are logits; where they are resized, they are not.

    The same numbers as resizing the whole map: bilinear resizing is rows first, columns second.
    """
    score_height, score_width = scores_Chw.shape[-2:]
    for start in range(0, height, rows_at_once):
        stop = min(height, start + rows_at_once)
        if (score_height, score_width) == (height, width):
            yield slice(start, stop), scores_Chw[:, start:stop], are_logits
            continue
        centre_r = (torch.arange(start, stop, device=scores_Chw.device) + 0.5) * (score_height / height) - 0.5
        centre_r = centre_r.clamp(0, score_height - 1)
        above_r = centre_r.floor().long()
        below_r = (above_r + 1).clamp(max=score_height - 1)
        first, last = int(above_r[0]), int(below_r[-1])
        needed_Crw = scores_Chw[:, first : last + 1].contiguous()
        if are_logits:
            needed_Crw = needed_Crw.softmax(dim=0)
        weight_r1 = (centre_r - above_r)[:, None]
        rows_Crw = torch.lerp(needed_Crw[:, above_r - first], needed_Crw[:, below_r - first], weight_r1)
        yield slice(start, stop), resize(rows_Crw[None], height=stop - start, width=width)[0], False
