"""ENet (Paszke et al., "ENet: a deep neural network architecture for real-time semantic segmentation", 2016, arXiv
1606.02147).

An encoder of 23 small blocks that is at stride 8 after the seventh, and a decoder of 5 that unpools with the encoder's
own switches. A block reduces the channels to a quarter, convolves (3x3, dilated, or 5x1 and 1x5), expands, drops whole
channels, and adds the result to its input. No convolution has a bias. The encoder has PReLU, the decoder ReLU.

Trained in two stages: `stage="encoder"` is the encoder with a 1x1 classifier, `stage="whole"` starts from it (give its
model folder as weights). The paper trains the encoder on labels of an eighth of the size; ours enlarges its scores by 8
and meets the labels as they are, as everywhere here.

Two layouts:
- `paper`: one slope per channel in PReLU, the image pooled over 2x2, nothing between 5x1 and 1x5, no activation between
  a block's last 1x1 convolution and the sum. 355,015 parameters for 19 classes.
- `davidtvs`: as davidtvs/PyTorch-ENet has it, the best-known port: one slope per PReLU, 3x3 pooling, normalisation and
  activation between 5x1 and 1x5, an activation before the sum too (in the decoder's upsampling blocks not). 351,660
  parameters, 1 % fewer.
Either takes 1.774 G multiply-adds at 360 x 640 and 4.037 G at 512 x 1024 (published: 3.8 GFLOPs at 360 x 640 at two per
multiply-add, which is 1.9 G).

A normalisation that ends a block starts at gain 22 ** -0.5, 22 being the encoder's sums. With gain 1 each block adds as
much as it gets until the running statistics have settled, and an untrained network in evaluation gives scores in the
thousands (as in `segcore.backbones.light_xception`; De and Smith, NeurIPS 2020, arXiv 2002.10444).

Where the paper is silent, both follow davidtvs: a strided block reduces to a quarter of its input's channels (of its
output's in the authors' Lua code, e-lab/ENet-training), its transposed convolution is 2x2 (there 3x3), the last one 3x3
(there 2x2). Dropout in the decoder is the paper's; that code has none there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import load_own_encoder
from segcore.layers import (
    AtrousConv2d,
    initialise_convolutions,
    pad_to_multiple,
    pool_with_switches,
    set_batch_norm_momentum,
    unpool,
)
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import (
    Stage,
    check_batch_norm_momentum,
    check_known,
    check_own_encoder,
    check_stage,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, Head, TransposedHead, build_head, check_decoder, pointwise

Layout = Literal["paper", "davidtvs"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

ENCODER_STRIDE = 8
"""Image size / size of the encoder's last map."""
STEM_CHANNELS, FINE_CHANNELS, COARSE_CHANNELS = 16, 64, 128
"""Of the maps at stride 2, 4 and 8."""
REDUCTION = 4
"""A block's channels / those that its main convolution sees."""
EARLY_DROPOUT, DROPOUT = 0.01, 0.1
"""Probability that a channel is dropped: in the blocks before 2.0, and from there on (section 4 of the paper)."""
RESIDUAL_GAIN = 22**-0.5
"""Of the normalisation that ends a block, at the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ENetConfig:
    """ENet, or its encoder alone."""

    backbone: str = "enet"
    """Always enet, its own encoder."""

    stage: Stage = "whole"
    """encoder: with a 1x1 classifier, which is trained first; whole: with the decoder, which starts from it."""

    layout: Layout = "paper"
    """paper, or davidtvs, as in davidtvs/PyTorch-ENet; see the module's docstring."""

    decoder: Decoder = "bilinear"
    """Last step of stage encoder: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        check_own_encoder(self.backbone, network="enet")
        check_stage(self.stage)
        check_known("layout", self.layout, LAYOUTS)
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return ENCODER_STRIDE

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return ENCODER_STRIDE if self.stage == "encoder" else 2


class _Style(NamedTuple):
    """What blocks of the two layouts, and of encoder and decoder, differ in.

    Attributes:
        activation: makes one for a number of channels.
        epsilon: of batch normalisation: 1e-3 in the authors' code, PyTorch's own in davidtvs's.
        eager: activations between 5x1 and 1x5 and before the sum.
        pool_side: of the image's maximum pooling.
    """

    activation: Callable[[int], nn.Module]
    epsilon: float
    eager: bool
    pool_side: int


def _style(layout: Layout, *, decoder: bool) -> _Style:
    def relu(_: int) -> nn.Module:
        return nn.ReLU(inplace=True)

    def one_slope(_: int) -> nn.Module:
        return nn.PReLU()

    if layout == "davidtvs":
        return _Style(relu if decoder else one_slope, epsilon=1e-5, eager=True, pool_side=3)
    return _Style(relu if decoder else nn.PReLU, epsilon=1e-3, eager=False, pool_side=2)


def _unit(convolution: nn.Conv2d | nn.ConvTranspose2d, style: _Style, *, activated: bool = True) -> nn.Sequential:
    """A convolution, batch normalisation, activation."""
    channels = convolution.out_channels
    unit = nn.Sequential(convolution, nn.BatchNorm2d(channels, eps=style.epsilon))
    if activated:
        unit.append(style.activation(channels))
    return unit


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def _expansion(in_channels: int, out_channels: int, style: _Style, *, activated: bool) -> nn.Sequential:
    """The 1x1 convolution that ends a block's new part, and its normalisation."""
    unit = _unit(_pointwise(in_channels, out_channels), style, activated=activated)
    nn.init.constant_(unit.get_submodule("1").get_parameter("weight"), RESIDUAL_GAIN)
    return unit


class InitialBlock(nn.Module):
    """3x3 convolution of stride 2 to 13 channels beside the pooled image; BN, PReLU: 16 channels of half the size.

    The two parts are normalised each by itself, which is the same as together, so that the convolution's part can be
    folded for inference.
    """

    def __init__(self, style: _Style) -> None:
        super().__init__()
        convolution = nn.Conv2d(3, STEM_CHANNELS - 3, 3, stride=2, padding=1, bias=False)
        self.convolved = _unit(convolution, style, activated=False)
        self.pooled_norm = nn.BatchNorm2d(3, eps=style.epsilon)
        self.activation = style.activation(STEM_CHANNELS)
        self.pool_side = style.pool_side

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Map of half the size."""
        pooled = _pooled(images_N3HW) if self.pool_side == 2 else F.max_pool2d(images_N3HW, 3, stride=2, padding=1)
        x: Tensor = self.activation(torch.cat([self.convolved(images_N3HW), self.pooled_norm(pooled)], dim=1))
        return x


def _pooled(images_N3HW: Tensor) -> Tensor:
    """Maximum of 2x2 pixels. On 3 channels PyTorch's own pooling takes twenty times as long on a CPU."""
    rows = torch.maximum(images_N3HW[..., ::2, :], images_N3HW[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class Bottleneck(nn.Module):
    """1x1 convolution to a quarter of the channels, main convolution, 1x1 back, spatial dropout; sum; activation.

    Args:
        channels: of input and output.
        style: see `_Style`.
        dropout: probability that a channel of the sum's new part is dropped.
        dilation: of the main 3x3 convolution.
        asymmetric: 5x1 and 1x5 in its place.
    """

    def __init__(
        self, channels: int, style: _Style, *, dropout: float = DROPOUT, dilation: int = 1, asymmetric: bool = False
    ) -> None:
        super().__init__()
        inner = channels // REDUCTION
        self.reduce = _unit(_pointwise(channels, inner), style)
        if asymmetric:
            rows = nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False)
            columns = nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False)
            first = _unit(rows, style) if style.eager else nn.Sequential(rows)
            self.main = first.extend(_unit(columns, style))
        else:
            self.main = _unit(AtrousConv2d(inner, inner, 3, dilation=dilation, bias=False), style)
        self.expand = _expansion(inner, channels, style, activated=style.eager)
        self.dropout = nn.Dropout2d(dropout)
        self.activation = style.activation(channels)
        self.eager = style.eager

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape."""
        new = self.dropout(self.expand(self.main(self.reduce(x_NKhw))))
        total = new + x_NKhw if self.eager else new.add_(x_NKhw)  # a ReLU's backward pass reads its output
        x: Tensor = self.activation(total)
        return x


class DownsamplingBottleneck(nn.Module):
    """2x2 convolution of stride 2 to a quarter of the channels, 3x3, 1x1, spatial dropout; sum; activation.

    The sum's other part is the pooled map, with channels of zeros behind its own: they are left out of the sum.
    """

    def __init__(self, in_channels: int, out_channels: int, style: _Style, *, dropout: float = DROPOUT) -> None:
        super().__init__()
        inner = in_channels // REDUCTION
        self.reduce = _unit(nn.Conv2d(in_channels, inner, 2, stride=2, bias=False), style)
        self.main = _unit(nn.Conv2d(inner, inner, 3, padding=1, bias=False), style)
        self.expand = _expansion(inner, out_channels, style, activated=style.eager)
        self.dropout = nn.Dropout2d(dropout)
        self.activation = style.activation(out_channels)

    def forward(self, x_NKHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map of half the size, and the switches of the pooling."""
        pooled, switches = pool_with_switches(x_NKHW)
        new = self.dropout(self.expand(self.main(self.reduce(x_NKHW))))
        new[:, : pooled.shape[1]].add_(pooled)
        return self.activation(new), switches


class UpsamplingBottleneck(nn.Module):
    """1x1 convolution to a quarter of the channels, 2x2 transposed convolution, 1x1, spatial dropout; sum; ReLU.

    The sum's other part is the map after a 1x1 convolution, unpooled with an encoder's switches.
    """

    def __init__(self, in_channels: int, out_channels: int, style: _Style) -> None:
        super().__init__()
        inner = in_channels // REDUCTION
        self.shortcut = _unit(_pointwise(in_channels, out_channels), style, activated=False)
        self.reduce = _unit(_pointwise(in_channels, inner), style)
        self.main = _unit(nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False), style)
        self.expand = _expansion(inner, out_channels, style, activated=False)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.activation = style.activation(out_channels)

    def forward(self, x_NKhw: Tensor, switches_NKhw: Tensor) -> Tensor:
        """Map of twice the size; `switches_NKhw` have its channels and the size of `x_NKhw`."""
        new = self.dropout(self.expand(self.main(self.reduce(x_NKhw))))
        x: Tensor = self.activation(new.add_(unpool(self.shortcut(x_NKhw), switches_NKhw)))
        return x


class EncoderMaps(NamedTuple):
    """What the encoder gives.

    Attributes:
        coarse_NKhw: 128 channels at stride 8.
        switches_NKhw: of the pooling to stride 4 (16 channels) and to stride 8 (64).
    """

    coarse_NKhw: Tensor
    switches_NKhw: tuple[Tensor, Tensor]


def _eight_bottlenecks(style: _Style) -> nn.Sequential:
    """Blocks 2.1 to 2.8 of table 1, and as many of stage 3."""
    dilations = (1, 2, None, 4, 1, 8, None, 16)
    return nn.Sequential(
        *(
            Bottleneck(COARSE_CHANNELS, style, dilation=dilation or 1, asymmetric=dilation is None)
            for dilation in dilations
        )
    )


class Encoder(nn.Module):
    """Initial block and stages 1 to 3 of table 1 of the paper."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        style = _style(layout, decoder=False)
        self.initial = InitialBlock(style)
        self.down1 = DownsamplingBottleneck(STEM_CHANNELS, FINE_CHANNELS, style, dropout=EARLY_DROPOUT)
        self.stage1 = nn.Sequential(*(Bottleneck(FINE_CHANNELS, style, dropout=EARLY_DROPOUT) for _ in range(4)))
        self.down2 = DownsamplingBottleneck(FINE_CHANNELS, COARSE_CHANNELS, style)
        self.stage2 = _eight_bottlenecks(style)
        self.stage3 = _eight_bottlenecks(style)
        initialise_convolutions(self)

    def forward(self, images_N3HW: Tensor) -> EncoderMaps:
        """Maps of images whose sides are multiples of 8."""
        x, fine_switches = self.down1(self.initial(images_N3HW))
        x, coarse_switches = self.down2(self.stage1(x))
        return EncoderMaps(self.stage3(self.stage2(x)), (fine_switches, coarse_switches))

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the encoder of an earlier training.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place; nothing is changed then.
        """
        load_own_encoder(self, state_dict, network="enet")


class UpsamplingPath(nn.Module):
    """Stages 4 and 5 of table 1: the decoder without its last transposed convolution."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        style = _style(layout, decoder=True)
        self.up4 = UpsamplingBottleneck(COARSE_CHANNELS, FINE_CHANNELS, style)
        self.stage4 = nn.Sequential(*(Bottleneck(FINE_CHANNELS, style) for _ in range(2)))
        self.up5 = UpsamplingBottleneck(FINE_CHANNELS, STEM_CHANNELS, style)
        self.stage5 = Bottleneck(STEM_CHANNELS, style)
        initialise_convolutions(self)

    def forward(self, maps: EncoderMaps) -> Tensor:
        """Map of 16 channels at stride 2."""
        fine_switches, coarse_switches = maps.switches_NKhw
        x: Tensor = self.stage4(self.up4(maps.coarse_NKhw, coarse_switches))
        x = self.stage5(self.up5(x, fine_switches))
        return x


class ENet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`. `backbone` is the encoder."""

    def __init__(self, config: ENetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Encoder(config.layout)
        self.upsampling: UpsamplingPath | None = None
        if config.stage == "encoder":
            self.head: Head | TransposedHead = build_head(
                pointwise(COARSE_CHANNELS),
                num_classes,
                enlargement=config.enlargement,
                config=config.dupsample,
                code=code,
            )
        else:
            self.upsampling = UpsamplingPath(config.layout)
            self.head = TransposedHead(STEM_CHANNELS, num_classes, kernel_size=3)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        maps = self.backbone(pad_to_multiple(images_N3HW, ENCODER_STRIDE))
        x = maps.coarse_NKhw if self.upsampling is None else self.upsampling(maps)
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
