"""timm's networks as bodies of `Backbone`; imported where one is built: timm takes as long to import as PyTorch."""

from typing import cast

import timm
from timm.layers.conv_bn_act import ConvNormAct
from timm.models._features import FeatureInfo
from timm.models.xception_aligned import XceptionAligned, XceptionModule
from torch import Tensor, nn


def build_body(architecture: str, *, output_stride: int, in_channels: int) -> tuple[nn.Module, list[int]]:
    """The timm module and the channels of its five features.

    Args:
        architecture: timm's name, without a pre-training tag.
        output_stride: stride of the coarsest map.
        in_channels: of the images.
    """
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


def xception_features(body: nn.Module, images_NKHW: Tensor) -> dict[int, Tensor]:
    """Features where the papers tap them, which timm's `features_only` cannot give for stride 16.

    2, 4, 8: second separable convolution of the strided entry blocks, after its ReLU (4 is DeepLabV3+'s low-level
    feature; TF takes it before the ReLU). 16: output of the middle flow (DUpsampling's `mfb1u16c3`, there before the
    sum with the skip). 32: output of the exit flow.
    """
    body = cast(XceptionAligned, body)
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
