"""The label PCA without a Gram matrix, against the exact one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from segcore import IGNORE_INDEX, label_krylov
from segcore.label_blocks import BlockStatistics, pad_to_blocks
from segcore.label_krylov import (
    coarse_factor,
    coarse_labels,
    finish,
    krylov_bytes,
    next_block,
    solve_large,
    start_block,
)
from segcore.label_pca import leading_eigenvectors, solve
from segcore.label_rows import LabelRows
from tests.segcore.jagged_labels import jagged_maps

ROOT = Path(__file__).resolve().parents[2]
MAX_ERROR = 1e-6
"""Of the energy that the exact basis captures, the share that may be missing."""

Map = NDArray[np.uint8]


def collected(maps: list[Map], block_side: int, num_classes: int, factor: int = 2) -> tuple[LabelRows, BlockStatistics]:
    """Rows, and coarse statistics."""
    rows = LabelRows.zero(block_side, num_classes)
    coarse = BlockStatistics.zero(block_side // factor, num_classes)
    for labels_HW in maps:
        rows.update(labels_HW)
        coarse.update(coarse_labels(labels_HW, factor))
    return rows, coarse


def counted(maps: list[Map], block_side: int, num_classes: int) -> BlockStatistics:
    statistics = BlockStatistics.zero(block_side, num_classes)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return statistics


def errors(
    maps: list[Map], block_side: int, num_classes: int, num_components: tuple[int, ...], factor: int = 2
) -> list[float]:
    """What is missing of the optimal energy, by the eigenvalues and by the basis itself; also checks the basis."""
    rows, coarse = collected(maps, block_side, num_classes, factor)
    moments_DD = counted(maps, block_side, num_classes).moments()
    with threadpool_limits(limits=2):
        optimal_P = leading_eigenvectors(moments_DD, max(num_components))[0]
    missing = []
    for components in num_components:
        pca = solve_large(rows, coarse, num_components=components)
        optimum = optimal_P[:components].sum()
        np.testing.assert_allclose(pca.basis_DP.T @ pca.basis_DP, np.eye(components), atol=1e-10)
        assert (np.diff(pca.eigenvalues_P) <= 0).all()
        assert (pca.eigenvalues_P <= optimal_P[:components] * (1 + 1e-9)).all()
        assert pca.total_energy == np.trace(moments_DD)
        actual = float(np.einsum("dp,dp->", pca.basis_DP, moments_DD @ pca.basis_DP))
        missing += [1 - float(pca.eigenvalues_P.sum()) / optimum, 1 - actual / optimum]
        assert missing[-1] <= missing[-2] + 1e-12  # the eigenvalues promise no more than the basis holds
    return missing


@pytest.fixture(scope="module")
def camvid_labels(camvid_source: Path) -> list[Map]:
    maps = [np.array(Image.open(path)) for path in sorted((camvid_source / "trainannot").glob("*.png"))]
    return [np.where(labels_HW == 11, np.uint8(IGNORE_INDEX), labels_HW.astype(np.uint8)) for labels_HW in maps]


def test_the_captured_energy_is_that_of_the_exact_basis() -> None:
    maps = jagged_maps(20, height=110, width=150, num_classes=12)
    assert max(errors(maps, 8, 12, (16, 64))) < MAX_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("num_classes", [12, 19])
def test_the_captured_energy_of_larger_blocks_is_that_of_the_exact_basis(num_classes: int, factor: int) -> None:
    maps = jagged_maps(100, height=250, width=330, num_classes=num_classes)
    assert max(errors(maps, 16, num_classes, (16, 64, 128), factor)) < MAX_ERROR


@pytest.mark.slow
@pytest.mark.parametrize(("block_side", "factor"), [(16, 2), (16, 4), (32, 2), (32, 4)])
def test_real_labels_give_the_captured_energy_of_the_exact_basis(
    camvid_labels: list[Map], block_side: int, factor: int
) -> None:
    assert max(errors(camvid_labels, block_side, 11, (16, 64, 128), factor)) < MAX_ERROR


@pytest.mark.parametrize("centred", [False, True])
def test_centred_or_not_it_is_the_label_pca_of_the_exact_solver(centred: bool) -> None:
    maps = jagged_maps(12, height=90, width=130, num_classes=5)
    rows, coarse = collected(maps, 8, 5)
    found = solve_large(rows, coarse, num_components=8, centred=centred, passes=6)
    exact = solve(counted(maps, 8, 5), num_components=8, centred=centred)
    np.testing.assert_allclose(found.eigenvalues_P, exact.eigenvalues_P, rtol=1e-9)
    np.testing.assert_allclose(found.basis_DP, exact.basis_DP, atol=1e-4)
    np.testing.assert_allclose(found.total_energy, exact.total_energy, rtol=1e-12)
    np.testing.assert_array_equal(found.mean_D, exact.mean_D)
    assert (found.num_blocks, found.centred) == (exact.num_blocks, centred)


def test_passes_spread_over_shards_in_any_order_give_the_same_bits() -> None:
    maps = jagged_maps(40, height=40, width=50, num_classes=5)
    rows, coarse = collected(maps, 8, 5)
    whole = solve_large(rows, coarse, num_components=8, passes=2)
    for num_shards in (1, 3, 40):
        order = np.random.default_rng(num_shards).permutation(len(maps))
        shards = [collected([maps[i] for i in order[shard::num_shards]], 8, 5) for shard in range(num_shards)]
        merged = BlockStatistics.zero(4, 5)
        for _, part in shards:
            merged.merge(part)
        blocks = [start_block(merged, block_side=8, num_components=8)]
        products: list[NDArray[np.int64]] = []
        for index in range(2):
            if index:
                blocks.append(next_block(blocks, products))
            products.append(np.sum([part.multiply(blocks[-1]) for part, _ in shards], axis=0))
        eigenvalues_P, basis_DP = finish(blocks, products, num_components=8)
        np.testing.assert_array_equal(eigenvalues_P, whole.eigenvalues_P)
        np.testing.assert_array_equal(basis_DP, whole.basis_DP)


def test_blocks_are_integers_and_orthonormal_to_each_other_up_to_rounding() -> None:
    rows, coarse = collected(jagged_maps(12, height=90, width=130, num_classes=5), 8, 5)
    blocks = [start_block(coarse, block_side=8, num_components=8)]
    products = [rows.multiply(blocks[0])]
    for _ in range(2):
        blocks.append(next_block(blocks, products))
        products.append(rows.multiply(blocks[-1]))
    stacked = np.hstack(blocks)
    assert stacked.dtype == np.int32
    assert stacked.shape == (320, 3 * (8 + label_krylov.EXTRA_COLUMNS + label_krylov.RANDOM_COLUMNS))
    normalised = stacked / label_krylov.SCALE
    np.testing.assert_allclose(normalised.T @ normalised, np.eye(stacked.shape[1]), atol=1e-5)


def test_coarse_blocks_correspond_to_the_blocks_one_to_one() -> None:
    labels_HW = jagged_maps(1, height=75, width=93, num_classes=5)[0]
    padded_HW = pad_to_blocks(labels_HW, 8)
    for factor in (2, 4, 8):
        coarse_HW = coarse_labels(padded_HW, factor)
        assert coarse_HW.shape == (padded_HW.shape[0] // factor, padded_HW.shape[1] // factor)
        assert coarse_HW[3, 2] == padded_HW[3 * factor + factor // 2, 2 * factor + factor // 2]
        side = 8 // factor
        unpadded = counted([coarse_labels(labels_HW, factor)], side, 5)
        assert unpadded.digest() == counted([coarse_HW], side, 5).digest()


def test_the_factor_is_the_smallest_that_leaves_few_enough_entries() -> None:
    assert coarse_factor(block_side=32, num_classes=150) == 4
    assert coarse_factor(block_side=32, num_classes=21) == 2
    assert coarse_factor(block_side=16, num_classes=12, max_entries=700) == 4
    assert coarse_factor(block_side=17, num_classes=50) == 17
    with pytest.raises(ValueError, match="no factor of at least 2 that divides the block side 1 makes blocks of 20 cl"):
        coarse_factor(block_side=1, num_classes=20)
    with pytest.raises(ValueError, match="expected a block side of at least 1 and 1 to 254 classes"):
        coarse_factor(block_side=16, num_classes=255)


@pytest.mark.parametrize("centred", [False, True])
def test_labels_that_span_less_than_was_asked_for_still_give_an_orthonormal_basis(centred: bool) -> None:
    half_HW = np.zeros((16, 16), np.uint8)
    half_HW[:, 8:] = 1
    half_HW[:8, :3] = IGNORE_INDEX
    maps = [half_HW] * 3
    rows, coarse = collected(maps, 16, 2)
    first, second = (solve_large(rows, coarse, num_components=20, centred=centred) for _ in range(2))
    np.testing.assert_allclose(first.basis_DP.T @ first.basis_DP, np.eye(20), atol=1e-10)
    assert (first.eigenvalues_P >= 0).all()
    energy = 0 if centred else 3 * (256 - 24)
    np.testing.assert_allclose(first.eigenvalues_P, [energy, *[0] * 19], atol=1e-9)
    assert first.captured_energy == pytest.approx(1)
    np.testing.assert_array_equal(first.basis_DP, second.basis_DP)


def test_more_columns_than_entries_do_no_harm() -> None:
    maps = jagged_maps(6, height=60, width=60, num_classes=2)
    rows, coarse = collected(maps, 8, 2)  # 128 entries, 4 times 48 columns
    pca = solve_large(rows, coarse, num_components=16)
    exact = solve(counted(maps, 8, 2), num_components=16)
    np.testing.assert_allclose(pca.basis_DP.T @ pca.basis_DP, np.eye(16), atol=1e-10)
    np.testing.assert_allclose(pca.eigenvalues_P, exact.eigenvalues_P, rtol=1e-9)


def test_labels_that_subsampling_hides_altogether_are_still_found() -> None:
    labels_HW = np.full((64, 64), IGNORE_INDEX, np.uint8)
    labels_HW[::2] = 1
    labels_HW[:32:2, :20] = 0
    rows, coarse = collected([labels_HW], 8, 2)
    assert coarse.num_blocks == 0
    exact = solve(counted([labels_HW], 8, 2), num_components=8)
    np.testing.assert_allclose(
        solve_large(rows, coarse, num_components=8).eigenvalues_P, exact.eigenvalues_P, rtol=1e-9, atol=1e-6
    )


def test_labels_without_a_valid_pixel_are_refused() -> None:
    rows, coarse = collected([np.full((32, 32), IGNORE_INDEX, np.uint8)], 8, 2)
    with pytest.raises(ValueError, match="the label blocks hold no valid pixel"):
        solve_large(rows, coarse, num_components=4)


def test_settings_that_cannot_work_are_refused() -> None:
    rows, coarse = collected(jagged_maps(2, height=40, width=40, num_classes=3), 8, 3)
    with pytest.raises(
        ValueError, match="num_components is 33; blocks subsampled by 2 have 48 entries.* for 1 to 32 c"
    ):
        solve_large(rows, coarse, num_components=33)
    with pytest.raises(ValueError, match="num_components is 0; blocks subsampled by 2"):
        solve_large(rows, coarse, num_components=0)
    with pytest.raises(ValueError, match="found coarse blocks of side 4, expected one that divides the block side 10"):
        start_block(coarse, block_side=10, num_components=4)
    with pytest.raises(ValueError, match="passes is 0, expected at least 1"):
        solve_large(rows, coarse, num_components=4, passes=0)
    block_DL = start_block(coarse, block_side=8, num_components=4)
    with pytest.raises(ValueError, match="num_components is 193; blocks have 192 entries, so choose 1 to 192"):
        finish([block_DL], [rows.multiply(block_DL)], num_components=193)


LARGEST = """
import resource
from segcore.label_blocks import BlockStatistics
from segcore.label_krylov import coarse_labels, krylov_bytes, solve_large
from segcore.label_rows import LabelRows
from tests.segcore.jagged_labels import jagged_maps

rows, coarse = LabelRows.zero(32, 150), BlockStatistics.zero(8, 150)
for seed in range(60):
    (labels_HW,) = jagged_maps(1, height=512, width=683, num_classes=150, present=12, seed=seed)
    rows.update(labels_HW)
    coarse.update(coarse_labels(labels_HW, 4))
pca = solve_large(rows, coarse, num_components=64)
assert abs(pca.basis_DP.T @ pca.basis_DP - __import__("numpy").eye(64)).max() < 1e-10
assert 0.3 < pca.captured_energy < 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_150_classes_in_blocks_of_32_fit_a_small_machine() -> None:
    # One thread, as at the top of tests/conftest.py, so that it is not other pools' memory that is measured.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LARGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    peak_bytes = int(ended.stdout) * 1024
    planned_bytes = krylov_bytes(block_side=32, num_classes=150, num_components=64)
    assert planned_bytes < 4e9
    assert peak_bytes < planned_bytes + 6e8  # the rows, and Python with its packages
