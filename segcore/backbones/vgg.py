"""VGG-16 (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556, configuration D), dense.

Layers are numbered as torchvision's and timm's, so their weights load by name. timm's own VGG has no output stride.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.layers import AtrousConv2d, pad_to_multiple

VGGLayout = Literal["classifier", "deeplab", "valid", "fcn"]

VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of 3x3 convolutions of each stage; a 2x2 maximum pool of stride 2 ends it."""

VGG16_CHANNELS = (128, 256, 512, 512, 512)
"""Of the features of stride 2, 4, 8, 16 (ends of stages 2 to 5, before their pools) and 32 (the last pool)."""

FULLY_CONNECTED_CHANNELS = 4096
FULLY_CONNECTED_SIDE = 7

FCN_MARGIN = 100
"""Rows of zeros on each side that FCN's first convolution pads with, 99 more than the classifier's."""


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
        # Zeros do not change a maximum of what a ReLU gave.
        padded = F.pad(x_NKhw, (0, self.dilation, 0, self.dilation)) if self.stride == 1 else pad_to_multiple(x_NKhw, 2)
        return F.max_pool2d(padded, 2, stride=self.stride, dilation=self.dilation)


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16.

    Args:
        output_stride: 8, 16 or 32. A pool that lost its stride keeps the dilation so far and the convolutions after it
            take twice that, so features at 16, subsampled, equal those at 32.
        in_channels: of the image.
        batch_norm: normalise after each convolution (torchvision's `vgg16_bn`).
        layout: the classifier's own; `deeplab`: 3x3 pools (released models of DeepLab V1 and V2); `valid`: convolutions
            without padding, and no pool where the stride is gone (the front end of Yu and Koltun, arXiv 1511.07122,
            section 4): an image of L rows gives (L - 36) / 8 at stride 8; `fcn`: the first convolution pads with
            FCN_MARGIN zeros, and features are the five pools (released models of FCN).
        width_divisor: of all widths; pre-trained weights fit 1 alone.

    Attributes:
        channels: of the five features.
    """

    def __init__(
        self,
        *,
        output_stride: int,
        in_channels: int = 3,
        batch_norm: bool = False,
        layout: VGGLayout = "classifier",
        width_divisor: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ends, pools = [], []
        valid = layout == "valid"
        widths = tuple(width // width_divisor for width, _ in VGG16_STAGES)
        channels, stride, dilation = in_channels, 1, 1
        for width, (_, repeats) in zip(widths, VGG16_STAGES, strict=True):
            for _ in range(repeats):
                padding = 0 if valid else FCN_MARGIN if layout == "fcn" and not layers else dilation
                layers.append(nn.Conv2d(channels, width, 3, padding=padding, dilation=dilation))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            ends.append(len(layers) - 1)
            strided = stride < output_stride
            pool = Pool(stride=2 if strided else 1, dilation=dilation, overlapping=layout == "deeplab")
            layers.append(pool if strided or not valid else nn.Identity())
            pools.append(len(layers) - 1)
            stride, dilation = (2 * stride, dilation) if strided else (stride, 2 * dilation)
        self.taps = pools if layout == "fcn" else [*ends[1:], pools[-1]]
        """Index of the last layer of each feature."""
        self.channels = widths if layout == "fcn" else (*widths[1:], widths[-1])
        self.features = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, images_NKHW: Tensor) -> list[Tensor]:
        """Features of nominal stride 2, 4, 8, 16 and 32."""
        found = []
        x = images_NKHW
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class FullyConnected(nn.Module):
    """fc6 and fc7 of VGG-16 as convolutions, each with ReLU and dropout.

    Source: Long et al., FCN, arXiv 1411.4038, section 3.1. With fewer channels and a smaller kernel than VGG's 4096 and
    7 x 7 they are subsampled, as in DeepLab V1 (arXiv 1412.7062, section 3.2): every third tap, every fourth channel.

    Args:
        channels: width of both, a divisor of 4096.
        kernel_size: of fc6: 7, or 3.
        dilation: of fc6.
        padded: False leaves out zero padding, so that the map shrinks by dilation * (kernel_size - 1).
        dropout: probability, after each.
        in_channels: of the map; pre-trained weights fit VGG-16's 512 alone.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        padded: bool = True,
        dropout: float = 0.5,
        in_channels: int = VGG16_CHANNELS[-1],
    ) -> None:
        super().__init__()
        convolution = AtrousConv2d if padded else nn.Conv2d
        self.fc6 = convolution(in_channels, channels, kernel_size, dilation=dilation)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        _initialise(self)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of `channels`."""
        x: Tensor = self.dropout(F.relu(self.fc6(x_NKhw), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        return x

    def fitting(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a VGG-16 classifier in timm's or torchvision's names, subsampled to this layer's sizes.

        Raises:
            ValueError: they are not there, or have another shape.
        """
        fc6, fc7 = fully_connected_weights(state_dict)
        every = FULLY_CONNECTED_CHANNELS // self.fc6.out_channels
        side = self.fc6.kernel_size[0]
        tap = (FULLY_CONNECTED_SIDE - 1) // (side - 1)
        return {
            "fc6.weight": fc6[0][::every, :, ::tap, ::tap],
            "fc6.bias": fc6[1][::every],
            "fc7.weight": fc7[0][::every, ::every],
            "fc7.bias": fc7[1][::every],
        }


def fully_connected_weights(
    state_dict: Mapping[str, Tensor],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Weight and bias of fc6 and fc7 as convolutions, from a classifier in timm's or torchvision's names.

    Raises:
        ValueError: they are not there, or have another shape.
    """
    shapes = (
        (FULLY_CONNECTED_CHANNELS, VGG16_CHANNELS[-1], FULLY_CONNECTED_SIDE, FULLY_CONNECTED_SIDE),
        (FULLY_CONNECTED_CHANNELS, FULLY_CONNECTED_CHANNELS, 1, 1),
    )
    for names in (("pre_logits.fc1", "pre_logits.fc2"), ("classifier.0", "classifier.3")):
        found = [(state_dict.get(f"{name}.weight"), state_dict.get(f"{name}.bias")) for name in names]
        layers = [(weight, bias) for weight, bias in found if weight is not None and bias is not None]
        if len(layers) == 2:
            for (weight, _), shape, name in zip(layers, shapes, names, strict=True):
                if weight.numel() != shape[0] * shape[1] * shape[2] * shape[3]:
                    raise ValueError(f"{name}.weight has shape {tuple(weight.shape)}, expected {shape}, VGG-16's own")
            (fc6, fc6_bias), (fc7, fc7_bias) = layers
            return (fc6.reshape(shapes[0]), fc6_bias), (fc7.reshape(shapes[1]), fc7_bias)
    raise ValueError(
        "the state dict has VGG-16's convolutions but neither timm's pre_logits.fc1 and fc2 nor torchvision's "
        "classifier.0 and 3, which this network keeps as convolutions; give the whole classifier's state dict"
    )


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
