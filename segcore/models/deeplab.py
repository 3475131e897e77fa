"""DeepLab V1 to V3+, in the order in which they grew (Chen et al.).

V1, arXiv 1412.7062, "LargeFOV": VGG-16 at output stride 8, its fc6 as a dilated 3x3 convolution. 20,505,429 parameters
    at 21 classes (published: 20.5 M).
V2, arXiv 1606.00915: atrous spatial pyramid pooling, four such branches whose class scores are added; ResNet-101; three
    input sizes whose scores are joined by their maximum. 37,877,652 (VGG-16) and 44,048,532 (ResNet-101).
V3, arXiv 1706.05587: batch normalisation and image pooling in ASPP, features concatenated; multi-grid. 39,638,869
    (ResNet-50) and 58,630,997 (ResNet-101) with torchvision's additional convolution.
V3+, arXiv 1802.02611: a decoder with a low-level feature of stride 4, separable convolutions, Xception. 41,055,413
    parameters and 54.03 G multiply-adds at 513 x 513 with Xception-65 (published: 54.17 G). ResNet-50: 26,696,133.

Differences from the papers and their released code, all four:
- Losses are taken at the image's size; V1's and V2's Caffe code shrinks the labels to the scores' size.
- Maps are enlarged by their stride exactly and cut, so any input size works; TF uses sizes k * OS + 1 with
  `align_corners=True`, which is the same distance between map rows.
- Our ResNets (torchvision's layout) take the stride in the first unit of a stage, and the low-level feature is the end
  of stage 1; TF's take it in the last unit and tap unit 2 of block 1 before the sum. The first unit of a stage that has
  lost its stride keeps the dilation before it: multi-grid (1, 2, 4) gives (1, 4, 8) at output stride 16, TF (2, 4, 8).
- Batch normalisation momentum is PyTorch's 0.1, which short runs need; TF's is 0.0003 (`batch_norm_momentum`).
- All outside the backbone learns at one multiple of the backbone's rate (V1, V2: 10 for weights, 20 for biases).
- V1's and V2's dense CRF comes after the network (`segcore.dense_crf`) and is not part of it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segcore.backbones import Backbone, DenseVGG, FullyConnected, build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ASPP,
    AtrousConv2d,
    ConvBnAct,
    SeparableConv,
    atrous_rates,
    initialise_convolutions,
    pad_to_multiple,
    resize,
    scaled_side,
    set_batch_norm_momentum,
    upsample,
)
from segcore.losses import cross_entropy
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import (
    VGG_BACKBONES,
    check_dropout_and_momentum,
    check_output_stride,
    check_positive,
    check_vgg,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, Predictor, build_head, check_decoder, pointwise

LARGE_FOV_RATE = 12
V2_RATES = (6, 12, 18, 24)
"""Dilations at output stride 8; elsewhere in inverse proportion, which keeps the distances in pixels."""
LOW_LEVEL_STRIDES = (2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabV1Config:
    """DeepLab-LargeFOV."""

    backbone: str = "vgg16"
    """vgg16 or vgg16_bn."""

    output_stride: int = 8
    """Image size / size of the coarsest feature map: 8, 16 or 32."""

    channels: int = 1024
    """Width of fc6 and fc7, a divisor of VGG's 4096."""

    dropout: float = 0.5
    """Dropout after fc6 and after fc7."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation (vgg16_bn)."""

    def __post_init__(self) -> None:
        check_vgg(self.backbone, network="DeepLab V1")
        check_output_stride(self.output_stride)
        check_positive(self, "channels")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class DeepLabV1(nn.Module):
    """VGG-16, fc6 with a large field of view, fc7, scores; obeys `SegmentationModel`."""

    def __init__(self, config: DeepLabV1Config, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = _large_fov_branches(config, (LARGE_FOV_RATE,))
        self.head = build_head(
            pointwise(config.channels), num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        (x,) = self.backbone(images_N3HW)
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabV2Config:
    """DeepLab V2, "ASPP-L"."""

    backbone: str = "resnet101"
    """Key of segcore.backbones.BACKBONES. On vgg16 each branch has its own fc6 and fc7, elsewhere one convolution."""

    output_stride: int = 8
    """Image size / size of the coarsest feature map: 8, 16 or 32."""

    channels: int = 1024
    """Width of fc6 and fc7 in each branch (vgg16 alone), a divisor of VGG's 4096."""

    dropout: float = 0.5
    """Dropout after fc6 and after fc7 (vgg16 alone)."""

    input_scales: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Sizes at which the network sees an image; the maximum of their scores counts. The last must be 1."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        check_positive(self, "channels")
        if not self.input_scales or self.input_scales[-1] != 1 or min(self.input_scales) <= 0:
            raise ValueError(f"input_scales are {self.input_scales}; expected numbers above 0, the last of them 1")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class SummedScores(nn.Module):
    """Sum of convolutions, one for each rate: ASPP before V3. Branches of one map, or each of a map of its own."""

    def __init__(
        self, in_channels: int, out_channels: int, *, rates: tuple[int, ...], kernel_size: int, bias: bool
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            AtrousConv2d(in_channels, out_channels, kernel_size, dilation=rate, bias=bias) for rate in rates
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Scores of the maps' size; `maps` has one for all branches, or one for each."""
        maps = maps * len(self.branches) if len(maps) == 1 else maps
        scores = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return torch.stack(scores).sum(dim=0)


class DeepLabV2(nn.Module):
    """Scores of four fields of view, added; of several input sizes, their maximum. Obeys `SegmentationModel`.

    In training the scores of every input size are auxiliary outputs, and their losses count fully (the released code;
    section 4.3 of the paper speaks of the fusion alone).
    """

    def __init__(self, config: DeepLabV2Config, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_scales = config.input_scales
        rates = tuple(rate * 8 // config.output_stride for rate in V2_RATES)
        self.backbone: DenseVGG | Backbone
        if config.backbone in VGG_BACKBONES:
            self.backbone = _large_fov_branches(config, V2_RATES)
            self.size_multiple = 1
            predictor = _summed(config.channels, rates=(1,) * len(rates), kernel_size=1)
        else:
            self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
            self.size_multiple = self.backbone.size_multiple
            predictor = _summed(self.backbone.channels[32], rates=rates, kernel_size=3)
        self.head = build_head(
            predictor, num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        outputs = []
        for scale in self.input_scales:
            size = {"height": scaled_side(height, scale), "width": scaled_side(width, scale)}
            outputs.append(self._at_one_size(resize(images_N3HW, height=size["height"], width=size["width"])))
        scores = [resize(output.logits_NCHW, height=height, width=width) for output in outputs]
        fused = scores[0]
        for each in scores[1:]:
            fused = torch.maximum(fused, each)
        return SegmentationOutput(
            logits_NCHW=fused,
            auxiliary_NCHW=tuple(scores) if self.training and len(scores) > 1 else (),
            low_resolution_NKhw=outputs[-1].low_resolution_NKhw,
        )

    def _at_one_size(self, images_N3HW: Tensor) -> SegmentationOutput:
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.size_multiple))
        maps = [features[32]] if isinstance(features, dict) else features
        output: SegmentationOutput = self.head(maps, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's on the fused scores, and the cross-entropy of each input size's."""
        terms = self.head.loss(output, labels_NHW)
        for scale, scores_NCHW in zip(self.input_scales, output.auxiliary_NCHW, strict=False):
            terms = terms.plus(f"scale_{scale:g}", cross_entropy(scores_NCHW, labels_NHW), weight=1.0)
        return terms


def _large_fov_branches(config: DeepLabV1Config | DeepLabV2Config, rates: tuple[int, ...]) -> DenseVGG:
    """VGG-16 with one dilated fc6 and fc7 for each rate."""
    trunk = build_backbone(config.backbone, output_stride=config.output_stride, vgg_layout="deeplab")
    return DenseVGG(
        trunk,
        [
            FullyConnected(config.channels, dilation=rate * 8 // config.output_stride, dropout=config.dropout)
            for rate in rates
        ],
    )


def _summed(in_channels: int, *, rates: tuple[int, ...], kernel_size: int) -> Predictor:
    return lambda out_channels, bias: SummedScores(
        in_channels, out_channels, rates=rates, kernel_size=kernel_size, bias=bias
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabV3Config:
    """DeepLab V3."""

    backbone: str = "resnet101"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 16
    """Image size / size of the coarsest feature map: 8, 16 or 32. Trained at 16, evaluated at 8 (section 4.1)."""

    multi_grid: tuple[int, ...] = ()
    """Factors on the dilation of the blocks of the last stage (ResNets alone); the paper's best: 1 2 4."""

    aspp_channels: int = 256
    """Width of ASPP."""

    aspp_dropout: float = 0.1
    """Dropout after ASPP."""

    final_convolution: bool = False
    """A 3x3 convolution between ASPP and the classifier, which torchvision has and the paper has not."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included; DeepLab's TF code: 0.0003 (for 30 000 steps and more)."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        check_positive(self, "aspp_channels")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(
            dropout=self.aspp_dropout, batch_norm_momentum=self.batch_norm_momentum, dropout_name="aspp_dropout"
        )

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class DeepLabV3(nn.Module):
    """Dilated backbone, ASPP with batch normalisation and image pooling, scores; obeys `SegmentationModel`."""

    def __init__(self, config: DeepLabV3Config, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(
            config.backbone, output_stride=config.output_stride, multi_grid=config.multi_grid
        )
        self.aspp = ASPP(
            self.backbone.channels[32],
            config.aspp_channels,
            rates=atrous_rates(config.output_stride),
            separable=False,
            dropout=config.aspp_dropout,
        )
        width = config.aspp_channels
        self.final = ConvBnAct(width, width, 3) if config.final_convolution else nn.Identity()
        for part in (self.aspp, self.final):
            initialise_convolutions(part)
        self.head = build_head(
            pointwise(width), num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        output: SegmentationOutput = self.head(self.final(self.aspp(features[32])), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabV3PlusConfig:
    """DeepLabV3+ over any backbone.

    With `low_level_features=()` ASPP is classified directly: DeepLabV3 with separable convolutions, the "bilinear" rows
    of the DUpsampling paper's table 1; features of other strides are the "vanilla" rows of its table 3.
    """

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
    """ASPP, one or more low-level features, two 3x3 convolutions for each; obeys `SegmentationModel`."""

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
