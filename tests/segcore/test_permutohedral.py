"""The lattice filter against the sum over all pairs of points that it approximates, and its own invariants."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.lanes import LANES
from segcore.permutohedral import Lattice, Workers, build_lattice

Floats = NDArray[np.float32]


@pytest.fixture(params=[1, 3], ids=["one part", "three parts"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with ThreadPoolExecutor(2) as pool:
        yield Workers(pool=pool, num_parts=request.param)


def grid(height: int, width: int, deviation: float) -> Floats:
    """Positions in units of the deviation, with colours that change slowly."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    return np.stack([columns, rows], axis=1).astype(np.float32) / np.float32(deviation)


def values(count: int, width: int = LANES) -> Floats:
    return np.random.default_rng(0).random((count, width), dtype=np.float32)


def all_pairs(features_XF: Floats, values_XK: Floats, *, at: slice = slice(None)) -> NDArray[np.float64]:
    """Sums at some of the points."""
    distance: NDArray[np.float64] = sum(
        (feature_X[at, None].astype(np.float64) - feature_X) ** 2 for feature_X in features_XF.T
    )
    sums: NDArray[np.float64] = np.exp(-0.5 * distance) @ values_XK
    return sums


def build(features_XF: Floats, workers: Workers) -> Lattice:
    return build_lattice(np.ascontiguousarray(features_XF.T), workers)


def filtered(lattice: Lattice, values_XK: Floats, workers: Workers) -> Floats:
    width = values_XK.shape[1]
    return lattice.filtered(values_XK.reshape(-1), width=width, workers=workers).reshape(-1, width)


@pytest.mark.parametrize("num_features", [2, 3, 5])
def test_dense_points_are_filtered_by_a_gaussian(num_features: int, workers: Workers) -> None:
    """Away from the rim, where the lattice ends with the points and blurring loses what leaves it."""
    rng = np.random.default_rng(1)
    inner = slice(0, 60)
    features_XF = np.concatenate([rng.uniform(1, 3, (60, num_features)), rng.uniform(0, 4, (4000, num_features))])
    features_XF = features_XF.astype(np.float32)
    values_XK = values(4060)
    found = filtered(build(features_XF, workers), values_XK, workers)[inner]
    ratio = found / all_pairs(features_XF, values_XK, at=inner)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.025


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_normalisation_is_that_of_the_rows_sums_on_both_sides(factor: float, workers: Workers) -> None:
    features_XF = grid(30, 30, 3)
    lattice = build(features_XF, workers)
    values_XK = np.repeat(np.linspace(0, 1, 900, dtype=np.float32)[:, None], LANES, axis=1)  # smooth, as messages are
    norm_X1 = 1 / np.sqrt(all_pairs(features_XF, np.ones((900, 1), np.float32)))
    expected = factor * norm_X1 * all_pairs(features_XF, (norm_X1 * values_XK).astype(np.float32))
    found = filtered(lattice.normalised(factor=factor, workers=workers), values_XK, workers)
    assert np.abs(found - expected).mean() < 0.01 * factor
    assert np.abs(found - expected).max() < 0.06 * factor
    sums_X1 = filtered(lattice, np.ones((900, LANES), np.float32), workers)[:, :1]
    exactly = factor / np.sqrt(sums_X1) * filtered(lattice, (values_XK / np.sqrt(sums_X1)).astype(np.float32), workers)
    np.testing.assert_allclose(found, exactly, rtol=1e-4)


def test_barycentric_weights_share_a_point_among_different_vertices(workers: Workers) -> None:
    features_XF = np.random.default_rng(2).normal(0, 3, (500, 5)).astype(np.float32)
    lattice = build(features_XF, workers)
    shares_XS = lattice.weights_XS / lattice.weights_XS.sum(axis=1).mean()
    np.testing.assert_allclose(shares_XS.sum(axis=1), 1, atol=1e-4)
    assert shares_XS.min() > -1e-4
    assert (np.sort(lattice.corners_XS, axis=1)[:, 1:] != np.sort(lattice.corners_XS, axis=1)[:, :-1]).all()
    assert set(lattice.corners_XS.ravel().tolist()) == set(range(1, lattice.num_vertices + 1))


def test_neighbours_point_back_and_every_vertex_lists_its_points(workers: Workers) -> None:
    features_XF = grid(20, 30, 2)
    lattice = build(features_XF, workers)
    for neighbours_V2 in lattice.neighbours_SV2:
        before_V, after_V = neighbours_V2.T
        vertices = np.flatnonzero(before_V)
        np.testing.assert_array_equal(after_V[before_V[vertices]], vertices)
        assert np.count_nonzero(before_V) == np.count_nonzero(after_V) > 0
    listed = {
        (vertex, point, weight)
        for vertex in range(1, lattice.num_vertices + 1)
        for point, weight in zip(
            lattice.points[lattice.starts[vertex] : lattice.starts[vertex + 1]].tolist(),
            lattice.point_weights[lattice.starts[vertex] : lattice.starts[vertex + 1]].tolist(),
            strict=True,
        )
    }
    points = np.repeat(np.arange(600), 3).tolist()
    touched = zip(lattice.corners_XS.ravel().tolist(), points, lattice.weights_XS.ravel().tolist(), strict=True)
    assert listed == set(touched)


def test_more_vertices_than_the_table_began_with_are_numbered_alike(workers: Workers) -> None:
    """Far points touch six vertices each: the hash table, made for fewer, grows."""
    features_XF = 100 * np.random.default_rng(3).random((700, 5), dtype=np.float32)
    lattice = build(features_XF, workers)
    assert lattice.num_vertices == 6 * 700
    assert (lattice.corners_XS.ravel() == np.arange(1, 6 * 700 + 1)).all()
    found = filtered(lattice, values(700), workers)
    assert (found > 0).all() and (found < 1).all()  # nobody is near: a share of the point's own value


def test_number_of_parts_does_not_change_a_bit() -> None:
    features_XF, values_XK = grid(25, 31, 4), values(25 * 31, 3 * LANES)
    with ThreadPoolExecutor(3) as pool:
        found = [
            filtered(build(features_XF, each), values_XK, each)
            for each in (Workers(pool=pool, num_parts=parts) for parts in (1, 2, 7, 1000))
        ]
    assert all((each == found[0]).all() for each in found)


def test_one_point_is_its_own_neighbour(workers: Workers) -> None:
    lattice = build(np.full((1, 5), 7.25, np.float32), workers)
    normalised = lattice.normalised(factor=3.0, workers=workers)
    np.testing.assert_allclose(filtered(normalised, values(1), workers), 3 * values(1), rtol=1e-5)


def test_features_that_spread_too_far_are_refused(workers: Workers) -> None:
    features_XF = 1e6 * np.random.default_rng(4).random((10, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"lattice cells, more than 2\^62; give larger thetas"):
        build(features_XF, workers)
