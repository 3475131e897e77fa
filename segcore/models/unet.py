"""U-Net (Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015,
arXiv 1505.04597), and its decoder over any backbone.

Five levels of two 3x3 convolutions without padding, 2x2 maximum pools between them; on the way up 2x2 transposed
convolutions that halve the channels, the map of the same level cropped at its centre beside them, two 3x3 convolutions.
572 x 572 pixels give scores of the inner 388 x 388. An image is continued by reflection, on all sides by the 92 pixels
that are lost and to the next valid size, so that every pixel of it has a score: the paper's overlap-tile with one tile.

Parameters: 31,030,658 for grey images and 2 classes, as the paper draws it; 31,033,045 for colours and 21 classes;
31,037,698 for colours and 2 classes with batch normalisation in place of the 3x3 convolutions' biases. 150.8 G
multiply-adds for a tile of 572 x 572 in colours.

`BackboneUNet` has the same way up over the features of stride 32 to 2 of an image classifier, padded, with batch
normalisation; its scores are enlarged by 2. Ours; the paper has no such network.

Differences from the paper, and what it leaves open:
- The mirror image is mirrored again where an image is smaller than its border.
- The skip comes before the enlarged map in the concatenation.
- Dropout of single values behind the encoder's last level; its place and probability in the released network are not
  known to us ("at the end of the contracting path").
- He initialisation as in the paper, but for the classifier, which starts near 0 as all of ours do.
- w(x) = 1 + border_weight * exp(-(d1 + d2)^2 / (2 sigma^2)) without the paper's balance of classes w_c, and its mean in
  place of its sum; off unless `border_weight` (10 in the paper) is given. Objects are connected components of the label
  map: the paper's are cells.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore import IGNORE_INDEX
from segcore.backbones import build_backbone, load_own_encoder
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import initialise_convolutions, mirror, pad_to_multiple, set_batch_norm_momentum
from segcore.losses import border_cross_entropy, border_weights
from segcore.models.block_codes import BlockCode
from segcore.models.config_checks import (
    check_dropout_and_momentum,
    check_not_negative,
    check_own_encoder,
    check_positive,
)
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import BilinearHead, FixedDecoder, pointwise

LEVEL_STRIDES = (1, 2, 4, 8, 16)
BACKBONE_STRIDE = 32
MARGIN = 92
"""Rows and columns that the scores lack on each side of an unpadded input."""
STRIDE, REMAINDER, SMALLEST_VALID_SIDE = 16, 60, 188
"""Unpadded inputs have 16 b + 60 rows, so that every pool has an even map; from b = 8 on they leave any scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig(FixedDecoder):
    """U-Net."""

    backbone: str = "unet"
    """Always unet, its own encoder; network backbone_unet takes any other."""

    width: int = 64
    """Channels of the finest level; each level below has twice as many."""

    padded: bool = False
    """Zero padding of every 3x3 convolution, in place of an image continued by reflection."""

    batch_norm: bool = False
    """Batch normalisation after every 3x3 convolution, in place of its bias."""

    dropout: float = 0.5
    """Dropout at the end of the encoder."""

    border_weight: float = 0.0
    """Of the loss of pixels between and along objects, beside 1 for every pixel; 10 in the paper, 0 leaves it out."""

    border_sigma_px: float = 5.0
    """How far that weight reaches, in pixels."""

    border_background: int = -1
    """Class that is no object but what lies between objects; -1: there is none."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        check_own_encoder(self.backbone, network="unet")
        check_positive(self, "width")
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)
        check_not_negative(self, "border_weight")
        if self.border_sigma_px <= 0 or not -1 <= self.border_background < IGNORE_INDEX:
            raise ValueError(
                f"border_sigma_px is {self.border_sigma_px} and border_background {self.border_background}; expected a "
                "number above 0, and a class or -1"
            )

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return LEVEL_STRIDES[-1]

    @property
    def enlargement(self) -> int:
        """Scores have the image's own resolution."""
        return LEVEL_STRIDES[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneUNetConfig(FixedDecoder):
    """U-Net's way up over any backbone."""

    backbone: str = "resnet50"
    """Key of segcore.backbones.BACKBONES."""

    dropout: float = 0.0
    """Dropout at the end of the encoder."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map."""
        return BACKBONE_STRIDE

    @property
    def enlargement(self) -> int:
        """Factor of the last step: stride of the finest feature."""
        return 2


def valid_side(length: int) -> int:
    """Smallest side of an unpadded input whose scores are `length` rows or more: 16 b + 60."""
    needed = length + 2 * MARGIN + (REMAINDER - length - 2 * MARGIN) % STRIDE
    return torch.sym_max(SMALLEST_VALID_SIDE, needed)  # type: ignore[return-value]  # of an integer, an integer


def two_convolutions(in_channels: int, out_channels: int, *, padded: bool, batch_norm: bool) -> nn.Sequential:
    """3x3 convolution, ReLU, twice; with batch normalisation before each ReLU it replaces the biases."""
    layers: list[nn.Module] = []
    for before in (in_channels, out_channels):
        layers.append(nn.Conv2d(before, out_channels, 3, padding=int(padded), bias=not batch_norm))
        layers += [nn.BatchNorm2d(out_channels)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """U-Net's contracting path.

    Args:
        width: channels of the finest level.
        in_channels: of the images.
        padded, batch_norm: of the convolutions.
        dropout: probability, behind the coarsest level.

    Attributes:
        channels: channels of each level, by stride.
    """

    def __init__(
        self, width: int, *, in_channels: int = 3, padded: bool, batch_norm: bool, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.channels = {stride: width * stride for stride in LEVEL_STRIDES}
        self.levels = nn.ModuleList(
            two_convolutions(before, after, padded=padded, batch_norm=batch_norm)
            for before, after in pairwise((in_channels, *self.channels.values()))
        )
        self.dropout = nn.Dropout(dropout)
        initialise(self)

    def forward(self, images_NKHW: Tensor) -> dict[int, Tensor]:
        """Maps by stride: 1, 2, 4, 8 and 16; without padding their sides are even but for the last."""
        features: dict[int, Tensor] = {}
        x = images_NKHW
        for stride, level in zip(LEVEL_STRIDES, self.levels, strict=True):
            x = level(F.max_pool2d(x, 2) if features else x)
            features[stride] = x
        features[LEVEL_STRIDES[-1]] = self.dropout(x)
        return features

    @torch.no_grad()
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the encoder of another U-Net of the same width and normalisation.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here; nothing is changed then.
        """
        load_own_encoder(self, state_dict, network="unet")


class UpBlock(nn.Module):
    """2x2 transposed convolution to half of the channels, the skip beside its output, two 3x3 convolutions.

    Args:
        in_channels: of the coarser map; the result has half of them.
        skip_channels: of the finer one.
        padded, batch_norm: of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, skip_channels: int, *, padded: bool, batch_norm: bool) -> None:
        super().__init__()
        half = in_channels // 2
        self.up = nn.ConvTranspose2d(in_channels, half, 2, stride=2)
        self.fuse = two_convolutions(skip_channels + half, half, padded=padded, batch_norm=batch_norm)

    def forward(self, x_NKhw: Tensor, skip_NKHW: Tensor) -> Tensor:
        """Map of twice the size, less 4 rows and columns without padding; of a larger skip the centre counts."""
        x = self.up(x_NKhw)
        height, width = x.shape[-2:]
        top, left = (skip_NKHW.shape[-2] - height) // 2, (skip_NKHW.shape[-1] - width) // 2
        fused: Tensor = self.fuse(torch.cat([skip_NKHW[..., top : top + height, left : left + width], x], dim=1))
        return fused


class Decoder(nn.Module):
    """U-Net's expanding path.

    Args:
        channels: of each feature, by stride; each stride is half of the next.
        padded, batch_norm: of the 3x3 convolutions.

    Attributes:
        out_channels: of the finest map.
    """

    def __init__(self, channels: Mapping[int, int], *, padded: bool, batch_norm: bool) -> None:
        super().__init__()
        self.coarsest, *self.skips = sorted(channels, reverse=True)
        self.out_channels = channels[self.coarsest]
        self.blocks = nn.ModuleList()
        for stride in self.skips:
            self.blocks.append(UpBlock(self.out_channels, channels[stride], padded=padded, batch_norm=batch_norm))
            self.out_channels //= 2
        initialise(self)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Map of the finest feature's stride."""
        x = features[self.coarsest]
        for stride, block in zip(self.skips, self.blocks, strict=True):
            x = block(x, features[stride])
        return x


def initialise(module: nn.Module) -> None:
    """Normal weights of deviation sqrt(2 / N), N the values that come into one output; biases 0.

    Source: section 3 of the paper, after He et al., arXiv 1502.01852.
    """
    initialise_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            # Windows do not overlap: one tap of each input channel comes into an output.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_channels))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class UNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: UNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        assert code is None
        if config.border_weight and config.border_background >= num_classes:
            raise ValueError(
                f"border_background is class {config.border_background} and there are {num_classes} classes; give one "
                f"of 0 to {num_classes - 1}, or -1 for none"
            )
        self.num_classes = num_classes
        self.config = config
        self.backbone = Encoder(
            config.width, padded=config.padded, batch_norm=config.batch_norm, dropout=config.dropout
        )
        self.decoder = Decoder(self.backbone.channels, padded=config.padded, batch_norm=config.batch_norm)
        self.head = BilinearHead(pointwise(self.decoder.out_channels), num_classes, enlargement=config.enlargement)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        if self.config.padded:
            images_N3HW = pad_to_multiple(images_N3HW, LEVEL_STRIDES[-1])
        else:
            images_N3HW = mirror(images_N3HW, margin=MARGIN, height=valid_side(height), width=valid_side(width))
        x = self.decoder(self.backbone(images_N3HW))
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def valid_scores(self, images_N3HW: Tensor) -> Tensor:
        """Class scores of the inner pixels alone, 184 rows and columns fewer: the network as the paper draws it.

        Args:
            images_N3HW: height and width 16 b + 60, at least 188.

        Raises:
            ValueError: another size, or a padded network.
        """
        height, width = images_N3HW.shape[-2:]
        if self.config.padded:
            raise ValueError(
                "a padded U-Net scores every pixel; call the network itself, or build it with padded=False"
            )
        if any(valid_side(side - 2 * MARGIN) != side for side in (height, width)):
            raise ValueError(
                f"images are {height} x {width} pixels; a U-Net without padding takes sides of 16 b + 60, at least "
                f"{SMALLEST_VALID_SIDE} (572 in the paper); call the network itself for any size"
            )
        x = self.decoder(self.backbone(images_N3HW))
        output: SegmentationOutput = self.head(x, height=height - 2 * MARGIN, width=width - 2 * MARGIN)
        return output.logits_NCHW

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's, and that of borders if it has a weight.

        The distances behind that weight are computed on the CPU from each label map: some 40 ms for one of CamVid's.
        """
        terms = self.head.loss(output, labels_NHW)
        config = self.config
        if not config.border_weight:
            return terms
        background = None if config.border_background < 0 else config.border_background
        border_NHW = border_weights(labels_NHW, sigma_px=config.border_sigma_px, background=background)
        loss = border_cross_entropy(output.logits_NCHW, labels_NHW, border_NHW)
        return terms.plus("border", loss, weight=config.border_weight)


class BackboneUNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: BackboneUNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        assert code is None
        self.num_classes = num_classes
        self.backbone = build_backbone(config.backbone, output_stride=BACKBONE_STRIDE)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(self.backbone.channels, padded=True, batch_norm=True)
        self.head = BilinearHead(pointwise(self.decoder.out_channels), num_classes, enlargement=config.enlargement)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, BACKBONE_STRIDE))  # each map twice the next
        features[BACKBONE_STRIDE] = self.dropout(features[BACKBONE_STRIDE])
        output: SegmentationOutput = self.head(self.decoder(features), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
