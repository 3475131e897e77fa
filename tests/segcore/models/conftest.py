"""A label PCA for any class table and block side, without `segcore.label_pca`'s own statistics."""

from collections.abc import Callable

import numpy as np
import pytest

from segcore.label_pca import LabelPCA


@pytest.fixture(scope="session")
def make_label_pca() -> Callable[..., LabelPCA]:
    """`make_label_pca(block_side=, num_classes=, num_components=, centred=False)`: of random blobby blocks."""
    return _make_label_pca


def _make_label_pca(
    *, block_side: int, num_classes: int, num_components: int, centred: bool = False, num_blocks: int = 48
) -> LabelPCA:
    generator = np.random.default_rng(0)
    corner = np.indices((block_side, block_side)).sum(axis=0)
    blocks = []
    for _ in range(num_blocks):
        first, second = generator.integers(0, num_classes, size=2)
        labels = np.where(corner < generator.integers(0, 2 * block_side), first, second)
        blocks.append((labels[None] == np.arange(num_classes)[:, None, None]).reshape(-1))
    blocks_MD = np.stack(blocks).astype(np.float64)
    mean_D = blocks_MD.mean(axis=0)
    residual_MD = blocks_MD - mean_D if centred else blocks_MD
    _, singular_values, right = np.linalg.svd(residual_MD, full_matrices=False)
    return LabelPCA(
        basis_DP=np.ascontiguousarray(right[:num_components].T),
        eigenvalues_P=singular_values[:num_components] ** 2,
        mean_D=mean_D,
        centred=centred,
        block_side=block_side,
        num_classes=num_classes,
        total_energy=float((residual_MD**2).sum()),
        num_blocks=num_blocks,
    )
