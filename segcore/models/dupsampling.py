"""DUpsampling (Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120).

Low-level features are *down*sampled to the coarsest map and fused there; the fused map predicts, at every location,
the code of a whole R x R block of labels (R = output stride), which the frozen basis of a PCA over the training labels
expands. A learnable temperature scales the scores: the basis reconstructs one-hot values in [0, 1], and with
temperature 1 even perfect ones cost ln(e + C - 1) - 1 = 2.12 nats at 21 classes.

Reproduces the decoder costs of tables 2 and 3 within 1 %. Parameters at 21 classes, basis and its bias included,
temperature (1) not: ResNet-50 deep stem 27,020,288 without low-level features and 27,376,864 with strides 2 and 16
(64 components, OS 16); Xception-65 with stride 16 and 128 components 41,801,888. With `code_batch_norm`, as the paper's
costs were reconstructed: 27,020,352, 27,376,928 and 41,802,016.

`segcore.models.heads` says what the paper leaves open about the expansion and its loss. Here:
- Widths and the sequential fusion follow from the paper's decoder costs (tables 2 and 3).
- Low-level features: torchvision's ResNets end a stage after the sum and ReLU; the paper taps the last convolution.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segcore.backbones import build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ASPP,
    ConvBnAct,
    SeparableConv,
    atrous_rates,
    downsample,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
)
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_dropout_and_momentum, check_output_stride, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, DUpsampleHead, pointwise

LOW_LEVEL_STRIDES = (2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DUpsamplingConfig:
    """DUpsampling over any backbone."""

    backbone: str = "resnet50"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 32
    """Image size / size of the coarsest feature map: 8, 16 or 32; the label PCA's block side must equal it."""

    features: tuple[int, ...] = (2, 16)
    """Strides of the low-level features, fused in this order at the coarsest map: any of 2, 4, 8, 16; may be empty."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """The code that is predicted, its expansion and its losses."""

    aspp_channels: int = 256
    """Width of ASPP and of the decoder."""

    aspp_dropout: float = 0.1
    """Dropout after ASPP."""

    separable: bool = True
    """Depthwise separable convolutions in ASPP's atrous branches (those of the decoder always are)."""

    low_level_channels: int = 48
    """Width of each projected low-level feature."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included; DeepLab's TF code: 0.0003 (for 30 000 steps and more)."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        if len(set(self.features)) != len(self.features) or not set(self.features) <= set(LOW_LEVEL_STRIDES):
            raise ValueError(f"features are {self.features}; expected different strides out of {LOW_LEVEL_STRIDES}")
        check_positive(self, "aspp_channels", "low_level_channels")
        check_dropout_and_momentum(
            dropout=self.aspp_dropout, batch_norm_momentum=self.batch_norm_momentum, dropout_name="aspp_dropout"
        )

    @property
    def decoder(self) -> Decoder:
        """What this network is there for."""
        return "dupsample"

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class DownsampledFusion(nn.Module):
    """Bring a low-level feature to the coarsest map, project, concatenate, two separable 3x3 convolutions."""

    def __init__(self, channels: int, low_level_in_channels: int, low_level_channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = ConvBnAct(low_level_in_channels, low_level_channels)
        self.fuse = nn.Sequential(
            SeparableConv(channels + low_level_channels, channels), SeparableConv(channels, channels)
        )

    def forward(self, x_NKhw: Tensor, low_level_NKhw: Tensor) -> Tensor:
        """Map of x's size. Downsampling comes before the projection (figure 2 of the paper)."""
        height, width = x_NKhw.shape[-2:]
        low_level = self.project(downsample(low_level_NKhw, self.factor, height=height, width=width))
        x: Tensor = self.fuse(torch.cat([x_NKhw, low_level], dim=1))
        return x


class DUpsampling(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: DUpsamplingConfig, num_classes: int, code: BlockCode) -> None:
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
        self.feature_strides = config.features
        self.fusions = nn.ModuleList(
            DownsampledFusion(
                config.aspp_channels,
                self.backbone.channels[stride],
                config.low_level_channels,
                factor=config.output_stride // self.backbone.feature_strides[stride],
            )
            for stride in config.features
        )
        self.depthwise = ConvBnAct(config.aspp_channels, config.aspp_channels, 3, groups=config.aspp_channels)
        for part in (self.aspp, self.fusions, self.depthwise):
            initialise_convolutions(part)
        self.head = DUpsampleHead(pointwise(config.aspp_channels), config.dupsample, code)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size, already divided by the temperature."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x = self.aspp(features[32])
        for stride, fusion in zip(self.feature_strides, self.fusions, strict=True):
            x = fusion(x, features[stride])
        output: SegmentationOutput = self.head(self.depthwise(x), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
