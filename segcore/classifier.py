"""A backbone as an image classifier: what it was before it was a feature extractor, and how it is pre-trained.

Coarsest feature map -> global average pool -> dropout -> `fc`. For a ResNet this is the published network: ResNet-50
with 1000 classes has 25,557,032 parameters and 4.09 G multiply-adds at 224 x 224. MobileNets and EfficientNets as
published have one more 1x1 convolution before their `fc`, which no segmentation network here uses; ours go without.

With codewords it is Deep TEN, for textures and materials: an orderless encoding takes the place of the mean. On
ResNet-50 with 23 classes (MINC-2500), 128 channels and 32 codewords: 23,868,791 parameters. PyTorch-Encoding's 1x1
convolution has 128 biases more, which the batch normalisation behind it cancels.

Source: He et al., "Deep residual learning", arXiv 1512.03385, table 1; label smoothing: Szegedy et al., "Rethinking the
inception architecture", arXiv 1512.00567, section 7; start of `fc`: Goyal et al., arXiv 1706.02677, section 5.1; Deep
TEN: Zhang et al., arXiv 1612.02844, section 4.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import BACKBONES, Backbone, LightXception, build_backbone
from segcore.layers import ConvBnAct, Encoding, initialise_convolutions, set_batch_norm_momentum
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

    num_codewords: int = 0
    """Codewords of an encoding layer in place of the mean (Deep TEN, whose authors take 32); 0 keeps the mean."""

    encoded_channels: int = 128
    """Width to which the map is reduced before it is encoded; only with codewords."""

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
        if self.num_codewords < 0 or self.encoded_channels < 1:
            raise ValueError(
                f"num_codewords is {self.num_codewords} and encoded_channels {self.encoded_channels}; expected 0 or "
                "more and 1 or more"
            )


class TextureEncoding(nn.Module):
    """What a map is made of, wherever it is: 1x1 convolution, BN, ReLU, encoding; all residuals as a vector of norm 1.

    Source: Deep TEN, section 4 (its table of the architecture).

    Args:
        in_channels: of the map.
        channels: K, to which it is reduced.
        num_codewords: Q.
    """

    def __init__(self, in_channels: int, channels: int, num_codewords: int) -> None:
        super().__init__()
        self.reduce = ConvBnAct(in_channels, channels)
        self.encoding = Encoding(channels, num_codewords)
        initialise_convolutions(self)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """(N, Q * K), codeword by codeword, whatever the map's size."""
        return F.normalize(self.encoding(self.reduce(x_NKhw)).flatten(1))


class GlobalMean(nn.Module):
    """Mean over all locations."""

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """(N, K), whatever the map's size."""
        return x_NKhw.mean(dim=(2, 3))


class Classifier(nn.Module):
    """Class scores of whole images.

    Attributes:
        num_classes: C.
        backbone: the part that is kept; everything else is "decoder" to the optimiser.
        pool: one vector of the whole map: its mean, or its encoding.
        fc: the last layer. `segcore.backbones.backbone_state` gives the weights of both by the names of a classifier.
    """

    def __init__(self, config: ClassifierConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        self.backbone = _backbone(config.backbone)
        channels = self.backbone.channels[max(self.backbone.channels)]
        self.pool: nn.Module = GlobalMean()
        if config.num_codewords:
            self.pool = TextureEncoding(channels, config.encoded_channels, config.num_codewords)
            channels = config.encoded_channels * config.num_codewords
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=FC_DEVIATION)
        nn.init.zeros_(self.fc.bias)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits (N, C) of normalised images of any height and width."""
        features = self.backbone(images_N3HW)
        logits_NC: Tensor = self.fc(self.dropout(self.pool(features[max(features)])))
        return logits_NC

    def loss(self, logits_NC: Tensor, labels_N: Tensor) -> LossTerms:
        """Mean cross-entropy against (1 - e) * one-hot + e / C, with e the label smoothing; in float32."""
        total = F.cross_entropy(logits_NC.float(), labels_N.long(), label_smoothing=self.label_smoothing)
        return LossTerms(total=total, terms={"cross_entropy": total.detach()})


def _backbone(name: str) -> Backbone | LightXception:
    """As published, down to its own last stride; gives features by stride."""
    last_stride = BACKBONES[name].last_stride
    return LightXception(name) if last_stride == 16 else build_backbone(name, output_stride=last_stride)
