"""RefineNet (Lin et al., "RefineNet: multi-path refinement networks for high-resolution semantic segmentation", CVPR
2017, arXiv 1611.06612).

An undilated ResNet's features of stride 32, 16, 8 and 4, refined from coarse to fine. A block adapts its feature by a
3x3 convolution and two residual units, adds the coarser block's result (a 3x3 convolution for each, the coarser then
enlarged by 2), adds what chained pooling sees of the surroundings, and ends in residual units. 3x3 classifier at stride
4, enlarged bilinearly by 4. No batch normalisation outside the backbone.

Parameters with ResNet-101 and 21 classes: 109,794,901, and with four pools, as in the port DrSleep/refinenet-pytorch,
118,052,437. Without the biases of the residual units' first convolutions, which the port has: 118,046,037. Published:
73.6 % on the Cityscapes test set.

"A sequence of three RCUs between each block" (section 3.2): one ends a block and two adapt its result to the next,
with nothing in between, and two more come before the classifier. So every block here ends in three, as in the released
code.

Differences from the paper, its code (guosheng/refinenet) and the port:
- Maps are enlarged by 2 exactly and cut, without `align_corners`, so any input size works.
- The code's newer models put each convolution of the chain before its pool; ours are as the paper has them.
- Dropout on the features of stride 32 and 16 and before the classifier, as in the port; of single values here.
- The code shows images to its network enlarged by 1.2: a matter of the recipe.
- The start of new layers is not described. With He's, every sum of a residual unit would double the variance, 14 times
  from the coarsest feature on; units and pooling start at a third of it, which at 256 channels is a deviation of 0.01.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import initialise_convolutions, pad_to_multiple, set_batch_norm_momentum, upsample
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_dropout_and_momentum, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder

STRIDES = (32, 16, 8, 4)
"""Of the features that are refined, in this order; each is twice the next."""
UNITS_BEFORE, UNITS_AFTER = 2, 3
"""Residual units of a block before its fusion and after its pooling."""
POOL_SIDE = 5
RESIDUAL_GAIN = 1 / 3
"""Of the weights in residual branches at the start, relative to He's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineNetConfig:
    """RefineNet over any backbone."""

    backbone: str = "resnet101"
    """Key of segcore.backbones.BACKBONES."""

    width: int = 256
    """Channels of the blocks at strides 16, 8 and 4."""

    coarsest_width: int = 512
    """Channels of the block at stride 32."""

    num_pools: int = 2
    """Pools in each chain: 2, or 4 in models that were released later."""

    dropout: float = 0.5
    """Dropout on the features of stride 32 and 16, and before the classifier."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation: the backbone's."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_positive(self, "width", "coarsest_width", "num_pools")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return STRIDES[0]

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return STRIDES[-1]


def _convolution(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class ResidualUnit(nn.Module):
    """Residual convolution unit: x + conv(ReLU(conv(ReLU(x)))), both 3x3.

    Source: section 3.2 and figure 3(b) of the paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, bias=True)
        self.second = _convolution(channels, channels)
        _start_small(self.first, self.second)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape."""
        branch: Tensor = self.second(F.relu(self.first(F.relu(x_NKhw)), inplace=True))
        return x_NKhw + branch


class ChainedPooling(nn.Module):
    """x + p1 + p2 + ..., x after a ReLU, each p a 3x3 convolution of the 5x5 maximum (stride 1) of the one before.

    Source: section 3.2 and figure 3(d) of the paper.
    """

    def __init__(self, channels: int, *, num_pools: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(channels, channels) for _ in range(num_pools))
        _start_small(*self.convolutions)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape."""
        total = pooled = F.relu(x_NKhw)
        for convolution in self.convolutions:
            pooled = convolution(F.max_pool2d(pooled, POOL_SIDE, stride=1, padding=POOL_SIDE // 2))
            total = total + pooled
        return total


class Fusion(nn.Module):
    """Sum of two maps, each after a 3x3 convolution, the coarser enlarged behind it.

    Source: section 3.2 and figure 3(c) of the paper.
    """

    def __init__(self, channels: int, coarse_channels: int) -> None:
        super().__init__()
        self.fine = _convolution(channels, channels)
        self.coarse = _convolution(coarse_channels, channels)

    def forward(self, x_NKhw: Tensor, coarse_NKhw: Tensor) -> Tensor:
        """Map of the size of the first; the second has half of it, rounded up."""
        height, width = x_NKhw.shape[-2:]
        fine: Tensor = self.fine(x_NKhw)
        return fine + upsample(self.coarse(coarse_NKhw), 2, height=height, width=width)


class RefineBlock(nn.Module):
    """Adaptation, fusion with a coarser block's result where there is one, chained pooling, residual units.

    Args:
        in_channels: of the backbone's feature.
        channels: of everything after.
        coarse_channels: of the coarser block's result; None: this is the coarsest.
        num_pools: of the chain.
    """

    def __init__(self, in_channels: int, channels: int, coarse_channels: int | None, *, num_pools: int) -> None:
        super().__init__()
        self.adapt = _convolution(in_channels, channels)
        self.before = nn.Sequential(*(ResidualUnit(channels) for _ in range(UNITS_BEFORE)))
        self.fusion = None if coarse_channels is None else Fusion(channels, coarse_channels)
        self.pooling = ChainedPooling(channels, num_pools=num_pools)
        self.after = nn.Sequential(*(ResidualUnit(channels) for _ in range(UNITS_AFTER)))
        initialise_convolutions(self.adapt)
        if self.fusion is not None:
            initialise_convolutions(self.fusion)

    def forward(self, feature_NKhw: Tensor, coarse_NKhw: Tensor | None) -> Tensor:
        """Map of the feature's size."""
        x: Tensor = self.before(self.adapt(feature_NKhw))
        if self.fusion is not None:
            x = self.fusion(x, coarse_NKhw)
        x = self.after(self.pooling(x))
        return x


@torch.no_grad()
def _start_small(*convolutions: nn.Module) -> None:
    for convolution in convolutions:
        initialise_convolutions(convolution)
        assert isinstance(convolution, nn.Conv2d)
        convolution.weight.mul_(RESIDUAL_GAIN)


class RefineNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: RefineNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(config.backbone, output_stride=STRIDES[0])
        self.blocks = nn.ModuleList()
        coarse: int | None = None
        for stride in STRIDES:
            width = config.coarsest_width if coarse is None else config.width
            self.blocks.append(RefineBlock(self.backbone.channels[stride], width, coarse, num_pools=config.num_pools))
            coarse = width
        self.dropout = nn.Dropout(config.dropout)
        self.head = build_head(
            lambda out_channels, bias: _convolution(config.width, out_channels, bias=bias),
            num_classes,
            enlargement=config.enlargement,
            config=config.dupsample,
            code=code,
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x: Tensor | None = None
        for stride, block in zip(STRIDES, self.blocks, strict=True):
            feature = features[stride]
            x = block(self.dropout(feature) if stride in STRIDES[:2] else feature, x)
        assert x is not None
        output: SegmentationOutput = self.head(self.dropout(x), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
