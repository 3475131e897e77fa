"""VGG-16 with batch normalisation that remembers the switches of its pools, for decoders that mirror it."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segcore.backbones.vgg import VGG16, VGG16_STAGES, Pool, fully_connected_weights
from segcore.backbones.weights import fitting_weights
from segcore.layers import Pooling, initialise_convolutions, record_pooling
from segcore.layers.norm import refuse_one_image

LEFTOVER = ("classifier.", "pre_logits.", "head.", "fc.")
"""Of an image classifier, in torchvision's, timm's and our own names."""
FULLY_CONNECTED = ("fc6.", "fc7.")


class SwitchedVGG(nn.Module):
    """The thirteen convolutions of VGG-16 and, as convolutions, fc6 and fc7; each with batch normalisation and ReLU.

    Layers of `features` are numbered as those of torchvision's and timm's vgg16_bn.

    Args:
        name: vgg16 or vgg16_bn, the classifier that it may start from.
        width_divisor: of the convolutions' widths.
        fc_channels: width of fc6 and fc7; 0 leaves both out.
        fc6_side: side of fc6's kernel, which has no zero padding: 7 for images of 224 pixels.

    Attributes:
        stages: width and number of convolutions of each stage.
    """

    def __init__(self, name: str, *, width_divisor: int = 1, fc_channels: int = 0, fc6_side: int = 7) -> None:
        super().__init__()
        self.name = name
        self.stages = tuple((width // width_divisor, repeats) for width, repeats in VGG16_STAGES)
        self.features = VGG16(output_stride=32, batch_norm=True, width_divisor=width_divisor).features
        self.fc6: nn.Sequential | None = None
        self.fc7: nn.Sequential | None = None
        if fc_channels:
            self.fc6 = _fully_connected(self.stages[-1][0], fc_channels, fc6_side)
            self.fc7 = _fully_connected(fc_channels, fc_channels, 1)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, list[Pooling]]:
        """The last map (of the last pool, or of fc7), and what was pooled, the finest first.

        Raises:
            ValueError: one image in training, with fc6 and fc7 and normalisation over this device's batch alone.
        """
        poolings: list[Pooling] = []
        x = images_N3HW
        for layer in self.features:
            if isinstance(layer, Pool):
                x, pooling = record_pooling(x)
                poolings.append(pooling)
            else:
                x = layer(x)
        if self.fc6 is not None and self.fc7 is not None:
            refuse_one_image(x, self.fc6[1], what="fc6 of VGG-16")
            x = self.fc7(self.fc6(x))
        return x, poolings

    @torch.no_grad()
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy a VGG-16 classifier's weights, with or without batch normalisation, in timm's or torchvision's names.

        Normalisation that the classifier has not, that of fc6 and fc7 always, keeps its values. The `backbone_state` of
        another network with this backbone fits as well.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here; nothing is changed then.
        """
        own = self.state_dict()
        given = _with_normalisation(state_dict, own)
        leftover: tuple[str, ...] = LEFTOVER
        if self.fc6 is None:
            leftover += FULLY_CONNECTED
        elif not any(name.startswith(FULLY_CONNECTED) for name in given):
            kept = {name: value for name, value in own.items() if name.startswith(FULLY_CONNECTED)}
            weights = fully_connected_weights(state_dict)
            for layer, (weight, bias) in zip(FULLY_CONNECTED, weights, strict=True):
                kept |= {f"{layer}0.weight": weight, f"{layer}0.bias": bias}
            given |= kept
        source = "VGG-16 (for all widths as published, and fc6 for images of 224 pixels)"
        self.load_state_dict(fitting_weights(own, given, leftover=leftover, backbone=self.name, source=source))


def _fully_connected(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    layer = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )
    initialise_convolutions(layer)
    return layer


def _with_normalisation(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain VGG-16's convolutions under the numbers that they have with normalisation, which is added from `own`."""
    plain = {name: match for name in state_dict if (match := re.fullmatch(r"features\.(\d+)\.(weight|bias)", name))}
    numbers = sorted({int(match[1]) for match in plain.values()})
    features = {name: tensor for name, tensor in own.items() if name.startswith("features.")}
    convolutions = [int(name.split(".")[1]) for name, tensor in features.items() if tensor.ndim == 4]
    if len(numbers) != len(convolutions):
        return dict(state_dict)  # it has its normalisation, or is no VGG-16: what is missing will be told
    ours = dict(zip(numbers, convolutions, strict=True))
    given = {name: tensor for name, tensor in state_dict.items() if name not in plain}
    for name, match in plain.items():
        features[f"features.{ours[int(match[1])]}.{match[2]}"] = state_dict[name]
    return given | features
