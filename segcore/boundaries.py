"""Scores near the borders of classes: boundary IoU, and the mean IoU within some pixels of a border (trimaps).

Distances are chessboard distances (the square structuring element of the released boundary IoU code), in pixels of the
label map. Ignored pixels are counted nowhere. Where an ignored area begins is a border, in the truth and, as a
prediction there says nothing, in the prediction too.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.metrics import Scores, check_pair, class_iou, scores
from segcore.metrics_kernel import count_near_borders, spread_rows, start_distances

LARGEST_PX = 65533
"""Distances are told apart up to here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryConfig:
    """How near is near."""

    dilation_ratio: float = 0.02
    """Boundary IoU: how far a boundary reaches into its class, as a fraction of the image's diagonal; the paper's is
    0.02, its code's for Cityscapes 0.005."""
    trimap_px: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Widths in pixels, increasing, of the bands along the truth's borders in which the mean IoU is also measured."""

    def __post_init__(self) -> None:
        if not 0 < self.dilation_ratio <= 1:
            raise ValueError(f"dilation_ratio is {self.dilation_ratio}; expected a fraction of the diagonal, 0.02 say")
        widths = self.trimap_px
        if not widths or widths[0] < 1 or list(widths) != sorted(set(widths)):
            raise ValueError(f"trimap_px is {widths}; expected increasing widths of 1 pixel or more")

    def boundary_px(self, *, height: int, width: int) -> int:
        """How far boundaries reach in an image of this size; 1 or more."""
        return max(1, round(self.dilation_ratio * math.hypot(height, width)))


def border_distances(classes_HW: NDArray[np.uint8], *, farthest: int = LARGEST_PX) -> NDArray[np.unsignedinteger]:
    """Chessboard distance of each pixel to the nearest one of another class, up to `farthest`.

    What is farther away has some larger number, 255 (65535) where there is no other class: the result is uint8 where
    `farthest` is below 254, which halves the memory to be gone through, and uint16 else.

    A pixel beside another class (corners count) has 1. From there distances spread in four wedges, each with steps of 1
    straight or aslant: the nearest such pixel lies in one of them, and the way there stays in it. One map serves all
    classes, since the way to the nearest other class stays in its own up to the last step.
    """
    dtype = np.uint8 if farthest < 254 else np.uint16
    none = np.iinfo(dtype).max
    rows_hw = np.full((classes_HW.shape[0] + 2, classes_HW.shape[1] + 2), none, dtype=dtype)
    start_distances(np.asarray(cv2.copyMakeBorder(classes_HW, 1, 1, 1, 1, cv2.BORDER_REPLICATE)), rows_hw)
    columns_wh = _transposed(rows_hw)
    for distance_hw in (rows_hw, columns_wh):
        spread_rows(distance_hw, dtype(none - 1))
    nearest_HW: NDArray[np.unsignedinteger] = np.minimum(rows_hw[1:-1, 1:-1], _transposed(columns_wh)[1:-1, 1:-1])
    return nearest_HW


def _transposed(distance_hw: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(cv2.transpose(distance_hw))  # several times faster than NumPy's copy


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoundaryCounts:
    """An additive state.

    Attributes:
        config: widths; states that are merged have one.
        boundary_3C: int64 boundary pixels of each class in truth and prediction at once (intersection), in the truth,
            in the prediction; as `segcore.metrics.class_counts` counts all pixels.
        bands_BCC: int64 confusion of the pixels whose nearest border in the truth is at most `trimap_px[b]` away, and
            further than `trimap_px[b - 1]`.
    """

    config: BoundaryConfig
    boundary_3C: NDArray[np.int64]
    bands_BCC: NDArray[np.int64]

    @staticmethod
    def zero(num_classes: int, config: BoundaryConfig) -> "BoundaryCounts":
        """Of no images."""
        return BoundaryCounts(
            config=config,
            boundary_3C=np.zeros((3, num_classes), dtype=np.int64),
            bands_BCC=np.zeros((len(config.trimap_px), num_classes, num_classes), dtype=np.int64),
        )

    def update(self, labels_HW: NDArray[np.uint8], predictions_HW: NDArray[np.uint8]) -> None:
        """Add an image, in place.

        A class's boundary consists of its pixels that are at most `boundary_px` away from a pixel of another class or
        from the outside of the image. For the trimaps the outside is no border.

        Source: Cheng et al., "Boundary IoU", CVPR 2021, arXiv 2103.16562, equation 4, each class's pixels one mask, G_d
            and P_d counted inside the masks; Kraehenbuehl and Koltun, arXiv 1210.5644, section 4 (trimaps); Chen et al.
            (DeepLab), arXiv 1606.00915, draw the curve for the mean IoU.

        Raises:
            ValueError: shapes differ, or a counted value lies outside the class table.
        """
        num_classes = self.boundary_3C.shape[1]
        if labels_HW.shape != predictions_HW.shape:
            check_pair(labels_HW, predictions_HW, num_classes=num_classes)
        height, width = labels_HW.shape
        seen_HW = predictions_HW | -(labels_HW == IGNORE_INDEX).view(np.uint8)  # ignored here too: all bits set
        reach = min(self.config.boundary_px(height=height, width=width), LARGEST_PX)
        widths = np.minimum(self.config.trimap_px, LARGEST_PX)
        farthest = max(reach, int(widths[-1]))
        of_labels, of_seen = (border_distances(each_HW, farthest=farthest) for each_HW in (labels_HW, seen_HW))
        known = count_near_borders(
            np.ascontiguousarray(labels_HW),
            seen_HW,
            of_labels,
            of_seen,
            reach,
            widths.astype(of_labels.dtype),
            self.boundary_3C,
            self.bands_BCC,
        )
        if not known:
            check_pair(labels_HW, predictions_HW, num_classes=num_classes)

    def merge(self, other: "BoundaryCounts") -> None:
        """Add those of other images, in place."""
        assert self.config == other.config, "counts of other widths"
        self.boundary_3C[:] += other.boundary_3C
        self.bands_BCC[:] += other.bands_BCC

    def boundary_iou_C(self) -> NDArray[np.float64]:
        """Boundary IoU of each class; NaN for a class without a boundary pixel in truth and prediction."""
        return class_iou(self.boundary_3C)

    def trimaps(self) -> list[tuple[int, Scores]]:
        """Width in pixels, and the scores of all pixels within it of a border; narrowest first."""
        within_BCC = self.bands_BCC.cumsum(axis=0)
        return [(width, scores(within_BCC[b])) for b, width in enumerate(self.config.trimap_px)]
