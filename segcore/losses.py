"""Losses over valid pixels."""

import math

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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


BORDER_REACH = 6
"""Deviations beyond which a border's weight, below 2e-8, counts as 0."""


def border_weights(labels_NHW: Tensor, *, sigma_px: float, background: int | None = None) -> Tensor:
    """exp(-(d1 + d2)^2 / (2 sigma^2)) of each pixel, float32: near 1 where two objects meet, 0 far from the second.

    d1 and d2 are the distances, in pixels, to the nearest pixel of the nearest object and of the nearest other one; a
    pixel of an object has d1 = 0. An image of one object, or none, has no border: all its weights are 0.

    Computed on the CPU, one distance transform for each object in the window that it reaches.

    Source: Ronneberger et al., U-Net, arXiv 1505.04597, equation 2, without w_c and w_0. Its objects are annotated
    cells; here they are the connected components of each class, diagonal neighbours included.

    Args:
        labels_NHW: integer labels; pixels of `IGNORE_INDEX` belong to no object.
        sigma_px: reach of the weight.
        background: class that is no object, if there is one.
    """
    labels = labels_NHW.to("cpu", torch.uint8).numpy()
    weights = np.stack([_border_weights(labels_HW, sigma_px, background) for labels_HW in labels])
    return torch.from_numpy(weights).to(labels_NHW.device)


def _border_weights(labels_HW: NDArray[np.uint8], sigma_px: float, background: int | None) -> NDArray[np.float32]:
    reach_px = math.ceil(BORDER_REACH * sigma_px)
    nearest_HW, second_HW = (np.full(labels_HW.shape, np.inf) for _ in range(2))
    for value in set(np.unique(labels_HW).tolist()) - {IGNORE_INDEX, background}:
        components_HW, _ = scipy.ndimage.label(labels_HW == value, structure=np.ones((3, 3)))
        for number, box in enumerate(scipy.ndimage.find_objects(components_HW), start=1):
            window = tuple(slice(max(0, side.start - reach_px), side.stop + reach_px) for side in box)
            distance_hw = scipy.ndimage.distance_transform_edt(components_HW[window] != number)
            second_HW[window] = np.minimum(second_HW[window], np.maximum(nearest_HW[window], distance_hw))
            nearest_HW[window] = np.minimum(nearest_HW[window], distance_hw)
    weights_HW: NDArray[np.float32] = np.exp(-0.5 * ((nearest_HW + second_HW) / sigma_px) ** 2).astype(np.float32)
    return weights_HW


def border_cross_entropy(logits_NCHW: Tensor, labels_NHW: Tensor, border_NHW: Tensor) -> Tensor:
    """Mean of border * -log softmax(logits)[label] over the batch's valid pixels, in float32; 0 if there are none.

    Added w_0 times to `cross_entropy` it is the mean of (1 + w_0 border) * -log softmax(logits)[label].

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
        border_NHW: from `border_weights`.
    """
    labels = labels_NHW.long()
    loss_NHW = F.cross_entropy(logits_NCHW.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (border_NHW * loss_NHW).sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)
