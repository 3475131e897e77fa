"""How much of the truth a label code can carry: what comes back when true labels are coded and expanded.

Three codes of R x R blocks are compared, all told the true labels:

| method | code of a block | expansion |
|---|---|---|
| `basis` | W^T v | argmax over classes of W x |
| `bilinear` | share of each class in the block | bilinear enlargement by R (align_corners False), argmax |
| `nearest` | the class of its central pixel | repeated R x R times |

A network with that decoder cannot score better on these labels than its code lets it, except by luck; the paper prints
this bound as mIoU* in table 1. Ignored pixels are zero vectors in a code and are not scored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_blocks import pad_to_blocks
from segcore.label_code import LabelCode, encode_blocks, from_blocks, project, reconstruct, to_blocks
from segcore.label_pca import LabelPCA
from segcore.metrics import confusion_matrix

METHODS = ("basis", "bilinear", "nearest")

CURVE_SCORES = 2**25
"""Class scores that `RecoveryCurve` holds at one time."""


class Recovery:
    """Additive state: confusions between labels and what each code gives back.

    Attributes:
        confusion: int64 C x C by method, over all valid pixels.
        mixed_confusion: the same over the valid pixels of mixed blocks: those that hold two values or more, where the
            padding at the map's edge does not count and ignored pixels do. The other blocks are trivial.
    """

    __slots__ = ("confusion", "mixed_confusion", "num_classes")

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion = {method: np.zeros((num_classes, num_classes), np.int64) for method in METHODS}
        self.mixed_confusion = {method: np.zeros((num_classes, num_classes), np.int64) for method in METHODS}

    @classmethod
    def zero(cls, num_classes: int) -> "Recovery":
        """The state that has seen nothing."""
        return cls(num_classes)

    def update(self, code: LabelCode, labels_HW: NDArray[np.uint8]) -> None:
        """Code, expand and score one label map.

        Raises:
            ValueError: a label is neither a class of the code nor ignored.
        """
        if labels_HW.size == 0:
            return
        height, width = labels_HW.shape
        mixed_HW = mixed_pixels(labels_HW, code.block_side)
        for method, predictions_HW in predictions(code, labels_HW).items():
            cropped_HW = predictions_HW[:height, :width]
            confusion_CC = confusion_matrix(labels_HW, cropped_HW, num_classes=self.num_classes)
            self.confusion[method] += confusion_CC
            self.mixed_confusion[method] += confusion_matrix(
                labels_HW[mixed_HW], cropped_HW[mixed_HW], num_classes=self.num_classes
            )

    def merge(self, other: "Recovery") -> None:
        """Add all that another state has seen."""
        for method in METHODS:
            self.confusion[method] += other.confusion[method]
            self.mixed_confusion[method] += other.mixed_confusion[method]


class RecoveryCurve:
    """Additive state: what comes back of labels with the leading components of one label PCA, for several numbers.

    Attributes:
        num_components: rising numbers of components.
        confusion: int64 C x C for each of them, over all valid pixels.
    """

    __slots__ = ("confusion", "num_components")

    def __init__(self, num_classes: int, num_components: Sequence[int]) -> None:
        self.num_components = tuple(sorted(set(num_components)))
        self.confusion = {count: np.zeros((num_classes, num_classes), np.int64) for count in self.num_components}

    @classmethod
    def zero(cls, num_classes: int, num_components: Sequence[int]) -> "RecoveryCurve":
        """The state that has seen nothing."""
        return cls(num_classes, num_components)

    def update(self, pca: LabelPCA, labels_HW: NDArray[np.uint8]) -> None:
        """Code, expand and score one label map with each number of components; the codes are computed once.

        Raises:
            ValueError: a label is neither a class of the code nor ignored.
        """
        if labels_HW.size == 0:
            return
        labels_MS = to_blocks(pad_to_blocks(labels_HW, pca.block_side), pca.block_side)
        codes_MP = encode_blocks(pca.encoder, labels_MS, pca.num_classes).astype(np.float32)
        basis_DP, bias_D = (part.astype(np.float32) for part in pca.decoder[0])
        blocks_at_once = max(1, CURVE_SCORES // len(basis_DP))
        for start in range(0, len(labels_MS), blocks_at_once):
            chunk = slice(start, start + blocks_at_once)
            truth_SM = np.ascontiguousarray(labels_MS[chunk].T)
            scores_DM = np.repeat(bias_D[:, None], truth_SM.shape[1], axis=1)
            before = 0
            for count in self.num_components:
                scores_DM += basis_DP[:, before:count] @ codes_MP[chunk, before:count].T
                before = count
                predicted_SM = highest_class(scores_DM.reshape(pca.num_classes, *truth_SM.shape))
                self.confusion[count] += confusion_matrix(truth_SM, predicted_SM, num_classes=pca.num_classes)

    def merge(self, other: "RecoveryCurve") -> None:
        """Add all that another state has seen."""
        for count in self.num_components:
            self.confusion[count] += other.confusion[count]


def predictions(code: LabelCode, labels_HW: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The class map that each method gives back, at the size of the padded map."""
    padded_HW = pad_to_blocks(labels_HW, code.block_side)
    shares_Chw = class_shares(padded_HW, block_side=code.block_side, num_classes=code.num_classes)
    return {
        "basis": basis_prediction(code, labels_HW),
        "bilinear": _bilinear(shares_Chw, code.block_side),
        "nearest": _nearest(padded_HW, shares_Chw, code.block_side),
    }


def basis_prediction(code: LabelCode, labels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class map that the label code alone gives back, at the size of the padded map."""
    codes_Phw = project(code, labels_HW).astype(np.float32)  # networks predict codes in single precision at best
    return highest_class(reconstruct(code, codes_Phw))


def bilinear_prediction(labels_HW: NDArray[np.uint8], *, block_side: int, num_classes: int) -> NDArray[np.uint8]:
    """The class map that bilinear enlargement of the blocks' class shares gives back, at the size of the padded map."""
    padded_HW = pad_to_blocks(labels_HW, block_side)
    return _bilinear(class_shares(padded_HW, block_side=block_side, num_classes=num_classes), block_side)


def mixed_pixels(labels_HW: NDArray[np.uint8], block_side: int) -> NDArray[np.bool_]:
    """Whether each pixel lies in a block that holds two values or more, counting "ignored" as one."""
    height, width = labels_HW.shape
    padding = ((0, -height % block_side), (0, -width % block_side))
    blocks_MS = to_blocks(np.pad(labels_HW, padding, mode="edge"), block_side)  # repeats bring no new value
    mixed_M = (blocks_MS != blocks_MS[:, :1]).any(axis=1)
    spread_MS = np.broadcast_to(mixed_M[:, None], blocks_MS.shape)
    padded = from_blocks(spread_MS, height=height + padding[0][1], width=width + padding[1][1], block_side=block_side)
    mixed_HW: NDArray[np.bool_] = padded[:height, :width]
    return mixed_HW


def class_shares(padded_HW: NDArray[np.uint8], *, block_side: int, num_classes: int) -> NDArray[np.float32]:
    """Share of each class in each block, C x h x w; ignored pixels count for no class."""
    height, width = padded_HW.shape[0] // block_side, padded_HW.shape[1] // block_side
    blocks_MS = to_blocks(padded_HW, block_side)
    counts_MC = np.stack([(blocks_MS == c).sum(axis=1) for c in range(num_classes)], axis=1)
    return np.ascontiguousarray((counts_MC.T / block_side**2).astype(np.float32)).reshape(num_classes, height, width)


def highest_class(scores_CHW: NDArray[Any]) -> NDArray[np.uint8]:
    """argmax over classes, the first of equals; several times faster than NumPy's over a leading axis."""
    best_HW = scores_CHW[0].copy()
    classes_HW = np.zeros(best_HW.shape, np.uint8)
    for c in range(1, len(scores_CHW)):
        np.putmask(classes_HW, scores_CHW[c] > best_HW, np.uint8(c))
        np.maximum(best_HW, scores_CHW[c], out=best_HW)
    return classes_HW


def bilinear_weights(size: int, factor: int) -> NDArray[np.float32]:
    """Weights (size*factor) x size of bilinear enlargement with pixel centres kept (align_corners False)."""
    position = np.maximum((np.arange(size * factor) + 0.5) / factor - 0.5, 0.0)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, size - 1)
    weights = np.zeros((size * factor, size), np.float64)
    rows = np.arange(size * factor)
    np.add.at(weights, (rows, lower), 1 - (position - lower))
    np.add.at(weights, (rows, upper), position - lower)
    return weights.astype(np.float32)


def _bilinear(shares_Chw: NDArray[np.float32], block_side: int) -> NDArray[np.uint8]:
    _, height, width = shares_Chw.shape
    rows_Hh, columns_Ww = bilinear_weights(height, block_side), bilinear_weights(width, block_side)
    return highest_class(np.stack([rows_Hh @ shares_hw @ columns_Ww.T for shares_hw in shares_Chw]))


def _nearest(padded_HW: NDArray[np.uint8], shares_Chw: NDArray[np.float32], block_side: int) -> NDArray[np.uint8]:
    centre = block_side // 2
    classes_hw = padded_HW[centre::block_side, centre::block_side]
    # An ignored central pixel has no class to give: the most frequent one of the block stands in.
    classes_hw = np.where(classes_hw == IGNORE_INDEX, np.argmax(shares_Chw, axis=0).astype(np.uint8), classes_hw)
    return classes_hw.repeat(block_side, axis=0).repeat(block_side, axis=1)
