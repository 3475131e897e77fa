"""The label PCA where the Gram matrix G of `label_blocks` is too large to hold: block Krylov from a coarse start.

1. Labels are subsampled by f, so that the blocks' D/f^2 entries are few enough for exact statistics (`coarse_factor`,
   `coarse_labels`). Their leading eigenvectors, each entry repeated over its f x f pixels, are the first block Omega_1
   (`start_block`); some random columns besides find what the subsampling hides.
2. A pass takes Y_i = G Omega_i from the compressed rows of all blocks (`label_rows`), exactly, in integers: a sum of
   any shards in any order. Omega_{i+1} is Y_i without its part in Omega_1 ... Omega_i (`next_block`).
3. `finish` takes the best that all passes saw together, Nystroem's approximation of G by Omega and Y,

       G' = Y (Omega^T Y)^-1 Y^T = B B^T,   B = Y (Omega^T Y)^-1/2,

   and its leading eigenvectors. G' never exceeds G, so that its eigenvalues are lower bounds.

Each Omega is rounded to integers, and Y is of the rounded one, so that rounding costs nothing and no sharding leaves a
trace. Centred, G - n n^T / M takes the place of G, with n = diag(G) since v^2 = v: `centre` does that to a product.

Source: Gittens and Mahoney, "Revisiting the Nystrom method", JMLR 2016, for the approximation; Musco and Musco,
"Randomized block Krylov methods", NeurIPS 2015, for keeping every block. The coarse start is this project's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from segcore.label_blocks import MAX_ENTRIES, BlockStatistics, check_block_shape
from segcore.label_pca import (
    ROWS_AT_ONCE,
    SOLVE_THREADS,
    LabelPCA,
    canonical_signs,
    centre_moments,
    leading_eigenvectors,
)
from segcore.label_rows import LabelRows

EXTRA_COLUMNS = 16
"""Eigenvectors of the coarse Gram matrix beyond those asked for."""

RANDOM_COLUMNS = 16
"""Columns of the first block that do not come from subsampled labels."""

PASSES = 4
"""Passes over the rows. With these columns a basis of up to 128 components misses less than 1e-6 of the energy that the
exact one captures, also where f = 4, of real and of jagged generated labels; with one pass less, up to 2e-5."""

SCALE = 2**24
"""Integers that stand for 1.0 in a block: the finest for which R * SCALE fits 32 bits up to R = 64."""

RANK_TOLERANCE = 1e-12
"""Directions whose energy is below this share of the largest are left out: rounding has made them."""

Product = NDArray[np.int64] | NDArray[np.float64]
"""G Omega, exact, or centred."""


def coarse_factor(*, block_side: int, num_classes: int, max_entries: int = MAX_ENTRIES) -> int:
    """The smallest f of at least 2 that divides R and leaves at most `max_entries` entries of D/f^2.

    Raises:
        ValueError: impossible block side or class count, or there is no such f.
    """
    check_block_shape(block_side=block_side, num_classes=num_classes)
    for factor in range(2, block_side + 1):
        if block_side % factor == 0 and num_classes * (block_side // factor) ** 2 <= max_entries:
            return factor
    raise ValueError(
        f"no factor of at least 2 that divides the block side {block_side} makes blocks of {num_classes} classes have "
        f"at most {max_entries:,} entries; choose a block side with small divisors, such as 16 or 32"
    )


def coarse_labels(labels_HW: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Every f-th row and column of a label map, from the middle of the first f on (a view).

    Blocks of side R/f of this map are the blocks of side R of the whole one: what padding adds at the bottom and right
    is ignored pixels here as there.
    """
    return labels_HW[factor // 2 :: factor, factor // 2 :: factor]


def krylov_bytes(
    *, block_side: int, num_classes: int, num_components: int, passes: int = PASSES, max_entries: int = MAX_ENTRIES
) -> int:
    """Most memory that `solve_large` takes beside the label rows.

    The coarse statistics stay: tiles of 4 + 2 bytes per entry of the coarse Gram matrix. `start_block` adds that matrix
    and a dense solver's copy, 8 + 8. Later, each of D x L numbers has 4 bytes in every block, 8 in every product, and
    in `finish` 8 for each column of B; 24 more are for what is being made orthonormal.
    """
    factor = coarse_factor(block_side=block_side, num_classes=num_classes, max_entries=max_entries)
    entries = num_classes * block_side**2
    numbers = entries * (num_components + EXTRA_COLUMNS + RANDOM_COLUMNS)
    coarse_numbers = (entries // factor**2) ** 2
    return 6 * coarse_numbers + max(16 * coarse_numbers + 24 * numbers, ((4 + 8 + 8) * passes + 24) * numbers)


def start_block(
    coarse: BlockStatistics, *, block_side: int, num_components: int, centred: bool = False
) -> NDArray[np.int32]:
    """Omega_1, int32, D x L with L = P + `EXTRA_COLUMNS` + `RANDOM_COLUMNS`; equal statistics give equal bits.

    Args:
        coarse: of the labels that `coarse_labels` gives, with blocks of side R/f.
        block_side: R.
        num_components: P.
        centred: leave the mean block out, as `segcore.label_pca.solve` does.

    Raises:
        ValueError: R is no multiple of the coarse block side, or P is so large that the coarse blocks lack entries.
    """
    factor, rest = divmod(block_side, coarse.block_side)
    if rest or factor < 1:
        raise ValueError(
            f"found coarse blocks of side {coarse.block_side}, expected one that divides the block side {block_side}; "
            "count the labels that `coarse_labels` gives"
        )
    coarse_entries = coarse.num_classes * coarse.block_side**2
    wanted = num_components + EXTRA_COLUMNS
    if num_components < 1 or wanted > coarse_entries:
        raise ValueError(
            f"num_components is {num_components}; blocks subsampled by {factor} have {coarse_entries} entries, "
            f"enough for 1 to {max(0, coarse_entries - EXTRA_COLUMNS)} components: choose fewer, or another block side"
        )
    entries = coarse_entries * factor**2
    random_DL = np.random.default_rng(0).standard_normal((entries, RANDOM_COLUMNS))
    with threadpool_limits(limits=SOLVE_THREADS):
        coarse_dl = _coarse_eigenvectors(coarse, wanted, centred)
        tiles = coarse_dl.reshape(coarse.num_classes, coarse.block_side, coarse.block_side, -1)
        repeated = tiles.repeat(factor, axis=1).repeat(factor, axis=2) / factor
        repeated_DL = _to_integers(repeated.reshape(entries, -1))
        return np.hstack([repeated_DL, _to_integers(_orthonormal_beside(random_DL, [repeated_DL]))])


def centre(
    product_DL: NDArray[np.int64], block_DL: NDArray[np.int32], *, counts_D: NDArray[np.int64], num_blocks: int
) -> NDArray[np.float64]:
    """(G - n n^T / M) Omega from G Omega, with n = `counts_D` and M = `num_blocks` of the same blocks."""
    with threadpool_limits(limits=SOLVE_THREADS):
        mean_L = (counts_D / num_blocks) @ block_DL.astype(np.float64)
    centred_DL = product_DL.astype(np.float64)
    for row in range(0, len(centred_DL), ROWS_AT_ONCE):
        rows = slice(row, row + ROWS_AT_ONCE)
        centred_DL[rows] -= np.outer(counts_D[rows], mean_L)
    return centred_DL


def next_block(blocks: Sequence[NDArray[np.int32]], products: Sequence[Product]) -> NDArray[np.int32]:
    """Omega_{i+1}, int32, D x L: the last product's part outside all blocks so far, orthonormal before rounding."""
    with threadpool_limits(limits=SOLVE_THREADS):
        return _to_integers(_orthonormal_beside(products[-1].astype(np.float64), blocks))


def finish(
    blocks: Sequence[NDArray[np.int32]], products: Sequence[Product], *, num_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (falling, lower bounds) and orthonormal basis D x P from all blocks and their products.

    Where the blocks have fewer directions than P, the basis is completed by others, with eigenvalue 0.

    Raises:
        ValueError: P exceeds the entries D.
    """
    entries = len(blocks[0])
    if not 1 <= num_components <= entries:
        raise ValueError(f"num_components is {num_components}; blocks have {entries} entries, so choose 1 to {entries}")
    with threadpool_limits(limits=SOLVE_THREADS):
        factor_DK = _nystroem_factor(blocks, products)
        squares_K, vectors_KK = scipy.linalg.eigh(factor_DK.T @ factor_DK)
        kept = np.argsort(-squares_K, kind="stable")[:num_components]
        kept = kept[squares_K[kept] > RANK_TOLERANCE * squares_K.max(initial=0.0)]
        eigenvalues_P = np.zeros(num_components)
        eigenvalues_P[: kept.size] = squares_K[kept]
        basis_DP = np.random.default_rng(0).standard_normal((entries, num_components))
        basis_DP[:, : kept.size] = factor_DK @ (vectors_KK[:, kept] / np.sqrt(squares_K[kept]))
        del factor_DK
        basis_DP = _orthonormal(basis_DP)
    return eigenvalues_P, basis_DP * canonical_signs(basis_DP)


def solve_large(
    rows: LabelRows, coarse: BlockStatistics, *, num_components: int, centred: bool = False, passes: int = PASSES
) -> LabelPCA:
    """The label PCA of compressed label blocks in one process; see `solve_krylov`.

    Args:
        rows: of the labels.
        coarse: statistics of the same labels, subsampled.
        num_components, centred, passes: see `solve_krylov`.

    Raises:
        ValueError: as there.
    """
    return solve_krylov(
        coarse,
        rows.multiply,
        counts_D=rows.counts_D(),
        num_blocks=rows.num_blocks,
        block_side=rows.block_side,
        num_components=num_components,
        centred=centred,
        passes=passes,
    )


def solve_krylov(
    coarse: BlockStatistics,
    multiply: Callable[[NDArray[np.int32]], NDArray[np.int64]],
    *,
    counts_D: NDArray[np.int64],
    num_blocks: int,
    block_side: int,
    num_components: int,
    centred: bool = False,
    passes: int = PASSES,
) -> LabelPCA:
    """All steps, wherever the blocks are.

    Args:
        coarse: statistics of the labels, subsampled.
        multiply: G Omega from Omega, exactly: `LabelRows.multiply`, or its sum over several.
        counts_D: diagonal of G.
        num_blocks: M, blocks with a valid pixel.
        block_side: R.
        num_components: P.
        centred: as in `segcore.label_pca.solve`.
        passes: products with G to take, at least 1.

    Raises:
        ValueError: no valid pixel, no pass, or see `start_block`.
    """
    if num_blocks == 0:
        raise ValueError("the label blocks hold no valid pixel; check the split and the labels' ignore value")
    if passes < 1:
        raise ValueError(f"passes is {passes}, expected at least 1")
    blocks = [start_block(coarse, block_side=block_side, num_components=num_components, centred=centred)]
    products: list[Product] = []
    for index in range(passes):
        if index:
            blocks.append(next_block(blocks, products))
        product_DL = multiply(blocks[-1])
        if centred:
            products.append(centre(product_DL, blocks[-1], counts_D=counts_D, num_blocks=num_blocks))
        else:
            products.append(product_DL)
    eigenvalues_P, basis_DP = finish(blocks, products, num_components=num_components)
    mean_D = counts_D / num_blocks
    energy = float(counts_D.sum())
    return LabelPCA(
        basis_DP=basis_DP,
        eigenvalues_P=eigenvalues_P,
        mean_D=mean_D,
        centred=centred,
        block_side=block_side,
        num_classes=coarse.num_classes,
        total_energy=energy - float(counts_D @ mean_D) if centred else energy,
        num_blocks=num_blocks,
    )


def _coarse_eigenvectors(coarse: BlockStatistics, wanted: int, centred: bool) -> NDArray[np.float64]:
    """Leading eigenvectors of the coarse Gram matrix; unit vectors where it is zero, of which Lanczos finds none."""
    if coarse.num_blocks == 0:
        return np.eye(coarse.num_classes * coarse.block_side**2, wanted)
    moments_DD = coarse.moments()
    if centred:
        centre_moments(moments_DD, coarse.num_blocks)
        if not moments_DD.any():
            return np.eye(len(moments_DD), wanted)
    return leading_eigenvectors(moments_DD, wanted)[1]


def _nystroem_factor(blocks: Sequence[NDArray[np.int32]], products: Sequence[Product]) -> NDArray[np.float64]:
    """B = Y (Omega^T Y)^-1/2 on the directions whose energy is above rounding: D x K with K at most all columns."""
    columns = np.cumsum([0, *(block_DL.shape[1] for block_DL in blocks)])
    gram_LL = np.zeros((columns[-1], columns[-1]))
    entries = len(blocks[0])
    slices = [slice(row, row + ROWS_AT_ONCE) for row in range(0, entries, ROWS_AT_ONCE)]
    for rows in slices:
        gram_LL += _stack(blocks, rows).T @ _stack(products, rows)
    energies_L, vectors_LL = scipy.linalg.eigh((gram_LL + gram_LL.T) / 2)
    kept = energies_L > RANK_TOLERANCE * max(energies_L[-1], 0.0)
    scaled_LK = vectors_LL[:, kept] / np.sqrt(energies_L[kept])
    factor_DK = np.empty((entries, scaled_LK.shape[1]))
    for rows in slices:
        factor_DK[rows] = _stack(products, rows) @ scaled_LK
    return factor_DK


def _stack(parts_DL: Sequence[NDArray[Any]], rows: slice) -> NDArray[np.float64]:
    """Some rows of all blocks or products, side by side."""
    return np.hstack([part_DL[rows] for part_DL in parts_DL], dtype=np.float64, casting="unsafe")


def _to_integers(block_DL: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(block_DL * SCALE).astype(np.int32)


def _orthonormal_beside(columns_DL: NDArray[np.float64], blocks: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Orthonormal columns, orthogonal to all blocks, that span what the columns add to them.

    Twice: what the first time leaves of columns that lie in the span of the blocks is rounding, and the blocks, which
    are rounded themselves, are orthonormal to some six digits only.
    """
    for _ in range(2):
        for block_DL in blocks:
            other_DL = block_DL / SCALE
            columns_DL -= other_DL @ (other_DL.T @ columns_DL)
        columns_DL = _orthonormal(columns_DL)
    return columns_DL


def _orthonormal(columns_DL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q of the QR decomposition: orthonormal also where columns depend on each other. It may overwrite the columns."""
    orthonormal_DL: NDArray[np.float64] = scipy.linalg.qr(
        columns_DL, mode="economic", overwrite_a=True, check_finite=False
    )[0]
    return orthonormal_DL
