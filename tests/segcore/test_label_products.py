"""Products of label blocks against dense one-hot matrices."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_products import OneHotBlocks, multiply
from segcore.label_rows import LabelRows

R, C = 4, 3
D = C * R * R


def label_blocks(*, noisy: bool) -> NDArray[np.uint8]:
    """Halves of two classes, partly ignored; and one block that is all noise."""
    rng = np.random.default_rng(0)
    labels = np.zeros((20, R, R), np.uint8)
    for block in labels:
        block[rng.integers(0, R) :, rng.integers(0, R) :] = rng.integers(0, C)
        block[rng.integers(0, R)] = IGNORE_INDEX if rng.random() < 0.3 else block[0]
    if noisy:
        labels[7] = np.indices((R, R)).sum(axis=0) % 2
        labels[8] = rng.integers(0, C, (R, R))
    return labels.reshape(20, R * R)


def dense(labels_MS: NDArray[np.uint8]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = (labels_MS[:, None] == np.arange(C)[:, None]).reshape(-1, D).astype(np.float64)
    return rows


def rows_of(labels_MS: NDArray[np.uint8]) -> LabelRows:
    rows = LabelRows.zero(R, C)
    rows.update(labels_MS.reshape(-1, R))
    return rows


@pytest.mark.parametrize("noisy", [False, True])
def test_products_are_those_of_the_dense_matrix(noisy: bool) -> None:
    labels = label_blocks(noisy=noisy)
    rows = rows_of(labels)
    assert (rows.num_noisy_blocks > 0) == noisy
    blocks = OneHotBlocks.from_rows(rows, scale=0.5, dtype=np.float64)
    found = blocks.times(np.eye(D))
    assert sorted(map(tuple, found)) == sorted(map(tuple, 0.5 * dense(labels)))  # in another order
    values = np.random.default_rng(1).normal(size=(20, 5))
    np.testing.assert_allclose(blocks.transposed_times(values), found.T @ values, atol=1e-12)
    some = np.array([3, 18, 19])
    np.testing.assert_allclose(blocks.select(some).times(np.eye(D)), found[some])
    np.testing.assert_allclose(blocks.select(slice(15, 30)).times(np.eye(D)), found[15:])


@pytest.mark.parametrize("noisy", [False, True])
def test_the_gradient_of_a_product_is_torchs(noisy: bool) -> None:
    blocks = OneHotBlocks.from_rows(rows_of(label_blocks(noisy=noisy)), dtype=np.float64)
    table = torch.randn(D, 2, dtype=torch.float64, requires_grad=True)
    expected = table.detach().clone().requires_grad_()
    multiply(blocks, table).square().sum().backward()
    (torch.from_numpy(blocks.times(np.eye(D))) @ expected).square().sum().backward()
    torch.testing.assert_close(table.grad, expected.grad)


def test_a_table_is_left_as_it_was() -> None:
    table = np.ones((D, 2))
    OneHotBlocks.from_rows(rows_of(label_blocks(noisy=True)), dtype=np.float64).times(table)
    assert (table == 1).all()
