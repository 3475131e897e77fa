"""ESPNet (Mehta et al., "ESPNet: efficient spatial pyramid of dilated convolutions for semantic segmentation", ECCV
2018, arXiv 1803.06815).

A convolution and three levels of ESP modules down to stride 8, each level given the average-pooled image again; a
decoder of a few thousand parameters on maps of one channel per class. Trained in two stages: `stage="encoder"` is
ESPNet-C, the encoder with its 1x1 classifier; `stage="whole"` starts from it (give its model folder as weights), and
keeps that classifier.

Laid out as the released code (sacmehta/ESPNet), whose counts come out: 363,462 parameters for 19 classes, 365,109 for
20; ESPNet-C 349,193 and 349,449. With 20 classes at 512 x 1024: 4.780 G multiply-adds, ESPNet-C 3.470 G.

Differences from it:
- ESPNet-C is trained on labels of an eighth of the size there. Ours enlarges its scores by 8 and meets the labels as
  they are, as everywhere here.
- With fewer than 5 classes the decoder's ESP module keeps 5 channels, one for each of its branches.
- Images are padded with zeros to multiples of 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import load_own_encoder
from segcore.layers import AtrousConv2d, initialise_convolutions, pad_to_multiple, set_batch_norm_momentum
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import (
    Stage,
    check_batch_norm_momentum,
    check_own_encoder,
    check_positive,
    check_stage,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, Head, TransposedHead, build_head, check_decoder

ENCODER_STRIDE = 8
"""Image size / size of the encoder's last map."""
DILATIONS = (1, 2, 4, 8, 16)
"""Of the branches of an ESP module."""
IMAGE_CHANNELS = 3
STEM_CHANNELS, FINE_CHANNELS, COARSE_CHANNELS = 16, 64, 128
"""Of the first convolution and of the ESP modules at stride 4 and 8."""
EPSILON = 1e-3
"""Of batch normalisation, in the released code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ESPNetConfig:
    """ESPNet, or ESPNet-C, its encoder alone."""

    backbone: str = "espnet"
    """Always espnet, its own encoder."""

    stage: Stage = "whole"
    """encoder: ESPNet-C, which is trained first; whole: with the decoder, which starts from it."""

    fine_modules: int = 2
    """ESP modules at stride 4 behind the strided one (the paper's alpha_2)."""

    coarse_modules: int = 8
    """ESP modules at stride 8 behind the strided one (alpha_3)."""

    decoder: Decoder = "bilinear"
    """Last step of stage encoder: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        check_own_encoder(self.backbone, network="espnet")
        check_stage(self.stage)
        check_positive(self, "fine_modules", "coarse_modules")
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


class NormAct(nn.Sequential):
    """Batch normalisation, PReLU with one slope per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels, eps=EPSILON), nn.PReLU(channels))


class ESP(nn.Module):
    """Efficient spatial pyramid: reduce to a fifth of the channels, five dilated 3x3 side by side, add up, normalise.

    With branches d1 to d16 by dilation, the output is d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16, one behind the
    other: sums of neighbouring dilations have no gridding artefacts (hierarchical feature fusion, section 3.1).

    Source: section 3 of the paper; that d1 stays out of the sums is the released code's.

    Args:
        in_channels: of the input.
        out_channels: 5 or more; what a fifth leaves over is the first branch's.
        strided: reduce by a 3x3 convolution of stride 2 in place of 1x1.
        residual: add the input to the output before it is normalised.
    """

    def __init__(self, in_channels: int, out_channels: int, *, strided: bool = False, residual: bool = False) -> None:
        super().__init__()
        width = out_channels // len(DILATIONS)
        first = out_channels - width * (len(DILATIONS) - 1)
        kernel_size, stride = (3, 2) if strided else (1, 1)
        self.reduce = nn.Conv2d(in_channels, width, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self.branches = nn.ModuleList(
            AtrousConv2d(width, width if index else first, 3, dilation=dilation, bias=False)
            for index, dilation in enumerate(DILATIONS)
        )
        self.residual = residual
        self.norm_act = NormAct(out_channels)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size, or of half of it."""
        reduced = self.reduce(x_NKhw)
        maps = [branch(reduced) for branch in self.branches]
        # In place: the backward pass of a convolution, a concatenation or a sum never reads the output.
        for finer, coarser in pairwise(maps[1:]):
            coarser.add_(finer)
        total = torch.cat(maps, dim=1)
        x: Tensor = self.norm_act(total.add_(x_NKhw) if self.residual else total)
        return x


class EncoderMaps(NamedTuple):
    """What the encoder gives.

    Attributes:
        half_NKhw: 19 channels at stride 2.
        quarter_NKhw: 131 channels at stride 4.
        eighth_NKhw: 256 channels at stride 8.
    """

    half_NKhw: Tensor
    quarter_NKhw: Tensor
    eighth_NKhw: Tensor


HALF_CHANNELS = STEM_CHANNELS + IMAGE_CHANNELS
QUARTER_CHANNELS = 2 * FINE_CHANNELS + IMAGE_CHANNELS
EIGHTH_CHANNELS = 2 * COARSE_CHANNELS


class Encoder(nn.Module):
    """ESPNet-C without its classifier.

    Args:
        fine_modules, coarse_modules: see `ESPNetConfig`.
    """

    def __init__(self, fine_modules: int, coarse_modules: int) -> None:
        super().__init__()
        stem = nn.Conv2d(IMAGE_CHANNELS, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(stem, NormAct(STEM_CHANNELS))
        self.join_half = NormAct(HALF_CHANNELS)
        self.down_quarter = ESP(HALF_CHANNELS, FINE_CHANNELS, strided=True)
        self.quarter = nn.Sequential(*(ESP(FINE_CHANNELS, FINE_CHANNELS, residual=True) for _ in range(fine_modules)))
        self.join_quarter = NormAct(QUARTER_CHANNELS)
        self.down_eighth = ESP(QUARTER_CHANNELS, COARSE_CHANNELS, strided=True)
        self.eighth = nn.Sequential(
            *(ESP(COARSE_CHANNELS, COARSE_CHANNELS, residual=True) for _ in range(coarse_modules))
        )
        self.join_eighth = NormAct(EIGHTH_CHANNELS)
        initialise_convolutions(self)

    def forward(self, images_N3HW: Tensor) -> EncoderMaps:
        """Maps of images whose sides are multiples of 8."""
        image_half = _halved(images_N3HW)
        half = self.join_half(torch.cat([self.stem(images_N3HW), image_half], dim=1))
        x = self.down_quarter(half)
        quarter = self.join_quarter(torch.cat([self.quarter(x), x, _halved(image_half)], dim=1))
        x = self.down_eighth(quarter)
        return EncoderMaps(half, quarter, self.join_eighth(torch.cat([x, self.eighth(x)], dim=1)))

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the encoder of an earlier training.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place; nothing is changed then.
        """
        load_own_encoder(self, state_dict, network="espnet")


def _halved(x_N3HW: Tensor) -> Tensor:
    """Means of 3x3 around every other pixel, which at the border count the zeros around the map (released code).

    The sides are even. On 3 channels PyTorch's own pooling takes several times as long on a CPU.
    """
    padded = F.pad(x_N3HW, (1, 0, 1, 0))
    rows = padded[..., :-2:2, :] + padded[..., 1:-1:2, :] + padded[..., 2::2, :]
    return (rows[..., :-2:2] + rows[..., 1:-1:2] + rows[..., 2::2]) / 9


class ESPNetHead(nn.Module):
    """The decoder: scores at stride 8, 4 and 2 in turn, merged with the encoder's maps; then the images' size.

    Its `classifier` is ESPNet-C's own, by name and shape.

    Source: figure 4d of the paper, and the released code.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        merged = max(num_classes, len(DILATIONS))
        self.classifier = _classifier(num_classes)
        self.classifier_norm = nn.BatchNorm2d(num_classes, eps=EPSILON)
        self.enlarge_eighth = _doubling(num_classes, num_classes)
        self.project_quarter = nn.Conv2d(QUARTER_CHANNELS, num_classes, 1, bias=False)
        self.merge_quarter = nn.Sequential(NormAct(2 * num_classes), ESP(2 * num_classes, merged))
        self.enlarge_quarter = nn.Sequential(_doubling(merged, num_classes), NormAct(num_classes))
        merge = nn.Conv2d(num_classes + HALF_CHANNELS, num_classes, 3, padding=1, bias=False)
        self.merge_half = nn.Sequential(merge, NormAct(num_classes))
        initialise_convolutions(self)
        self.last = TransposedHead(num_classes, num_classes, kernel_size=2)

    def forward(self, maps: EncoderMaps, *, height: int, width: int) -> SegmentationOutput:
        """Scores at the images' size."""
        x = self.enlarge_eighth(self.classifier_norm(self.classifier(maps.eighth_NKhw)))
        x = self.merge_quarter(torch.cat([self.project_quarter(maps.quarter_NKhw), x], dim=1))
        x = self.merge_half(torch.cat([self.enlarge_quarter(x), maps.half_NKhw], dim=1))
        output: SegmentationOutput = self.last(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy at full resolution."""
        return self.last.loss(output, labels_NHW)


def _classifier(num_outputs: int) -> nn.Conv2d:
    return nn.Conv2d(EIGHTH_CHANNELS, num_outputs, 1, bias=False)


def _doubling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)


class ESPNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`. `backbone` is the encoder without its classifier."""

    def __init__(self, config: ESPNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder_alone = config.stage == "encoder"
        self.backbone = Encoder(config.fine_modules, config.coarse_modules)
        if self.encoder_alone:
            self.head: Head | ESPNetHead = build_head(
                lambda num_outputs, _: _classifier(num_outputs),
                num_classes,
                enlargement=config.enlargement,
                config=config.dupsample,
                code=code,
            )
        else:
            self.head = ESPNetHead(num_classes)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        maps = self.backbone(pad_to_multiple(images_N3HW, ENCODER_STRIDE))
        x = maps.eighth_NKhw if self.encoder_alone else maps
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
