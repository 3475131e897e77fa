"""The label PCA against singular values, torch's pixel_shuffle, and its own definition."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX, label_code, label_pca
from segcore.label_blocks import BlockStatistics
from segcore.label_code import project, reconstruct
from segcore.label_pca import LabelPCA, canonical_signs, solve

R, C = 4, 3
D = C * R * R


def region_maps(count: int, *, seed: int, height: int = 22, width: int = 30) -> list[NDArray[np.uint8]]:
    """Half-planes of random slope, some ignored pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    maps = []
    for _ in range(count):
        labels_HW = np.zeros((height, width), np.uint8)
        for c in range(1, C):
            a, b, offset = rng.normal(size=3)
            labels_HW[a * (rows - height / 2) + b * (columns - width / 2) > 6 * offset] = c
        labels_HW[rng.random(labels_HW.shape) < 0.03] = IGNORE_INDEX
        maps.append(labels_HW)
    return maps


def counted(maps: list[NDArray[np.uint8]], block_side: int = R, num_classes: int = C) -> BlockStatistics:
    statistics = BlockStatistics.zero(block_side, num_classes)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return statistics


def block_rows(labels_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One-hot blocks M x D in pixel_unshuffle's channel order."""
    padded = np.full((-(-labels_HW.shape[0] // R) * R, -(-labels_HW.shape[1] // R) * R), IGNORE_INDEX, np.uint8)
    padded[: labels_HW.shape[0], : labels_HW.shape[1]] = labels_HW
    planes = torch.from_numpy((padded[None] == np.arange(C)[:, None, None]).astype(np.float64))
    rows: NDArray[np.float64] = torch.nn.functional.pixel_unshuffle(planes, R).flatten(1).T.numpy()
    return rows


def valid_rows(maps: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    rows = np.concatenate([block_rows(labels_HW) for labels_HW in maps])
    return rows[rows.any(axis=1)]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("components", [1, 7, D])
def test_the_residual_is_the_tail_of_the_squared_singular_values(centred: bool, components: int) -> None:
    maps = region_maps(12, seed=0)
    pca = solve(counted(maps), num_components=components, centred=centred)
    rows_MD = valid_rows(maps)
    mean_D = rows_MD.mean(axis=0) if centred else np.zeros(D)
    squared = np.linalg.svd(rows_MD - mean_D, compute_uv=False) ** 2
    residual_MD = rows_MD - mean_D - (rows_MD - mean_D) @ pca.basis_DP @ pca.basis_DP.T
    assert np.isclose((residual_MD**2).sum(), squared[components:].sum(), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(pca.eigenvalues_P, squared[:components], rtol=1e-9, atol=1e-6)
    assert np.isclose(pca.total_energy, squared.sum())
    assert np.isclose(pca.captured_energy, squared[:components].sum() / squared.sum())
    np.testing.assert_allclose(pca.mean_D, rows_MD.mean(axis=0), rtol=1e-12)
    assert pca.num_blocks == len(rows_MD)


@pytest.mark.parametrize("components", [5, 30])
@pytest.mark.parametrize("solver", ["lanczos", "dense"])
def test_columns_are_orthonormal_and_sorted_with_either_solver(
    components: int, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if solver == "lanczos":
        monkeypatch.setattr(label_pca, "LANCZOS_MIN_ENTRIES", 1)
        monkeypatch.setattr(label_pca, "LANCZOS_MIN_ENTRIES_PER_COMPONENT", 1)
    maps = region_maps(12, seed=1)
    pca = solve(counted(maps), num_components=components)
    np.testing.assert_allclose(pca.basis_DP.T @ pca.basis_DP, np.eye(components), atol=1e-12)
    assert (np.diff(pca.eigenvalues_P) <= 0).all()
    moments_DD = (rows := valid_rows(maps)).T @ rows
    np.testing.assert_allclose(moments_DD @ pca.basis_DP, pca.basis_DP * pca.eigenvalues_P, atol=1e-8)


def test_lanczos_is_used_for_few_components_of_many_entries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, int]] = []
    lanczos = scipy.sparse.linalg.eigsh

    def spy(operator: Any, *, k: int, **settings: Any) -> Any:
        used.append((operator.shape[0], k))
        return lanczos(operator, k=k, **settings)

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", spy)
    monkeypatch.setattr(label_pca, "LANCZOS_MIN_ENTRIES", 200)
    large = counted(region_maps(3, seed=2), block_side=9)  # D = 243
    for components in (1, 6, 7, 60):
        solve(large, num_components=components)
    solve(counted(region_maps(3, seed=2)), num_components=1)  # D = 48
    assert used == [(243, 1), (243, 6)]


def test_labels_that_span_less_than_was_asked_for_still_give_an_orthonormal_basis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_pca, "LANCZOS_MIN_ENTRIES", 1)
    statistics = counted([np.full((32, 32), c, np.uint8) for c in range(2)], 8, 6)  # D = 384, two different blocks
    first, second = (solve(statistics, num_components=8) for _ in range(2))
    np.testing.assert_allclose(first.basis_DP.T @ first.basis_DP, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(first.eigenvalues_P, [1024, 1024, 0, 0, 0, 0, 0, 0], atol=1e-9)
    assert first.captured_energy == pytest.approx(1)
    np.testing.assert_array_equal(first.basis_DP, second.basis_DP)


def test_the_basis_depends_on_the_set_of_maps_alone() -> None:
    maps = region_maps(9, seed=3)
    expected = solve(counted(maps), num_components=6)
    merged = counted(maps[5:])
    merged.merge(counted(maps[:5][::-1]))
    assert solve(merged, num_components=6).basis_DP.tobytes() == expected.basis_DP.tobytes()


def test_signs_do_not_hang_on_the_last_bits_of_mirrored_entries() -> None:
    column_D = np.array([0.1, -0.7, 0.2, 0.7])
    noisy_D = column_D * (1 + np.array([0, 0, 0, 3e-15]))  # rounding made the later entry the largest
    basis_DP = np.stack([column_D, noisy_D, -column_D, -noisy_D], axis=1)
    np.testing.assert_array_equal(canonical_signs(basis_DP), [-1, -1, 1, 1])


@pytest.mark.parametrize("centred", [False, True])
def test_a_full_code_gives_the_one_hot_maps_back(centred: bool) -> None:
    maps = region_maps(6, seed=4)
    pca = solve(counted(maps), num_components=D, centred=centred)
    labels_HW = maps[0]
    scores_CHW = reconstruct(pca, project(pca, labels_HW))
    height, width = labels_HW.shape
    one_hot_CHW = labels_HW[None] == np.arange(C)[:, None, None]
    np.testing.assert_allclose(scores_CHW[:, :height, :width], one_hot_CHW, atol=1e-10)
    np.testing.assert_allclose(scores_CHW[:, height:], 0, atol=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_code_and_expansion_are_torchs_pixel_unshuffle_and_pixel_shuffle(
    centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_code, "BLOCKS_AT_ONCE", 7)  # several chunks, the last one short
    maps = region_maps(6, seed=5)
    pca = solve(counted(maps), num_components=9, centred=centred)
    mean_D = pca.mean_D if centred else np.zeros(D)
    codes_Phw = project(pca, maps[0])
    assert codes_Phw.shape == (9, 6, 8)
    np.testing.assert_allclose(codes_Phw.reshape(9, -1).T, (block_rows(maps[0]) - mean_D) @ pca.basis_DP, atol=1e-12)
    convolved = torch.nn.functional.conv2d(
        torch.from_numpy(codes_Phw)[None], torch.from_numpy(pca.basis_DP)[:, :, None, None], torch.from_numpy(mean_D)
    )
    expected = torch.nn.functional.pixel_shuffle(convolved, R)[0].numpy()
    np.testing.assert_allclose(reconstruct(pca, codes_Phw), expected, atol=1e-12)
    assert reconstruct(pca, codes_Phw.astype(np.float32)).dtype == np.float32


def test_impossible_requests_are_refused() -> None:
    statistics = counted(region_maps(1, seed=6))
    for components in (0, D + 1):
        with pytest.raises(ValueError, match=f"num_components is {components}; .* choose 1 to {D}"):
            solve(statistics, num_components=components)
    with pytest.raises(ValueError, match="hold no valid pixel"):
        solve(BlockStatistics.zero(R, C), num_components=2)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    pca = solve(counted(region_maps(1, seed=7)), num_components=2)
    with pytest.raises(ValueError, match=r"basis has shape \(48, 2\).* expected \(192, P\)"):
        LabelPCA(
            basis_DP=pca.basis_DP,
            eigenvalues_P=pca.eigenvalues_P,
            mean_D=pca.mean_D,
            centred=False,
            block_side=8,
            num_classes=C,
            total_energy=1.0,
            num_blocks=1,
        )
