"""An image classifier, timm's or ours, that gives its features by stride, at a chosen output stride."""

from collections.abc import Sequence
from typing import cast

import timm
from timm.layers.conv_bn_act import ConvNormAct
from timm.models._features import FeatureInfo
from timm.models.xception_aligned import XceptionAligned, XceptionModule
from torch import Tensor, nn

from segcore.backbones.catalogue import FEATURE_STRIDES, OUTPUT_STRIDES, backbone_spec
from segcore.backbones.vgg import VGG16, VGGLayout
from segcore.backbones.xception39 import XCEPTION39_CHANNELS, Xception39


class Backbone(nn.Module):
    """Features of one image batch, by nominal stride.

    `backbone(images)[s]` is the output of the last block before the network, as published, leaves stride s: the keys
    are always 2, 4, 8, 16, 32. At output stride 16 the stage named 32 runs dilated and its map has stride 16; at output
    stride 8 those named 16 and 32 have stride 8. `feature_strides` has the real ones. A map at stride s of an image
    with L rows has ceil(L / s) rows.

    The block that lost its stride keeps the previous dilation and only those after it take the new one, so weights mean
    the same at every output stride: features at 16, subsampled by 2, equal those at 32 (tests hold timm to it). Two
    kinds of backbone need a word: with "same" padding the subsampling starts at the odd positions of even-sized maps,
    and squeeze-and-excitation (MobileNetV3) averages over the denser map, so equality holds only up to its gates.

    Source: Chen et al., DeepLabV3, arXiv 1706.05587, section 3.1; slim's `stack_blocks_dense` for the first block.

    Attributes:
        name: key of `BACKBONES`.
        output_stride: stride of the coarsest map.
        channels: channels of each feature.
        feature_strides: real stride of each feature.
        size_multiple: 1, or the number of which height and width should be multiples so that the sampling grid does not
            depend on the size (networks pad to it).
        body: the timm module, whose state dict has timm's names, or our VGG-16 or Xception39.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int,
        in_channels: int = 3,
        vgg_layout: VGGLayout = "classifier",
        vgg_width_divisor: int = 1,
        multi_grid: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        spec = backbone_spec(name)
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output stride {output_stride} is not one of {OUTPUT_STRIDES}")
        is_vgg = spec.architecture.startswith("vgg16")
        if vgg_layout != "classifier" and not is_vgg:
            raise ValueError(f"backbone {name!r} has no layout {vgg_layout!r}; choose vgg16 or vgg16_bn")
        if vgg_width_divisor != 1 and not is_vgg:
            raise ValueError(f"backbone {name!r} has one width, not 1 / {vgg_width_divisor}; choose vgg16 or vgg16_bn")
        self.name = name
        self.output_stride = output_stride
        self.feature_strides = {stride: min(stride, output_stride) for stride in FEATURE_STRIDES}
        self.size_multiple = output_stride if spec.same_padding else 1
        if is_vgg:
            vgg = VGG16(
                output_stride=output_stride,
                in_channels=in_channels,
                batch_norm=spec.architecture.endswith("_bn"),
                layout=vgg_layout,
                width_divisor=vgg_width_divisor,
            )
            self.body: nn.Module = vgg
            channels: Sequence[int] = vgg.channels
        elif spec.architecture == "xception39":
            self.body, channels = Xception39(output_stride=output_stride, in_channels=in_channels), XCEPTION39_CHANNELS
        else:
            self.body, channels = _build_body(spec.architecture, output_stride=output_stride, in_channels=in_channels)
        self.channels = dict(zip(FEATURE_STRIDES, channels, strict=True))
        if multi_grid:
            _multiply_dilations(self, multi_grid)

    def forward(self, images_NKHW: Tensor) -> dict[int, Tensor]:
        """Features by nominal stride; images are normalised with the backbone's own mean and std."""
        if isinstance(self.body, XceptionAligned):
            return _xception_features(self.body, images_NKHW)
        features: list[Tensor] = self.body(images_NKHW)
        return dict(zip(FEATURE_STRIDES, features, strict=True))


def build_backbone(
    name: str,
    *,
    output_stride: int,
    in_channels: int = 3,
    vgg_layout: VGGLayout = "classifier",
    vgg_width_divisor: int = 1,
    multi_grid: tuple[int, ...] = (),
) -> Backbone:
    """Build a backbone with random weights; nothing is downloaded.

    Args:
        name: key of `BACKBONES`.
        output_stride: stride of the coarsest map.
        in_channels: of the images.
        vgg_layout: of VGG-16: its own, or that of a network on it; see `VGG16`.
        vgg_width_divisor: of VGG-16's widths.
        multi_grid: factors on the dilation of the last stage's blocks, one for each (ResNets alone). DeepLabV3, section
            3.2: (1, 2, 4). Weights stay the same, and so does what is said above of output strides.

    Raises:
        ValueError: unknown name (the message lists the known ones) or output stride, or an option that this backbone
            does not have.
    """
    return Backbone(
        name,
        output_stride=output_stride,
        in_channels=in_channels,
        vgg_layout=vgg_layout,
        vgg_width_divisor=vgg_width_divisor,
        multi_grid=multi_grid,
    )


def dilate_first_blocks(body: nn.Module) -> None:
    """Give the first bottleneck of a ResNet's dilated stages the dilation of those after it.

    So have the released PSPNet and ICNet, for whose weights this is. It is not what `Backbone` promises.

    Args:
        body: timm's ResNet at output stride 8.
    """
    for stage, dilation in (("layer3", 2), ("layer4", 4)):
        convolution = cast(nn.Conv2d, body.get_submodule(f"{stage}.0.conv2"))
        convolution.dilation = convolution.padding = (dilation, dilation)


def _multiply_dilations(backbone: Backbone, multi_grid: tuple[int, ...]) -> None:
    last_stage = getattr(backbone.body, "layer4", None)
    if last_stage is None or len(last_stage) != len(multi_grid):
        blocks = "no such stage" if last_stage is None else f"a last stage of {len(last_stage)} blocks"
        raise ValueError(
            f"multi_grid is {multi_grid} and backbone {backbone.name!r} has {blocks}; it is for ResNets, with one "
            "factor for each block of the last stage"
        )
    for block, factor in zip(last_stage, multi_grid, strict=True):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                dilation = factor * layer.dilation[0]
                layer.dilation, layer.padding = (dilation, dilation), (dilation, dilation)


def _build_body(architecture: str, *, output_stride: int, in_channels: int) -> tuple[nn.Module, list[int]]:
    """The timm module and the channels of its five features."""
    if architecture.startswith("xception"):
        body = timm.create_model(architecture, in_chans=in_channels, output_stride=output_stride, num_classes=0)
        if architecture == "xception71" and output_stride == 8:
            _keep_projections(body, timm.create_model(architecture, in_chans=in_channels, num_classes=0))
        taps: list[int] = [tap["num_chs"] for tap in cast(XceptionAligned, body).feature_info]
        return body, [*taps[:3], _modules(body)[-2].in_channels, taps[-1]]
    body = timm.create_model(architecture, in_chans=in_channels, output_stride=output_stride, features_only=True)
    channels: list[int] = cast(FeatureInfo, body.feature_info).channels()
    return body, channels


def _keep_projections(body: nn.Module, whole: nn.Module) -> None:
    """Give blocks of `body` the skip projections of `whole`, which has all its strides, without these strides.

    timm leaves the projection out where neither width nor stride changes: Xception-71's block of 728 channels that lost
    its stride then has no place for the pre-trained one, and weights of one output stride do not fit another.
    """
    for block, original in zip(_modules(body), _modules(whole), strict=True):
        projection = dict(original.named_children()).get("shortcut")
        if isinstance(projection, ConvNormAct) and "shortcut" not in dict(block.named_children()):
            projection.conv.stride = (1, 1)
            block.shortcut = projection


def _xception_features(body: XceptionAligned, images_NKHW: Tensor) -> dict[int, Tensor]:
    """Features where the papers tap them, which timm's `features_only` cannot give for stride 16.

    2, 4, 8: second separable convolution of the strided entry blocks, after its ReLU (4 is DeepLabV3+'s low-level
    feature; TF takes it before the ReLU). 16: output of the middle flow (DUpsampling's `mfb1u16c3`, there before the
    sum with the skip). 32: output of the exit flow.
    """
    features: dict[int, Tensor] = {}
    x = body.stem(images_NKHW)
    taps = dict(zip(body.feature_ends[:3], (2, 4, 8), strict=True))  # Xception-71 has two more blocks in between
    blocks = _modules(body)
    for index, block in enumerate(blocks):
        if index in taps:
            x, features[taps[index]] = block.forward_with_tap(x)
        else:
            x = block(x)
        if index == len(blocks) - 3:
            features[16] = x
    features[32] = x
    return features


def _modules(body: nn.Module) -> list[XceptionModule]:
    """Entry, middle and exit flow, in order."""
    return [cast(XceptionModule, block) for block in cast(XceptionAligned, body).blocks]
