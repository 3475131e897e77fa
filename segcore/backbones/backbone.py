"""An image classifier, timm's or ours, that gives its features by stride, at a chosen output stride."""

from collections.abc import Callable, Sequence
from typing import cast

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
        self._features: Callable[[nn.Module, Tensor], dict[int, Tensor]] = _features_by_stride
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
            from segcore.backbones import timm_bodies  # timm takes as long to import as PyTorch

            self.body, channels = timm_bodies.build_body(
                spec.architecture, output_stride=output_stride, in_channels=in_channels
            )
            if spec.architecture.startswith("xception"):
                self._features = timm_bodies.xception_features
        self.channels = dict(zip(FEATURE_STRIDES, channels, strict=True))
        if multi_grid:
            _multiply_dilations(self, multi_grid)

    def forward(self, images_NKHW: Tensor) -> dict[int, Tensor]:
        """Features by nominal stride; images are normalised with the backbone's own mean and std."""
        return self._features(self.body, images_NKHW)


def _features_by_stride(body: nn.Module, images_NKHW: Tensor) -> dict[int, Tensor]:
    features: list[Tensor] = body(images_NKHW)
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
