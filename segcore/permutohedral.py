"""Gaussian filtering in many dimensions on the permutohedral lattice: splat, blur, slice.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010; the
constants are those of Kraehenbuehl and Koltun's dense CRF. For points with features f, it approximates

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) in_j,    j = i included,

in time linear in the points. Each point lies in a simplex of F + 1 lattice vertices. Splatting adds its values to them
by barycentric weights, blurring runs [1/2, 1, 1/2] along each of the F + 1 axes over the vertices that there are, and
slicing reads back with the same weights.

The lattice of an image is built once (`build_lattice`) and used many times. Values are rows of a few channels, padded
to whole registers (`segcore.lanes`): all channels of a vertex lie side by side. Each vertex lists its points, so that
splatting adds up vertex by vertex: threads share the vertices, and the sums do not depend on how many there are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segcore import permutohedral_kernel as compiled
from segcore.lanes import LANES

_TINY = np.float32(1e-20)

Table = NDArray[np.float32]
"""Values of the vertices, in one dimension: rows of `width` numbers, V + 1 of them. Row 0 stays zero: no vertex."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workers:
    """Threads that share the parts of a range; compiled kernels run without the interpreter's lock.

    Attributes:
        pool: of threads.
        num_parts: into how many parts a range is cut.
    """

    pool: ThreadPoolExecutor
    num_parts: int

    def run(self, work: Callable[[int, int], object], bounds: Sequence[int]) -> None:
        """Call `work(first, last)` for every pair of neighbouring bounds; returns when all is done."""
        for _ in self.pool.map(lambda part: work(*part), list(pairwise(bounds))):
            pass

    def share(self, count: int) -> list[int]:
        """Bounds of equal parts of `range(count)`."""
        return [count * part // self.num_parts for part in range(self.num_parts + 1)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lattice:
    """The part of the lattice that the points of one image touch. Vertices count from 1; 0 is none.

    Attributes:
        corners_XS: vertices of the simplex around each point, int32.
        weights_XS: what each gives when slicing, float32; the barycentric weights, until `normalised`.
        starts: int64, V + 2: the points that touch vertex v are at `starts[v]` to `starts[v + 1]` of the next two.
        points: int32, X * S.
        point_weights: float32: what each gives when splatting.
        neighbours_SV2: vertices before and after each one along each axis, int32, (S, V + 1, 2).
    """

    corners_XS: NDArray[np.int32]
    weights_XS: NDArray[np.float32]
    starts: NDArray[np.int64]
    points: NDArray[np.int32]
    point_weights: NDArray[np.float32]
    neighbours_SV2: NDArray[np.int32]

    @property
    def num_vertices(self) -> int:
        """V."""
        return self.neighbours_SV2.shape[1] - 1

    def tables(self, width: int) -> tuple[Table, Table]:
        """Room for `blurred`: rows of `width` numbers for every vertex, twice."""
        size = (self.num_vertices + 1) * width
        return np.zeros(size, np.float32), np.zeros(size, np.float32)

    def blurred(self, rows: NDArray[np.float32], tables: tuple[Table, Table], *, width: int, workers: Workers) -> Table:
        """Splat and blur.

        Args:
            rows: values of the points, float32, in one dimension: rows of `width` numbers.
            tables: from `tables`.
            width: numbers in a row, a multiple of `LANES`.
            workers: see there.

        Returns:
            The first of the tables.
        """
        num_axes = len(self.neighbours_SV2)
        source = tables[num_axes % 2]  # the last blur then writes into the first table
        workers.run(
            lambda first, last: compiled.splat(
                rows, width, self.starts, self.points, self.point_weights, first, last, source
            ),
            self._equal_work(workers),
        )
        for axis in range(num_axes):
            source, target = tables[(num_axes - axis) % 2], tables[(num_axes - axis - 1) % 2]
            self._blur(axis, source, target, width=width, workers=workers)
        return tables[0]

    def filtered(self, rows: NDArray[np.float32], *, width: int, workers: Workers) -> NDArray[np.float32]:
        """Splat, blur and slice rows of `width` numbers, a multiple of `LANES`; see the module's formula."""
        table = self.blurred(rows, self.tables(width), width=width, workers=workers)
        out = np.zeros_like(rows)
        corners_XS, weights_XS = self.corners_XS, self.weights_XS
        workers.run(
            lambda first, last: compiled.slice_rows(table, width, corners_XS, weights_XS, first, last, out),
            workers.share(len(corners_XS)),
        )
        return out

    def normalised(self, *, factor: float, workers: Workers) -> "Lattice":
        """The same lattice for factor * D^-1/2 K D^-1/2, where K is the filter and D the sum of each of its rows.

        Source: Kraehenbuehl and Koltun's code, "symmetric normalisation".
        """
        ones = np.zeros((len(self.corners_XS), LANES), np.float32)
        ones[:, 0] = 1
        sums = self.filtered(ones.reshape(-1), width=LANES, workers=workers)[::LANES]
        norm_X = 1 / np.sqrt(sums + _TINY)
        return Lattice(
            corners_XS=self.corners_XS,
            weights_XS=self.weights_XS * (np.float32(factor) * norm_X)[:, None],
            starts=self.starts,
            points=self.points,
            point_weights=self.point_weights * norm_X[self.points],
            neighbours_SV2=self.neighbours_SV2,
        )

    def _equal_work(self, workers: Workers) -> list[int]:
        """Bounds of parts of the vertices that have equally many points."""
        wanted = workers.share(len(self.points))[1:-1]
        inner = np.searchsorted(self.starts[1:], wanted).tolist()
        return [0, *inner, self.num_vertices]

    def _blur(self, axis: int, source: Table, target: Table, *, width: int, workers: Workers) -> None:
        neighbours_V2 = self.neighbours_SV2[axis]
        workers.run(
            lambda first, last: compiled.blur(source, width, neighbours_V2, first, last, target),
            workers.share(self.num_vertices),
        )


def build_lattice(features_XF: NDArray[np.float32], workers: Workers) -> Lattice:
    """The lattice of points whose features are in units of the Gaussian's standard deviation.

    Raises:
        ValueError: the features spread over more than 2^62 lattice cells: the deviations are too small for the range.
    """
    num_points, num_features = features_XF.shape
    scale_F = _scales(num_features)
    low_F, stride_F = _cells(features_XF, scale_F)
    keys_XS = np.empty((num_points, num_features + 1), np.int64)
    weights_XS = np.empty((num_points, num_features + 1), np.float32)
    workers.run(
        lambda first, last: compiled.locate(features_XF, scale_F, low_F, stride_F, first, last, keys_XS, weights_XS),
        workers.share(num_points),
    )
    corners_XS = np.empty(keys_XS.shape, np.int32)
    slot_keys, slot_vertices, vertex_keys = compiled.number(keys_XS, corners_XS)
    num_vertices = len(vertex_keys) - 1
    neighbours_SV2 = np.zeros((num_features + 1, num_vertices + 1, 2), np.int32)
    workers.run(
        lambda first, last: compiled.find_neighbours(
            vertex_keys, slot_keys, slot_vertices, stride_F, first, last, neighbours_SV2
        ),
        workers.share(num_vertices),
    )
    weights_XS *= np.float32(1 / np.sqrt(1 + 2.0**-num_features))  # of the whole filter, half here and half below
    starts, points, point_weights = compiled.list_points(corners_XS, weights_XS, num_vertices)
    return Lattice(
        corners_XS=corners_XS,
        weights_XS=weights_XS,
        starts=starts,
        points=points,
        point_weights=point_weights,
        neighbours_SV2=neighbours_SV2,
    )


def _scales(num_features: int) -> NDArray[np.float32]:
    """Of each feature, so that splat, blur and slice together have deviation 1 (Adams et al., page 6)."""
    index = np.arange(num_features)
    return (np.sqrt(2 / 3) * (num_features + 1) / np.sqrt((index + 1) * (index + 2))).astype(np.float32)


def _cells(
    features_XF: NDArray[np.float32], scale_F: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest lattice coordinate along each of the first F axes, and the stride of each in a key of 63 bits."""
    num_features = len(scale_F)
    elevation = np.tri(num_features, k=-1).T + np.eye(num_features)  # coordinate 0 is the sum of all scaled features
    elevation[np.arange(1, num_features), np.arange(num_features - 1)] = -np.arange(1, num_features)
    elevation *= scale_F
    lowest, highest = (np.outer(np.ones(num_features), ends) for ends in (features_XF.min(0), features_XF.max(0)))
    low_F = np.minimum(elevation * lowest, elevation * highest).sum(axis=1)
    high_F = np.maximum(elevation * lowest, elevation * highest).sum(axis=1)
    margin = 4 * (num_features + 1)  # a corner lies at most 2 (F + 1) away from the point, its neighbour F further
    cells = [int(high) - int(low) + 2 * margin + 2 for low, high in zip(low_F, high_F, strict=True)]
    strides = [1]
    for count in cells:
        strides.append(strides[-1] * count)
    if strides[-1] >= 2**62:
        raise ValueError(
            f"the features spread over {' x '.join(map(str, cells))} lattice cells, more than 2^62; give larger thetas"
        )
    return np.floor(low_F).astype(np.int64) - margin, np.array(strides[:-1], np.int64)
