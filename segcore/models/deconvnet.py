"""DeconvNet (Noh, Hong and Han, "Learning deconvolution network for semantic segmentation", ICCV 2015, arXiv
1505.04366).

For crops of 224 x 224 pixels, one object each. VGG-16's convolutions, whose pools keep their switches; fc6 and fc7 as
convolutions of 7x7 and 1x1 on the last map of 7 x 7, so that one location is left; fc6-deconv, a transposed convolution
of 7x7 back to that map; then the mirror image of VGG-16: unpooling by the switches and "deconvolutions" down to 64
channels at 224 x 224; a 1x1 classifier. Batch normalisation and ReLU follow every layer but the last (section 3.2,
section 4.1; released prototxt).

Parameters with 21 classes: 251,805,653 (published: about 252 M), of which fc6, fc7 and fc6-deconv are 222,324,224 and
normalisation 33,408. 32.75 G multiply-adds a crop. Published on the VOC 2012 test set: 69.6 % (from memory), with the
CRF 70.5 (from memory); with FCN-8s and the CRF 72.5.

The method is more than the network: two stages of training on crops of objects (recipes voc.deconvnet_stage1 and ..2),
proposals at inference, statistics of batch normalisation from a pass of their own (`recompute_batch_norm`).

How it is built here:
- Deconvolutions of 3x3 and stride 1 are convolutions: with padding 1 a transposed convolution equals a convolution
  whose kernel is turned by 180 degrees and whose input and output channels are swapped. Either is learned, so
  parameters and functions are the same; the kernels of convolutions are faster.
- An image of another size is resized to the crop's and its scores back: one proposal that is the whole image. The
  method's inference shows the network crops of its own size instead, and those are not resized.
- `width`, `fc_channels` and `input_px` make it smaller; fc6 then takes the last map whole, whatever its side.

Differences from the paper and its released code:
- Images are normalised by mean and deviation of RGB; the code subtracts the mean of BGR and does not scale.
- Batch normalisation: PyTorch's epsilon 1e-5 for the code's 1e-9; statistics over the whole batch on a device, where
  the code adds up gradients over 8 passes of 8 images.
- The bias of a convolution learns as fast as its weight; in the code twice as fast.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore.backbones import SwitchedVGG
from segcore.layers import UnpoolingDecoder, resize, set_batch_norm_momentum
from segcore.models.block_codes import BlockCode
from segcore.models.config_checks import check_batch_norm_momentum, check_positive, check_vgg, check_width
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import BilinearHead, FixedDecoder, pointwise

OUTPUT_STRIDE = 32
DECONVOLUTION_STD = 0.01
BATCH_NORM_SHIFT = 0.001
"""Both as the released prototxt starts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeconvNetConfig(FixedDecoder):
    """DeconvNet."""

    backbone: str = "vgg16"
    """vgg16 or vgg16_bn: one network, two classifiers that it may start from; the paper's has no normalisation."""

    width: float = 1.0
    """Share of the convolutions' published widths: 1, 0.5, 0.25, 0.125 or 0.0625. Pre-trained weights fit 1 alone."""

    fc_channels: int = 4096
    """Width of fc6 and fc7. Pre-trained weights fit 4096 alone."""

    input_px: int = 224
    """Side of the square crops that the network sees, a multiple of 32. Pre-trained weights fit 224 alone."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation."""

    def __post_init__(self) -> None:
        check_vgg(self.backbone, network="DeconvNet")
        check_width(self.width)
        check_positive(self, "fc_channels")
        if self.input_px < OUTPUT_STRIDE or self.input_px % OUTPUT_STRIDE:
            raise ValueError(f"input_px is {self.input_px}; expected a multiple of {OUTPUT_STRIDE}, such as 224")
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Crop size / size of the map behind the last pool."""
        return OUTPUT_STRIDE

    @property
    def enlargement(self) -> int:
        """The last convolution gives scores at the crop's size."""
        return 1


class DeconvNet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`.

    Attributes:
        input_px: side of the crops that are not resized.
    """

    def __init__(self, config: DeconvNetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_px = config.input_px
        side = config.input_px // OUTPUT_STRIDE
        self.backbone = SwitchedVGG(
            config.backbone, width_divisor=round(1 / config.width), fc_channels=config.fc_channels, fc6_side=side
        )
        coarsest = self.backbone.stages[-1][0]
        self.fc6_deconv = nn.Sequential(
            nn.ConvTranspose2d(config.fc_channels, coarsest, side), nn.BatchNorm2d(coarsest), nn.ReLU(inplace=True)
        )
        self.decoder = UnpoolingDecoder(self.backbone.stages)
        for part in (self.fc6_deconv, self.decoder):
            _start_as_published(part)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                nn.init.constant_(module.bias, BATCH_NORM_SHIFT)
        self.head = BilinearHead(pointwise(self.backbone.stages[0][0]), num_classes, enlargement=config.enlargement)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size; only crops of `input_px` x `input_px` are seen as they are."""
        height, width = images_N3HW.shape[-2:]
        side = self.input_px
        x, poolings = self.backbone(resize(images_N3HW, height=side, width=side))
        x = self.decoder(self.fc6_deconv(x), poolings)
        output: SegmentationOutput = self.head(x, height=side, width=side)
        return SegmentationOutput(logits_NCHW=resize(output.logits_NCHW, height=height, width=width))

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)


def _start_as_published(part: nn.Module) -> None:
    """Gaussian weights, biases 0."""
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=DECONVOLUTION_STD)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
