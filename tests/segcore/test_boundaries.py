"""Boundary IoU and trimaps against loops over all pairs of pixels, and against erosion as the released code does it."""

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.boundaries import BoundaryConfig, BoundaryCounts, border_distances
from segcore.metrics import confusion_matrix, scores

C = 4


def blobs(seed: int, shape: tuple[int, int], *, ignored: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth and prediction of large areas, some single pixels, and an ignored area; class 3 may be absent."""
    rng = np.random.default_rng(seed)
    height, width = shape
    maps = []
    for _ in range(2):
        coarse = rng.integers(0, C - 1, (4, 5)).astype(np.uint8)
        classes_HW = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        classes_HW[rng.random(shape) < 0.01] = 1
        maps.append(np.asarray(classes_HW, dtype=np.uint8))
    labels_HW, other_HW = maps
    predictions_HW = np.where(rng.random(shape) < 0.02, other_HW, np.roll(labels_HW, 1, axis=1)).astype(np.uint8)
    if ignored:
        labels_HW[2:9, 5:9] = IGNORE_INDEX
        labels_HW[rng.random(shape) < 0.02] = IGNORE_INDEX
    return labels_HW, predictions_HW


def nearest_other(classes_HW: NDArray[np.uint8], row: int, column: int) -> float:
    """Chessboard distance to the nearest pixel of another class, by looking at all of them."""
    others = np.argwhere(classes_HW != classes_HW[row, column])
    return min((max(abs(r - row), abs(c - column)) for r, c in others.tolist()), default=math.inf)


def counted_by_hand(
    labels_HW: NDArray[np.uint8], predictions_HW: NDArray[np.uint8], config: BoundaryConfig
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Boundary counts (3, C), and the confusion within each width."""
    height, width = labels_HW.shape
    reach = config.boundary_px(height=height, width=width)
    seen_HW = predictions_HW.copy()
    seen_HW[labels_HW == IGNORE_INDEX] = IGNORE_INDEX
    boundary_3C = np.zeros((3, C), dtype=np.int64)
    within = [np.zeros((C, C), dtype=np.int64) for _ in config.trimap_px]
    for row, column in np.argwhere(labels_HW != IGNORE_INDEX).tolist():
        truth, guess = labels_HW[row, column], predictions_HW[row, column]
        near_truth = nearest_other(labels_HW, row, column)
        near_guess = nearest_other(seen_HW, row, column)
        outside = min(row + 1, column + 1, height - row, width - column)
        in_truth, in_guess = min(near_truth, outside) <= reach, min(near_guess, outside) <= reach
        boundary_3C[1, truth] += in_truth
        boundary_3C[2, guess] += in_guess
        boundary_3C[0, truth] += in_truth and in_guess and truth == guess
        for confusion_CC, limit in zip(within, config.trimap_px, strict=True):
            confusion_CC[truth, guess] += near_truth <= limit
    return boundary_3C, within


@pytest.mark.parametrize("shape", [(24, 31), (31, 24), (12, 12)])
@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_counts_equal_loops_over_pixels(shape: tuple[int, int], ratio: float) -> None:
    config = BoundaryConfig(dilation_ratio=ratio, trimap_px=(1, 3, 4, 20))
    labels_HW, predictions_HW = blobs(sum(shape), shape)
    counts = BoundaryCounts.zero(C, config)
    counts.update(labels_HW, predictions_HW)
    boundary_3C, within = counted_by_hand(labels_HW, predictions_HW, config)
    assert counts.boundary_3C.tolist() == boundary_3C.tolist()
    assert counts.bands_BCC.dtype == counts.boundary_3C.dtype == np.int64
    for (width, found), limit, confusion_CC in zip(counts.trimaps(), config.trimap_px, within, strict=True):
        assert width == limit
        assert found.mean_iou == pytest.approx(scores(confusion_CC).mean_iou, abs=1e-12)
    assert counts.bands_BCC.sum(axis=0).tolist() == within[-1].tolist()


def test_boundary_iou_is_that_of_the_released_code() -> None:
    """A boundary is a mask minus its erosion, as `mask_to_boundary` of bowenc0221/boundary-iou-api has it."""
    config = BoundaryConfig(dilation_ratio=0.04)
    labels_HW, predictions_HW = blobs(5, (120, 160), ignored=False)
    counts = BoundaryCounts.zero(C, config)
    counts.update(labels_HW, predictions_HW)

    def boundary(mask_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
        dilation = max(1, round(0.04 * math.sqrt(120**2 + 160**2)))
        padded = cv2.copyMakeBorder(mask_HW, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)[1:-1, 1:-1]
        return np.asarray(mask_HW - eroded, dtype=bool)

    for index in range(C - 1):
        truth, guess = (boundary((each == index).astype(np.uint8)) for each in (labels_HW, predictions_HW))
        expected = (truth & guess).sum() / (truth | guess).sum()
        assert counts.boundary_iou_C()[index] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(counts.boundary_iou_C()[3])


def test_what_is_predicted_where_the_truth_is_ignored_changes_nothing() -> None:
    labels_HW, predictions_HW = blobs(1, (40, 50))
    first, second = (BoundaryCounts.zero(C, BoundaryConfig()) for _ in range(2))
    first.update(labels_HW, predictions_HW)
    predictions_HW[labels_HW == IGNORE_INDEX] = 200
    second.update(labels_HW, predictions_HW)
    assert np.array_equal(first.boundary_3C, second.boundary_3C) and np.array_equal(first.bands_BCC, second.bands_BCC)


def test_a_perfect_prediction_has_boundary_iou_1_and_a_shifted_one_less_than_its_iou() -> None:
    labels_HW = np.zeros((200, 200), dtype=np.uint8)
    labels_HW[50:150, 50:150] = 1
    for shift, expected in ((0, 1.0), (3, None)):
        counts = BoundaryCounts.zero(2, BoundaryConfig())
        predictions_HW = np.roll(labels_HW, shift, axis=1)
        counts.update(labels_HW, predictions_HW)
        found = counts.boundary_iou_C()[1]
        if expected is not None:
            assert found == expected and counts.trimaps()[0][1].mean_iou == 1
        else:
            assert 0 < found < scores(confusion_matrix(labels_HW, predictions_HW, num_classes=2)).iou_C[1] - 0.05


def test_the_edge_of_the_image_is_a_boundary_but_no_border_of_a_trimap() -> None:
    labels_HW = np.zeros((30, 40), dtype=np.uint8)
    counts = BoundaryCounts.zero(2, BoundaryConfig(dilation_ratio=0.04))
    counts.update(labels_HW, labels_HW)
    assert counts.boundary_3C[:, 0].tolist() == [30 * 40 - 26 * 36] * 3
    assert counts.bands_BCC.sum() == 0 and math.isnan(counts.trimaps()[-1][1].mean_iou)


def test_counts_add_over_images() -> None:
    pairs = [blobs(seed, (33, 21 + seed)) for seed in range(4)]
    whole, left, right = (BoundaryCounts.zero(C, BoundaryConfig()) for _ in range(3))
    for number, pair in enumerate(pairs):
        whole.update(*pair)
        (right if number % 2 else left).update(*pair)
    right.merge(left)
    assert np.array_equal(whole.boundary_3C, right.boundary_3C) and np.array_equal(whole.bands_BCC, right.bands_BCC)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2)])
def test_images_of_few_pixels_are_all_boundary(shape: tuple[int, int]) -> None:
    labels_HW = (np.arange(shape[0] * shape[1], dtype=np.uint8) % 2).reshape(shape)
    counts = BoundaryCounts.zero(2, BoundaryConfig())
    counts.update(labels_HW, labels_HW)
    assert counts.boundary_3C.sum() == 3 * labels_HW.size
    assert counts.bands_BCC.sum() == (labels_HW.size if labels_HW.size > 1 else 0)


def test_pairs_that_do_not_belong_together_are_refused() -> None:
    counts = BoundaryCounts.zero(2, BoundaryConfig())
    labels_HW = np.zeros((4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"shape \(4, 5\) and predictions \(5, 4\)"):
        counts.update(labels_HW, labels_HW.T)
    with pytest.raises(ValueError, match=r"label value 2 is outside 0\.\.1"):
        counts.update(labels_HW + np.uint8(2), labels_HW)
    with pytest.raises(ValueError, match=r"predicted value 9 is outside 0\.\.1"):
        counts.update(labels_HW, labels_HW + np.uint8(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilation_ratio": 0.0}, "dilation_ratio is 0.0; expected"),
        ({"trimap_px": ()}, r"trimap_px is \(\); expected"),
        ({"trimap_px": (2, 1)}, r"trimap_px is \(2, 1\); expected increasing"),
        ({"trimap_px": (0, 1)}, "1 pixel or more"),
    ],
)
def test_widths_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoundaryConfig(**changes)  # type: ignore[arg-type]  # names of fields


@pytest.mark.parametrize("widths", [(1, 252, 253), (1, 253, 254), (253, 254, 255, 256, 400), (7, 255, 70_000)])
def test_wide_bands_are_as_wide_as_they_say(widths: tuple[int, ...]) -> None:
    labels_HW = np.zeros((3, 900), dtype=np.uint8)
    labels_HW[:, 450:] = 1
    distance_W = np.concatenate([np.arange(450, 0, -1), np.arange(1, 451)])
    counts = BoundaryCounts.zero(2, BoundaryConfig(trimap_px=widths))
    counts.update(labels_HW, labels_HW)
    within_B = counts.bands_BCC.cumsum(axis=0).sum(axis=(1, 2))
    assert within_B.tolist() == [3 * int((distance_W <= width).sum()) for width in widths]


@pytest.mark.parametrize("farthest", [4, 253, 254])
def test_distances_are_exact_up_to_the_farthest_that_is_asked_for(farthest: int) -> None:
    classes_HW = np.zeros((40, 600), dtype=np.uint8)
    classes_HW[20, 17] = 200
    found_HW = border_distances(classes_HW, farthest=farthest)
    assert found_HW.dtype == (np.uint8 if farthest < 254 else np.uint16)
    rows, columns = np.indices(classes_HW.shape)
    expected_HW = np.maximum(abs(rows - 20), abs(columns - 17))
    expected_HW[20, 17] = 1
    near_HW = expected_HW <= farthest
    assert (found_HW[near_HW] == expected_HW[near_HW]).all()
    assert (found_HW[~near_HW] > farthest).all()
    assert (border_distances(np.zeros((5, 7), np.uint8), farthest=farthest) == np.iinfo(found_HW.dtype).max).all()


def test_bands_of_many_classes_are_confusions_of_their_pixels() -> None:
    rng = np.random.default_rng(3)
    num_classes = 200
    maps = [cv2.resize(rng.integers(0, num_classes, (7, 9)).astype(np.uint8), (91, 67), interpolation=0) for _ in "ab"]
    labels_HW, predictions_HW = (np.asarray(each, dtype=np.uint8) for each in maps)
    labels_HW[rng.random(labels_HW.shape) < 0.05] = IGNORE_INDEX
    counts = BoundaryCounts.zero(num_classes, BoundaryConfig(trimap_px=(2, 5)))
    counts.update(labels_HW, predictions_HW)
    distance_HW = border_distances(labels_HW)
    for band, (above, width) in enumerate([(0, 2), (2, 5)]):
        inside_HW = (distance_HW > above) & (distance_HW <= width)
        expected_CC = confusion_matrix(labels_HW[inside_HW], predictions_HW[inside_HW], num_classes=num_classes)
        assert np.array_equal(counts.bands_BCC[band], expected_CC)
