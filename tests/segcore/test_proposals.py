"""Proposals: boxes around what is there, the same ones each time, and nothing where there is nothing."""

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.proposals import (
    ProposalConfig,
    box_ious,
    edge_map,
    edge_scores,
    enlarge_box,
    propose,
    suppress_overlaps,
)

THINGS = ((20, 25, 70, 85), (60, 110, 130, 160), (95, 20, 125, 70))
"""Top, left, bottom, right of the rectangles in `picture`."""


def picture(height: int = 150, width: int = 200) -> NDArray[np.uint8]:
    """Three plain rectangles on a slightly noisy ground."""
    image_HW3 = np.random.default_rng(0).normal(120, 2, (height, width, 3))
    for (top, left, bottom, right), colour in zip(THINGS, ((220, 40, 40), (30, 60, 200), (240, 240, 90)), strict=True):
        image_HW3[top:bottom, left:right] = colour
    return np.clip(image_HW3, 0, 255).astype(np.uint8)


def boxes(*rows: tuple[int, int, int, int]) -> NDArray[np.int32]:
    return np.array(rows, np.int32).reshape(-1, 4)


@pytest.mark.parametrize("method", ["edge_boxes", "selective_search"])
def test_every_object_has_a_proposal_and_all_lie_within_the_image(method: Any) -> None:
    image_HW3 = picture()
    found = propose(image_HW3, ProposalConfig(method=method, best=50))
    assert found.boxes_K4.dtype == np.int32
    assert found.scores_K.dtype == np.float32
    assert 3 <= len(found.boxes_K4) == len(found.scores_K) <= 50
    assert (np.diff(found.scores_K) <= 0).all()
    assert (found.boxes_K4[:, :2] >= 0).all()
    assert (found.boxes_K4[:, 2:] <= (150, 200)).all()
    assert (found.boxes_K4[:, 2:] > found.boxes_K4[:, :2]).all()
    assert box_ious(boxes(*THINGS), found.boxes_K4).max(axis=1).min() > 0.7


def test_the_best_edge_boxes_are_around_whole_objects() -> None:
    found = propose(picture(), ProposalConfig(best=3))
    assert box_ious(boxes(*THINGS), found.boxes_K4).max(axis=1).min() > 0.7


@pytest.mark.parametrize("method", ["edge_boxes", "selective_search"])
def test_equal_images_give_equal_boxes_whatever_was_searched_between(method: Any) -> None:
    config = ProposalConfig(method=method)
    first = propose(picture(), config)
    propose(picture()[:90, :130], config)
    second = propose(picture(), config)
    assert np.array_equal(first.boxes_K4, second.boxes_K4)
    assert np.array_equal(first.scores_K, second.scores_K)


@pytest.mark.parametrize("method", ["edge_boxes", "selective_search"])
def test_the_best_are_the_first_of_more(method: Any) -> None:
    few = propose(picture(), ProposalConfig(method=method, best=2))
    many = propose(picture(), ProposalConfig(method=method, best=2000))
    assert len(few.boxes_K4) == 2 < len(many.boxes_K4)
    assert np.array_equal(few.boxes_K4, many.boxes_K4[:2])


@pytest.mark.parametrize("method", ["edge_boxes", "selective_search"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (8, 8), (150, 200)])
def test_an_image_without_edges_or_room_has_no_edge_boxes_and_nothing_breaks(
    method: Any, size: tuple[int, int]
) -> None:
    found = propose(np.full((*size, 3), 77, np.uint8), ProposalConfig(method=method))
    assert found.boxes_K4.shape == (0, 4) or method == "selective_search"
    assert found.scores_K.shape == (len(found.boxes_K4),)


def test_a_strip_of_noise_stays_within_the_image() -> None:
    noise_HW3 = np.random.default_rng(1).integers(0, 256, (9, 400, 3)).astype(np.uint8)
    found = propose(noise_HW3, ProposalConfig(min_area_px=64, max_aspect_ratio=50))
    assert (found.boxes_K4[:, 2:] <= (9, 400)).all()


def test_edges_lie_on_the_border_and_point_across_it() -> None:
    image_HW3 = np.zeros((40, 60, 3), np.uint8)
    image_HW3[:, 30:, 1] = 200
    edges_HW, orientation_HW = edge_map(image_HW3)
    assert edges_HW.dtype == orientation_HW.dtype == np.float32
    assert set(np.flatnonzero(edges_HW.any(axis=0))) <= {29, 30}
    assert edges_HW.max() == 1
    assert np.allclose(np.cos(orientation_HW[edges_HW > 0]) ** 2, 1)
    turned_HW, turned_orientation_HW = edge_map(np.ascontiguousarray(image_HW3.transpose(1, 0, 2)))
    assert np.array_equal(turned_HW, edges_HW.T)
    assert np.allclose(turned_orientation_HW[turned_HW > 0], np.pi / 2)
    rows, columns = np.mgrid[:60, :60]
    slope_HW, slope_orientation_HW = edge_map(np.repeat(((rows + columns > 60) * np.uint8(200))[..., None], 3, axis=2))
    strong_HW = slope_HW[10:-10, 10:-10] > 0.5
    assert np.allclose(slope_orientation_HW[10:-10, 10:-10][strong_HW], np.pi / 4, atol=0.05)


def test_weak_noise_is_weak_and_directions_stay_below_pi() -> None:
    noise_HW3 = np.random.default_rng(2).normal(120, 2, (80, 80, 3)).astype(np.uint8)
    edges_HW, orientation_HW = edge_map(noise_HW3)
    assert edges_HW.max() < 0.5
    assert orientation_HW.min() >= 0
    assert orientation_HW.max() < np.pi


def test_edge_scores_are_those_of_plain_sums() -> None:
    edges_HW = np.random.default_rng(3).random((30, 40)).astype(np.float32)
    (score,) = edge_scores(boxes((4, 6, 24, 38)), edges_HW)
    ring = float(edges_HW[4:24, 6:38].sum() - edges_HW[9:19, 14:30].sum())
    assert score == pytest.approx(ring / (2 * (10 + 16)) ** 1.5, rel=1e-5)
    assert edge_scores(boxes(), edges_HW).shape == (0,)


def test_intersection_over_union_is_that_of_painted_boxes() -> None:
    rng = np.random.default_rng(4)
    corners = np.sort(rng.integers(0, 30, (2, 9, 2)), axis=0)
    some = np.concatenate([corners[0], corners[1] + 1], axis=1).astype(np.int32)
    ious = box_ious(some, some)
    for i, j in np.ndindex(9, 9):
        first, second = np.zeros((2, 32, 32), bool)
        first[some[i, 0] : some[i, 2], some[i, 1] : some[i, 3]] = True
        second[some[j, 0] : some[j, 2], some[j, 1] : some[j, 3]] = True
        assert ious[i, j] == pytest.approx((first & second).sum() / (first | second).sum())
    assert box_ious(some, boxes()).shape == (9, 0)


def test_overlapping_boxes_are_dropped_in_favour_of_better_ones() -> None:
    some = boxes((0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 20), (50, 50, 60, 60))
    scores = np.array([1, 2, 3, 0.5], np.float32)
    kept = suppress_overlaps(some, scores, max_overlap=0.75, candidates=10)
    assert kept.tolist() == [2, 1, 3]
    assert suppress_overlaps(some, scores, max_overlap=0.4, candidates=10).tolist() == [2, 3]
    assert suppress_overlaps(some, scores, max_overlap=0.75, candidates=2).tolist() == [2, 1]
    assert suppress_overlaps(some, scores, max_overlap=1, candidates=10).tolist() == [2, 1, 0, 3]


def test_an_enlarged_box_has_1_44_times_the_area_until_the_image_ends() -> None:
    assert enlarge_box((50, 40, 60, 70), 1.2, 200, 300) == (49, 37, 61, 73)
    for top, left, tall, wide in np.ndindex(3, 3, 5, 5):
        box = (90 + top, 90 + left, 90 + top + 5 * (tall + 1), 90 + left + 10 * (wide + 1))
        first_row, first_column, last_row, last_column = enlarge_box(box, 1.2, 300, 300)
        area = (last_row - first_row) * (last_column - first_column)
        assert area * 100 == 144 * 5 * (tall + 1) * 10 * (wide + 1)
        assert abs((first_row + last_row) - (box[0] + box[2])) <= 1
        assert abs((first_column + last_column) - (box[1] + box[3])) <= 1
    assert enlarge_box(np.array([0, 2, 20, 30], np.int32), 1.2, 21, 30) == (0, 0, 21, 30)
    assert enlarge_box((3, 4, 5, 6), 1.0, 10, 10) == (3, 4, 5, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grid"}, "method is 'grid', expected 'edge_boxes' or 'selective_search'"),
        ({"best": 0}, "best is 0 of 2000 candidates; give 1 <= best <= candidates"),
        ({"best": 11, "candidates": 10}, "best is 11 of 10 candidates"),
        ({"enlarge": 0.9}, "enlarge is 0.9, expected 1"),
        ({"min_area_px": 63}, "min_area_px is 63, expected 64 or more"),
        ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio is nan, expected 1"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ProposalConfig(), **change)


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 4), (3, 10, 10)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the image is uint8 of shape .*, expected uint8 \(H, W, 3\), RGB"):
        propose(np.zeros(shape, np.uint8), ProposalConfig())


def test_an_opencv_without_the_contributed_modules_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(ValueError, match=r"has no module ximgproc.*pip install .*opencv-contrib-python-headless"):
        propose(picture(), ProposalConfig())
