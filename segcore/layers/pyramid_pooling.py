"""Pyramid pooling: means over regions of several sizes beside the map itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.layers.conv import ConvBnAct
from segcore.layers.norm import refuse_one_image
from segcore.layers.resize import product, region_means


class PyramidPooling(nn.Module):
    """Means over several grids of regions beside the map itself, and a 3x3 convolution over all of it.

    For each b of `bins`: means over b x b regions, 1x1 convolution to in / len(bins) channels, BN, ReLU, bilinear
    enlargement to the map's size. Concatenated with the map, 3x3 convolution, BN, ReLU.

    The concatenation and the enlarged means are never made. The convolution is linear in its input and bilinear
    enlargement is U p V^T, with one matrix for the rows and one for the columns, so for each mean p

        conv(U p V^T)[o] = sum over taps (y, x) of U_y (sum over k of w[o, k, y, x] p[k]) V_x^T

    where U_y is U moved by y - 1 rows, zeros coming in as the convolution's padding. The inner sum is over b x b places
    instead of h x w: half of the convolution's multiply-adds, a fifth of the whole PSPNet-50's, are saved. The value is
    the same up to rounding.

    In training the BN of bin 1 sees one value per image and channel: a batch of 1 is refused.

    Source: Zhao et al., PSPNet, arXiv 1612.01105, section 3.2 and figure 3.

    Args:
        in_channels, out_channels: widths.
        bins: side of each grid of means.
        align_corners: of the enlargement; False matches the grids of the means. The released code has True.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, bins: tuple[int, ...] = (1, 2, 3, 6), align_corners: bool = False
    ) -> None:
        super().__init__()
        self.bins = bins
        self.align_corners = align_corners
        self.width = in_channels // len(bins)
        self.branches = nn.ModuleList(ConvBnAct(in_channels, self.width) for _ in bins)
        self.fuse = ConvBnAct(in_channels + self.width * len(bins), out_channels, 3)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        widths = [x_NKhw.shape[1]] + [self.width] * len(self.bins)
        of_map, *of_means = self.fuse.conv.weight.split(widths, dim=1)
        x = F.conv2d(x_NKhw, of_map, padding=1) + self._convolved_means(x_NKhw, of_means)
        fused: Tensor = self.fuse.activation(self.fuse.norm(x))
        return fused

    def _convolved_means(self, x_NKhw: Tensor, weights: list[Tensor]) -> Tensor:
        """What the 3x3 convolution gives of the enlarged means."""
        height, width = x_NKhw.shape[-2:]
        row_taps, maps = [], []
        for side, branch, weight in zip(self.bins, self.branches, weights, strict=True):
            assert isinstance(branch, ConvBnAct)
            if side == 1:
                refuse_one_image(x_NKhw, branch.norm, what="the pyramid's mean over the whole map")
            means = branch(region_means(x_NKhw, side)).flatten(2)
            num_images, out_channels = means.shape[0], len(weight)
            by_tap = product(weight.permute(2, 3, 0, 1).flatten(0, 2), means)
            grid = by_tap.reshape(num_images, 3, 3, out_channels, side, side).permute(0, 3, 1, 4, 2, 5)
            grid = grid.reshape(num_images, out_channels, 3 * side, 3 * side)
            maps.append(product(grid, self._taps(width, side, like=means).T))
            row_taps.append(self._taps(height, side, like=means))
        return product(torch.cat(row_taps, dim=1), torch.cat(maps, dim=2))

    def _taps(self, length: int, side: int, *, like: Tensor) -> Tensor:
        """Enlargement from `side` to `length`, seen by each of three taps: (length, 3 * side), tap-major."""
        identity = torch.eye(side, dtype=like.dtype, device=like.device)[None, None]
        enlargement = F.interpolate(identity, (length, side), mode="bilinear", align_corners=self.align_corners)[0, 0]
        padded = F.pad(enlargement, (0, 0, 1, 1))
        return torch.cat([padded[tap : tap + length] for tap in range(3)], dim=1)
