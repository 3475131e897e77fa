"""The label PCA: a linear code for R x R blocks of one-hot labels, the basis of data-dependent upsampling.

Block v (length D, zeros at ignored pixels) has the code x = W^T v and is expanded as W x, where the columns of W are
the leading eigenvectors of the blocks' second moments: of all linear codes of that length, the one with the smallest
sum of |v - W x|^2 (Eckart and Young). Centred, v - mean takes the place of v, and the mean is added after expansion.

`segcore.label_code` says how the D entries are ordered, and codes and expands with it.

Source: Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120, section 3.1. The
paper does not say how it treats ignored pixels; dropping blocks that hold one would drop every block at a void border.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from segcore.label_blocks import BlockStatistics
from segcore.label_code import Dense

PCA = "pca"
"""Name of this solver."""

SOLVE_THREADS = 1
"""Threads of the solve: another number changes the last bits of the basis, and two cores that others use are slower."""

ROWS_AT_ONCE = 4096
"""Rows of a matrix of D rows that are worked on together, to hold no second matrix."""

LANCZOS_MIN_ENTRIES = 2048
LANCZOS_MIN_ENTRIES_PER_COMPONENT = 40
"""Lanczos (ARPACK) beats a dense eigensolver where few eigenvectors of a large matrix are asked for (measured)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelPCA:
    """A basis for label blocks; obeys `segcore.label_code.LabelCode`.

    Attributes:
        basis_DP: float64, orthonormal columns by falling eigenvalue: W.
        eigenvalues_P: float64, falling; sum over all blocks of the squared code: divide by `num_blocks` for a mean.
        mean_D: float64, mean block; taken away before coding and added after expansion only where `centred`.
        centred: whether the second moments are about the mean.
        block_side: R.
        num_classes: C.
        total_energy: sum over all blocks of |v|^2, the number of valid pixels; of |v - mean|^2 where `centred`.
        num_blocks: blocks with at least one valid pixel.
    """

    basis_DP: NDArray[np.float64]
    eigenvalues_P: NDArray[np.float64]
    mean_D: NDArray[np.float64]
    centred: bool
    block_side: int
    num_classes: int
    total_energy: float
    num_blocks: int

    def __post_init__(self) -> None:
        entries = self.num_classes * self.block_side**2
        components = self.eigenvalues_P.size
        if self.basis_DP.shape != (entries, components) or self.mean_D.shape != (entries,):
            raise ValueError(
                f"basis has shape {self.basis_DP.shape}, eigenvalues {self.eigenvalues_P.shape} and mean "
                f"{self.mean_D.shape}; expected ({entries}, P), (P,) and ({entries},) for {self.num_classes} classes "
                f"and blocks of side {self.block_side}"
            )

    @property
    def num_components(self) -> int:
        """P, the length of a code."""
        return int(self.eigenvalues_P.size)

    @property
    def captured_energy(self) -> float:
        """Share of the total energy that the code keeps, 0 to 1."""
        return min(1.0, float(self.eigenvalues_P.sum()) / self.total_energy) if self.total_energy > 0 else 1.0

    @property
    def solver(self) -> str:
        """Name of this kind of code."""
        return PCA

    @property
    def encoder(self) -> tuple[Dense, ...]:
        """x = W^T v, or W^T (v - mean) where centred."""
        return (Dense(self.basis_DP.T, -self.mean_D @ self.basis_DP * self.centred),)

    @property
    def decoder(self) -> tuple[Dense, ...]:
        """v^ = W x, or W x + mean where centred."""
        return (Dense(self.basis_DP, self.mean_D * self.centred),)

    @property
    def mean_code_P(self) -> NDArray[np.float64]:
        """Mean code of the blocks: zero where centred."""
        mean_P: NDArray[np.float64] = self.mean_D @ self.basis_DP * (not self.centred)
        return mean_P

    @property
    def mean_square_P(self) -> NDArray[np.float64]:
        """Mean of the squared code of the blocks."""
        return self.eigenvalues_P / max(self.num_blocks, 1)

    def leading(self, num_components: int) -> "LabelPCA":
        """The first components, which are the best basis of that length.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= num_components <= self.num_components:
            raise ValueError(
                f"{num_components} leading components were asked for and the label PCA has {self.num_components}; "
                f"choose 1 to {self.num_components}, or fit one with more"
            )
        return replace(
            self, basis_DP=self.basis_DP[:, :num_components], eigenvalues_P=self.eigenvalues_P[:num_components]
        )


def solve(statistics: BlockStatistics, *, num_components: int, centred: bool = False) -> LabelPCA:
    """The leading eigenvectors of the label blocks' second moments.

    Equal statistics give equal bits on one machine with one build of LAPACK; elsewhere the basis agrees to about 1e-12.

    Args:
        statistics: of the training labels; at least one valid pixel.
        num_components: P, 1 to D.
        centred: moments about the mean block, G - n n^T / M with n = diag(G), since v^2 = v. It changes nothing that
            matters once P exceeds a few dozen, because the mean is then in the basis's span.

    Raises:
        ValueError: no valid pixel, or P outside 1..D.
    """
    entries = statistics.num_classes * statistics.block_side**2
    if not 1 <= num_components <= entries:
        raise ValueError(
            f"num_components is {num_components}; blocks of side {statistics.block_side} with {statistics.num_classes} "
            f"classes have {entries} entries, so choose 1 to {entries}"
        )
    if statistics.num_blocks == 0:
        raise ValueError("the label blocks hold no valid pixel; check the split and the labels' ignore value")
    moments_DD = statistics.moments()
    counts_D = np.diag(moments_DD).copy()
    if centred:
        centre_moments(moments_DD, statistics.num_blocks)
    with threadpool_limits(limits=SOLVE_THREADS):
        eigenvalues_P, basis_DP = leading_eigenvectors(moments_DD, num_components)
    return LabelPCA(
        basis_DP=basis_DP * canonical_signs(basis_DP),
        eigenvalues_P=np.maximum(eigenvalues_P, 0.0),
        mean_D=counts_D / statistics.num_blocks,
        centred=centred,
        block_side=statistics.block_side,
        num_classes=statistics.num_classes,
        total_energy=float(np.trace(moments_DD)),
        num_blocks=statistics.num_blocks,
    )


def centre_moments(moments_DD: NDArray[np.float64], num_blocks: int) -> None:
    """G - n n^T / M in place, with n = diag(G) and M = `num_blocks`; some rows at a time, without a second matrix."""
    counts_D = np.diag(moments_DD).copy()
    for row in range(0, len(moments_DD), ROWS_AT_ONCE):
        rows = slice(row, row + ROWS_AT_ONCE)
        moments_DD[rows] -= np.outer(counts_D[rows], counts_D) / num_blocks


def canonical_signs(basis_DP: NDArray[np.float64]) -> NDArray[np.float64]:
    """+1 or -1 per column: the first entry of largest size, to six digits, becomes positive.

    Six digits, because mirrored images give columns whose largest entries come in pairs +m, -m that differ in the last
    bits only; an exact maximum would choose between the two by rounding.
    """
    sizes_DP = np.abs(basis_DP)
    rounded_DP = np.round(sizes_DP / sizes_DP.max(axis=0), 6)
    first_P = np.argmax(rounded_DP, axis=0)  # the first of equals
    signs_P: NDArray[np.float64] = np.where(basis_DP[first_P, np.arange(basis_DP.shape[1])] < 0, -1.0, 1.0)
    return signs_P


def leading_eigenvectors(
    moments_DD: NDArray[np.float64], num_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest eigenvalues, falling, and their eigenvectors as columns; call it with `SOLVE_THREADS` threads."""
    entries = len(moments_DD)
    if entries >= LANCZOS_MIN_ENTRIES and num_components * LANCZOS_MIN_ENTRIES_PER_COMPONENT <= entries:
        # A fixed start without symmetry: a constant one has no part in basis blocks that are odd under mirroring.
        start_D = np.random.default_rng(0).standard_normal(entries)
        values, vectors = scipy.sparse.linalg.eigsh(
            _symmetric_operator(moments_DD), k=num_components, which="LA", v0=start_D, tol=0, rng=0
        )
    else:
        last = entries - 1
        values, vectors = scipy.linalg.eigh(moments_DD, subset_by_index=(entries - num_components, last))
    falling = np.argsort(-values, kind="stable")
    return values[falling], np.ascontiguousarray(vectors[:, falling])


def _symmetric_operator(matrix_DD: NDArray[np.float64]) -> Any:
    """The matrix as a product with a vector that reads one triangle: half the memory traffic, which takes the time."""

    def multiply(vector_D: NDArray[np.float64]) -> NDArray[np.float64]:
        product_D: NDArray[np.float64] = scipy.linalg.blas.dsymv(1.0, matrix_DD.T, vector_D, lower=1)
        return product_D

    return scipy.sparse.linalg.LinearOperator(matrix_DD.shape, matvec=multiply, dtype=np.float64)
