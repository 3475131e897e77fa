"""DeepLabV3+ (Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018, arXiv 1802.02611).

Encoder at output stride 8, 16 or 32, ASPP, one low-level feature of stride 4, two 3x3 convolutions, bilinear
upsampling to the image's size.
With `low_level_channels=0` ASPP is classified directly and upsampled: DeepLabV3 with separable convolutions, the
"bilinear" rows of the DUpsampling paper's table 1.

Reproduces the size of the row "Xception-65, separable ASPP and decoder": 41,055,413 parameters for 21 classes, 54.03 G
multiply-adds at 513 x 513 (published: 54.17 G). ResNet-50: 26,696,133.

Differences from the TF code:
- Maps are enlarged by their stride exactly and cut, so any input size works; TF uses sizes k * OS + 1 with
  `align_corners=True`, which is the same distance between map rows.
- Our ResNets (torchvision's layout) take the stride in the first unit of a stage, and the low-level feature is the end
  of stage 1; TF's take it in the last unit and tap unit 2 of block 1 before the sum.
- Batch normalisation momentum is PyTorch's 0.1, which short runs need; TF's is 0.0003 (`batch_norm_momentum`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcore.backbones import OUTPUT_STRIDES, build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ASPP,
    ConvBnAct,
    SeparableConv,
    atrous_rates,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
    upsample,
)
from segcore.losses import cross_entropy
from segcore.models.contract import LossTerms, SegmentationOutput

LOW_LEVEL_STRIDE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabV3PlusConfig:
    """DeepLabV3+ over any backbone."""

    backbone: str = "resnet50"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 16
    """Image size / size of the coarsest feature map: 8, 16 or 32."""

    aspp_channels: int = 256
    """Width of ASPP."""

    aspp_dropout: float = 0.1
    """Dropout after ASPP."""

    separable: bool = True
    """Depthwise separable convolutions in ASPP's atrous branches and in the decoder."""

    low_level_channels: int = 48
    """Width of the projected stride-4 feature; 0 leaves the decoder out and upsamples ASPP's scores bilinearly."""

    decoder_channels: int = 256
    """Width of the decoder's two 3x3 convolutions."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included; DeepLab's TF code: 0.0003 (for 30 000 steps and more)."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        if self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {self.output_stride}; it must be one of {OUTPUT_STRIDES}")
        for name in ("aspp_channels", "decoder_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.low_level_channels < 0:
            raise ValueError(f"low_level_channels is {self.low_level_channels}; give 0 for no low-level branch")
        if not 0 <= self.aspp_dropout < 1 or not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(
                f"aspp_dropout is {self.aspp_dropout} and batch_norm_momentum {self.batch_norm_momentum}; "
                "expected [0, 1) and (0, 1]"
            )


class LowLevelDecoder(nn.Module):
    """Project the low-level feature, concatenate it with the upsampled ASPP map, two 3x3 convolutions."""

    def __init__(self, config: DeepLabV3PlusConfig, low_level_in_channels: int) -> None:
        super().__init__()
        self.factor = config.output_stride // LOW_LEVEL_STRIDE
        self.project = ConvBnAct(low_level_in_channels, config.low_level_channels)
        widths = (config.aspp_channels + config.low_level_channels, config.decoder_channels)
        self.fuse = nn.Sequential(
            *(
                SeparableConv(width, config.decoder_channels)
                if config.separable
                else ConvBnAct(width, config.decoder_channels, 3)
                for width in widths
            )
        )

    def forward(self, x_NKhw: Tensor, low_level_NKhw: Tensor) -> Tensor:
        """Map of the low-level feature's size."""
        height, width = low_level_NKhw.shape[-2:]
        x_NKhw = upsample(x_NKhw, self.factor, height=height, width=width)
        joined = torch.cat([x_NKhw, self.project(low_level_NKhw)], dim=1)
        x: Tensor = self.fuse(joined)
        return x


class DeepLabV3Plus(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: DeepLabV3PlusConfig, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
        self.aspp = ASPP(
            self.backbone.channels[32],
            config.aspp_channels,
            rates=atrous_rates(config.output_stride),
            separable=config.separable,
            dropout=config.aspp_dropout,
        )
        initialise_convolutions(self.aspp)
        self.decoder: LowLevelDecoder | None = None
        width = config.aspp_channels
        if config.low_level_channels:
            self.decoder = LowLevelDecoder(config, self.backbone.channels[LOW_LEVEL_STRIDE])
            initialise_convolutions(self.decoder)
            width = config.decoder_channels
        self.classifier = nn.Conv2d(width, num_classes, 1)
        initialise_convolutions(self.classifier)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x, stride = self.aspp(features[32]), self.backbone.output_stride
        if self.decoder is not None:
            x, stride = self.decoder(x, features[LOW_LEVEL_STRIDE]), LOW_LEVEL_STRIDE
        logits = upsample(self.classifier(x), stride, height=height, width=width)
        return SegmentationOutput(logits_NCHW=logits)

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy at full resolution; labels are never resized."""
        loss = cross_entropy(output.logits_NCHW, labels_NHW)
        return LossTerms(total=loss, terms={"cross_entropy": loss.detach()})
