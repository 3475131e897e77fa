"""VGG-16 (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556, configuration D) as a feature extractor.

Layers are numbered as torchvision's and timm's, so their weights load by name. timm's own VGG has no output stride.
"""

import torch.nn.functional as F
from torch import Tensor, nn

VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of 3x3 convolutions of each stage; a 2x2 maximum pool of stride 2 ends it."""

VGG16_CHANNELS = (128, 256, 512, 512, 512)
"""Of the features of stride 2, 4, 8, 16 (ends of stages 2 to 5, before their pools) and 32 (the last pool)."""


class Pool(nn.Module):
    """Maximum of 2x2 (or 3x3) values, which keeps ceil(L / stride) of L rows.

    Args:
        stride: 2, or 1 where the stride is replaced by dilation.
        dilation: distance of the values.
        overlapping: 3x3 values centred on the position instead of 2x2 that begin there, never dilated.
    """

    def __init__(self, *, stride: int, dilation: int, overlapping: bool) -> None:
        super().__init__()
        self.stride, self.dilation, self.overlapping = stride, dilation, overlapping

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of 1 / stride of the size."""
        if self.overlapping:
            return F.max_pool2d(x_NKhw, 3, stride=self.stride, padding=1)
        height, width = x_NKhw.shape[-2:]
        # Zeros do not change a maximum of what a ReLU gave.
        bottom, right = (self.dilation if self.stride == 1 else length % 2 for length in (height, width))
        padded = F.pad(x_NKhw, (0, right, 0, bottom)) if bottom or right else x_NKhw
        return F.max_pool2d(padded, 2, stride=self.stride, dilation=self.dilation)


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16.

    Args:
        output_stride: 8, 16 or 32. A pool that lost its stride keeps the dilation so far and the convolutions after it
            take twice that, so features at 16, subsampled, equal those at 32.
        in_channels: of the image.
        batch_norm: normalise after each convolution (torchvision's `vgg16_bn`).
        overlapping_pools: 3x3 pools, as DeepLab V1 and V2 have them (their released models).
    """

    def __init__(
        self, *, output_stride: int, in_channels: int = 3, batch_norm: bool = False, overlapping_pools: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        """Index of the last layer of each feature."""
        channels, stride, dilation = in_channels, 1, 1
        for width, repeats in VGG16_STAGES:
            for _ in range(repeats):
                layers.append(nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                channels = width
            self.taps.append(len(layers) - 1)
            strided = stride < output_stride
            layers.append(Pool(stride=2 if strided else 1, dilation=dilation, overlapping=overlapping_pools))
            stride, dilation = (2 * stride, dilation) if strided else (stride, 2 * dilation)
        self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images_NKHW: Tensor) -> list[Tensor]:
        """Features of nominal stride 2, 4, 8, 16 and 32."""
        found = []
        x = images_NKHW
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps[1:]:
                found.append(x)
        return found
