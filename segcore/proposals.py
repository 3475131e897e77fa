"""Boxes that may hold an object, of any class, and how such boxes are compared and enlarged.

Edge Boxes: Zitnick and Dollar, "Edge Boxes: Locating Object Proposals from Edges", ECCV 2014, by OpenCV's `ximgproc`.
Selective search: Uijlings, van de Sande, Gevers and Smeulders, "Selective Search for Object Recognition", IJCV 2013,
likewise. DeconvNet (Noh, Hong, Han, arXiv 1505.04366) takes the 50 best of about 2000 Edge Boxes of an image.

Differences from the papers:
- Edge Boxes were measured on the edges of a structured forest (Dollar and Zitnick, ICCV 2013), whose trained model is
  not part of OpenCV. Here an edge is a local maximum of the colour gradient (`edge_map`), which texture has too.
- Selective search ranks boxes by the level at which they were merged, times a random number, and OpenCV draws that from
  a generator which cannot be seeded. Here they are ranked by the edges inside (`edge_scores`), and overlapping ones are
  suppressed as Edge Boxes does it, so that equal images give equal boxes.

A box is (top, left, bottom, right) in pixels, half open: rows top to bottom - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.int32]
Box = tuple[int, int, int, int]
"""Top, left, bottom, right."""

WINDOW_STEP = 0.65
"""Intersection over union of neighbouring windows of the search; alpha of the paper, as are the next three."""
MAX_OVERLAP = 0.75
"""Above this intersection over union the box with the lower score is dropped; beta."""
PERIMETER_POWER = 1.5
"""A score is a sum over edges divided by the perimeter to this power; kappa."""
AFFINITY_POWER = 2.0
"""Sensitivity of the affinity of edge groups to the angle between them; gamma."""
MIN_SCORE = 0.01
MIN_SIDE_PX = 8
"""Images with a smaller side have no proposals: the searches need room around an edge."""
SMOOTHING_SHARE = 0.008
"""Deviation of the Gaussian before the gradient, of the longer side, and at least 1 pixel: finer texture is no edge. On
street photos of 360 x 480 half of it halves the recall of the 50 best boxes, and doubles the time."""
STRONG_QUANTILE = 0.9
"""Edges of this rank among an image's local maxima have strength 1."""
TIE = np.float32(1.001)
"""Pixels on both sides of an edge whose gradients differ by less are both its peak, whatever was rounded."""
MIN_GRADIENT = 0.1
"""In levels of 0 to 255 per pixel: what is flatter has no edge."""
MIN_CONTRAST = 4.0
"""Gradient, in levels of 0 to 255 per pixel, below which the strongest edges of an image are not taken for strength 1:
the noise of a wall stays weak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig:
    """Which boxes are proposed."""

    method: Literal["edge_boxes", "selective_search"] = "edge_boxes"
    """Edge Boxes on gradient edges, or selective search (its fast mode), which takes about ten times as long."""
    candidates: int = 2000
    """Boxes that are scored and ranked, at most."""
    best: int = 50
    """Boxes that are proposed, at most: those with the highest scores."""
    enlarge: float = 1.2
    """Factor on height and width of a box before it is cut out. `propose` returns boxes before this enlargement."""
    min_area_px: int = 1000
    """Smallest box, in pixels."""
    max_aspect_ratio: float = 3.0
    """Longer over shorter side of a box, at most. Edge Boxes refine their boxes afterwards, which may exceed it."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.method not in ("edge_boxes", "selective_search"):
            raise ValueError(f"method is {self.method!r}, expected 'edge_boxes' or 'selective_search'")
        if not 1 <= self.best <= self.candidates:
            raise ValueError(f"best is {self.best} of {self.candidates} candidates; give 1 <= best <= candidates")
        if not self.enlarge >= 1:
            raise ValueError(f"enlarge is {self.enlarge}, expected 1 (no enlargement) or more")
        if self.min_area_px < MIN_SIDE_PX**2:
            raise ValueError(f"min_area_px is {self.min_area_px}, expected {MIN_SIDE_PX**2} or more")
        if not self.max_aspect_ratio >= 1:
            raise ValueError(f"max_aspect_ratio is {self.max_aspect_ratio}, expected 1 (squares) or more")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposals:
    """Boxes of one image, best first.

    Attributes:
        boxes_K4: int32; top, left, bottom, right.
        scores_K: float32, falling. They rank the boxes of one image and mean nothing across images.
    """

    boxes_K4: Boxes
    scores_K: NDArray[np.float32]


def propose(image_HW3: NDArray[np.uint8], config: ProposalConfig) -> Proposals:
    """Propose the `config.best` boxes of an image. Equal images give equal boxes.

    An image without edges, or smaller than `MIN_SIDE_PX`, has none: both arrays are then empty.

    Args:
        image_HW3: uint8 RGB.
        config: which boxes.

    Raises:
        ValueError: the image is not uint8 (H, W, 3), or the installed OpenCV has no `ximgproc`.
    """
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
        raise ValueError(f"the image is {image_HW3.dtype} of shape {image_HW3.shape}, expected uint8 (H, W, 3), RGB")
    height, width = image_HW3.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        return _ranked(np.zeros((0, 4), np.int32), np.zeros(0, np.float32), 0)
    edges_HW, orientation_HW = edge_map(image_HW3)
    if config.method == "edge_boxes":
        boxes_K4, scores_K = _edge_boxes(edges_HW, orientation_HW, config)
    else:
        boxes_K4 = _selective_search(image_HW3, config)
        scores_K = edge_scores(boxes_K4, edges_HW)
        kept = suppress_overlaps(boxes_K4, scores_K, max_overlap=MAX_OVERLAP, candidates=config.candidates)
        boxes_K4, scores_K = boxes_K4[kept], scores_K[kept]
    boxes_K4 = np.clip(boxes_K4, 0, np.array([height, width, height, width], np.int32))
    valid_K = (boxes_K4[:, 2] > boxes_K4[:, 0]) & (boxes_K4[:, 3] > boxes_K4[:, 1])
    return _ranked(boxes_K4[valid_K], scores_K[valid_K], config.best)


def edge_map(image_HW3: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Thin edges and their direction, as Edge Boxes takes them.

    The gradient (Scharr) of the smoothed image, at each pixel that of the channel in which it is steepest; where it is
    less than at one of the two neighbours along its direction, 0 (Canny's suppression of what is no maximum).

    Args:
        image_HW3: uint8 RGB.

    Returns:
        Strength (H, W) from 0 to 1, and the direction of the gradient (H, W), an angle from the column axis towards
        growing rows, from 0 to below pi. Both float32.
    """
    deviation_px = max(1.0, SMOOTHING_SHARE * max(image_HW3.shape[:2]))
    smooth_HW3 = cv2.GaussianBlur(image_HW3.astype(np.float32), (0, 0), deviation_px)
    # Scharr's weights sum to 16 on each side, two pixels apart: levels per pixel.
    across_HW3 = cv2.Scharr(smooth_HW3, cv2.CV_32F, 1, 0) / 32
    down_HW3 = cv2.Scharr(smooth_HW3, cv2.CV_32F, 0, 1) / 32
    steepest_HW1 = np.hypot(across_HW3, down_HW3).argmax(axis=2)[..., None]
    across_HW = np.take_along_axis(across_HW3, steepest_HW1, axis=2)[..., 0]
    down_HW = np.take_along_axis(down_HW3, steepest_HW1, axis=2)[..., 0]
    gradient_HW = np.hypot(across_HW, down_HW)
    safe_HW = np.maximum(gradient_HW, np.float32(1e-6))
    step_row_HW, step_column_HW = down_HW / safe_HW, across_HW / safe_HW
    rows_HW, columns_HW = np.indices(gradient_HW.shape, dtype=np.float32)
    peak_HW = gradient_HW > MIN_GRADIENT
    for sign in (-1, 1):
        neighbour_HW = cv2.remap(
            gradient_HW,
            columns_HW + sign * step_column_HW,
            rows_HW + sign * step_row_HW,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        peak_HW &= gradient_HW * TIE >= neighbour_HW
    strong = float(np.quantile(gradient_HW[peak_HW], STRONG_QUANTILE)) if peak_HW.any() else 0.0
    strength_HW = np.where(peak_HW, np.minimum(gradient_HW / max(strong, MIN_CONTRAST), 1), 0).astype(np.float32)
    # The modulo may round up to pi itself.
    orientation_HW = np.mod(np.arctan2(down_HW, across_HW), np.pi).astype(np.float32)
    return strength_HW, np.where(orientation_HW < np.float32(np.pi), orientation_HW, 0).astype(np.float32)


def edge_scores(boxes_K4: Boxes, edges_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Edges inside each box, without those in its middle, over its perimeter to a power: (K,) float32.

    Source: Edge Boxes, equation 3, with every edge inside weighed by 1: contours that cross the box count too.
    """
    integral_HW = np.asarray(cv2.integral(edges_HW, sdepth=cv2.CV_64F), np.float64)
    heights_K, widths_K = boxes_K4[:, 2] - boxes_K4[:, 0], boxes_K4[:, 3] - boxes_K4[:, 1]
    middle_K4 = boxes_K4.copy()
    middle_K4[:, 0] += heights_K // 4
    middle_K4[:, 1] += widths_K // 4
    middle_K4[:, 2] = middle_K4[:, 0] + heights_K // 2
    middle_K4[:, 3] = middle_K4[:, 1] + widths_K // 2
    inside_K = _sums(integral_HW, boxes_K4) - _sums(integral_HW, middle_K4)
    perimeter_K = 2.0 * (heights_K // 2 + widths_K // 2)
    scores_K: NDArray[np.float32] = (inside_K / np.maximum(perimeter_K, 1) ** PERIMETER_POWER).astype(np.float32)
    return scores_K


def box_ious(boxes_K4: Boxes, others_M4: Boxes) -> NDArray[np.float64]:
    """Intersection over union of every box with every other one: (K, M), from 0 to 1."""
    top_left_KM2 = np.maximum(boxes_K4[:, None, :2], others_M4[None, :, :2]).astype(np.int64)
    bottom_right_KM2 = np.minimum(boxes_K4[:, None, 2:], others_M4[None, :, 2:])
    shared_KM = np.maximum(bottom_right_KM2 - top_left_KM2, 0).prod(axis=2)
    areas_K, areas_M = _areas(boxes_K4), _areas(others_M4)
    ious_KM: NDArray[np.float64] = shared_KM / np.maximum(areas_K[:, None] + areas_M[None, :] - shared_KM, 1)
    return ious_KM


def suppress_overlaps(
    boxes_K4: Boxes, scores_K: NDArray[np.float32], *, max_overlap: float, candidates: int
) -> NDArray[np.int64]:
    """Indices of the boxes to keep, best first: none overlaps a better one that is kept by more than `max_overlap`.

    Only the `candidates` boxes with the highest scores take part.
    """
    left = _order(boxes_K4, scores_K)[:candidates]
    kept: list[int] = []
    while len(left):
        best, left = left[:1], left[1:]
        kept.append(int(best[0]))
        left = left[box_ious(boxes_K4[best], boxes_K4[left])[0] <= max_overlap]
    return np.array(kept, np.int64)


def enlarge_box(box: Sequence[int] | NDArray[np.integer], factor: float, height: int, width: int) -> Box:
    """A box with both sides times `factor` around its centre, and then clipped to the image.

    Sides are rounded to whole pixels, and an odd pixel goes to the upper left.

    Args:
        box: top, left, bottom, right.
        factor: 1 leaves the box as it is.
        height, width: of the image.
    """
    top, left, bottom, right = (int(edge) for edge in box)
    first_row, last_row = _enlarged(top, bottom, factor)
    first_column, last_column = _enlarged(left, right, factor)
    return max(first_row, 0), max(first_column, 0), min(last_row, height), min(last_column, width)


def _enlarged(start: int, stop: int, factor: float) -> tuple[int, int]:
    length = int((stop - start) * factor + 0.5)
    first = (start + stop - length) // 2
    return first, first + length


def _edge_boxes(
    edges_HW: NDArray[np.float32], orientation_HW: NDArray[np.float32], config: ProposalConfig
) -> tuple[Boxes, NDArray[np.float32]]:
    # A new search for every image: OpenCV's object keeps lists of the images before.
    search = _ximgproc().createEdgeBoxes(
        alpha=WINDOW_STEP,
        beta=MAX_OVERLAP,
        minScore=MIN_SCORE,
        maxBoxes=config.candidates,
        maxAspectRatio=config.max_aspect_ratio,
        minBoxArea=float(config.min_area_px),
        gamma=AFFINITY_POWER,
        kappa=PERIMETER_POWER,
    )
    rectangles, scores = search.getBoundingBoxes(edges_HW, orientation_HW)
    return _corners(rectangles), np.asarray(scores, np.float32).reshape(-1)


def _selective_search(image_HW3: NDArray[np.uint8], config: ProposalConfig) -> Boxes:
    search = _ximgproc().segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image_HW3[..., ::-1]))  # BGR
    search.switchToSelectiveSearchFast()
    boxes_K4 = _corners(search.process())
    sides_K2 = boxes_K4[:, 2:] - boxes_K4[:, :2]
    allowed_K = sides_K2.min(axis=1) * config.max_aspect_ratio >= sides_K2.max(axis=1)
    kept_K4: Boxes = boxes_K4[allowed_K & (_areas(boxes_K4) >= config.min_area_px)]
    return kept_K4


def _ximgproc() -> Any:
    if not hasattr(cv2, "ximgproc"):
        raise ValueError(
            f"the installed OpenCV {cv2.__version__} has no module ximgproc, which proposes boxes; another package of "
            "OpenCV has replaced the one with the contributed modules: pip uninstall opencv-python "
            "opencv-python-headless, then pip install --force-reinstall opencv-contrib-python-headless"
        )
    return cv2.ximgproc


def _corners(rectangles: Any) -> Boxes:
    """OpenCV's x, y, width, height as boxes."""
    left, top, width, height = np.asarray(rectangles, np.int32).reshape(-1, 4).T
    boxes_K4: Boxes = np.stack([top, left, top + height, left + width], axis=1)
    return boxes_K4


def _ranked(boxes_K4: Boxes, scores_K: NDArray[np.float32], count: int) -> Proposals:
    best = _order(boxes_K4, scores_K)[:count]
    return Proposals(boxes_K4=boxes_K4[best], scores_K=scores_K[best])


def _order(boxes_K4: Boxes, scores_K: NDArray[np.float32]) -> NDArray[np.int64]:
    """By falling score, equal scores by position: the same order however the boxes were listed."""
    return np.lexsort((*boxes_K4.T, -scores_K)).astype(np.int64)


def _areas(boxes_K4: Boxes) -> NDArray[np.int64]:
    areas_K: NDArray[np.int64] = (boxes_K4[:, 2:] - boxes_K4[:, :2]).astype(np.int64).prod(axis=1)
    return areas_K


def _sums(integral_HW: NDArray[np.float64], boxes_K4: Boxes) -> NDArray[np.float64]:
    top, left, bottom, right = boxes_K4.T
    sums_K: NDArray[np.float64] = (
        integral_HW[bottom, right] - integral_HW[top, right] - integral_HW[bottom, left] + integral_HW[top, left]
    )
    return sums_K
