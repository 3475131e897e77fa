"""Sizes of maps and images."""

import torch
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


def mirror(images_NKHW: Tensor, *, margin: int, height: int, width: int) -> Tensor:
    """Images continued on all sides by reflection, without repeating the border pixel.

    By index, since `F.pad` reflects no more than the image's own size: where that is not enough the mirror image is
    mirrored again, with a period of 2 L - 2 pixels. An image of one row or column is continued by it.

    Args:
        images_NKHW: any size.
        margin: rows and columns of the result before the image's first.
        height, width: of the result.
    """
    rows, columns = (
        _mirrored(length, before=margin, total=total).to(images_NKHW.device)
        for length, total in zip(images_NKHW.shape[-2:], (height, width), strict=True)
    )
    return images_NKHW[..., rows, :][..., columns]


def _mirrored(length: int, *, before: int, total: int) -> Tensor:
    """Positions -before to total - before - 1, each as the one in 0 to length - 1 that it mirrors."""
    position = torch.arange(-before, total - before)
    period = max(1, 2 * (length - 1))
    position = position.remainder(period)
    return torch.minimum(position, period - position) if length > 1 else torch.zeros_like(position)


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


def bilinear_kernel(factor: int) -> Tensor:
    """Kernel of a transposed convolution of stride `factor` that enlarges bilinearly: (2 factor, 2 factor), float32.

    The product of two triangles, 1 - |i - (factor - 1 / 2)| / factor.

    Source: Long et al., FCN, arXiv 1411.4038, section 3.3; the released code's `surgery.py`.
    """
    triangle = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    return triangle[:, None] * triangle


def bilinear_transposed_convolution(x_NKhw: Tensor, factor: int) -> Tensor:
    """Transposed convolution of each channel with `bilinear_kernel(factor)`, stride `factor`, no padding.

    h rows become (h + 1) * factor. That is bilinear enlargement of the map with a border of zeros, less half a zero at
    each end, and is computed as such: in a third of the time on a CPU, and without rounding the kernel in autocast.

    Args:
        x_NKhw: map.
        factor: even.
    """
    rows, columns = x_NKhw.shape[-2:]
    bordered = F.pad(x_NKhw, (1, 1, 1, 1))
    enlarged = resize(bordered, height=factor * (rows + 2), width=factor * (columns + 2))
    half = factor // 2
    return enlarged[..., half:-half, half:-half]


def downsample(x_NKhw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """Bilinear reduction by exactly `factor`; the map is continued at the bottom and right by its last row and column.

    Takes the rows of a map of stride s to those of stride `factor` * s, see `upsample`.
    """
    bottom, right = factor * height - x_NKhw.shape[-2], factor * width - x_NKhw.shape[-1]
    # not F.pad's mode "replicate", whose backward in channels_last has another layout than torch.compile is told (2.14)
    if bottom > 0:
        x_NKhw = torch.cat([x_NKhw, x_NKhw[..., -1:, :].expand(-1, -1, bottom, -1)], dim=-2)
    if right > 0:
        x_NKhw = torch.cat([x_NKhw, x_NKhw[..., -1:].expand(-1, -1, -1, right)], dim=-1)
    return resize(x_NKhw, height=height, width=width)
