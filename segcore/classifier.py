"""A backbone as an image classifier: what it was before it was a feature extractor, and how it is pre-trained.

Coarsest feature map -> global average pool -> dropout -> `fc`. For a ResNet this is the published network: ResNet-50
with 1000 classes has 25,557,032 parameters and 4.09 G multiply-adds at 224 x 224. MobileNets and EfficientNets as
published have one more 1x1 convolution before their `fc`, which no segmentation network here uses; ours go without.

Source: He et al., "Deep residual learning", arXiv 1512.03385, table 1; label smoothing: Szegedy et al., "Rethinking the
inception architecture", arXiv 1512.00567, section 7; start of `fc`: Goyal et al., arXiv 1706.02677, section 5.1.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import BACKBONES, Backbone, LightXception, build_backbone
from segcore.layers import set_batch_norm_momentum
from segcore.models.contract import LossTerms

FC_DEVIATION = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """An image classifier over any backbone."""

    backbone: str = "resnet50"
    """Key of segcore.backbones.BACKBONES."""

    dropout: float = 0.0
    """Dropout before the last layer."""

    label_smoothing: float = 0.1
    """Share of the target that is spread evenly over all classes; 0 trains on the labels as they are."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation; more for runs of a few hundred steps."""

    def __post_init__(self) -> None:
        known = [name for name, spec in BACKBONES.items() if not spec.network]
        if self.backbone not in known:
            raise ValueError(
                f"{self.backbone!r} is no backbone that classifies images; known: {', '.join(known)}"
                if self.backbone in BACKBONES
                else f"unknown backbone {self.backbone!r}; known: {', '.join(known)}"
            )
        if not 0 <= self.dropout < 1 or not 0 <= self.label_smoothing < 1 or not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(
                f"dropout is {self.dropout}, label_smoothing {self.label_smoothing} and batch_norm_momentum "
                f"{self.batch_norm_momentum}; expected [0, 1), [0, 1) and (0, 1]"
            )


class Classifier(nn.Module):
    """Class scores of whole images.

    Attributes:
        num_classes: C.
        backbone: the part that is kept; everything else is "decoder" to the optimiser.
        fc: the last layer. `segcore.backbones.backbone_state` gives the weights of both by the names of a classifier.
    """

    def __init__(self, config: ClassifierConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        self.backbone = _backbone(config.backbone)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(self.backbone.channels[max(self.backbone.channels)], num_classes)
        nn.init.normal_(self.fc.weight, std=FC_DEVIATION)
        nn.init.zeros_(self.fc.bias)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits (N, C) of normalised images of any height and width."""
        features = self.backbone(images_N3HW)
        pooled_NK: Tensor = features[max(features)].mean(dim=(2, 3))
        logits_NC: Tensor = self.fc(self.dropout(pooled_NK))
        return logits_NC

    def loss(self, logits_NC: Tensor, labels_N: Tensor) -> LossTerms:
        """Mean cross-entropy against (1 - e) * one-hot + e / C, with e the label smoothing; in float32."""
        total = F.cross_entropy(logits_NC.float(), labels_N.long(), label_smoothing=self.label_smoothing)
        return LossTerms(total=total, terms={"cross_entropy": total.detach()})


def _backbone(name: str) -> Backbone | LightXception:
    """As published, down to its own last stride; gives features by stride."""
    last_stride = BACKBONES[name].last_stride
    return LightXception(name) if last_stride == 16 else build_backbone(name, output_stride=last_stride)
