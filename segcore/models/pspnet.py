"""PSPNet (Zhao et al., "Pyramid scene parsing network", CVPR 2017, arXiv 1612.01105).

A dilated ResNet at output stride 8, means over 1, 2 x 2, 3 x 3 and 6 x 6 regions beside the map itself, one 3x3
convolution over all of it, a classifier, bilinear enlargement. In training a second classifier on the feature of
nominal stride 16 adds 0.4 times its loss; evaluation does not run it.

Reproduces the paper's ADE20K network (ResNet-50; published: 41.68 mIoU) in size: 49,180,908 parameters for 150 classes
with the auxiliary classifier, 161.9 G multiply-adds at 473 x 473 for the layers as the paper draws them. Here 128.1 G
give the same scores, as `segcore.layers.PyramidPooling` never enlarges the means.

Differences from the released code (hszhao/semseg, which follows the Caffe original):
- The pyramid's means are enlarged with `align_corners=False`, and the first block of a stage that lost its stride keeps
  the previous dilation, as everywhere here; `released_layout` has both as released, which its weights need.
- The scores are enlarged by the stride exactly and cut, so any input size works; theirs take sizes 8 k + 1 with
  `align_corners=True`, whose map rows lie 3.5 pixels higher.
- Dropout of single values in place of whole channels.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from segcore.backbones import build_backbone, dilate_first_blocks
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    FCNHead,
    PyramidPooling,
    enlarge_scores,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
)
from segcore.losses import cross_entropy
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import (
    check_dropout_and_momentum,
    check_not_negative,
    check_output_stride,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise


@dataclass(frozen=True, kw_only=True, slots=True)
class PSPNetConfig:
    """PSPNet over any backbone."""

    backbone: str = "resnet50_deep"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 8
    """Image size / size of the coarsest feature map: 8, 16 or 32."""

    bins: tuple[int, ...] = (1, 2, 3, 6)
    """Sides of the pyramid's grids of means; each has the backbone's channels / number of bins."""

    dropout: float = 0.1
    """Dropout before each classifier."""

    auxiliary_weight: float = 0.4
    """Of the auxiliary classifier's loss; 0 leaves that classifier out."""

    released_layout: bool = False
    """Dilate the first blocks of stages too and align corners in the pyramid: for weights of hszhao/semseg alone."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_output_stride(self.output_stride)
        if not self.bins or min(self.bins) < 1 or len(set(self.bins)) != len(self.bins):
            raise ValueError(f"bins are {self.bins}; expected different numbers, each at least 1")
        check_not_negative(self, "auxiliary_weight")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)
        if self.released_layout and (
            self.output_stride != 8 or not self.backbone.startswith(("resnet50", "resnet101"))
        ):
            raise ValueError(
                f"released_layout was asked for with backbone {self.backbone!r} at output stride {self.output_stride}; "
                "hszhao/semseg has ResNet-50 and ResNet-101 at output stride 8 alone"
            )

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return self.output_stride


class PSPNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: PSPNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.auxiliary_weight = config.auxiliary_weight
        self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
        if config.released_layout:
            dilate_first_blocks(self.backbone.body)
        channels = self.backbone.channels[32]
        self.pyramid = PyramidPooling(channels, channels // 4, bins=config.bins, align_corners=config.released_layout)
        initialise_convolutions(self.pyramid)
        self.dropout = nn.Dropout(config.dropout)
        self.auxiliary: FCNHead | None = None
        if config.auxiliary_weight:
            self.auxiliary = FCNHead(self.backbone.channels[16], num_classes, dropout=config.dropout)
        self.head = build_head(
            pointwise(channels // 4), num_classes, enlargement=config.enlargement, config=config.dupsample, code=code
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size; those of the auxiliary classifier in training alone."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x = self.dropout(self.pyramid(features[32]))
        output: SegmentationOutput = self.head(x, height=height, width=width)
        if self.auxiliary is None or not self.training:
            return output
        stride = self.backbone.feature_strides[16]
        auxiliary = enlarge_scores(self.auxiliary(features[16]), stride, height=height, width=width)
        return replace(output, auxiliary_NCHW=(auxiliary,))

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's, and the weighted cross-entropy of the auxiliary classifier where it ran."""
        terms: LossTerms = self.head.loss(output, labels_NHW)
        for logits_NCHW in output.auxiliary_NCHW:
            terms = terms.plus("auxiliary", cross_entropy(logits_NCHW, labels_NHW), weight=self.auxiliary_weight)
        return terms
