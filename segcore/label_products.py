"""Products of one-hot label blocks with tables, forwards and backwards, without the one-hot blocks.

V is the M x D matrix of blocks. Its rows are kept as `segcore.label_rows` compresses them: V = U S^T with the mixed
differences U, which have 10 to 20 times fewer non-zeros than a block has pixels, and S the cumulative sum over rows
and columns of a block. So V T = U (S^T T), and V^T G = S (U^T G), for the price of the sums over a table.

Rows that are noise-like are listed pixel by pixel. They have columns of their own behind the D others, which meet T
itself instead of S^T T.
"""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.label_rows import LabelRows, sum_over_blocks


class OneHotBlocks:
    """Rows of V, times a scale. Immutable; `select` takes some of them."""

    __slots__ = ("_matrix", "block_side", "num_blocks", "num_entries")

    def __init__(self, matrix: Any, *, block_side: int, num_entries: int) -> None:
        self._matrix = matrix
        self.block_side = block_side
        self.num_entries = num_entries
        self.num_blocks = int(matrix.shape[0])

    @classmethod
    def from_rows(cls, rows: LabelRows, *, scale: float = 1.0, dtype: type[np.floating] = np.float32) -> "OneHotBlocks":
        """All blocks of a state, those by corners first."""
        arrays, entries = rows.to_arrays(), rows.num_entries
        noisy = rows.num_noisy_blocks > 0
        parts = [
            scipy.sparse.csr_array(
                (arrays[f"{kind}_values"].astype(dtype) * dtype(scale), columns, arrays[f"{kind}_starts"]),
                shape=(arrays[f"{kind}_starts"].size - 1, entries * (1 + noisy)),
            )
            for kind, columns in (
                ("corner", arrays["corner_entries"]),
                ("pixel", arrays["pixel_entries"].astype(np.int64) + entries),
            )
            if kind == "corner" or noisy
        ]
        return cls(scipy.sparse.vstack(parts, format="csr"), block_side=rows.block_side, num_entries=entries)

    def select(self, indices: NDArray[np.integer] | slice) -> "OneHotBlocks":
        """Some of the blocks."""
        return OneHotBlocks(self._matrix[indices], block_side=self.block_side, num_entries=self.num_entries)

    def times(self, table_DO: NDArray[Any]) -> NDArray[Any]:
        """V T, M x O."""
        sums_DO = np.array(table_DO, order="C")
        sum_over_blocks(sums_DO[::-1], self.block_side)  # S^T: classes and pixels in reverse
        if self._matrix.shape[1] > self.num_entries:
            sums_DO = np.concatenate([sums_DO, table_DO])
        product_MO: NDArray[Any] = self._matrix @ sums_DO
        return product_MO

    def transposed_times(self, values_MO: NDArray[Any]) -> NDArray[Any]:
        """V^T G, D x O."""
        both = self._matrix.T @ np.ascontiguousarray(values_MO)
        product_DO: NDArray[Any] = np.ascontiguousarray(both[: self.num_entries])
        sum_over_blocks(product_DO, self.block_side)
        if len(both) > self.num_entries:
            product_DO += both[self.num_entries :]
        return product_DO


def multiply(blocks: OneHotBlocks, table_DO: Tensor) -> Tensor:
    """V T for a table on the CPU, M x O, with its gradient."""
    product_MO: Tensor = _Multiply.apply(table_DO, blocks)
    return product_MO


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_DO: Tensor, blocks: OneHotBlocks) -> Tensor:
        ctx.blocks = blocks
        return torch.from_numpy(blocks.times(table_DO.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient_MO: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.blocks.transposed_times(gradient_MO.numpy())), None
