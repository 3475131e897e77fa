"""EncNet (Zhang et al., "Context encoding for semantic segmentation", CVPR 2018, arXiv 1803.08904).

A dilated ResNet at output stride 8; the whole map is encoded by its residuals to learned codewords, the encoding
predicts which classes occur in the image (a loss of its own) and scales the map's channels; classifier, bilinear
enlargement. In training a second classifier on the feature of nominal stride 16 has its loss too; evaluation does not
run it.

Reproduces the ADE20K network (ResNet-50; published: 41.11 mIoU) in size: 36,164,578 parameters for 150 classes with
both extra losses, 129.0 G multiply-adds at 480 x 480 and 0.12 G in the encoding layer.

Where paper and released code (PyTorch-Encoding) differ, this is the code, which its published scores come from:
- Residuals of the codewords are averaged after BN and ReLU; the paper adds them (a factor that the next layer absorbs).
  That BN has one channel per codeword, so it sees many values whatever the batch: EncNet trains on single images.
- The map becomes f + f * gamma rather than f * gamma. The ReLU around this sum changes nothing: f comes from a ReLU.
- One presence loss, at the end; the paper's figure has another, with an encoding of its own, on the feature of nominal
  stride 16.
- `lateral`: the features of nominal strides 8 and 16 are fused into f. In the code alone, there on for PASCAL and COCO.

Differences from the code: scores are enlarged by the stride exactly and cut, so any input size works, instead of with
`align_corners=True`; images without one valid pixel do not enter the presence loss. Joint pyramid upsampling is
FastFCN's (2019) and no part of EncNet.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from segcore.backbones import Backbone, build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ConvBnAct,
    Encoding,
    FCNHead,
    downsample,
    enlarge_scores,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
)
from segcore.losses import cross_entropy, presence_loss
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import (
    check_dropout_and_momentum,
    check_not_negative,
    check_output_stride,
    check_positive,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise

LATERAL_FEATURES = (8, 16)
"""Nominal strides of the features that `lateral` fuses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncNetConfig:
    """EncNet over any backbone."""

    backbone: str = "resnet50_deep"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 8
    """Image size / size of the coarsest feature map: 8, 16 or 32."""

    channels: int = 512
    """Width of the encoded map, and of its encoding."""

    num_codewords: int = 32
    """Codewords of the encoding layer."""

    lateral: bool = False
    """Fuse the features of nominal strides 8 and 16 into the encoded map (released code only)."""

    dropout: float = 0.1
    """Dropout before each classifier."""

    presence_weight: float = 0.2
    """Of the loss on which classes occur in the image (SE-loss); 0 leaves its layer out."""

    auxiliary_weight: float = 0.2
    """Of the auxiliary classifier's loss; 0 leaves that classifier out."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        check_positive(self, "channels", "num_codewords")
        check_not_negative(self, "presence_weight", "auxiliary_weight")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class LateralFusion(nn.Module):
    """Two finer stages' features, each projected by a 1x1 convolution, concatenated with the map, 3x3 convolution."""

    def __init__(self, channels: int, backbone: Backbone) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            ConvBnAct(backbone.channels[feature], channels) for feature in LATERAL_FEATURES
        )
        self.factors = [backbone.output_stride // backbone.feature_strides[feature] for feature in LATERAL_FEATURES]
        self.fuse = ConvBnAct(channels * (1 + len(LATERAL_FEATURES)), channels, 3)

    def forward(self, x_NKhw: Tensor, features: dict[int, Tensor]) -> Tensor:
        """Map of the same size and width; above output stride 8 the finer features are reduced to its size."""
        height, width = x_NKhw.shape[-2:]
        projected = [
            downsample(projection(features[feature]), factor, height=height, width=width)
            for feature, projection, factor in zip(LATERAL_FEATURES, self.projections, self.factors, strict=True)
        ]
        x: Tensor = self.fuse(torch.cat([x_NKhw, *projected], dim=1))
        return x


class ContextEncoding(nn.Module):
    """Encode a map, and scale its channels by what the encoding says: f + f * sigmoid(linear(e)).

    e is the mean over codewords of ReLU(BN(encoding)), the encoding that of a 1x1 convolution of f.

    Source: EncNet, context encoding module and featuremap attention; the sum and the mean are the released code's.
    """

    def __init__(self, channels: int, num_codewords: int) -> None:
        super().__init__()
        self.project = ConvBnAct(channels, channels)
        self.encoding = Encoding(channels, num_codewords)
        self.norm = nn.BatchNorm1d(num_codewords)
        self.activation = nn.ReLU()
        self.attention = nn.Linear(channels, channels)

    def forward(self, x_NKhw: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled map, of the same size; and e, (N, K)."""
        encoding_NK = self.activation(self.norm(self.encoding(self.project(x_NKhw)))).mean(dim=1)
        gamma_NK = self.attention(encoding_NK).sigmoid()
        return x_NKhw * (1 + gamma_NK)[:, :, None, None], encoding_NK


class EncNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: EncNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.presence_weight, self.auxiliary_weight = config.presence_weight, config.auxiliary_weight
        self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
        self.reduce = ConvBnAct(self.backbone.channels[32], config.channels, 3)
        self.lateral = LateralFusion(config.channels, self.backbone) if config.lateral else None
        self.context = ContextEncoding(config.channels, config.num_codewords)
        self.presence = nn.Linear(config.channels, num_classes) if config.presence_weight else None
        for part in (self.reduce, self.lateral, self.context):
            if part is not None:
                initialise_convolutions(part)
        self.dropout = nn.Dropout(config.dropout)
        self.auxiliary: FCNHead | None = None
        if config.auxiliary_weight:
            self.auxiliary = FCNHead(self.backbone.channels[16], num_classes, dropout=config.dropout)
        self.head = build_head(
            pointwise(config.channels), num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores of pixels at the images' size, and of classes; the auxiliary classifier's in training alone."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x = self.reduce(features[32])
        if self.lateral is not None:
            x = self.lateral(x, features)
        x, encoding_NK = self.context(x)
        output: SegmentationOutput = self.head(self.dropout(x), height=height, width=width)
        auxiliary: tuple[Tensor, ...] = ()
        if self.auxiliary is not None and self.training:
            stride = self.backbone.feature_strides[16]
            auxiliary = (enlarge_scores(self.auxiliary(features[16]), stride, height=height, width=width),)
        presence_NC = None if self.presence is None else self.presence(encoding_NK)
        return replace(output, auxiliary_NCHW=auxiliary, presence_NC=presence_NC)

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's, the weighted presence loss, and that of the auxiliary classifier where it ran."""
        terms: LossTerms = self.head.loss(output, labels_NHW)
        if output.presence_NC is not None:
            terms = terms.plus("presence", presence_loss(output.presence_NC, labels_NHW), weight=self.presence_weight)
        for logits_NCHW in output.auxiliary_NCHW:
            terms = terms.plus("auxiliary", cross_entropy(logits_NCHW, labels_NHW), weight=self.auxiliary_weight)
        return terms
