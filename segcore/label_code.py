"""Codes of label blocks: an R x R block of one-hot labels becomes P numbers, and P numbers become class scores again.

A code is an encoder and a decoder, each a chain of dense layers with ReLU in between. A linear code has one layer each:
x = P v + a and v^ = W x + b. `segcore.label_pca` finds the best linear one, `segcore.label_solvers` learns others.

Order of the D entries of a block: class-major, (c*R + row)*R + column, which is the channel order of
`torch.pixel_shuffle`. Ignored pixels are zeros.

Source: Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120, section 3.1.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import entry_point
from segcore.label_blocks import pad_to_blocks

BLOCKS_AT_ONCE = 512
"""Blocks whose class scores `reconstruct` holds beside its result."""


class Dense(NamedTuple):
    """y = weight @ x + bias, in float64."""

    weight_OI: NDArray[np.float64]
    bias_O: NDArray[np.float64]


class LabelCode(Protocol):
    """What networks, recovery and storage ask of a code.

    Attributes:
        solver: how it was found: `pca`, or a key of `segcore.label_solvers.SOLVERS`.
        encoder: layers from D entries to P components.
        decoder: layers from P components to D entries.
        mean_code_P: mean code of the blocks that it was fitted on.
        mean_square_P: mean of the squared code.
        captured_energy: share of sum |v|^2 (about the mean block where that is taken away) that comes back, up to 1.
        block_side, num_classes, num_components, num_blocks: R, C, P, and the blocks that it was fitted on.
    """

    @property
    def solver(self) -> str: ...
    @property
    def encoder(self) -> tuple[Dense, ...]: ...
    @property
    def decoder(self) -> tuple[Dense, ...]: ...
    @property
    def mean_code_P(self) -> NDArray[np.float64]: ...
    @property
    def mean_square_P(self) -> NDArray[np.float64]: ...
    @property
    def captured_energy(self) -> float: ...
    @property
    def block_side(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_components(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LearnedCode:
    """A code whose encoder and decoder were learned; obeys `LabelCode`, which says what the fields mean."""

    solver: str
    encoder: tuple[Dense, ...]
    decoder: tuple[Dense, ...]
    mean_code_P: NDArray[np.float64]
    mean_square_P: NDArray[np.float64]
    captured_energy: float
    block_side: int
    num_classes: int
    num_blocks: int

    def __post_init__(self) -> None:
        entries, components = self.num_classes * self.block_side**2, self.mean_code_P.size
        for name, layers, ends in (
            ("encoder", self.encoder, (entries, components)),
            ("decoder", self.decoder, (components, entries)),
        ):
            shapes = [layer.weight_OI.shape for layer in layers]
            fits = layers and (shapes[0][1], shapes[-1][0]) == ends
            fits = fits and all(after[1] == before[0] for before, after in pairwise(shapes))
            if not fits or any(layer.bias_O.shape != layer.weight_OI.shape[:1] for layer in layers):
                raise ValueError(
                    f"the {name}'s weights have shapes {shapes}; expected a chain from {ends[0]} to {ends[1]} values "
                    f"for {self.num_classes} classes and blocks of side {self.block_side}"
                )

    @property
    def num_components(self) -> int:
        """P, the length of a code."""
        return int(self.mean_code_P.size)


def project(code: LabelCode, labels_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Code of each label block, P x h x w with h = ceil(H / R).

    Raises:
        ValueError: a label is neither a class of the code nor ignored.
    """
    padded_HW = pad_to_blocks(labels_HW, code.block_side)
    height, width = padded_HW.shape[0] // code.block_side, padded_HW.shape[1] // code.block_side
    codes_MP = encode_blocks(code.encoder, to_blocks(padded_HW, code.block_side), code.num_classes)
    return np.ascontiguousarray(codes_MP.T).reshape(code.num_components, height, width)


def encode_blocks(encoder: tuple[Dense, ...], labels_MS: NDArray[np.uint8], num_classes: int) -> NDArray[np.float64]:
    """Codes M x P of blocks of labels M x R*R.

    The first layer adds up one row of its weights per valid pixel: C times less work than with dense one-hot blocks.
    """
    first = encoder[0]
    values_MO = np.repeat(first.bias_O[None], len(labels_MS), axis=0)
    _add_rows(np.ascontiguousarray(labels_MS), num_classes, np.ascontiguousarray(first.weight_OI.T), values_MO)
    return _chain(encoder[1:], values_MO, activate_first=True)


def reconstruct(code: LabelCode, codes_Phw: NDArray[np.floating]) -> NDArray[Any]:
    """Class scores C x (h*R) x (w*R) of codes, in the codes' own precision."""
    components, height, width = codes_Phw.shape
    side, num_classes = code.block_side, code.num_classes
    codes_MP = np.ascontiguousarray(codes_Phw.reshape(components, height * width).T)
    scores = np.empty((num_classes, height * width, side, side), codes_Phw.dtype)
    for start in range(0, len(codes_MP), BLOCKS_AT_ONCE):
        chunk = slice(start, start + BLOCKS_AT_ONCE)
        blocks_MD = _chain(code.decoder, codes_MP[chunk], activate_first=False)
        scores[:, chunk] = blocks_MD.reshape(-1, num_classes, side, side).swapaxes(0, 1)
    blocks = scores.reshape(num_classes, height, width, side, side)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 2, 4)).reshape(num_classes, height * side, width * side)


def to_blocks(map_HW: NDArray[Any], block_side: int) -> NDArray[Any]:
    """Blocks of a map whose sides R divides, M x R*R, blocks and pixels in reading order."""
    height, width = map_HW.shape[0] // block_side, map_HW.shape[1] // block_side
    blocks = map_HW.reshape(height, block_side, width, block_side).transpose(0, 2, 1, 3)
    return blocks.reshape(height * width, block_side**2)


def from_blocks(blocks_MS: NDArray[Any], *, height: int, width: int, block_side: int) -> NDArray[Any]:
    """The map of `height` x `width` pixels, both multiples of R, whose blocks these are."""
    blocks = blocks_MS.reshape(height // block_side, width // block_side, block_side, block_side)
    return blocks.transpose(0, 2, 1, 3).reshape(height, width)


def _chain(layers: tuple[Dense, ...], values_MI: NDArray[Any], *, activate_first: bool) -> NDArray[Any]:
    """Layers one after the other, in the values' own precision, with ReLU in between (and before the first)."""
    dtype = values_MI.dtype
    for index, layer in enumerate(layers):
        if index or activate_first:
            values_MI = np.maximum(values_MI, 0)
        values_MI = values_MI @ layer.weight_OI.astype(dtype, copy=False).T + layer.bias_O.astype(dtype, copy=False)
    return values_MI


@entry_point
def _add_rows(
    labels_MS: NDArray[np.uint8], num_classes: int, table_DO: NDArray[np.float64], values_MO: NDArray[np.float64]
) -> None:
    """values[m] += sum over the valid pixels s of block m of table[label * R*R + s]."""
    num_blocks, area = labels_MS.shape
    for m in range(num_blocks):
        values = values_MO[m]
        for s in range(area):
            label = np.int64(labels_MS[m, s])
            if label < num_classes:
                row = table_DO[label * area + s]
                for o in range(row.size):
                    values[o] += row[o]
