"""Polygons, pixel by pixel as pycocotools rasterises them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from segcore.coco_polygons import polygon_spans
from segcore.coco_runs import paint_spans, spans_area, union_of_spans


def drawn(*polygons: list[float], height: int, width: int) -> NDArray[np.uint8]:
    mask_WH = np.zeros((width, height), np.uint8)
    spans = union_of_spans([polygon_spans(polygon, height=height, width=width) for polygon in polygons])
    paint_spans(mask_WH, spans, 1)
    assert spans_area(spans) == mask_WH.sum()
    return mask_WH.T


def theirs(*polygons: list[float], height: int, width: int) -> NDArray[np.uint8]:
    mask_HW: NDArray[np.uint8] = coco.decode(coco.merge(coco.frPyObjects(list(polygons), height, width)))
    return mask_HW


def random_polygons(seed: int) -> tuple[list[list[float]], int, int]:
    """One to three polygons of 3 to 40 points, many of them crossing themselves and the image's border."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 70, 2))
    low, high = [(0, 1), (-0.5, 1.5), (0.3, 0.6), (-2, -1)][seed % 4]
    polygons = []
    for _ in range(int(rng.integers(1, 4))):
        points = rng.uniform(low, high, (int(rng.integers(3, 41)), 2)) * (width, height)
        if seed % 3 == 0:
            points = np.round(points * 2) / 2  # as drawn by hand: half pixels, vertical and horizontal edges, repeats
        polygons.append(points.ravel().tolist())
    return polygons, height, width


def test_random_polygons_are_those_of_pycocotools() -> None:
    covered = 0
    for seed in range(400):
        polygons, height, width = random_polygons(seed)
        found = drawn(*polygons, height=height, width=width)
        np.testing.assert_array_equal(found, theirs(*polygons, height=height, width=width), err_msg=f"seed {seed}")
        covered += int(found.sum())
    assert covered > 100_000


@pytest.mark.parametrize(
    "polygon",
    [
        [1, 1, 3, 1, 3, 3, 1, 3],
        [0, 0, 8, 0, 8, 6, 0, 6],
        [-5, -5, 20, -5, 20, 20, -5, 20],
        [2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 6, 5, 6, 5, 1, 5],
        [0, 0, 8, 6, 8, 0, 0, 6],
        [2.5, 0, 2.5, 6, 2.5, 3],
    ],
    ids=["square", "whole image", "beyond it", "point", "repeated points", "bow tie", "line"],
)
def test_special_polygons_are_those_of_pycocotools(polygon: list[float]) -> None:
    np.testing.assert_array_equal(drawn(polygon, height=6, width=8), theirs(polygon, height=6, width=8))


def test_a_square_from_1_to_3_covers_rows_and_columns_1_and_2() -> None:
    rows, columns = np.nonzero(drawn([1, 1, 3, 1, 3, 3, 1, 3], height=6, width=8))
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [1, 2]


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, 1, 1], "4 coordinates in 1 dimensions, expected a flat list"),
        ([0, 0, 1, 1, 2, 2, 3], "7 coordinates"),
        ([[0, 0], [1, 1], [2, 2]], "6 coordinates in 2 dimensions"),
        ([0, 0, 1, float("nan"), 2, 2], "not finite or beyond 56 px, in an image of 6 x 8"),
        ([0, 0, 1, 1e12, 2, 2], "beyond 56 px"),
    ],
)
def test_polygons_that_are_none_are_refused(polygon: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polygon_spans(polygon, height=6, width=8)
