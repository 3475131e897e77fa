"""Dilated front end and context module (Yu and Koltun, "Multi-scale context aggregation by dilated convolutions",
ICLR 2016, arXiv 1511.07122).

Front end: VGG-16 without its last two pools, their strides replaced by dilation, fc6 and fc7 as convolutions, no zero
padding: the image is continued by reflection instead. Context module: 3x3 convolutions of growing dilation on the class
scores, which start as the identity (section 3, table 1).

Parameters: front end 134,346,581 at 21 classes; context module 28,392 (basic, 21 classes), 23,256 (basic, 19) and
6,803,139 (large, 21). Published: 67.1 % on the Cityscapes test set with 10 layers.

Differences from the paper and its released code:
- On another backbone than VGG-16 the front end is that backbone and a 1x1 classifier, with zero padding.
- Scores are enlarged bilinearly and the loss is taken at the image's size; the code samples the labels at stride 8.
- The paper trains front end, context module and both together, one after the other; here all parts learn at once, and
  the identity start of the context module makes the first steps those of the front end alone.
- Initial noise of the context module has deviation 0.01 (the released prototxt's); the paper says "sigma < C / c".
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import Backbone, DenseVGG, FullyConnected, build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.layers import AtrousConv2d, initialise_convolutions, mirror, pad_to_multiple, set_batch_norm_momentum
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_dropout_and_momentum, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise

OUTPUT_STRIDE = 8
VALID_MARGIN = 186
"""Rows on each side that the unpadded front end needs beyond the image."""

Context = Literal["none", "basic", "large"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
CONTEXT_DILATIONS = {8: (1, 1, 2, 4, 8, 16, 1), 10: (1, 1, 2, 4, 8, 16, 32, 64, 1)}
"""Of the 3x3 layers, by number of layers with the final 1x1; 8: table 1, a field of 67 scores; 10: for Cityscapes."""
LARGE_WIDTHS = {8: (2, 2, 4, 8, 16, 32, 32), 10: (2, 2, 4, 8, 16, 32, 32, 32, 32)}
"""Multiples of the number of classes; 8: table 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DilatedContextConfig:
    """Dilated front end and context module."""

    backbone: str = "vgg16"
    """Key of segcore.backbones.BACKBONES; vgg16 is the paper's front end."""

    fully_connected_channels: int = 4096
    """Width of fc6 and fc7 (vgg16 alone), a divisor of VGG's 4096."""

    dropout: float = 0.5
    """Dropout after fc6 and after fc7 (vgg16 alone)."""

    context: Context = "basic"
    """Context module: none, basic (as wide as there are classes) or large (up to 32 times that)."""

    context_layers: int = 8
    """Layers of the context module: 8, or 10 for large images."""

    context_noise: float = 0.01
    """Deviation of the noise on the identity that the context module starts as."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, where the backbone has any."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        check_positive(self, "fully_connected_channels")
        if self.context not in CONTEXTS:
            raise ValueError(f"unknown context {self.context!r}; known: {', '.join(CONTEXTS)}")
        if self.context_layers not in CONTEXT_DILATIONS:
            raise ValueError(f"context_layers is {self.context_layers}; it must be 8 or 10")
        if self.context_noise < 0:
            raise ValueError(f"context_noise is {self.context_noise}; it must not be negative")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_dropout_and_momentum(dropout=self.dropout, batch_norm_momentum=self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Always 8."""
        return OUTPUT_STRIDE

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return OUTPUT_STRIDE


class ContextModule(nn.Module):
    """3x3 convolutions of growing dilation, each with ReLU; the final 1x1 layer is the network's last.

    Starts as the identity of non-negative scores (equations 4 and 5): output b of a layer is C / c_out times the sum of
    its inputs a with floor(a C / c_in) = floor(b C / c_out), at the centre tap. The factors cancel over all layers.

    Args:
        num_classes: C, channels of the scores.
        widths: multiples of C that the layers give.
        dilations: of the layers.
        noise: deviation of what is added to the identity.
    """

    def __init__(self, num_classes: int, *, widths: tuple[int, ...], dilations: tuple[int, ...], noise: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            AtrousConv2d(before * num_classes, after * num_classes, 3, dilation=dilation)
            for (before, after), dilation in zip(pairwise((1, *widths)), dilations, strict=True)
        )
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            start_as_identity(convolution, groups=num_classes, noise=noise)

    def forward(self, scores_NChw: Tensor) -> Tensor:
        """Map of the same size, widths[-1] * C channels."""
        x = scores_NChw
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x


@torch.no_grad()
def start_as_identity(convolution: nn.Conv2d, *, groups: int, noise: float) -> None:
    """One layer of a context module over `groups` classes: its identity, plus noise; see `ContextModule`."""
    nn.init.normal_(convolution.weight, std=noise) if noise else nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    outputs, inputs = convolution.weight.shape[:2]
    output_class = torch.arange(outputs, device=convolution.weight.device) * groups // outputs
    input_class = torch.arange(inputs, device=convolution.weight.device) * groups // inputs
    same = output_class[:, None] == input_class[None]
    centre = convolution.kernel_size[0] // 2
    convolution.weight[:, :, centre, centre] += same * (groups / outputs)


class DilatedContext(nn.Module):
    """Front end, class scores, context module; obeys `SegmentationModel`."""

    def __init__(self, config: DilatedContextConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone: DenseVGG | Backbone
        if config.backbone == "vgg16":
            width = config.fully_connected_channels
            trunk = build_backbone(config.backbone, output_stride=OUTPUT_STRIDE, vgg_layout="valid")
            fully_connected = FullyConnected(width, kernel_size=7, dilation=4, padded=False, dropout=config.dropout)
            self.backbone = DenseVGG(trunk, [fully_connected])
        else:
            self.backbone = build_backbone(config.backbone, output_stride=OUTPUT_STRIDE)
            width = self.backbone.channels[32]
        self.context: ContextModule | None = None
        predictor = pointwise(width)
        if config.context != "none":
            self.scores = nn.Conv2d(width, num_classes, 1)
            initialise_convolutions(self.scores)
            nn.init.normal_(self.scores.weight, std=0.001)  # the released front end's
            dilations = CONTEXT_DILATIONS[config.context_layers]
            widths = (1,) * len(dilations) if config.context == "basic" else LARGE_WIDTHS[config.context_layers]
            self.context = ContextModule(num_classes, widths=widths, dilations=dilations, noise=config.context_noise)
            predictor = pointwise(widths[-1] * num_classes)
        self.head = build_head(predictor, num_classes, enlargement=OUTPUT_STRIDE, config=config.dupsample, code=code)
        if code is None and self.context is not None:
            classifier = self.head.get_submodule("classifier")
            assert isinstance(classifier, nn.Conv2d)
            start_as_identity(classifier, groups=num_classes, noise=config.context_noise)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        if isinstance(self.backbone, DenseVGG):
            (x,) = self.backbone(_continued(images_N3HW))
        else:
            x = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))[32]
        if self.context is not None:
            x = self.context(self.scores(x))
        output: SegmentationOutput = self.head(x, height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)


def _continued(images_N3HW: Tensor) -> Tensor:
    """Images continued by reflection: VALID_MARGIN pixels on every side, and up to a multiple of 8."""
    height, width = (length + 2 * VALID_MARGIN + -length % OUTPUT_STRIDE for length in images_N3HW.shape[-2:])
    return mirror(images_N3HW, margin=VALID_MARGIN, height=height, width=width)
