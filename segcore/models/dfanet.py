"""DFANet (Li et al., "Deep feature aggregation for real-time semantic segmentation", CVPR 2019, arXiv 1904.02216).

Three light encoders one after the other, each of stride 8 and ended by FC attention. Sub-network aggregation: the next
encoder starts from the last one's attended output, enlarged by 4, beside its finest map. Sub-stage aggregation:
stage k of an encoder takes, besides stage k-1's map, stage k's of the encoder before, which has the same size. The
decoder adds up what the three encoders know.

Reproduces the networks of table 5: A (Xception A), 1,824,443 parameters for 19 classes and 3.421 G multiply-adds at
1024 x 1024 (published: 3.4 G); A', the same at 512 x 1024, 1.711 G (1.7 G); B (Xception B), 1,098,203 and 2.055 G
(2.1 G). The paper prints 7.8 M and 4.8 M "parameters": those are megabytes of a float32 checkpoint (ours: 7.7 and 4.8).

No code was released. Where the paper is silent:
- The blocks: see `segcore.backbones.light_xception`.
- FC attention ends in 1x1 convolution, BN, sigmoid. SENet, of the same structure, has a sigmoid too (arXiv 1709.01507).
  A ReLU behind BN would shut half of the channels at the start and cut them off from the loss; without an
  activation a gate could turn a map's sign. There is none between the two layers: the second takes class scores.
- The width of the decoder, 32, and the place of its one 3x3 convolution come from the published cost.
- The decoder's six projections have no ReLU: their sums are one linear projection of maps that had theirs.
- Everything is enlarged bilinearly by whole factors. Images are padded with zeros to multiples of 64, the stride of the
  last map, so that maps that are joined have one size; scores are cut. The attention's mean counts the padding.
- An ImageNet classifier fills all three encoders. The first block of each stage takes in more in the second and third
  encoder: its first depthwise, first pointwise and skip convolution have no match there and start at random. Their
  batch normalisation does take the classifier's values: it gives the layers behind it the scale that they know, and
  its running statistics are replaced within some tens of steps.
- 1000 classes are what ImageNet classifiers have; `classifier_classes` fits the attention to a smaller pre-training.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segcore.backbones import fitting_weights
from segcore.backbones.light_xception import (
    FIRST_LAYERS,
    STEM_CHANNELS,
    light_xception_channels,
    light_xception_stages,
    light_xception_stem,
)
from segcore.layers import ConvBnAct, initialise_convolutions, pad_to_multiple, set_batch_norm_momentum, upsample
from segcore.layers.norm import refuse_one_image
from segcore.models.block_codes import BlockCode, DUpsampleConfig
from segcore.models.config_checks import check_batch_norm_momentum, check_positive
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.heads import Decoder, build_head, check_decoder, pointwise

NUM_ENCODERS = 3
COARSEST_STRIDE = 64
"""Image size / size of the last encoder's last map: 16, doubled by each encoder after the first."""
DECODER_STRIDE = 4
"""Image size / size of the map that is classified: the first encoder's finest."""
ENCODER_REDUCTION = 4
"""Size of an encoder's first map / size of its last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DFANetConfig:
    """DFANet A (dfanet_xception_a; A' is the same on smaller images) or B (dfanet_xception_b)."""

    backbone: str = "dfanet_xception_a"
    """Key of segcore.backbones.BACKBONES, of which all three encoders are copies."""

    classifier_classes: int = 1000
    """Classes of the image classifier that the encoders are pre-trained as: the width of the attention."""

    decoder_channels: int = 32
    """Width of the decoder."""

    decoder: Decoder = "bilinear"
    """Last step: bilinear enlargement, or dupsample, data-dependent upsampling (needs a label PCA)."""

    dupsample: DUpsampleConfig = field(default_factory=DUpsampleConfig)
    """Settings of data-dependent upsampling; only with decoder dupsample."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, encoders included."""

    def __post_init__(self) -> None:
        light_xception_channels(self.backbone)
        check_positive(self, "classifier_classes", "decoder_channels")
        check_decoder(self.decoder, enlargement=self.enlargement)
        check_batch_norm_momentum(self.batch_norm_momentum)

    @property
    def output_stride(self) -> int:
        """Image size / size of the coarsest map: the last encoder's."""
        return COARSEST_STRIDE

    @property
    def enlargement(self) -> int:
        """Factor of the last step."""
        return DECODER_STRIDE


class FCAttention(nn.Module):
    """Gate each channel by what an image classifier makes of the whole map.

    y = x * sigmoid(BN(W (F mean(x) + b))): F and b are the classifier's fully connected layer, W a 1x1 convolution back
    to the channels.

    In training its BN sees one value per image and channel, so a batch of 1 has nothing to normalise by.

    Source: section 3.2 of the paper; the sigmoid is ours (see the module's docstring).

    Args:
        channels: of the map.
        classifier_classes: of the image classifier.
    """

    def __init__(self, channels: int, classifier_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classifier_classes)
        self.project = ConvBnAct(classifier_classes, channels, activation=False)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape.

        Raises:
            ValueError: one image in training, with normalisation over this device's batch alone.
        """
        refuse_one_image(x_NKhw, self.project.norm, what="FC attention")
        scores_NC = self.fc(x_NKhw.mean(dim=(2, 3)))
        gates: Tensor = self.project(scores_NC[:, :, None, None]).sigmoid()
        return x_NKhw * gates


@dataclass(frozen=True, slots=True)
class EncoderMaps:
    """What one encoder gives, finest first.

    Attributes:
        stages: maps of its three stages.
        attended: the last of them behind the attention.
    """

    stages: tuple[Tensor, Tensor, Tensor]
    attended: Tensor


class Encoder(nn.Module):
    """Stages enc2, enc3 and enc4, and FC attention.

    Args:
        channels: of the three stages.
        classifier_classes: of the attention.
        is_first: takes the first convolution's map and nothing from an encoder before.
    """

    def __init__(self, channels: tuple[int, int, int], classifier_classes: int, *, is_first: bool) -> None:
        super().__init__()
        enc2, enc3, enc4 = channels
        in_channels = (STEM_CHANNELS, enc2, enc3) if is_first else (enc4 + enc2, enc2 + enc3, enc3 + enc4)
        self.stages = light_xception_stages(in_channels, channels)
        self.attention = FCAttention(enc4, classifier_classes)

    def forward(self, x_NKhw: Tensor, previous: EncoderMaps | None) -> EncoderMaps:
        """Maps of 1/2, 1/4 and 1/8 of the size of `x_NKhw`, which `previous` has maps of 1/1, 1/2 and 1/4 of."""
        enc2 = self.stages["enc2"](x_NKhw)
        enc3 = self.stages["enc3"](enc2 if previous is None else torch.cat([enc2, previous.stages[1]], dim=1))
        enc4 = self.stages["enc4"](enc3 if previous is None else torch.cat([enc3, previous.stages[2]], dim=1))
        return EncoderMaps(stages=(enc2, enc3, enc4), attended=self.attention(enc4))


class Encoders(nn.Module):
    """The first convolution and the encoders: what an image classifier fills.

    Args:
        name: key of `BACKBONES`.
        classifier_classes: of that classifier.
        num_encoders: 3; the paper's ablation also stacks 1, 2 and 4.
    """

    def __init__(self, name: str, classifier_classes: int, *, num_encoders: int = NUM_ENCODERS) -> None:
        super().__init__()
        self.name = name
        self.classifier_classes = classifier_classes
        self.channels = light_xception_channels(name)
        self.conv1 = light_xception_stem()
        self.encoders = nn.ModuleList(
            Encoder(self.channels, classifier_classes, is_first=index == 0) for index in range(num_encoders)
        )
        initialise_convolutions(self)

    def forward(self, images_N3HW: Tensor) -> list[EncoderMaps]:
        """Maps of each encoder, for images whose sizes are multiples of the last map's stride."""
        x = self.conv1(images_N3HW)
        found: list[EncoderMaps] = []
        previous: EncoderMaps | None = None
        for encoder in self.encoders:
            if previous is not None:
                finest = previous.stages[0]
                height, width = finest.shape[-2:]
                x = torch.cat([upsample(previous.attended, ENCODER_REDUCTION, height=height, width=width), finest], 1)
            previous = encoder(x, previous)
            found.append(previous)
        return found

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy a whole classifier (`LightXception` and `fc`) into every encoder; see the module's docstring.

        Raises:
            ValueError: it has no last layer or one for other classes, or a tensor is missing, has another shape, or has
                no place; nothing is changed then.
        """
        self._check_last_layer(state_dict.get("fc.weight"))
        classifiers = [
            nn.ModuleDict(
                {
                    "conv1": self.conv1,
                    "stages": encoder.get_submodule("stages"),
                    "fc": encoder.get_submodule("attention.fc"),
                }
            )
            for encoder in self.encoders
        ]
        fitting = fitting_weights(
            classifiers[0].state_dict(), state_dict, leftover=(), backbone=self.name, source="the whole classifier"
        )
        without_match = tuple(f".0.{layer}" for layer in FIRST_LAYERS)
        for index, classifier in enumerate(classifiers):
            kept = {name: value for name, value in classifier.state_dict().items() if name.endswith(without_match)}
            classifier.load_state_dict(fitting | (kept if index else {}))

    def _check_last_layer(self, weight: Tensor | None) -> None:
        if weight is None:
            raise ValueError(
                f"the weights of {self.name!r} have no 'fc.weight', and FC attention takes over the image classifier's "
                "last layer; give the state dict of the whole classifier, with 'fc.weight' and 'fc.bias'"
            )
        if len(weight) != self.classifier_classes:
            raise ValueError(
                f"the image classifier has {len(weight)} classes and the network's FC attention "
                f"{self.classifier_classes}; set classifier_classes to {len(weight)}, or give another classifier"
            )


class AggregationDecoder(nn.Module):
    """Sum of the encoders' finest maps, 3x3 convolution; plus the sum of their attended maps.

    Source: figure 3 of the paper ("fuse low-level", "fuse high-level"); widths: see the module's docstring.
    """

    def __init__(self, low_channels: int, high_channels: int, channels: int) -> None:
        super().__init__()
        self.low, self.high = (
            nn.ModuleList(ConvBnAct(before, channels, activation=False) for _ in range(NUM_ENCODERS))
            for before in (low_channels, high_channels)
        )
        self.fuse = ConvBnAct(channels, channels, 3)

    def forward(self, encoders: list[EncoderMaps]) -> Tensor:
        """Map of the size of the finest."""
        low = _sum_of_enlarged(self.low, [maps.stages[0] for maps in encoders], factor=1)
        high = _sum_of_enlarged(self.high, [maps.attended for maps in encoders], factor=ENCODER_REDUCTION)
        return high.add_(self.fuse(low))


def _sum_of_enlarged(projections: Iterable[nn.Module], maps: list[Tensor], *, factor: int) -> Tensor:
    """Sum of the projected maps, the first enlarged by `factor`, each of the others by twice the one before."""
    height, width = (factor * length for length in maps[0].shape[-2:])
    total: Tensor | None = None
    for index, (project, x) in enumerate(zip(projections, maps, strict=True)):
        enlarged = upsample(project(x), factor * 2**index, height=height, width=width)
        total = enlarged if total is None else total.add_(enlarged)
    assert total is not None
    return total


class DFANet(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`."""

    def __init__(self, config: DFANetConfig, num_classes: int, code: BlockCode | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Encoders(config.backbone, config.classifier_classes)
        low_channels, _, high_channels = self.backbone.channels
        self.decoder = AggregationDecoder(low_channels, high_channels, config.decoder_channels)
        initialise_convolutions(self.decoder)
        self.head = build_head(
            pointwise(config.decoder_channels),
            num_classes,
            enlargement=config.enlargement,
            config=config.dupsample,
            code=code,
        )
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size."""
        height, width = images_N3HW.shape[-2:]
        encoders = self.backbone(pad_to_multiple(images_N3HW, COARSEST_STRIDE))
        output: SegmentationOutput = self.head(self.decoder(encoders), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """The head's."""
        return self.head.loss(output, labels_NHW)
