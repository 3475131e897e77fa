"""Maximum pooling that remembers where each maximum was, its inverse, and decoders made of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.layers.conv import ConvBnAct
from segcore.layers.resize import holds, window


class Pooling(NamedTuple):
    """What an encoder keeps of one pooling for the unpooling that undoes it."""

    switches_NKhw: Tensor
    """Of `pool_with_switches`."""
    height: int
    """Rows of the map before it was pooled."""
    width: int
    """Columns of the same."""


def pool_with_switches(x_NKHW: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maximum pooling of stride 2, and each maximum's index in its plane, its "switch".

    L rows become ceil(L / 2): behind an odd side the last window has one row alone.

    Source: Zeiler and Fergus, ECCV 2014, arXiv 1311.2901, section 2.1.
    """
    exporting = torch.compiler.is_exporting()  # then behind an even side: whether it is odd must decide nothing
    x = _made_even(x_NKHW) if exporting else x_NKHW
    pooled, switches = F.max_pool2d(x, 2, ceil_mode=not exporting, return_indices=True)
    return pooled, switches


def _made_even(x_NKHW: Tensor) -> Tensor:
    """A map with a row and a column of minus infinity more where a side is odd."""
    bottom, right = ((length + 1) // 2 * 2 - length for length in x_NKHW.shape[-2:])
    if holds(bottom == 0) and holds(right == 0):
        return x_NKHW
    return F.pad(x_NKHW, (0, right, 0, bottom), value=-math.inf)


def record_pooling(x_NKHW: Tensor) -> tuple[Tensor, Pooling]:
    """`pool_with_switches`, and all that undoing it takes."""
    height, width = x_NKHW.shape[-2:]
    pooled, switches = pool_with_switches(x_NKHW)
    return pooled, Pooling(switches, height, width)


def unpool(x_NKhw: Tensor, switches_NKhw: Tensor, *, height: int | None = None, width: int | None = None) -> Tensor:
    """Map of the size before the pooling: each value where its switch says, 0 elsewhere.

    Source: Noh et al., DeconvNet, arXiv 1505.04366, section 3.2.1.

    Args:
        x_NKhw: values.
        switches_NKhw: of the pooling that this undoes, from `pool_with_switches`; same shape.
        height, width: of the map that was pooled; by default twice those of `x_NKhw`.
    """
    rows, columns = x_NKhw.shape[-2:]
    size = (2 * rows if height is None else height, 2 * columns if width is None else width)
    if torch.compiler.is_exporting():  # ONNX's own unpooling has sizes that the graph fixes
        return window(_scattered(x_NKhw, switches_NKhw), height=size[0], width=size[1])
    return F.max_unpool2d(x_NKhw, switches_NKhw, (2, 2), output_size=size)


def _scattered(x_NKhw: Tensor, switches_NKhw: Tensor) -> Tensor:
    """Unpooling to even sides."""
    height, width = (2 * length for length in x_NKhw.shape[-2:])
    plane_NKL = x_NKhw.new_zeros(*x_NKhw.shape[:2], height * width)
    plane_NKL = plane_NKL.scatter(2, switches_NKhw.flatten(2), x_NKhw.flatten(2))
    x: Tensor = plane_NKL.unflatten(2, (height, width))
    return x


class UnpoolingDecoder(nn.Module):
    """The mirror image of an encoder: unpooling by its switches, then as many convolutions as it had before the pool.

    The last convolution of each stage reduces to the width of the encoder's stage before it.

    Source: DeconvNet, figure 2 (its deconvolutions are convolutions: see `segcore.models.deconvnet`); Badrinarayanan et
    al., SegNet, arXiv 1511.00561, figure 2.

    Args:
        stages: width and number of convolutions of the encoder's stages, the finest first.
        kernel_size: of the convolutions, odd.
        bias: of the convolutions, before their batch normalisation.
        activation: ReLU after each batch normalisation.
    """

    def __init__(
        self, stages: Sequence[tuple[int, int]], *, kernel_size: int = 3, bias: bool = True, activation: bool = True
    ) -> None:
        super().__init__()
        finer = [stages[0][0], *(width for width, _ in stages[:-1])]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ConvBnAct(
                        width,
                        width if index < repeats - 1 else last_width,
                        kernel_size,
                        bias=bias,
                        activation=activation,
                    )
                    for index in range(repeats)
                )
            )
            for (width, repeats), last_width in reversed(list(zip(stages, finer, strict=True)))
        )

    def forward(self, x_NKhw: Tensor, poolings: Sequence[Pooling]) -> Tensor:
        """Map of the size before the first pooling.

        Args:
            x_NKhw: of the size and width after the last pooling.
            poolings: of the encoder, the finest first.
        """
        x = x_NKhw
        for stage, pooling in zip(self.stages, reversed(poolings), strict=True):
            x = stage(unpool(x, pooling.switches_NKhw, height=pooling.height, width=pooling.width))
        return x
