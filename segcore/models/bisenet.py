"""BiSeNet (Yu et al., "BiSeNet: bilateral segmentation network for real-time semantic segmentation", ECCV 2018,
arXiv 1808.00897).

Two paths. The spatial path, four convolutions, keeps detail at stride 8. The context path, a light image classifier,
goes to stride 32; its last two maps pass an attention refinement module (ARM) each, the mean over the whole last map is
added, and both are enlarged and added on the way back to stride 8. The feature fusion module (FFM) joins the paths. In
training two more classifiers, on the context path's maps of stride 16 and 8, add their loss with weight 1; evaluation
does not run them.

The layout is that of the authors' code (ycszen/TorchSeg, `cityscapes.bisenet.*`), which has more layers than the paper
draws: a 7x7 convolution first and a 1x1 last in the spatial path, a 3x3 before each ARM's attention and one behind each
enlargement. For 19 classes, with Xception39 and with ResNet-18:
- 1,542,475 and 12,894,675 parameters without the auxiliary classifiers, 5.88 and 49.2 MiB in float32. The paper's 5.8 M
  and 49.0 M "parameters" are such megabytes, which says that its networks have these layers.
- 15.62 and 58.34 G multiply-adds at 768 x 1536 (published: 14.8 and 55.3), 3.07 and 11.58 at 360 x 640 (2.9 and 10.8,
  from memory): 5 to 7 % more, of which we do not know the reason.

Differences from the authors' code:
- Enlargement by exactly 2 with `align_corners=False` and a cut, so any input size works; theirs resizes with
  `align_corners=True`.
- The FFM's two 1x1 convolutions have biases (`segcore.layers.SqueezeExcitation`): 512 parameters.
- Plain cross-entropy unless the recipe's loss is `ohem`; the paper mines hard pixels (online bootstrapping).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from segcore.backbones import build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ConvBnAct,
    FCNHead,
    ImagePooling,
    SqueezeExcitation,
    enlarge_scores,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
    strided_conv,
    upsample,
)
from segcore.layers.norm import refuse_one_image
from segcore.losses import cross_entropy
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_batch_norm_momentum, check_not_negative, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise

DETAIL_CHANNELS = 64
"""Of the spatial path's three strided convolutions."""
FINAL_CHANNELS = 64
"""Of the map that is classified."""
AUXILIARY_STRIDES = (16, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class BiSeNetConfig:
    """BiSeNet over any backbone; the paper's are resnet18, xception39 and resnet101."""

    backbone: str = "resnet18"
    """Key of segcore.backbones.BACKBONES."""

    channels: int = 128
    """Width of each of the two paths; the fused map has twice that."""

    auxiliary_weight: float = 1.0
    """Of the losses of the two auxiliary classifiers; 0 leaves them out."""

    auxiliary_channels: int = 256
    """Width of those classifiers: 256 with ResNets, 128 with Xception39."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_positive(self, "channels", "auxiliary_channels")
        check_not_negative(self, "auxiliary_weight")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return 32

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return 8


class SpatialPath(nn.Sequential):
    """Three convolutions of stride 2 (7x7, 3x3, 3x3), then a 1x1, each with BN and ReLU: 1/8 of the size.

    Source: section 3.1 of the paper; kernels and widths: the authors' code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            strided_conv(3, DETAIL_CHANNELS, 7),
            strided_conv(DETAIL_CHANNELS, DETAIL_CHANNELS),
            strided_conv(DETAIL_CHANNELS, DETAIL_CHANNELS),
            ConvBnAct(DETAIL_CHANNELS, channels),
        )


class AttentionRefinement(nn.Module):
    """3x3 convolution, and a gate per channel: y = x * sigmoid(BN(W mean(x))).

    In training its BN sees one value per image and channel, so a batch of 1 has nothing to normalise by.

    Source: section 3.2 of the paper, figure 2 (b); the convolution: the authors' code.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = ConvBnAct(in_channels, channels, 3)
        self.attention = ConvBnAct(channels, channels, activation=False)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same size.

        Raises:
            ValueError: one image in training, with normalisation over this device's batch alone.
        """
        x: Tensor = self.reduce(x_NKhw)
        refuse_one_image(x, self.attention.norm, what="attention refinement")
        gates: Tensor = self.attention(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        return x * gates


class FeatureFusion(nn.Module):
    """1x1 convolution over both paths, and a gate per channel: x + x * s, s as in squeeze-and-excitation.

    Source: section 3.3 of the paper, figure 2 (c); no reduction in between: the authors' code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = ConvBnAct(channels, channels)
        self.attention = SqueezeExcitation(channels, reduction=1)

    def forward(self, spatial_NKhw: Tensor, context_NKhw: Tensor) -> Tensor:
        """Map of the same size."""
        x: Tensor = self.project(torch.cat([spatial_NKhw, context_NKhw], dim=1))
        return x * (1 + self.attention.gates(x))


class ContextDecoder(nn.Module):
    """The context path behind its backbone: ARMs, the mean over the whole map, and the way back to stride 8.

    Args:
        channels_16, channels_32: of the backbone's last two maps.
        channels: of the result.
    """

    def __init__(self, channels_16: int, channels_32: int, channels: int) -> None:
        super().__init__()
        self.image_pooling = ImagePooling(channels_32, channels)
        self.refinement_32 = AttentionRefinement(channels_32, channels)
        self.refinement_16 = AttentionRefinement(channels_16, channels)
        self.fuse_16 = ConvBnAct(channels, channels, 3)
        self.fuse_8 = ConvBnAct(channels, channels, 3)

    def forward(self, x_16_NKhw: Tensor, x_32_NKhw: Tensor, *, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Maps of stride 16 and 8, the latter of height x width."""
        rows, columns = x_16_NKhw.shape[-2:]
        x = self.refinement_32(x_32_NKhw) + self.image_pooling(x_32_NKhw)
        middle: Tensor = self.fuse_16(upsample(x, 2, height=rows, width=columns))
        x = self.refinement_16(x_16_NKhw) + middle
        return middle, self.fuse_8(upsample(x, 2, height=height, width=width))


class BiSeNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: BiSeNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.auxiliary_weight = config.auxiliary_weight
        self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
        channels = config.channels
        self.spatial = SpatialPath(channels)
        self.context = ContextDecoder(self.backbone.channels[16], self.backbone.channels[32], channels)
        self.fuse = FeatureFusion(2 * channels)
        self.final = ConvBnAct(2 * channels, FINAL_CHANNELS, 3)
        for part in (self.spatial, self.context, self.fuse, self.final):
            initialise_convolutions(part)
        self.auxiliary = nn.ModuleList()
        if config.auxiliary_weight:
            self.auxiliary.extend(
                FCNHead(channels, num_classes, dropout=0.0, channels=config.auxiliary_channels)
                for _ in AUXILIARY_STRIDES
            )
        self.head = build_head(
            pointwise(FINAL_CHANNELS),
            num_classes,
            enlargement=config.enlargement,
            config=config.dupsample,
            code=code,
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size; those of the auxiliary classifiers in training alone."""
        height, width = images_N3HW.shape[-2:]
        padded = pad_to_multiple(images_N3HW, self.backbone.size_multiple)
        spatial = self.spatial(padded)
        features = self.backbone(padded)
        rows, columns = spatial.shape[-2:]
        maps = self.context(features[16], features[32], height=rows, width=columns)
        x = self.final(self.fuse(spatial, maps[-1]))
        output: SegmentationOutput = self.head(x, height=height, width=width)
        if not self.training or not self.auxiliary:
            return output
        auxiliary = tuple(
            enlarge_scores(classifier(x), stride, height=height, width=width)
            for classifier, x, stride in zip(self.auxiliary, maps, AUXILIARY_STRIDES, strict=True)
        )
        return replace(output, auxiliary_NCHW=auxiliary)

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's, and the weighted cross-entropies of the auxiliary classifiers where they ran."""
        terms: LossTerms = self.head.loss(output, labels_NHW)
        if output.auxiliary_NCHW:
            for logits_NCHW, stride in zip(output.auxiliary_NCHW, AUXILIARY_STRIDES, strict=True):
                loss = cross_entropy(logits_NCHW, labels_NHW)
                terms = terms.plus(f"auxiliary_{stride}", loss, weight=self.auxiliary_weight)
        return terms
