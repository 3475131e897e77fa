"""Polygons of masks: filled again by an independent rule, they give the mask."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.mask_polygons import Ring, class_polygons


def _fill(polygons: list[list[Ring]], height: int, width: int) -> NDArray[np.bool_]:
    """Even-odd rule: a pixel is inside where an odd number of vertical edges lies to its left."""
    toggles_HW = np.zeros((height, width + 1), np.int64)
    for ring in (ring for rings in polygons for ring in rings):
        for (x, y), (next_x, next_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert x == next_x or y == next_y, "a slanted edge"
            toggles_HW[min(y, next_y) : max(y, next_y), x] += x == next_x
    return np.asarray(toggles_HW.cumsum(axis=1)[:, :width] % 2 == 1)


def _masks() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    ring = np.zeros((9, 12), np.uint8)
    ring[2:7, 2:9] = 1
    ring[3:6, 3:8] = 0
    ring[4, 5] = 1
    return {
        "one pixel": np.array([[3]], np.uint8),
        "noise": rng.integers(0, 3, (23, 31), dtype=np.uint8),
        "rings with an island": ring,
        "checkers": (np.indices((6, 7)).sum(axis=0) % 2).astype(np.uint8),
        "diagonal": np.eye(8, dtype=np.uint8),
        "blocks": rng.integers(0, 4, (5, 6), dtype=np.uint8).repeat(7, axis=0).repeat(9, axis=1),
        "thin line": np.pad(np.ones((1, 20), np.uint8), 3),
    }


@pytest.mark.parametrize("name", _masks())
def test_polygons_enclose_exactly_the_pixels_of_their_class(name: str) -> None:
    mask_HW = _masks()[name]
    found = class_polygons(mask_HW)
    assert list(found) == np.unique(mask_HW).tolist()
    for index, polygons in found.items():
        np.testing.assert_array_equal(_fill(polygons, *mask_HW.shape), mask_HW == index)


def test_a_polygon_has_its_outer_ring_first_and_then_its_holes() -> None:
    found = class_polygons(_masks()["rings with an island"])
    assert [len(rings) for rings in found[1]] in ([2, 1], [1, 2])  # the ring has a hole, the island none
    (outer, hole), (island,) = sorted(found[1], key=len, reverse=True)
    assert (outer.min(axis=0).tolist(), outer.max(axis=0).tolist()) == ([2, 2], [9, 7])
    assert (hole.min(axis=0).tolist(), hole.max(axis=0).tolist()) == ([3, 3], [8, 6])
    assert sorted(map(tuple, island.tolist())) == [(5, 4), (5, 5), (6, 4), (6, 5)]


def test_simplified_lines_stray_no_further_than_asked_for_and_specks_stay() -> None:
    rows, columns = np.indices((200, 200))
    mask_HW = ((rows - 100) ** 2 + (columns - 90) ** 2 < 80**2).astype(np.uint8)
    mask_HW[3, 3] = 1
    exact, simple = class_polygons(mask_HW)[1], class_polygons(mask_HW, simplify_px=1.5)[1]
    assert len(simple) == len(exact) == 2
    disc = max((rings[0] for rings in simple), key=len)
    assert len(disc) < max(len(rings[0]) for rings in exact) / 8
    radius_N = np.hypot(disc[:, 0] - 90.5, disc[:, 1] - 100.5)
    assert np.abs(radius_N - 80).max() < 1.5
    speck = min((rings[0] for rings in simple), key=len)
    assert sorted(map(tuple, speck.tolist())) == [(3, 3), (3, 4), (4, 3), (4, 4)]


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="mask is int64 .* expected uint8"):
        class_polygons(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="simplify_px is -1"):
        class_polygons(np.zeros((2, 2), np.uint8), simplify_px=-1)
