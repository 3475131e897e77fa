"""SegNet (Badrinarayanan, Kendall and Cipolla, "SegNet: a deep convolutional encoder-decoder architecture for image
segmentation", PAMI 2017, arXiv 1511.00561).

VGG-16's convolutions with batch normalisation, whose 2x2 pools keep their switches; the mirror image of them, which
unpools by these switches; a 3x3 convolution to the class scores at the image's size. Nothing else of the encoder
reaches the decoder, and there are no fully connected layers: with them it is DeconvNet.

Parameters: 29,449,355 for 11 classes, 29,453,971 for 19. 143.3 G multiply-adds at 360 x 640 (the ENet paper prints 286
GFLOPs, which count two per multiply-add), 325.5 at 512 x 1024. Published: 60.1 % on CamVid (from memory), 56.1 % on the
Cityscapes test set.

SegNet-Basic, the paper's small form, from memory of its section 3.1: four encoders and four decoders of one 7x7
convolution of 64 channels each, without biases and, in the decoder, without ReLU; a 1x1 classifier. 1,416,075
parameters for 11 classes (the paper's table, from memory: 1.425 M).

Differences from the paper and its released code:
- Images are normalised by mean and deviation; the code takes raw pixels, SegNet-Basic after local contrast
  normalisation (from memory).
- Dropout is that of "Bayesian SegNet", another paper, and not here.
- Weighing classes by their median frequency is the recipe's business (`class_weights`), and no part of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcore.backbones import SwitchedVGG, load_own_encoder
from segcore.layers import (
    ConvBnAct,
    Pooling,
    UnpoolingDecoder,
    initialise_convolutions,
    record_pooling,
    set_batch_norm_momentum,
)
from segcore.models.block_codes import BlockCode
from segcore.models.config_checks import VGG_BACKBONES, check_batch_norm_momentum, check_width
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import BilinearHead, FixedDecoder, Predictor

BASIC = "segnet_basic"
BASIC_CHANNELS = 64
BASIC_STAGES = 4
BASIC_KERNEL = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class SegNetConfig(FixedDecoder):
    """SegNet, or SegNet-Basic."""

    backbone: str = "vgg16_bn"
    """vgg16 or vgg16_bn (SegNet: one network, two classifiers that it may start from), or segnet_basic."""

    width: float = 1.0
    """Share of the published widths: 1, 0.5, 0.25, 0.125 or 0.0625. Pre-trained weights fit 1 alone."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        known = (*VGG_BACKBONES, BASIC)
        if self.backbone not in known:
            raise ValueError(f"unknown backbone {self.backbone!r}; known: {', '.join(known)}, which SegNet is built on")
        check_width(self.width)
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map, behind the last pool."""
        return 2**BASIC_STAGES if self.backbone == BASIC else 32

    @property
    def enlargement(self) -> int:
        """The last convolution gives scores at the image's size."""
        return 1


class BasicEncoder(nn.Module):
    """SegNet-Basic's: four times a 7x7 convolution, batch normalisation, ReLU and a pool that keeps its switches.

    Args:
        channels: of every convolution.

    Attributes:
        stages: width and number of convolutions of each stage.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stages = ((channels, 1),) * BASIC_STAGES
        widths = (3, *(channels for _ in range(BASIC_STAGES - 1)))
        self.convolutions = nn.ModuleList(ConvBnAct(width, channels, BASIC_KERNEL) for width in widths)
        initialise_convolutions(self)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, list[Pooling]]:
        """The last map, and what was pooled, the finest first."""
        poolings: list[Pooling] = []
        x = images_N3HW
        for convolution in self.convolutions:
            x, pooling = record_pooling(convolution(x))
            poolings.append(pooling)
        return x, poolings

    @torch.no_grad()
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the encoder of another SegNet-Basic; no image classifier has these layers.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here; nothing is changed then.
        """
        load_own_encoder(self, state_dict, network="segnet")


class SegNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: SegNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone: SwitchedVGG | BasicEncoder
        if config.backbone == BASIC:
            self.backbone = BasicEncoder(round(config.width * BASIC_CHANNELS))
            self.decoder = UnpoolingDecoder(
                self.backbone.stages, kernel_size=BASIC_KERNEL, bias=False, activation=False
            )
            classifier_kernel = 1
        else:
            self.backbone = SwitchedVGG(config.backbone, width_divisor=round(1 / config.width))
            (finest, _), *coarser = self.backbone.stages
            self.decoder = UnpoolingDecoder(((finest, 1), *coarser))  # the classifier mirrors the first convolution
            classifier_kernel = 3
        initialise_convolutions(self.decoder)
        predictor = _classifier(self.backbone.stages[0][0], classifier_kernel)
        self.head = BilinearHead(predictor, num_classes, enlargement=config.enlargement)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size, any: pools keep the half row behind an odd side, and unpooling gives it back."""
        height, width = images_N3HW.shape[-2:]
        x, poolings = self.backbone(images_N3HW)
        output: SegmentationOutput = self.head(self.decoder(x, poolings), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)


def _classifier(in_channels: int, kernel_size: int) -> Predictor:
    return lambda out_channels, bias: nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
    )
