"""Losses that are means over valid pixels, and of image tags."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segcore import IGNORE_INDEX


def cross_entropy(logits_NCHW: Tensor, labels_NHW: Tensor, *, class_weights_C: Tensor | None = None) -> Tensor:
    """Mean of -log softmax(logits)[label] over the batch's valid pixels, in float32 at least.

    With class weights, sum of weight[label] * loss over the sum of weight[label]. A batch without one valid pixel gives
    0 with zero gradients, where torch's own mean is 0/0 = NaN.

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
        class_weights_C: weight of each class's pixels.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    check_sizes(logits_NCHW, labels_NHW)
    labels, scores_NCHW = labels_NHW.long(), at_least_float32(logits_NCHW)
    if class_weights_C is not None:
        class_weights_C = class_weights_C.to(scores_NCHW.dtype)
    loss_sum = F.cross_entropy(scores_NCHW, labels, weight=class_weights_C, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = labels != IGNORE_INDEX
    if class_weights_C is None:
        denominator = valid.sum().to(loss_sum.dtype)
        return loss_sum / denominator.clamp(min=1)
    return loss_sum / _positive((class_weights_C[labels.masked_fill(~valid, 0)] * valid).sum())


def check_sizes(logits_NCHW: Tensor, labels_NHW: Tensor) -> None:
    """Refuse labels of another size than the scores.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    if logits_NCHW.shape[0] != labels_NHW.shape[0] or logits_NCHW.shape[2:] != labels_NHW.shape[1:]:
        raise ValueError(
            f"logits have shape {tuple(logits_NCHW.shape)} and labels {tuple(labels_NHW.shape)}; "
            "give labels of the image's size (resize scores, never labels)"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, every other type as float32."""
    return x if x.dtype == torch.float64 else x.float()


def _positive(denominator: Tensor) -> Tensor:
    """1 in place of 0: what it divides is 0 then."""
    return torch.where(denominator > 0, denominator, torch.ones_like(denominator))


def focal_loss(
    logits_NCHW: Tensor, labels_NHW: Tensor, *, gamma: float, class_weights_C: Tensor | None = None
) -> Tensor:
    """Mean over valid pixels of -(1 - p)^gamma log p, p the probability of the pixel's class.

    With class weights a mean weighted by them, as in `cross_entropy`, which this is with gamma 0. A batch without one
    valid pixel gives 0 with zero gradients.

    Source: Lin et al., "Focal loss for dense object detection", arXiv 1708.02002, equations 4 and 5; there of a sigmoid
    for each class, here of the softmax. Its alpha is the class weight.

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
        gamma: 0 or more; the paper's best is 2.
        class_weights_C: weight of each class's pixels.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    loss_NHW, weights_NHW = _pixel_losses(logits_NCHW, labels_NHW, class_weights_C)
    # 1 - p without cancellation; above 0, where a gamma below 1 has an infinite derivative
    doubt_NHW = -torch.expm1(-loss_NHW)
    factor_NHW = doubt_NHW.clamp(min=torch.finfo(doubt_NHW.dtype).eps) ** gamma
    return (weights_NHW * factor_NHW * loss_NHW).sum() / _positive(weights_NHW.sum())


def ohem_cross_entropy(
    logits_NCHW: Tensor,
    labels_NHW: Tensor,
    *,
    threshold: float,
    min_kept: float,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Mean of -log p over the hard valid pixels: those whose class has a probability p below the threshold.

    Where they are fewer than a share `min_kept` of the valid pixels (rounded down, at least one), the mean is over that
    many pixels with the smallest p. With class weights a mean weighted by them; they do not decide what is hard. A
    batch without one valid pixel gives 0 with zero gradients. The device is waited for, as the selection has no fixed
    size.

    Source: Shrivastava et al., "Training region-based object detectors with online hard example mining", arXiv
    1604.03540, which selects regions; pixels, with threshold 0.7 and at least a sixteenth of them, as in the PyTorch
    implementation of BiSeNet (CoinCheung/BiSeNet).

    Args:
        logits_NCHW: scores at the labels' size, any float type.
        labels_NHW: integer labels in `0..C-1`, or `IGNORE_INDEX`.
        threshold: above 0 and at most 1.
        min_kept: from 0 to 1.
        class_weights_C: weight of each class's pixels.

    Raises:
        ValueError: sizes of logits and labels differ.
    """
    loss_NHW, weights_NHW = _pixel_losses(logits_NCHW, labels_NHW, class_weights_C)
    valid_NHW = labels_NHW != IGNORE_INDEX
    loss_X, weights_X = loss_NHW[valid_NHW], weights_NHW[valid_NHW]
    fewest = min(max(1, int(min_kept * len(loss_X))), len(loss_X))
    chosen = torch.nonzero(loss_X.detach() > -math.log(threshold)).flatten()
    if len(chosen) < fewest:
        chosen = loss_X.detach().topk(fewest).indices
    return (weights_X[chosen] * loss_X[chosen]).sum() / _positive(weights_X[chosen].sum())


def _pixel_losses(logits_NCHW: Tensor, labels_NHW: Tensor, class_weights_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[label] and the class's weight (1 without weights) of each pixel; 0 and 0 where ignored."""
    check_sizes(logits_NCHW, labels_NHW)
    labels = labels_NHW.long()
    loss_NHW = F.cross_entropy(at_least_float32(logits_NCHW), labels, ignore_index=IGNORE_INDEX, reduction="none")
    valid_NHW = labels != IGNORE_INDEX
    if class_weights_C is None:
        return loss_NHW, valid_NHW.to(loss_NHW.dtype)
    weights_C = class_weights_C.to(loss_NHW.dtype)
    return loss_NHW, weights_C[labels.masked_fill(~valid_NHW, 0)] * valid_NHW


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
    import scipy.ndimage  # half a second that only a training with this weight need spend

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
