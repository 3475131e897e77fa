"""ICNet (Zhao et al., "ICNet for real-time semantic segmentation on high-resolution images", ECCV 2018,
arXiv 1704.08545).

One image at three sizes. At 1/2 it runs through the first blocks of a ResNet (to conv3_1, 1/16); that map, halved, is
the "1/4 image" and runs through the rest, dilated, with pyramid pooling (1/32); the whole image gets three convolutions
alone (1/8). Two cascade feature fusions (CFF) join the three, coarse to fine. In training a classifier on the coarse
input of each fusion adds 0.16 and 0.4 times its loss; evaluation does not run them.

Reproduces the released Cityscapes network (hszhao/ICNet, `icnet_cityscapes_bnnomerge.prototxt`; 67.7 mIoU on val, 69.5
on test): 6,699,987 parameters for 19 classes, which is the 26.5 "M" (megabytes) that other papers print, and 29.81 G
multiply-adds at 1025 x 2049 (29.03 at 1024 x 2048; published: 28.3) for the layers as drawn. The two auxiliary
classifiers have 7,334 parameters more. Here 29.57 G give the same scores: see `EnlargedPointwise`.

The ResNet has half of ResNet-50's widths: the paper prunes a trained network of full width (`width` 2) in steps, see
`segcore.models.icnet_pruning`. Nobody publishes image classifiers of half width: `width` 1 learns from random weights
or starts from a pruned network. ImageNet weights of the full one fit `width` 2 with `imagenet_layout`.

Differences from the released network:
- Maps are resized with `align_corners=False`, so any input size works. Theirs: 32 k + 1 with `align_corners=True`,
  where halving takes every second pixel; here it takes the mean of 2 x 2.
- Regions of the pyramid are PyTorch's adaptive ones; theirs overlap by some rows.
- Auxiliary classifiers come before the enlargement of their map, which 1x1 convolutions commute with, and are compared
  with the labels at full size; theirs with labels of 1/16 and 1/8.
- 0.16, 0.4 and 1 are from memory of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import dilate_first_blocks, fitting_weights
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import (
    ConvBnAct,
    downsample,
    enlarge_scores,
    initialise_convolutions,
    region_means,
    resize,
    set_batch_norm_momentum,
    strided_conv,
    upsample,
)
from segcore.losses import cross_entropy
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_batch_norm_momentum
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, Predictor, build_head, check_decoder

BLOCKS = {"resnet50_deep": (3, 4, 6, 3), "resnet101_deep": (3, 4, 23, 3)}
"""Of each stage, by key of `BACKBONES`."""
PUBLISHED_PLANES = (32, 64, 128, 256)
"""Width of the bottlenecks' 3x3 convolutions at `width` 1; the first is the stem's too."""
FULL_WIDTH = 2.0
BINS = (1, 2, 3, 6)
REDUCED_CHANNELS = 256
FUSED_CHANNELS = 128
DETAIL_CHANNELS = (32, 32, 64)
"""Of the three convolutions on the whole image."""
AUXILIARY_STRIDES = (32, 16)
"""Of the maps that are classified in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ICNetConfig:
    """ICNet over a ResNet with a stem of three 3x3 convolutions."""

    backbone: str = "resnet50_deep"
    """resnet50_deep or resnet101_deep, of segcore.backbones.BACKBONES."""

    width: float = 1.0
    """Multiple of the published widths of the ResNet, in quarters; 2 is ResNet's own, before compression."""

    imagenet_layout: bool = False
    """Strides and dilations of the ResNet as in ImageNet classifiers (stride in the 3x3 convolution of a block); the
    released ICNet has the stride in the 1x1 before it, which is cheaper."""

    auxiliary_weights: tuple[float, float] = (0.16, 0.4)
    """Of the losses of the classifiers at strides 32 and 16; both 0 leaves them out."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        if self.backbone not in BLOCKS:
            raise ValueError(
                f"ICNet is built on a ResNet with a deep stem, not on {self.backbone!r}; known: {', '.join(BLOCKS)}"
            )
        if self.width < 0.25 or (4 * self.width) % 1:
            raise ValueError(f"width is {self.width}; it must be a multiple of 0.25, and at least that")
        if len(self.auxiliary_weights) != len(AUXILIARY_STRIDES) or min(self.auxiliary_weights) < 0:
            raise ValueError(f"auxiliary_weights are {self.auxiliary_weights}; expected two, none of them negative")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return 32

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return 4


class CascadeResNet(nn.Module):
    """The ResNet, whose map is halved behind the first block of its second stage (conv3_1).

    Args:
        config: backbone, width and layout.

    Attributes:
        channels: of conv3_1 and of the last map.
        body: timm's ResNet of these widths, with timm's names.
    """

    def __init__(self, config: ICNetConfig) -> None:
        super().__init__()
        self.name = config.backbone
        self.imagenet_layout = config.imagenet_layout
        planes = tuple(round(config.width * width) for width in PUBLISHED_PLANES)
        self.channels = (4 * planes[1], 4 * planes[3])
        from timm.models.resnet import Bottleneck, ResNet  # seconds to import

        self.body = ResNet(
            Bottleneck,  # type: ignore[arg-type]  # timm annotates an instance and takes the class
            BLOCKS[config.backbone],
            num_classes=0,
            output_stride=8,
            stem_type="deep",
            stem_width=planes[0],
            channels=planes,
            zero_init_last=False,
        )
        if not config.imagenet_layout:
            strided = cast(Bottleneck, self._stage(2)[0])
            strided.conv1.stride, strided.conv2.stride = (2, 2), (1, 1)
            dilate_first_blocks(self.body)

    def forward(self, halved_N3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of 1/8 (conv3_1) and 1/16 of the size of the halved image, rounded up."""
        x = self.body.maxpool(self.body.act1(self.body.bn1(self.body.conv1(halved_N3hw))))
        x = self._stage(1)(x)
        first, *rest = self._stage(2)
        shared: Tensor = first(x)
        x = _halved(shared)
        for block in rest:
            x = block(x)
        return shared, self._stage(4)(self._stage(3)(x))

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the weights of an ImageNet classifier of full width, or of this backbone's own kind.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here, or an image classifier's weights
                meet the paper's layout, in which its strided convolution would mean something else.
        """
        if not self.imagenet_layout and any(name.startswith("fc.") for name in state_dict):
            raise ValueError(
                "the weights are an image classifier's, whose strides are elsewhere than in the released ICNet; set "
                f"imagenet_layout (and width {FULL_WIDTH:g} for public weights), or give a pruned ICNet's backbone"
            )
        fitting = fitting_weights(
            self.body.state_dict(),
            state_dict,
            leftover=("fc.",),
            backbone=self.name,
            source=f"timm's classifier (width {FULL_WIDTH:g}) or of an ICNet's backbone of this width",
        )
        self.body.load_state_dict(fitting)

    def _stage(self, number: int) -> nn.Sequential:
        return cast(nn.Sequential, self.body.get_submodule(f"layer{number}"))


class SummedPyramid(nn.Module):
    """The map, and its means over grids of regions, enlarged bilinearly, all added up: no weights.

    Source: section 3.2 of the paper; the released network. PSPNet's pyramid concatenates and convolves instead.
    """

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape."""
        height, width = x_NKhw.shape[-2:]
        total = x_NKhw
        for side in BINS:
            total = total + resize(region_means(x_NKhw, side), height=height, width=width)
        return total


class CascadeFeatureFusion(nn.Module):
    """ReLU(BN(3x3 convolution, dilation 2, of the coarse map enlarged by 2) + BN(1x1 convolution of the fine map)).

    Source: section 3.3 of the paper, figure 3.

    Args:
        coarse_channels, fine_channels: widths of the two maps.
        channels: of the result.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, channels: int) -> None:
        super().__init__()
        self.coarse = ConvBnAct(coarse_channels, channels, 3, dilation=2, activation=False)
        self.fine = ConvBnAct(fine_channels, channels, activation=False)

    def forward(self, coarse_NKhw: Tensor, fine_NKhw: Tensor) -> Tensor:
        """Map of the size of the fine one, which is twice that of the coarse one, or one row or column less."""
        height, width = fine_NKhw.shape[-2:]
        x: Tensor = self.coarse(upsample(coarse_NKhw, 2, height=height, width=width))
        return F.relu(x.add_(self.fine(fine_NKhw)), inplace=True)


class EnlargedPointwise(nn.Module):
    """1x1 convolution, then bilinear enlargement by 2.

    The paper has the enlargement first. Bilinear weights add up to 1, so that the two commute, and this way round takes
    a quarter of the multiply-adds and enlarges the scores instead of 128 channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of twice the size."""
        x: Tensor = self.conv(x_NKhw)
        height, width = x.shape[-2:]
        return upsample(x, 2, height=2 * height, width=2 * width)


def enlarged_pointwise(in_channels: int) -> Predictor:
    """`EnlargedPointwise` as the last layer of a head."""
    return lambda out_channels, bias: EnlargedPointwise(in_channels, out_channels, bias=bias)


class ICNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: ICNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.auxiliary_weights = config.auxiliary_weights
        self.backbone = CascadeResNet(config)
        shared_channels, last_channels = self.backbone.channels
        self.pyramid = SummedPyramid()
        self.reduce = ConvBnAct(last_channels, REDUCED_CHANNELS)
        before = (3, *DETAIL_CHANNELS)
        self.detail = nn.Sequential(*map(strided_conv, before, DETAIL_CHANNELS))
        self.fuse_16 = CascadeFeatureFusion(REDUCED_CHANNELS, shared_channels, FUSED_CHANNELS)
        self.fuse_8 = CascadeFeatureFusion(FUSED_CHANNELS, DETAIL_CHANNELS[-1], FUSED_CHANNELS)
        for part in (self.reduce, self.detail, self.fuse_16, self.fuse_8):
            initialise_convolutions(part)
        self.auxiliary = nn.ModuleList()
        if any(config.auxiliary_weights):
            self.auxiliary.extend(nn.Conv2d(width, num_classes, 1) for width in (REDUCED_CHANNELS, FUSED_CHANNELS))
        for classifier in self.auxiliary:
            initialise_convolutions(classifier)
            nn.init.trunc_normal_(classifier.get_parameter("weight"), std=0.01)
        self.head = build_head(
            enlarged_pointwise(FUSED_CHANNELS),
            num_classes,
            enlargement=config.enlargement,
            config=config.dupsample,
            code=code,
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size; those of the auxiliary classifiers in training alone."""
        height, width = images_N3HW.shape[-2:]
        shared, x = self.backbone(_halved(images_N3HW))
        coarse = self.reduce(self.pyramid(x))
        middle = self.fuse_16(coarse, shared)
        fine = self.fuse_8(middle, self.detail(images_N3HW))
        output: SegmentationOutput = self.head(fine, height=height, width=width)
        if not self.training or not self.auxiliary:
            return output
        auxiliary = tuple(
            enlarge_scores(classifier(x), stride, height=height, width=width)
            for classifier, x, stride in zip(self.auxiliary, (coarse, middle), AUXILIARY_STRIDES, strict=True)
        )
        return replace(output, auxiliary_NCHW=auxiliary)

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's, and the weighted cross-entropies of the auxiliary classifiers where they ran."""
        terms: LossTerms = self.head.loss(output, labels_NHW)
        if output.auxiliary_NCHW:
            for logits_NCHW, stride, weight in zip(
                output.auxiliary_NCHW, AUXILIARY_STRIDES, self.auxiliary_weights, strict=True
            ):
                terms = terms.plus(f"auxiliary_{stride}", cross_entropy(logits_NCHW, labels_NHW), weight=weight)
        return terms


def _halved(x_NKhw: Tensor) -> Tensor:
    """Map of half the size, rounded up."""
    height, width = ((length + 1) // 2 for length in x_NKhw.shape[-2:])
    return downsample(x_NKhw, 2, height=height, width=width)
