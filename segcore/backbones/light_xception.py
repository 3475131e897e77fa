"""Xception A and B, the light image classifiers of DFANet (Li et al., CVPR 2019, arXiv 1904.02216, table 1).

3x3 convolution to 8 channels, then three stages of 4, 6 and 4 residual blocks [m, m, 4m], each stage of stride 2.
As ImageNet classifiers, with a fully connected layer to 1000 classes: 354,008 and 206,232 parameters; without it, at
1024 x 1024: 1.658 and 0.845 G multiply-adds (published: 1.6 and 0.83 G).

The paper gives widths, repeats and strides. What it does not say is chosen so that the published cost comes out:
- A separable convolution is depthwise, pointwise, batch normalisation, ReLU, nothing in between; the third of a block
  has no ReLU, the sum with the skip has.
- The stride is in the first separable convolution of a stage's first block. That block's skip is a 1x1 convolution of
  stride 2 with batch normalisation; all others are identities (a projection in every block costs too much).
- The normalisation that ends a block starts at gain 1 / sqrt(14), 14 being the number of blocks. With gain 1 each block
  adds as much as it gets until the running statistics have settled, and DFANet's 42 blocks in evaluation then give
  scores of 1e5. Source: De and Smith, NeurIPS 2020, arXiv 2002.10444.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones.catalogue import backbone_spec
from segcore.layers import initialise_convolutions, strided_conv

STEM_CHANNELS = 8
"""Of the first convolution."""

STAGE_BLOCKS = (4, 6, 4)
"""Residual blocks of the stages enc2, enc3 and enc4."""

STAGE_CHANNELS = {"dfanet_xception_a": (48, 96, 192), "dfanet_xception_b": (32, 64, 128)}
"""Output channels (4m) of the three stages, by key of `BACKBONES`."""

RESIDUAL_GAIN = sum(STAGE_BLOCKS) ** -0.5
"""Of the normalisation before the sum with the skip, at the start."""

SAFE_STRIDED_CHANNELS = 16
"""Fewest inputs of a strided 1x1 convolution: with fewer, oneDNN's gradient of channels-last weights writes past its
buffer under AVX-512, and the process may die (https://github.com/uxlfoundation/oneDNN/issues/6035). To be deleted when
the oldest PyTorch that we support has the cure."""

FIRST_LAYERS = ("convs.0.depthwise.weight", "convs.0.pointwise.weight", "skip.0.weight")
"""Tensors of a stage's first block whose shape depends on what the stage takes in."""


def light_xception_channels(name: str) -> tuple[int, int, int]:
    """Output channels of the three stages.

    Raises:
        ValueError: `name` is not a light Xception; the message lists those there are.
    """
    backbone_spec(name, last_stride=16)
    return STAGE_CHANNELS[name]


class PlainSeparableConv(nn.Module):
    """3x3 depthwise, 1x1 pointwise, BN, ReLU; 1 / stride of the size, rounded up.

    `segcore.layers.SeparableConv` normalises and activates between the two as well.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=in_channels,
            bias=False,
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of 1 / stride of the size."""
        x: Tensor = self.activation(self.norm(self.pointwise(self.depthwise(x_NKhw))))
        return x


class LightXceptionBlock(nn.Module):
    """Three separable convolutions to m, m and 4m channels beside a skip; sum; ReLU.

    Args:
        in_channels: of the input.
        out_channels: 4m.
        strided: the first block of a stage: stride 2 and a projected skip.
        separable_skip: project by a separable convolution, as Xception39 does, instead of a 1x1 convolution.
        dilations: of the first separable convolution and of the other two. With a first block's other than (1, 1),
            dilation takes the place of its stride (`separable_skip` alone).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strided: bool,
        separable_skip: bool = False,
        dilations: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        width = out_channels // 4
        first, rest = dilations
        stride = 2 if strided and dilations == (1, 1) else 1
        last = PlainSeparableConv(width, out_channels, dilation=rest, activation=False)
        nn.init.constant_(last.norm.weight, RESIDUAL_GAIN)
        self.convs = nn.Sequential(
            PlainSeparableConv(in_channels, width, stride=stride, dilation=first),
            PlainSeparableConv(width, width, dilation=rest),
            last,
        )
        self.samples_first = strided and not separable_skip and in_channels < SAFE_STRIDED_CHANNELS
        self.skip: nn.Module = nn.Identity()
        if strided and separable_skip:
            self.skip = PlainSeparableConv(in_channels, out_channels, stride=stride, dilation=first, activation=False)
        elif strided:
            stride = 1 if self.samples_first else 2
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size, or of half of it, rounded up."""
        skipped = self.skip(x_NKhw[..., ::2, ::2] if self.samples_first else x_NKhw)
        # In place: a normalisation's backward pass reads its input, never its output.
        total: Tensor = self.convs(x_NKhw).add_(skipped)
        return F.relu(total, inplace=True)


def light_xception_stage(in_channels: int, out_channels: int, *, num_blocks: int) -> nn.Sequential:
    """One stage: half the size, rounded up."""
    return nn.Sequential(
        *(
            LightXceptionBlock(out_channels if index else in_channels, out_channels, strided=index == 0)
            for index in range(num_blocks)
        )
    )


def light_xception_stages(in_channels: Sequence[int], out_channels: Sequence[int]) -> nn.ModuleDict:
    """The stages `enc2`, `enc3`, `enc4`, each with its own input width.

    Args:
        in_channels: what each stage takes in.
        out_channels: what it gives.
    """
    widths = zip(in_channels, out_channels, STAGE_BLOCKS, strict=True)
    return nn.ModuleDict(
        {
            f"enc{number}": light_xception_stage(before, after, num_blocks=num_blocks)
            for number, (before, after, num_blocks) in enumerate(widths, start=2)
        }
    )


def light_xception_stem() -> nn.Sequential:
    """3x3 convolution of stride 2, BN, ReLU."""
    return strided_conv(3, STEM_CHANNELS)


class LightXception(nn.Module):
    """Features of one image batch, by stride; a map at stride s of an image with L rows has ceil(L / s) rows.

    A classifier is this, the mean over the coarsest map and a fully connected layer; its state dict is this one's
    with `fc.weight` and `fc.bias`.

    Args:
        name: `dfanet_xception_a` or `dfanet_xception_b`.

    Attributes:
        channels: channels of each feature.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        channels = light_xception_channels(name)
        self.channels = dict(zip((2, 4, 8, 16), (STEM_CHANNELS, *channels), strict=True))
        self.conv1 = light_xception_stem()
        self.stages = light_xception_stages((STEM_CHANNELS, *channels[:-1]), channels)
        initialise_convolutions(self)

    def forward(self, images_N3HW: Tensor) -> dict[int, Tensor]:
        """Features of stride 2 (the first convolution), 4, 8 and 16 (ends of the stages)."""
        x = self.conv1(images_N3HW)
        features = {2: x}
        for stride, stage in zip((4, 8, 16), self.stages.values(), strict=True):
            x = stage(x)
            features[stride] = x
        return features
