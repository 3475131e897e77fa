"""DeepLabV3+ (Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018, arXiv 1802.02611).

Encoder at output stride 8, 16 or 32, ASPP, a low-level feature of stride 4, two 3x3 convolutions, bilinear
upsampling to the image's size.
With `low_level_features=()` ASPP is classified directly and upsampled: DeepLabV3 with separable convolutions, the
"bilinear" rows of the DUpsampling paper's table 1; features of other strides are the "vanilla" rows of its table 3.

Reproduces the size of the row "Xception-65, separable ASPP and decoder": 41,055,413 parameters for 21 classes, 54.03 G
multiply-adds at 513 x 513 (published: 54.17 G). ResNet-50: 26,696,133.

Differences from the TF code:
- Maps are enlarged by their stride exactly and cut, so any input size works; TF uses sizes k * OS + 1 with
  `align_corners=True`, which is the same distance between map rows.
- Our ResNets (torchvision's layout) take the stride in the first unit of a stage, and the low-level feature is the end
  of stage 1; TF's take it in the last unit and tap unit 2 of block 1 before the sum.
- Batch normalisation momentum is PyTorch's 0.1, which short runs need; TF's is 0.0003 (`batch_norm_momentum`).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segcore.backbones import Backbone, build_backbone
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
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_dropout_and_momentum, check_output_stride, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise

LOW_LEVEL_STRIDES = (2, 4, 8, 16)


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

    low_level_features: tuple[int, ...] = (4,)
    """Strides of the low-level features, fused in this order at the finest one: any of 2, 4, 8, 16; may be empty."""

    low_level_channels: int = 48
    """Width of each projected low-level feature."""

    decoder_channels: int = 256
    """Width of the decoder's two 3x3 convolutions."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included; DeepLab's TF code: 0.0003 (for 30 000 steps and more)."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        features = self.low_level_features
        if len(set(features)) != len(features) or not set(features) <= set(LOW_LEVEL_STRIDES):
            raise ValueError(
                f"low_level_features are {features}; expected different strides out of {LOW_LEVEL_STRIDES}"
            )
        check_positive(self, "aspp_channels", "low_level_channels", "decoder_channels")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(
            dropout=self.aspp_dropout, batch_norm_momentum=self.batch_norm_momentum, dropout_name="aspp_dropout"
        )

    @property
    def enlargement(self) -> int:
        """Factor of the last step: stride of the finest map that the decoder works on."""
        return min((self.output_stride, *self.low_level_features))


class LowLevelFusion(nn.Module):
    """Project a low-level feature, concatenate it with the upsampled map, two 3x3 convolutions."""

    def __init__(
        self, config: DeepLabV3PlusConfig, in_channels: int, low_level_in_channels: int, *, factor: int
    ) -> None:
        super().__init__()
        self.factor = factor
        self.project = ConvBnAct(low_level_in_channels, config.low_level_channels)
        widths = (in_channels + config.low_level_channels, config.decoder_channels)
        self.fuse = nn.Sequential(
            *(
                SeparableConv(width, config.decoder_channels)
                if config.separable
                else ConvBnAct(width, config.decoder_channels, 3)
                for width in widths
            )
        )

    def forward(self, x_NKhw: Tensor, low_level_NKhw: Tensor) -> Tensor:
        """Map of x's size; the low-level feature is enlarged by `factor`, as in the TF code after its projection."""
        height, width = x_NKhw.shape[-2:]
        low_level = upsample(self.project(low_level_NKhw), self.factor, height=height, width=width)
        x: Tensor = self.fuse(torch.cat([x_NKhw, low_level], dim=1))
        return x


class LowLevelDecoder(nn.Module):
    """Enlarge ASPP's map to the finest low-level feature, then fuse one feature after the other."""

    def __init__(self, config: DeepLabV3PlusConfig, backbone: Backbone) -> None:
        super().__init__()
        self.features = config.low_level_features
        strides = [backbone.feature_strides[feature] for feature in self.features]
        self.stride = min(strides)
        self.finest = self.features[strides.index(self.stride)]
        self.factor = config.output_stride // self.stride
        widths = [config.aspp_channels] + [config.decoder_channels] * (len(strides) - 1)
        self.fusions = nn.ModuleList(
            LowLevelFusion(config, width, backbone.channels[feature], factor=stride // self.stride)
            for feature, stride, width in zip(self.features, strides, widths, strict=True)
        )

    def forward(self, x_NKhw: Tensor, features: dict[int, Tensor]) -> Tensor:
        """Map of the finest low-level feature's size."""
        height, width = features[self.finest].shape[-2:]
        x = upsample(x_NKhw, self.factor, height=height, width=width)
        for feature, fusion in zip(self.features, self.fusions, strict=True):
            x = fusion(x, features[feature])
        return x


class DeepLabV3Plus(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: DeepLabV3PlusConfig, num_classes: int, code: BlockCode | None = None) -> None:
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
        if config.low_level_features:
            self.decoder = LowLevelDecoder(config, self.backbone)
            initialise_convolutions(self.decoder)
            width = config.decoder_channels
        self.head = build_head(
            pointwise(width), num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x = self.aspp(features[32])
        if self.decoder is not None:
            x = self.decoder(x, features)
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
