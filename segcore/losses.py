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


def class_presence(labels_NHW: Tensor, num_classes: int) -> Tensor:
    """Which classes occur in each image: (N,C) bool. How many pixels a class has does not matter.

    Ignored pixels, and values that are no class, switch nothing on.
    """
    seen_N256 = torch.zeros(len(labels_NHW), 256, dtype=torch.bool, device=labels_NHW.device)
    return seen_N256.scatter(1, labels_NHW.flatten(1).long(), True)[:, :num_classes]


def presence_loss(presence_NC: Tensor, labels_NHW: Tensor) -> Tensor:
    """Mean over images and classes of the binary cross-entropy of "this class occurs in the image", in float32.

    An image without one valid pixel says nothing about its classes and does not count (PyTorch-Encoding counts it as an
    image without any class); a batch of such images gives 0.

    Source: Zhang et al., EncNet, arXiv 1803.08904, semantic encoding loss.

    Args:
        presence_NC: scores before the sigmoid, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
    """
    target_NC = class_presence(labels_NHW, presence_NC.shape[1])
    loss_NC = F.binary_cross_entropy_with_logits(presence_NC.float(), target_NC.float(), reduction="none")
    counts_N = target_NC.any(dim=1).float()
    return (loss_NC.mean(dim=1) * counts_N).sum() / counts_N.sum().clamp(min=1)
