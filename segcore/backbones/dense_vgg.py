"""VGG-16 with its fully connected layers as convolutions: what a network keeps of the classifier as a whole."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segcore.backbones.backbone import Backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.backbones.vgg import FullyConnected
from segcore.backbones.weights import CLASSIFIER_PREFIX, fitting_weights, load_backbone_weights


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
        return self.with_features(images_N3HW)[0]

    def with_features(self, images_N3HW: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """The map of each branch, and the trunk's features by nominal stride."""
        features = self.trunk(images_N3HW)
        return [branch(features[32]) for branch in self.branches], features

    @torch.no_grad()
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy a VGG-16 classifier's weights, in timm's or torchvision's names; fc6 and fc7 go into every branch.

        Or those of another network's `DenseVGG`, as `segcore.backbones.backbone_state` gives them; branch by branch.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place here; nothing is changed then.
        """
        if any(name.startswith("trunk.") for name in state_dict):
            self._load_dense(state_dict)
            return
        branches = [branch for branch in self.branches if isinstance(branch, FullyConnected)]
        fitting = [branch.fitting(state_dict) for branch in branches]
        load_backbone_weights(self.trunk, state_dict)
        for branch, weights in zip(branches, fitting, strict=True):
            branch.load_state_dict(weights)

    def _load_dense(self, state_dict: Mapping[str, Tensor]) -> None:
        name = self.trunk.name
        fitting = fitting_weights(
            self.state_dict(),
            state_dict,
            leftover=(CLASSIFIER_PREFIX,),
            backbone=f"{name} with {len(self.branches)} fc6 and fc7",
            source=f"timm's {backbone_spec(name).architecture!r}",
        )
        self.load_state_dict(fitting)
