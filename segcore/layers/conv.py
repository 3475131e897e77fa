"""Convolution blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AtrousConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 and "same" zero padding that skips the taps which meet nothing but the padding.

    A tap j dilations away from the centre lies outside of a map of side n from everywhere if j * dilation >= n: "the
    3 x 3 filter degenerates to a simple 1 x 1 filter" (Chen et al., DeepLabV3, arXiv 1706.05587, section 3.3). Its
    weights get a gradient of 0 then, as they would anyway. On 12 x 16 maps, crops of 192 x 256 at output stride 16, a
    rate of 12 costs a third, 18 a ninth. The result is the same up to the order of summation.

    Args:
        in_channels, out_channels, groups, bias: as in `nn.Conv2d`.
        kernel_size: odd.
        dilation: distance of the taps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=bias
        )

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        if torch.compiler.is_exporting():  # a graph for maps of any size
            return super().forward(x_NKhw)
        half, step = self.kernel_size[0] // 2, self.dilation[0]
        up, left = (sum(tap * step < side for tap in range(1, half + 1)) for side in x_NKhw.shape[-2:])
        if up == left == half:
            return super().forward(x_NKhw)
        weight = self.weight[:, :, half - up : half + up + 1, half - left : half + left + 1]
        padding = (up * step, left * step)
        return F.conv2d(x_NKhw, weight, self.bias, padding=padding, dilation=step, groups=self.groups)


class ConvBnAct(nn.Module):
    """Convolution, batch normalisation, ReLU; the size stays (stride 1, "same" zero padding).

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd.
        dilation: distance of the taps.
        groups: as in `nn.Conv2d`.
        activation: False leaves the ReLU out.
        bias: of the convolution; batch normalisation makes it superfluous, but VGG-16's weights have it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = AtrousConv2d(in_channels, out_channels, kernel_size, dilation=dilation, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        x: Tensor = self.activation(self.norm(self.conv(x_NKhw)))
        return x


def strided_conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Convolution of stride 2 without bias, batch normalisation, ReLU; half of the size, rounded up.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd. Not 1: see `segcore.backbones.light_xception.SAFE_STRIDED_CHANNELS`.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SeparableConv(nn.Module):
    """3x3 depthwise, BN, ReLU, 1x1 pointwise, BN, ReLU.

    Source: DeepLab's TF code, `split_separable_conv2d`: both halves have their own BN and ReLU in ASPP and decoder (in
    most of its Xception they have no ReLU in between).

    Args:
        in_channels, out_channels: widths.
        dilation: of the depthwise half.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvBnAct(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
        self.pointwise = ConvBnAct(in_channels, out_channels)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        x: Tensor = self.pointwise(self.depthwise(x_NKhw))
        return x


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation by fan-in of every convolution in `module`, biases 0.

    Close to the TF code's constants (depthwise 0.33, pointwise 0.06): 0.47 for a depthwise 3x3, 0.06 for 512 inputs.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
