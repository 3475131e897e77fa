"""Compiled kernels of `permutohedral`: find the lattice of some points, splat, blur, slice.

A vertex is known by the first F of its F + 1 integer coordinates (they add up to 0), packed into one number: coordinate
less the lowest, times a stride. Its neighbours along an axis are then a constant away. A hash table of these keys, open
addressing with linear probing, numbers the vertices in the order in which the points meet them.

`first` and `last` bound the part of a range that one call does; vertices count from 1, so that part is
`first + 1` to `last` of them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point, kernel
from segcore.lanes import LANES, broadcast, load, plus, plus_scaled, store

_EMPTY = -1
_SMALLEST_TABLE_BITS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing (Knuth, volume 3, section 6.4)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_ZERO = np.float32(0)


@entry_point
def locate(
    features_XF: NDArray[np.float32],
    scale_F: NDArray[np.float32],
    low_F: NDArray[np.int64],
    stride_F: NDArray[np.int64],
    first: int,
    last: int,
    keys_XS: NDArray[np.int64],
    weights_XS: NDArray[np.float32],
) -> None:
    """Keys of the vertices around each point, and its barycentric weights (Adams et al., section 3.1 and page 10).

    Corner s is the one whose coordinates are all s modulo F + 1.
    """
    num_features = features_XF.shape[1]
    num_corners = num_features + 1
    elevated, rest = np.empty(num_corners, np.float32), np.empty(num_corners, np.float32)
    multiple, rank = np.empty(num_corners, np.int32), np.empty(num_corners, np.int32)
    stride_of_rank = np.empty(num_corners, np.int64)
    weights = np.empty(num_corners + 1, np.float32)
    step = stride_F.sum()
    down = _ONE / np.float32(num_corners)
    for x in range(first, last):
        above = _ZERO
        for f in range(num_features, 0, -1):
            scaled = features_XF[x, f - 1] * scale_F[f - 1]
            elevated[f] = above - np.float32(f) * scaled
            above += scaled
        elevated[0] = above
        excess = 0
        for s in range(num_corners):
            multiple[s] = np.int32(math.floor(elevated[s] * down + _HALF))
            rest[s] = elevated[s] - np.float32(multiple[s] * num_corners)
            excess += multiple[s]
            rank[s] = 0
        for s in range(num_features):
            for other in range(s + 1, num_corners):
                if rest[s] < rest[other]:
                    rank[s] += 1
                else:
                    rank[other] += 1
        weights[:] = 0
        key = 0
        for s in range(num_corners):
            place = rank[s] + excess  # the rounded point may lie off the plane: move the coordinates rounded worst
            if place < 0:
                place += num_corners
                multiple[s] += 1
            elif place > num_features:
                place -= num_corners
                multiple[s] -= 1
            share = (elevated[s] - np.float32(multiple[s] * num_corners)) * down
            weights[num_features - place] += share
            weights[num_corners - place] -= share
            stride_of_rank[place] = 0
            if s < num_features:
                stride_of_rank[place] = stride_F[s]
                key += (multiple[s] * num_corners - low_F[s]) * stride_F[s]
        weights[0] += _ONE + weights[num_corners]
        for s in range(num_corners):
            if s > 0:
                key += step - num_corners * stride_of_rank[num_corners - s]
            keys_XS[x, s] = key
            weights_XS[x, s] = weights[s]


@kernel
def _slot_of(key: int, bits: int) -> int:
    """Where the search for a key begins in a table of 2^bits slots."""
    return np.intp((np.uint64(key) * _GOLDEN) >> np.uint64(64 - bits))


@entry_point
def number(
    keys_XS: NDArray[np.int64], corners_XS: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Number the keys from 1 and write each corner's number.

    Returns:
        The hash table, keys and numbers, and the key of each number (that of 0 is none).
    """
    num_points, num_corners = keys_XS.shape
    bits = _SMALLEST_TABLE_BITS
    while 2**bits < num_points:
        bits += 1
    slot_keys, slot_vertices = np.full(2**bits, _EMPTY, np.int64), np.zeros(2**bits, np.int32)
    vertex_keys = np.full(2**bits, _EMPTY, np.int64)
    recent_S = np.full(num_corners, _EMPTY, np.int64)  # neighbouring points often share corners
    count = 0
    for x in range(num_points):
        for s in range(num_corners):
            key = keys_XS[x, s]
            if key == recent_S[s]:
                corners_XS[x, s] = corners_XS[x - 1, s]
                continue
            recent_S[s] = key
            slot = _slot_of(key, bits)
            while slot_keys[slot] != key and slot_keys[slot] != _EMPTY:
                slot = (slot + 1) & (2**bits - 1)
            if slot_keys[slot] == _EMPTY:
                count += 1
                slot_keys[slot], slot_vertices[slot], vertex_keys[count] = key, count, key
            corners_XS[x, s] = slot_vertices[slot]
            if 2 * count + 2 > 2**bits:
                bits += 1
                slot_keys, slot_vertices = _rehashed(vertex_keys, count, bits)
                vertex_keys = np.append(vertex_keys, np.full(2 ** (bits - 1), _EMPTY, np.int64))
    return slot_keys, slot_vertices, vertex_keys[: count + 1].copy()


@kernel
def _rehashed(vertex_keys: NDArray[np.int64], count: int, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A table of 2^bits slots with all vertices so far."""
    slot_keys, slot_vertices = np.full(2**bits, _EMPTY, np.int64), np.zeros(2**bits, np.int32)
    for vertex in range(1, count + 1):
        slot = _slot_of(vertex_keys[vertex], bits)
        while slot_keys[slot] != _EMPTY:
            slot = (slot + 1) & (2**bits - 1)
        slot_keys[slot], slot_vertices[slot] = vertex_keys[vertex], vertex
    return slot_keys, slot_vertices


@entry_point
def find_neighbours(
    vertex_keys: NDArray[np.int64],
    slot_keys: NDArray[np.int64],
    slot_vertices: NDArray[np.int32],
    stride_F: NDArray[np.int64],
    first: int,
    last: int,
    neighbours_SV2: NDArray[np.int32],
) -> None:
    """Vertices before and after each along each axis; what lies before a vertex has it behind."""
    num_features = len(stride_F)
    mask = len(slot_keys) - 1
    bits = 0
    while 2**bits <= mask:
        bits += 1
    step = stride_F.sum()
    for vertex in range(first + 1, last + 1):
        for s in range(num_features + 1):
            key = vertex_keys[vertex] - step
            if s < num_features:
                key += (num_features + 1) * stride_F[s]
            slot = _slot_of(key, bits)
            while slot_keys[slot] != key and slot_keys[slot] != _EMPTY:
                slot = (slot + 1) & mask
            if slot_keys[slot] == key:
                before = slot_vertices[slot]
                neighbours_SV2[s, vertex, 0] = before
                neighbours_SV2[s, before, 1] = vertex


@entry_point
def list_points(
    corners_XS: NDArray[np.int32], weights_XS: NDArray[np.float32], num_vertices: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The points that touch each vertex, in their order, and their weights; see `Lattice`."""
    num_points, num_corners = corners_XS.shape
    starts = np.zeros(num_vertices + 2, np.int64)
    for x in range(num_points):
        for s in range(num_corners):
            starts[corners_XS[x, s]] += 1
    for vertex in range(1, num_vertices + 2):
        starts[vertex] += starts[vertex - 1]
    points = np.empty(num_points * num_corners, np.int32)
    point_weights = np.empty(num_points * num_corners, np.float32)
    for x in range(num_points - 1, -1, -1):
        for s in range(num_corners):
            vertex = corners_XS[x, s]
            starts[vertex] -= 1  # from the end of the vertex's points to their start
            points[starts[vertex]] = x
            point_weights[starts[vertex]] = weights_XS[x, s]
    return starts, points, point_weights


@entry_point
def splat(
    rows: NDArray[np.float32],
    width: int,
    starts: NDArray[np.int64],
    points: NDArray[np.int32],
    point_weights: NDArray[np.float32],
    first: int,
    last: int,
    table: NDArray[np.float32],
) -> None:
    """Sums of the points' rows at the vertices."""
    for vertex in range(first + 1, last + 1):
        for k in range(0, width, LANES):
            total = broadcast(_ZERO)
            for entry in range(starts[vertex], starts[vertex + 1]):
                total = plus_scaled(total, load(rows, points[entry] * width + k), point_weights[entry])
            store(table, vertex * width + k, total)


@entry_point
def blur(
    source: NDArray[np.float32],
    width: int,
    neighbours_V2: NDArray[np.int32],
    first: int,
    last: int,
    target: NDArray[np.float32],
) -> None:
    """[1/2, 1, 1/2] along one axis."""
    for vertex in range(first + 1, last + 1):
        before, after = neighbours_V2[vertex, 0] * width, neighbours_V2[vertex, 1] * width
        for k in range(0, width, LANES):
            around = plus(load(source, before + k), load(source, after + k))
            store(target, vertex * width + k, plus_scaled(load(source, vertex * width + k), around, _HALF))


@kernel
def add_sliced(
    table: NDArray[np.float32],
    width: int,
    corners_XS: NDArray[np.int32],
    weights_XS: NDArray[np.float32],
    first: int,
    last: int,
    base: NDArray[np.float32],
    base_start: int,
    out: NDArray[np.float32],
    out_start: int,
) -> None:
    """What points `first` to `last` read from the table, added to rows of `base`, which begin at `base_start`."""
    for x in range(first, last):
        row = (x - first) * width
        for k in range(0, width, LANES):
            total = load(base, base_start + row + k)
            for s in range(corners_XS.shape[1]):
                total = plus_scaled(total, load(table, corners_XS[x, s] * width + k), weights_XS[x, s])
            store(out, out_start + row + k, total)


@entry_point
def slice_rows(
    table: NDArray[np.float32],
    width: int,
    corners_XS: NDArray[np.int32],
    weights_XS: NDArray[np.float32],
    first: int,
    last: int,
    out: NDArray[np.float32],
) -> None:
    """Add what the points read from the table to their rows."""
    add_sliced(table, width, corners_XS, weights_XS, first, last, out, first * width, out, first * width)
