"""Atrous spatial pyramid pooling."""

import torch
from torch import Tensor, nn

from segcore.layers.conv import ConvBnAct, SeparableConv
from segcore.layers.norm import refuse_one_image


def atrous_rates(output_stride: int) -> tuple[int, int, int]:
    """Rates of the three atrous branches: (6, 12, 18) at output stride 16, in inverse proportion elsewhere.

    Source: Chen et al., DeepLabV3, arXiv 1706.05587, section 3.3 (doubled at 8). Halving at 32 is ours: it keeps the
    distances in pixels; TF has no 32.
    """
    first = {8: 12, 16: 6, 32: 3}[output_stride]
    return first, 2 * first, 3 * first


class ImagePooling(nn.Module):
    """Mean over the whole map, 1x1 convolution, BN, ReLU, and back to the map's size.

    In training its BN sees one value per image and channel. A batch of 1 is refused; at batch 2 the statistics are
    those of two numbers: use larger batches or `synchronise_batch_norm`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = ConvBnAct(in_channels, out_channels)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Spatially constant map of the input's size."""
        refuse_one_image(x_NKhw, self.project.norm, what="image pooling")
        pooled: Tensor = self.project(x_NKhw.mean(dim=(2, 3), keepdim=True))
        return pooled.expand(-1, -1, *x_NKhw.shape[-2:])


class ASPP(nn.Module):
    """Five parallel branches, concatenated, projected by a 1x1 convolution: `out_channels` maps.

    1x1; three 3x3 at `rates`; image pooling. Each ends in BN and ReLU.

    Source: DeepLabV3, section 3.3; separable branches: DeepLabV3+, arXiv 1802.02611, section 3.2. Dropout 0.1 after the
    projection is the TF code's.

    Args:
        in_channels, out_channels: widths; each branch gives `out_channels`.
        rates: dilations of the three atrous branches, see `atrous_rates`.
        separable: atrous branches depthwise separable.
        dropout: probability, after the projection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        rates: tuple[int, int, int],
        separable: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [ConvBnAct(in_channels, out_channels)]
        for rate in rates:
            branches.append(
                SeparableConv(in_channels, out_channels, dilation=rate)
                if separable
                else ConvBnAct(in_channels, out_channels, 3, dilation=rate)
            )
        branches.append(ImagePooling(in_channels, out_channels))
        self.branches = nn.ModuleList(branches)
        self.project = ConvBnAct(out_channels * len(branches), out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        joined = torch.cat([branch(x_NKhw) for branch in self.branches], dim=1)
        x: Tensor = self.dropout(self.project(joined))
        return x
