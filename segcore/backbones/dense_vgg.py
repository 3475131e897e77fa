"""VGG-16 with its fully connected layers as convolutions: what a network keeps of the classifier as a whole."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segcore.backbones.backbone import Backbone
from segcore.backbones.vgg import FullyConnected
from segcore.backbones.weights import load_backbone_weights


class DenseVGG(nn.Module):
    """The convolutions of VGG-16, and one or more copies of fc6 and fc7 on its last map.

    Args:
        trunk: a `Backbone` named vgg16 or vgg16_bn.
        branches: copies of fc6 and fc7 that may differ in dilation.
    """

    def __init__(self, trunk: Backbone, branches: Sequence[FullyConnected]) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """The map of each branch."""
        x = self.trunk(images_N3HW)[32]
        return [branch(x) for branch in self.branches]

    @torch.no_grad()
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy a VGG-16 classifier's weights, in timm's or torchvision's names; fc6 and fc7 go into every branch.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here; nothing is changed then.
        """
        branches = [branch for branch in self.branches if isinstance(branch, FullyConnected)]
        fitting = [branch.fitting(state_dict) for branch in branches]
        load_backbone_weights(self.trunk, state_dict)
        for branch, weights in zip(branches, fitting, strict=True):
            branch.load_state_dict(weights)
