"""Losses of whole regions: how well a class's predicted area and its labelled area overlap, over a batch.

They weigh classes equally, however few pixels a class has, and follow the score (Dice; IoU) where cross-entropy follows
single pixels. The batch is one region: classes that no label of it shows, whose overlap is 0/0, do not count.
"""

import torch
from torch import Tensor

from segcore import IGNORE_INDEX
from segcore.losses import at_least_float32, check_sizes


def dice_loss(logits_NCHW: Tensor, labels_NHW: Tensor) -> Tensor:
    """Mean over the classes in the batch of 1 - 2 sum(p g) / (sum(p^2) + sum(g^2)), sums over the valid pixels.

    p is the class's softmax probability and g, 1 or 0, whether the pixel has that class. A batch without one valid
    pixel gives 0 with zero gradients.

    Source: Milletari et al., "V-Net", arXiv 1606.04797, section 3, of two classes there.

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    check_sizes(logits_NCHW, labels_NHW)
    probability_NCHW = at_least_float32(logits_NCHW).softmax(dim=1)
    labels_N1HW = labels_NHW.long()[:, None]
    classes_C = torch.arange(logits_NCHW.shape[1], device=labels_NHW.device)
    truth_NCHW = labels_N1HW == classes_C[:, None, None]
    pixels = (0, 2, 3)
    overlap_C = (probability_NCHW * truth_NCHW).sum(dim=pixels)
    predicted_C = (probability_NCHW * (labels_N1HW != IGNORE_INDEX)).square().sum(dim=pixels)
    labelled_C = truth_NCHW.sum(dim=pixels)
    present_C = labelled_C > 0
    # The denominator of a class that is not there may be 0, and even an unused 0/0 has a gradient of NaN.
    loss_C = 1 - 2 * overlap_C / (predicted_C + labelled_C.clamp(min=1))
    return (loss_C * present_C).sum() / present_C.sum().clamp(min=1)


def lovasz_softmax(logits_NCHW: Tensor, labels_NHW: Tensor) -> Tensor:
    """Mean over the classes in the batch of the Lovasz extension of the Jaccard loss, 1 - IoU, at the pixels' errors.

    The error of a pixel is |g - p|, g and p as in `dice_loss`. With probabilities of 0 and 1 alone this is 1 minus the
    mean IoU of the batch over the classes in it. A batch without one valid pixel gives 0 with zero gradients. A class
    costs a sort of all pixels; the device is waited for.

    Source: Berman, Rannen Triki and Blaschko, "The Lovasz-Softmax loss", arXiv 1705.08790, section 3 and
    algorithm 1; over the classes present in the batch, the default of the authors' code. The differences of the Jaccard
    loss are formed without subtracting: with a million pixels they are 1e-6, near the precision of float32.

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    check_sizes(logits_NCHW, labels_NHW)
    valid_NHW = labels_NHW != IGNORE_INDEX
    labels_X = labels_NHW[valid_NHW].long()
    probability_CX = at_least_float32(logits_NCHW).softmax(dim=1).movedim(1, 0)[:, valid_NHW]
    present = labels_X.unique().tolist()
    if not present:
        return probability_CX.sum()
    return torch.stack([_lovasz_jaccard(probability_CX[index], labels_X == index) for index in present]).mean()


def _lovasz_jaccard(probability_X: Tensor, truth_X: Tensor) -> Tensor:
    """Of one class, which at least one pixel has."""
    errors_X, order_X = torch.where(truth_X, 1 - probability_X, probability_X).sort(descending=True)
    inside_X = truth_X[order_X]
    # Mispredicting the first i pixels of the order leaves an intersection and a union of so many pixels.
    intersection_X = inside_X.sum() - inside_X.cumsum(dim=0)
    union_X = inside_X.sum() + (~inside_X).cumsum(dim=0)
    union_X = union_X.to(errors_X.dtype)
    # What pixel i adds: 1 / union where the intersection shrinks, intersection / (union (union - 1)) where it grows.
    outside_step_X = intersection_X / (union_X * (union_X - 1)).clamp(min=1)
    step_X = torch.where(inside_X, 1 / union_X, outside_step_X)
    return (errors_X * step_X).sum()
