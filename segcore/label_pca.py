"""The label PCA: a linear code for R x R blocks of one-hot labels, the basis of data-dependent upsampling.

Block v (length D, zeros at ignored pixels) has the code x = W^T v and is expanded as W x, where the columns of W are
the leading eigenvectors of the blocks' second moments: of all linear codes of that length, the one with the smallest
sum of |v - W x|^2 (Eckart and Young). Centred, v - mean takes the place of v, and the mean is added after expansion.

Order of the D entries: class-major, (c*R + row)*R + column, which is the channel order of `torch.pixel_shuffle`.

Source: Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120, section 3.1. The
paper does not say how it treats ignored pixels; dropping blocks that hold one would drop every block at a void border.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from segcore.label_blocks import BlockStatistics, check_exact_size, pad_to_blocks

__all__ = ["BlockStatistics", "LabelPCA", "check_exact_size", "project", "reconstruct", "solve"]

SOLVE_THREADS = 1
"""Threads of the solve: another number changes the last bits of the basis, and two cores that others use are slower."""

LANCZOS_MIN_ENTRIES = 2048
LANCZOS_MIN_ENTRIES_PER_COMPONENT = 40
"""Lanczos (ARPACK) beats a dense eigensolver where few eigenvectors of a large matrix are asked for (measured)."""

BLOCKS_AT_ONCE = 512
"""Blocks that `project` and `reconstruct` hold as dense vectors at one time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelPCA:
    """A basis for label blocks.

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
        moments_DD -= np.outer(counts_D, counts_D) / statistics.num_blocks
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


def project(pca: LabelPCA, labels_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Code of each label block, P x h x w with h = ceil(H / R): x = W^T v, or W^T (v - mean) where centred."""
    padded_HW = pad_to_blocks(labels_HW, pca.block_side)
    height, width = padded_HW.shape[0] // pca.block_side, padded_HW.shape[1] // pca.block_side
    labels_MS = to_blocks(padded_HW, pca.block_side)
    codes_MP = np.empty((height * width, pca.num_components))
    for start in range(0, len(codes_MP), BLOCKS_AT_ONCE):
        chunk = slice(start, start + BLOCKS_AT_ONCE)
        blocks_MD = one_hot_blocks(labels_MS[chunk], pca.num_classes).reshape(-1, len(pca.basis_DP))
        codes_MP[chunk] = blocks_MD @ pca.basis_DP
    if pca.centred:
        codes_MP -= pca.mean_D @ pca.basis_DP
    return np.ascontiguousarray(codes_MP.T).reshape(pca.num_components, height, width)


def reconstruct(pca: LabelPCA, codes_Phw: NDArray[np.floating]) -> NDArray[Any]:
    """Class scores C x (h*R) x (w*R) of codes, in the codes' own precision: W x, plus the mean where centred."""
    components, height, width = codes_Phw.shape
    basis_DP = pca.basis_DP.astype(codes_Phw.dtype, copy=False)
    scores_DM = basis_DP @ codes_Phw.reshape(components, height * width)
    if pca.centred:
        scores_DM += pca.mean_D.astype(codes_Phw.dtype)[:, None]
    side = pca.block_side
    blocks = scores_DM.reshape(pca.num_classes, side, side, height, width)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2)).reshape(pca.num_classes, height * side, width * side)


def to_blocks(map_HW: NDArray[Any], block_side: int) -> NDArray[Any]:
    """Blocks of a map whose sides R divides, M x R*R, blocks and pixels in reading order."""
    height, width = map_HW.shape[0] // block_side, map_HW.shape[1] // block_side
    blocks = map_HW.reshape(height, block_side, width, block_side).transpose(0, 2, 1, 3)
    return blocks.reshape(height * width, block_side**2)


def from_blocks(blocks_MS: NDArray[Any], *, height: int, width: int, block_side: int) -> NDArray[Any]:
    """The map of `height` x `width` pixels, both multiples of R, whose blocks these are."""
    blocks = blocks_MS.reshape(height // block_side, width // block_side, block_side, block_side)
    return blocks.transpose(0, 2, 1, 3).reshape(height, width)


def one_hot_blocks(labels_MS: NDArray[np.uint8], num_classes: int) -> NDArray[np.float64]:
    """One-hot vectors M x C x R*R, zeros at ignored pixels."""
    classes_C = np.arange(num_classes, dtype=np.uint8)
    one_hot_MCS: NDArray[np.float64] = (labels_MS[:, None, :] == classes_C[:, None]).astype(np.float64)
    return one_hot_MCS


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
