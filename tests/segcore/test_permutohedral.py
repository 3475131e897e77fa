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


def all_pairs(features_XF: Floats, values_XK: Floats) -> NDArray[np.float64]:
    distance = ((features_XF[:, None].astype(np.float64) - features_XF[None]) ** 2).sum(-1)
    filtered: NDArray[np.float64] = np.exp(-0.5 * distance) @ values_XK
    return filtered


def filtered(lattice: Lattice, values_XK: Floats, workers: Workers) -> Floats:
    width = values_XK.shape[1]
    return lattice.filtered(values_XK.reshape(-1), width=width, workers=workers).reshape(-1, width)


@pytest.mark.parametrize("num_features", [2, 3, 5])
def test_dense_points_are_filtered_by_a_gaussian(num_features: int, workers: Workers) -> None:
    features_XF = np.random.default_rng(1).uniform(0, 2, (4000, num_features)).astype(np.float32)
    values_XK = values(4000)
    expected = all_pairs(features_XF, values_XK)
    found = filtered(build_lattice(features_XF, workers), values_XK, workers)
    ratio = found / expected
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.std() < 0.1


def test_what_is_normalised_is_symmetric_up_to_the_order_of_the_axes_and_adds_up_to_one(workers: Workers) -> None:
    features_XF = grid(12, 17, 3)
    lattice = build_lattice(features_XF, workers).normalised(factor=1.0, workers=workers)
    matrix_XX = filtered(lattice, np.eye(204, 208, dtype=np.float32), workers)[:, :204]
    np.testing.assert_allclose(matrix_XX, matrix_XX.T, atol=2e-3)
    assert np.linalg.eigvalsh((matrix_XX + matrix_XX.T) / 2)[-1] == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(matrix_XX.sum(axis=1), 1, atol=0.2)
    double = build_lattice(features_XF, workers).normalised(factor=2.0, workers=workers)
    np.testing.assert_allclose(
        filtered(double, np.eye(204, 208, dtype=np.float32), workers)[:, :204], 2 * matrix_XX, rtol=1e-5
    )


def test_barycentric_weights_are_a_partition_and_give_the_point_back(workers: Workers) -> None:
    features_XF = np.random.default_rng(2).normal(0, 3, (500, 5)).astype(np.float32)
    lattice = build_lattice(features_XF, workers)
    scaled = lattice.weights_XS * np.sqrt(1 + 2.0**-5)
    np.testing.assert_allclose(scaled.sum(axis=1), 1, atol=1e-4)
    assert scaled.min() > -1e-4
    assert (np.sort(lattice.corners_XS, axis=1)[:, 1:] != np.sort(lattice.corners_XS, axis=1)[:, :-1]).all()
    assert set(lattice.corners_XS.ravel().tolist()) == set(range(1, lattice.num_vertices + 1))


def test_neighbours_point_back_and_every_vertex_lists_its_points(workers: Workers) -> None:
    features_XF = grid(20, 30, 2)
    lattice = build_lattice(features_XF, workers)
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
    lattice = build_lattice(features_XF, workers)
    assert lattice.num_vertices == 6 * 700
    assert (lattice.corners_XS.ravel() == np.arange(1, 6 * 700 + 1)).all()
    found = filtered(lattice, values(700), workers)
    assert (found > 0).all() and (found < 1).all()  # nobody is near: a share of the point's own value


def test_number_of_parts_does_not_change_a_bit() -> None:
    features_XF, values_XK = grid(25, 31, 4), values(25 * 31, 3 * LANES)
    with ThreadPoolExecutor(3) as pool:
        found = [
            filtered(build_lattice(features_XF, each), values_XK, each)
            for each in (Workers(pool=pool, num_parts=parts) for parts in (1, 2, 7, 1000))
        ]
    assert all((each == found[0]).all() for each in found)


def test_one_point_is_its_own_neighbour(workers: Workers) -> None:
    lattice = build_lattice(np.full((1, 5), 7.25, np.float32), workers)
    normalised = lattice.normalised(factor=3.0, workers=workers)
    np.testing.assert_allclose(filtered(normalised, values(1), workers), 3 * values(1), rtol=1e-5)


def test_features_that_spread_too_far_are_refused(workers: Workers) -> None:
    features_XF = 1e6 * np.random.default_rng(4).random((10, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"lattice cells, more than 2\^62; give larger thetas"):
        build_lattice(features_XF, workers)
