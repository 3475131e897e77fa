"""Sizes of maps and images."""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


def holds(condition: bool) -> bool:
    """Whether a comparison of sizes holds: of these sizes, or, while a graph is exported, of all.

    Where it is true of some sizes only, an exported graph takes the branch that is right for any.
    """
    if not torch.compiler.is_exporting():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # sympy: for nobody else to wait for

    return statically_known_true(condition)


def resize(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """Bilinear resize to an explicit size, `align_corners=False`, no antialiasing; the map itself where it fits."""
    if holds(x_NKhw.shape[-2] == height) and holds(x_NKhw.shape[-1] == width):
        return x_NKhw
    return F.interpolate(x_NKhw, size=(height, width), mode="bilinear", align_corners=False)


def resize_smoothly(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """As `resize`, but every pixel of a smaller map averages all that it stands for (antialiasing)."""
    if x_NKhw.shape[-2:] == (height, width):
        return x_NKhw
    return F.interpolate(x_NKhw, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def scaled_side(length: int, scale: float) -> int:
    """The nearest integer to scale * length, of two the even one; 1 at least.

    Raises:
        ValueError: while a graph is exported, of a scale such as 0.7, which binary numbers only come close to.
    """
    if not torch.compiler.is_exporting():
        return max(1, round(scale * length))
    share = Fraction(scale)  # in integers, since no file format has Python's `round`
    if share.denominator > 1024:
        raise ValueError(
            f"input scale {scale} is no multiple of 1/1024, and an exported graph cannot round as the network does; "
            "train with scales such as 0.5 and 0.75"
        )
    below, rest = share.numerator * length // share.denominator, share.numerator * length % share.denominator
    nearest = below + (2 * rest + below % 2 + share.denominator - 1) // (2 * share.denominator)
    return torch.sym_max(1, nearest)  # type: ignore[return-value]  # of an integer, an integer


def pad_to_multiple(images_NKHW: Tensor, multiple: int) -> Tensor:
    """Zeros (the mean colour of normalised images) at the bottom and right, up to multiples of `multiple`."""
    height, width = images_NKHW.shape[-2:]
    # In this form the padded sides of an exported graph stay multiples of `multiple`, also to PyTorch's algebra.
    bottom, right = ((length + multiple - 1) // multiple * multiple - length for length in (height, width))
    if holds(bottom == 0) and holds(right == 0):
        return images_NKHW
    return F.pad(images_NKHW, (0, right, 0, bottom))


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


def _continued(x_NKhw: Tensor, *, height: int, width: int) -> Tensor:
    """A map continued by its last row and column, by index: of no size, one row or many alike."""
    rows, columns = (
        torch.arange(total, device=x_NKhw.device).clamp(max=length - 1)
        for total, length in zip((height, width), x_NKhw.shape[-2:], strict=True)
    )
    return x_NKhw.index_select(-2, rows).index_select(-1, columns)


def _mirrored(length: int, *, before: int, total: int) -> Tensor:
    """Positions -before to total - before - 1, each as the one in 0 to length - 1 that it mirrors."""
    position = torch.arange(-before, total - before)
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position.remainder(torch.full_like(position, period))  # ONNX takes no remainder of a size as it is
    return torch.minimum(position, period - position)


def upsample(x_NKhw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """Bilinear enlargement by exactly `factor`, cut at the bottom and right.

    A map of stride s has ceil(H / s) rows, each s pixels high, so its last row may reach beyond the image. Resizing it
    to H would squeeze all rows: at 240 pixels and stride 32 the last would be drawn 15 pixels too high.
    """
    rows, columns = x_NKhw.shape[-2:]
    return window(resize(x_NKhw, height=factor * rows, width=factor * columns), height=height, width=width)


def window(x_NKhw: Tensor, *, first: int = 0, height: int, width: int) -> Tensor:
    """`height` rows and `width` columns of a map that has them, from row and column `first` on.

    An exported graph takes them by index: of a slice PyTorch's algebra does not know that it is as long as was asked.
    """
    if not torch.compiler.is_exporting():
        return x_NKhw[..., first : first + height, first : first + width]
    for dim, length in ((-2, height), (-1, width)):
        if first or not holds(x_NKhw.shape[dim] == length):
            x_NKhw = x_NKhw.index_select(dim, torch.arange(length, device=x_NKhw.device) + first)
    return x_NKhw


def enlarge_scores(scores_NChw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """`upsample` of class scores, in contiguous layout whatever theirs is.

    A softmax over the classes of channels-last scores copies them on a CPU: cross-entropy takes 2 to 6 times longer.
    """
    rows, columns = scores_NChw.shape[-2:]
    return resize(scores_NChw.contiguous(), height=factor * rows, width=factor * columns)[..., :height, :width]


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


def region_means(x_NKhw: Tensor, side: int) -> Tensor:
    """Means over side x side regions: region i of L rows is floor(i L / side) to ceil((i + 1) L / side) - 1.

    An exported graph has two matrix products in place of PyTorch's adaptive pooling, which ONNX does not have for maps
    of any size.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x_NKhw, side)
    rows, columns = (_shares(length, side, like=x_NKhw) for length in x_NKhw.shape[-2:])
    return product(product(rows, x_NKhw), columns.T)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Product of a matrix (i,j) with each matrix of a batch (...,j,k), or of each with a matrix.

    An exported graph multiplies one by one: `@` chooses a way by the sizes, and 1 image or location goes another.
    """
    if not torch.compiler.is_exporting():
        return left @ right
    batch = (right if left.ndim == 2 else left).shape[:-2]
    left_Mij, right_Mjk = (x if x.ndim == 2 else x.flatten(0, -3) for x in (left, right))
    num_products = (right_Mjk if left.ndim == 2 else left_Mij).shape[0]
    left_Mij, right_Mjk = (x.expand(num_products, -1, -1) for x in (left_Mij, right_Mjk))
    products: Tensor = torch.bmm(left_Mij, right_Mjk).unflatten(0, batch)
    return products


def _shares(length: int, side: int, *, like: Tensor) -> Tensor:
    """Weight of each position in the mean of each region: (side, length)."""
    place, region = torch.arange(length, device=like.device), torch.arange(side, device=like.device)[:, None]
    start, stop = region * length // side, ((region + 1) * length + side - 1) // side
    return ((place >= start) & (place < stop)).to(like.dtype) / (stop - start)


def downsample(x_NKhw: Tensor, factor: int, *, height: int, width: int) -> Tensor:
    """Bilinear reduction by exactly `factor`; the map is continued at the bottom and right by its last row and column.

    Takes the rows of a map of stride s to those of stride `factor` * s, see `upsample`.
    """
    if torch.compiler.is_exporting():
        x_NKhw = _continued(x_NKhw, height=factor * height, width=factor * width)
        return resize(x_NKhw, height=height, width=width)
    bottom, right = factor * height - x_NKhw.shape[-2], factor * width - x_NKhw.shape[-1]
    # not F.pad's mode "replicate", whose backward in channels_last has another layout than torch.compile is told (2.14)
    if bottom > 0:
        x_NKhw = torch.cat([x_NKhw, x_NKhw[..., -1:, :].expand(-1, -1, bottom, -1)], dim=-2)
    if right > 0:
        x_NKhw = torch.cat([x_NKhw, x_NKhw[..., -1:].expand(-1, -1, -1, right)], dim=-1)
    return resize(x_NKhw, height=height, width=width)
