"""FCN-32s, 16s and 8s (Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation", CVPR
2015, arXiv 1411.4038; with the later trainings PAMI 2016, arXiv 1605.06211).

VGG-16 with fc6 and fc7 as convolutions gives class scores at stride 32. 32s enlarges them by 32 at once. 16s enlarges
them by 2, adds scores of the fourth pool, and enlarges by 16; 8s does so once more with the third pool, and ends with
8. The first convolution pads the image with 100 zeros on each side, so that every crop below exists for any image.

Parameters for 21 classes: 134,346,581 (32s), 134,357,354 (16s) and 134,362,751 (8s). The released models, of which this
is the layout, also store the fixed bilinear kernels of every pair of classes, nearly all zeros: 136,152,917,
134,815,994 and 134,489,759 with them. Published: 63.6, 65.0 and 65.5 % mIoU on seg11valid; 67.2 % on the VOC 2012 test
set (8s), or 62.2 % as first trained.

Differences from the papers and the released code (shelhamer/fcn.berkeleyvision.org):
- Enlargements are fixed to bilinear, as released. The first paper learned those by 2: `learned_upsampling`, which
  starts from the bilinear kernel.
- The loss is a mean over pixels, the code's a sum: its learning rates are to be multiplied by the number of pixels.
- Biases learn as fast as weights; the code doubles their rate.
- Scores of the pools are taken where they are kept: cropping goes before the 1x1 convolution.
- `width` and batch normalisation (vgg16_bn), for training from random weights in minutes, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segcore.backbones import DenseVGG, FullyConnected, build_backbone
from segcore.layers import bilinear_kernel, bilinear_transposed_convolution, set_batch_norm_momentum, window
from segcore.models.block_codes import BlockCode
from segcore.models.config_checks import check_dropout_and_momentum, check_positive, check_vgg, check_width
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import FixedDecoder
from segcore.models.main_loss import LossConfig, MainLoss

Variant = Literal["32s", "16s", "8s"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

COARSEST_STRIDE = 32
SKIPS: dict[Variant, tuple[int, ...]] = {"32s": (), "16s": (16,), "8s": (16, 8)}
"""Strides of the pools whose scores are added, in this order."""
SKIP_CROPS = {16: 5, 8: 9}
"""Rows and columns of the pool of each stride that lie before the first one that its coarser scores reach."""
OUTPUT_CROPS = {32: 19, 16: 27, 8: 31}
"""Rows and columns before the image's first, after the last enlargement by that factor."""
SKIP_SCALES = {16: 0.01, 8: 0.0001}
"""Factors on the pools where all stages are trained at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FCNConfig(FixedDecoder):
    """FCN-32s, 16s or 8s."""

    backbone: str = "vgg16"
    """vgg16 or vgg16_bn."""

    variant: Variant = "8s"
    """Stride of the finest scores: 32s, 16s or 8s. Each is trained from the one before (--start-from)."""

    at_once: bool = False
    """Pools scaled by 0.01 and 0.0001 before their scores: 8s is then trained from the classifier, without stages."""

    learned_upsampling: bool = False
    """Enlargements by 2 are learned, from the bilinear kernel on."""

    channels: int = 4096
    """Width of fc6 and fc7, a divisor of VGG's 4096."""

    width: float = 1.0
    """Share of the convolutions' published widths: 1, 0.5, 0.25, 0.125 or 0.0625. Pre-trained weights fit 1 alone."""

    dropout: float = 0.5
    """Dropout after fc6 and after fc7."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation (vgg16_bn)."""

    def __post_init__(self) -> None:
        check_vgg(self.backbone, network="FCN")
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        check_positive(self, "channels")
        check_width(self.width)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map: always 32."""
        return COARSEST_STRIDE

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return min((COARSEST_STRIDE, *SKIPS[self.variant]))


class LearnedUpsampling(nn.ConvTranspose2d):
    """Transposed convolution of class scores by 2, which starts as the bilinear one of each class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes, 4, stride=2, bias=False)
        classes = torch.arange(num_classes)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[classes, classes] = bilinear_kernel(2).to(self.weight)


class SkipHead(nn.Module):
    """Scores of several maps, the coarser enlarged by 2 and added to the finer; the sum enlarged to the image's size.

    Scores start at zero, as released: the network says nothing until it has learned to.

    Args:
        config: which maps.
        channels: of the maps by stride.
        num_classes: C.
    """

    def __init__(self, config: FCNConfig, channels: Mapping[int, int], num_classes: int) -> None:
        super().__init__()
        self.enlargement = config.enlargement
        self.main_loss = MainLoss(LossConfig())
        self.skips = SKIPS[config.variant]
        self.scales = SKIP_SCALES if config.at_once else dict.fromkeys(SKIP_SCALES, 1.0)
        self.scores = nn.ModuleDict(
            {str(stride): nn.Conv2d(channels[stride], num_classes, 1) for stride in (COARSEST_STRIDE, *self.skips)}
        )
        for parameter in self.scores.parameters():
            nn.init.zeros_(parameter)
        self.upsampling = nn.ModuleDict(
            {str(stride): LearnedUpsampling(num_classes) for stride in self.skips if config.learned_upsampling}
        )

    def forward(self, maps: Mapping[int, Tensor], *, height: int, width: int) -> SegmentationOutput:
        """Scores at the image's size.

        Args:
            maps: fc7's by 32, and the pools by 16 and 8, of an image with 100 rows and columns around it.
            height, width: of the image.
        """
        x = self.scores[str(COARSEST_STRIDE)](maps[COARSEST_STRIDE])
        for stride in self.skips:
            x = self._twice(x, stride)
            skip = window(maps[stride], first=SKIP_CROPS[stride], height=x.shape[-2], width=x.shape[-1])
            x = x + self.scores[str(stride)](skip * self.scales[stride] if self.scales[stride] != 1 else skip)
        # Contiguous for the softmax, see `enlarge_scores`.
        x = bilinear_transposed_convolution(x.contiguous(), self.enlargement)
        return SegmentationOutput(
            logits_NCHW=window(x, first=OUTPUT_CROPS[self.enlargement], height=height, width=width)
        )

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy, or the recipe's loss, at full resolution: a mean over valid pixels."""
        terms: LossTerms = self.main_loss(output.logits_NCHW, labels_NHW)
        return terms

    def _twice(self, x_NChw: Tensor, stride: int) -> Tensor:
        if str(stride) not in self.upsampling:
            return bilinear_transposed_convolution(x_NChw, 2)
        learned: Tensor = self.upsampling[str(stride)](x_NChw)
        return learned


class FCN(nn.Module):
    """VGG-16 as convolutions, scores at up to three strides; obeys `SegmentationModel`."""

    def __init__(self, config: FCNConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        assert code is None, "FCN has no data-dependent decoder"
        self.num_classes = num_classes
        trunk = build_backbone(
            config.backbone, output_stride=COARSEST_STRIDE, vgg_layout="fcn", vgg_width_divisor=round(1 / config.width)
        )
        fully_connected = FullyConnected(
            config.channels, kernel_size=7, padded=False, dropout=config.dropout, in_channels=trunk.channels[32]
        )
        self.backbone = DenseVGG(trunk, [fully_connected])
        self.head = SkipHead(config, trunk.channels | {COARSEST_STRIDE: config.channels}, num_classes)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        (x,), pools = self.backbone.with_features(images_N3HW)
        output: SegmentationOutput = self.head(pools | {COARSEST_STRIDE: x}, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        terms: LossTerms = self.head.loss(output, labels_NHW)
        return terms
