"""Losses over valid pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore import IGNORE_INDEX


def cross_entropy(logits_NCHW: Tensor, labels_NHW: Tensor, *, class_weights_C: Tensor | None = None) -> Tensor:
    """Mean of -log softmax(logits)[label] over the batch's valid pixels, in float32.

    With class weights, sum of weight[label] * loss over the sum of weight[label]. A batch without one valid pixel gives
    0 with zero gradients, where torch's own mean is 0/0 = NaN.

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
        class_weights_C: weight of each class's pixels.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    if logits_NCHW.shape[0] != labels_NHW.shape[0] or logits_NCHW.shape[2:] != labels_NHW.shape[1:]:
        raise ValueError(
            f"logits have shape {tuple(logits_NCHW.shape)} and labels {tuple(labels_NHW.shape)}; "
            "give labels of the image's size (resize scores, never labels)"
        )
    labels = labels_NHW.long()
    loss_sum = F.cross_entropy(
        logits_NCHW.float(), labels, weight=class_weights_C, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    valid = labels != IGNORE_INDEX
    if class_weights_C is None:
        denominator = valid.sum().to(loss_sum.dtype)
        return loss_sum / denominator.clamp(min=1)
    weights = class_weights_C[labels.masked_fill(~valid, 0)] * valid
    denominator = weights.sum()
    return loss_sum / torch.where(denominator > 0, denominator, torch.ones_like(denominator))
