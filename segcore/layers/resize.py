"""Sizes of maps and images."""

import torch.nn.functional as F
from torch import Tensor


def resize(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """Bilinear resize to an explicit size, `align_corners=False`, no antialiasing; the map itself where it fits."""
    if x_NKhw.shape[-2:] == (height, width):
        return x_NKhw
    return F.interpolate(x_NKhw, size=(height, width), mode="bilinear", align_corners=False)


def pad_to_multiple(images_NKHW: Tensor, multiple: int) -> Tensor:
    """Zeros (the mean colour of normalised images) at the bottom and right, up to multiples of `multiple`."""
    height, width = images_NKHW.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images_NKHW, (0, right, 0, bottom)) if bottom or right else images_NKHW
