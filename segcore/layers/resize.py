"""Sizes of maps and images."""

import torch.nn.functional as F
from torch import Tensor


def resize(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """Bilinear resize to an explicit size, `align_corners=False`, no antialiasing; the map itself where it fits."""
    if x_NKhw.shape[-2:] == (height, width):
        return x_NKhw
    return F.interpolate(x_NKhw, size=(height, width), mode="bilinear", align_corners=False)


def resize_smoothly(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """As `resize`, but every pixel of a smaller map averages all that it stands for (antialiasing)."""
    if x_NKhw.shape[-2:] == (height, width):
        return x_NKhw
    return F.interpolate(x_NKhw, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def pad_to_multiple(images_NKHW: Tensor, multiple: int) -> Tensor:
    """Zeros (the mean colour of normalised images) at the bottom and right, up to multiples of `multiple`."""
    height, width = images_NKHW.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images_NKHW, (0, right, 0, bottom)) if bottom or right else images_NKHW


def upsample(x_NKhw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """Bilinear enlargement by exactly `factor`, cut at the bottom and right.

    A map of stride s has ceil(H / s) rows, each s pixels high, so its last row may reach beyond the image. Resizing it
    to H would squeeze all rows: at 240 pixels and stride 32 the last would be drawn 15 pixels too high.
    """
    rows, columns = x_NKhw.shape[-2:]
    return resize(x_NKhw, height=factor * rows, width=factor * columns)[..., :height, :width]


def enlarge_scores(scores_NChw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """`upsample` of class scores, in contiguous layout whatever theirs is.

    A softmax over the classes of channels-last scores copies them on a CPU: cross-entropy takes 2 to 6 times longer.
    """
    return upsample(scores_NChw.contiguous(), factor, height=height, width=width)


def downsample(x_NKhw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """Bilinear reduction by exactly `factor`; the map is continued at the bottom and right by its last row and column.

    Takes the rows of a map of stride s to those of stride `factor` * s, see `upsample`.
    """
    bottom, right = factor * height - x_NKhw.shape[-2], factor * width - x_NKhw.shape[-1]
    padded = F.pad(x_NKhw, (0, right, 0, bottom), mode="replicate") if bottom or right else x_NKhw
    return resize(padded, height=height, width=width)
