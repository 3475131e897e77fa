"""DUpsampling (Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120).

Low-level features are *down*sampled to the coarsest map and fused there; the fused map predicts, at every location,
the code of a whole R x R block of labels (R = output stride), which the frozen basis of a PCA over the training labels
expands. A learnable temperature scales the scores: the basis reconstructs one-hot values in [0, 1], and with
temperature 1 even perfect ones cost ln(e + C - 1) - 1 = 2.12 nats at 21 classes.

Reproduces the decoder costs of tables 2 and 3 within 1 %. Parameters at 21 classes, basis and its bias included,
temperature (1) not: ResNet-50 deep stem 27,020,288 without low-level features and 27,376,864 with strides 2 and 16
(64 components, OS 16); Xception-65 with stride 16 and 128 components 41,801,888.

Where the paper is silent (it gives no code):
- Widths and the sequential fusion follow from its decoder costs. The convolution that predicts the code is a plain one
  with a bias, as every classifier's last: batch normalisation there would force each batch's mean code to be the
  same, whatever the images show. It starts at the mean code of the training labels, with next to no weights.
- The basis is frozen; with `freeze_basis=False` it is only initialised from the PCA.
- T = 0.001 + exp(t), so that it stays positive and never loses its gradient; no weight decay. Start 0.1 rather than 1:
  from 1 it has to fall by a factor of 10 to 30 before the loss means anything.
- `code_scale`. A block of one class is a vector of norm R, so codes reach R while a fresh layer emits about 1. A
  diagonal is absorbed into the basis, W' = W diag(s): the same span, the same functions, another conditioning.
- Low-level features: torchvision's ResNets end a stage after the sum and ReLU; the paper taps the last convolution.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segcore.backbones import OUTPUT_STRIDES, build_backbone
from segcore.backbones.catalogue import backbone_spec
from segcore.label_pca import LabelPCA
from segcore.layers import (
    ASPP,
    ConvBnAct,
    DUpsample,
    SeparableConv,
    atrous_rates,
    downsample,
    initialise_convolutions,
    pad_to_multiple,
    set_batch_norm_momentum,
)
from segcore.losses import cross_entropy
from segcore.models.contract import LossTerms, SegmentationOutput

LOW_LEVEL_STRIDES = (2, 4, 8, 16)
TEMPERATURE_FLOOR = 1e-3
CODE_WEIGHT_STD = 1e-3
"""Of the layer that predicts the code: small, so that training does not start by unlearning random blocks."""

CodeScale = Literal["none", "block", "whiten"]
CODE_SCALES: tuple[CodeScale, ...] = get_args(CodeScale)


@dataclass(frozen=True, kw_only=True, slots=True)
class DUpsamplingConfig:
    """DUpsampling over any backbone."""

    backbone: str = "resnet50"
    """Key of segcore.backbones.BACKBONES."""

    output_stride: int = 32
    """Image size / size of the coarsest feature map: 8, 16 or 32; the label PCA's block side must equal it."""

    features: tuple[int, ...] = (2, 16)
    """Strides of the low-level features, fused in this order at the coarsest map: any of 2, 4, 8, 16; may be empty."""

    num_components: int = 64
    """Length of the code; the label PCA must have as many (the paper: 64 with ResNet-50, 128 with Xception-65)."""

    aspp_channels: int = 256
    """Width of ASPP and of the decoder."""

    aspp_dropout: float = 0.1
    """Dropout after ASPP."""

    separable: bool = True
    """Depthwise separable convolutions in ASPP's atrous branches (those of the decoder always are)."""

    low_level_channels: int = 48
    """Width of each projected low-level feature."""

    freeze_basis: bool = True
    """Keep the label PCA's basis as it is; False trains it on."""

    code_scale: CodeScale = "block"
    """Unit of the predicted code: label blocks as they are, norm / block side, or each component's root mean square."""

    temperature_init: float = 0.1
    """Softmax temperature at the start, above 0.001."""

    train_temperature: bool = True
    """Learn the temperature."""

    batch_norm_momentum: float = 0.1
    """Of every batch normalisation, backbone included; DeepLab's TF code: 0.0003 (for 30 000 steps and more)."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        if self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {self.output_stride}; it must be one of {OUTPUT_STRIDES}")
        if len(set(self.features)) != len(self.features) or not set(self.features) <= set(LOW_LEVEL_STRIDES):
            raise ValueError(f"features are {self.features}; expected different strides out of {LOW_LEVEL_STRIDES}")
        for name in ("num_components", "aspp_channels", "low_level_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.code_scale not in CODE_SCALES:
            raise ValueError(f"unknown code_scale {self.code_scale!r}; known: {', '.join(CODE_SCALES)}")
        if self.temperature_init <= TEMPERATURE_FLOOR:
            raise ValueError(f"temperature_init is {self.temperature_init}; it must be above {TEMPERATURE_FLOOR}")
        if not 0 <= self.aspp_dropout < 1 or not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(
                f"aspp_dropout is {self.aspp_dropout} and batch_norm_momentum {self.batch_norm_momentum}; "
                "expected [0, 1) and (0, 1]"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCode:
    """What the network takes from a label PCA.

    Attributes:
        basis_DP: reconstruction matrix W.
        bias_D: mean block of a centred PCA, else zeros.
        scale_P: s, the predicted code's unit in each component.
        mean_P: mean code of the training labels' blocks, before scaling.
    """

    basis_DP: Tensor
    bias_D: Tensor
    scale_P: Tensor
    mean_P: Tensor


def block_code(label_pca: LabelPCA, config: DUpsamplingConfig, num_classes: int) -> BlockCode:
    """Check a label PCA against the network, and derive its code's units.

    With M blocks, component p has second moment eigenvalue_p / M (about the mean where the PCA is centred).

    Raises:
        ValueError: block side, classes or components differ from the network's.
    """
    for name, found, expected, remedy in (
        ("block side", label_pca.block_side, config.output_stride, "output_stride"),
        ("number of classes", label_pca.num_classes, num_classes, "class table"),
        ("number of components", label_pca.basis_DP.shape[1], config.num_components, "num_components"),
    ):
        if found != expected:
            raise ValueError(
                f"the label PCA's {name} is {found}, the network's {remedy} asks for {expected}; fit a label PCA with "
                f"{expected} on this dataset's training labels, or change {remedy}"
            )
    basis_DP = torch.from_numpy(label_pca.basis_DP.astype("float64"))
    mean_D = torch.from_numpy(label_pca.mean_D.astype("float64"))
    second_P = torch.from_numpy(label_pca.eigenvalues_P.astype("float64")).clamp(min=0) / max(label_pca.num_blocks, 1)
    mean_P = torch.zeros_like(second_P) if label_pca.centred else basis_DP.T @ mean_D
    scale_P = torch.ones_like(second_P)
    if config.code_scale == "block":
        scale_P = scale_P * label_pca.block_side
    elif config.code_scale == "whiten":
        # A component that the labels never use would get unit 0 and leave the span.
        scale_P = second_P.sqrt()
        scale_P = scale_P.clamp(min=max(1e-3 * float(scale_P.max()), 1e-6))
    return BlockCode(
        basis_DP=basis_DP,
        bias_D=mean_D if label_pca.centred else torch.zeros_like(mean_D),
        scale_P=scale_P,
        mean_P=mean_P,
    )


def blank_block_code(config: DUpsamplingConfig, num_classes: int) -> BlockCode:
    """Zeros of the right shapes, for a network whose state dict is loaded next."""
    entries = num_classes * config.output_stride**2
    return BlockCode(
        basis_DP=torch.zeros(entries, config.num_components),
        bias_D=torch.zeros(entries),
        scale_P=torch.ones(config.num_components),
        mean_P=torch.zeros(config.num_components),
    )


class DownsampledFusion(nn.Module):
    """Bring a low-level feature to the coarsest map, project, concatenate, two separable 3x3 convolutions."""

    def __init__(self, channels: int, low_level_in_channels: int, low_level_channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = ConvBnAct(low_level_in_channels, low_level_channels)
        self.fuse = nn.Sequential(
            SeparableConv(channels + low_level_channels, channels), SeparableConv(channels, channels)
        )

    def forward(self, x_NKhw: Tensor, low_level_NKhw: Tensor) -> Tensor:
        """Map of x's size. Downsampling comes before the projection (figure 2 of the paper)."""
        height, width = x_NKhw.shape[-2:]
        low_level = self.project(downsample(low_level_NKhw, self.factor, height=height, width=width))
        x: Tensor = self.fuse(torch.cat([x_NKhw, low_level], dim=1))
        return x


class DUpsampling(nn.Module):
    """See the module's docstring; obeys `SegmentationModel`.

    `low_resolution_NKhw` is the predicted code in the label PCA's own units (comparable with `label_pca.project`).
    """

    scale_P: Tensor

    def __init__(self, config: DUpsamplingConfig, num_classes: int, code: BlockCode) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(config.backbone, output_stride=config.output_stride)
        self.aspp = ASPP(
            self.backbone.channels[32],
            config.aspp_channels,
            rates=atrous_rates(config.output_stride),
            separable=config.separable,
            dropout=config.aspp_dropout,
        )
        self.feature_strides = config.features
        self.fusions = nn.ModuleList(
            DownsampledFusion(
                config.aspp_channels,
                self.backbone.channels[stride],
                config.low_level_channels,
                factor=config.output_stride // self.backbone.feature_strides[stride],
            )
            for stride in config.features
        )
        self.depthwise = ConvBnAct(config.aspp_channels, config.aspp_channels, 3, groups=config.aspp_channels)
        for part in (self.aspp, self.fusions, self.depthwise):
            initialise_convolutions(part)
        self.predict_code = nn.Conv2d(config.aspp_channels, config.num_components, 1)
        nn.init.normal_(self.predict_code.weight, std=CODE_WEIGHT_STD)
        self.predict_code.bias = nn.Parameter((code.mean_P / code.scale_P).to(torch.get_default_dtype()))
        self.dupsample = DUpsample(
            code.basis_DP * code.scale_P,
            code.bias_D,
            block_side=config.output_stride,
            trainable=not config.freeze_basis,
        )
        self.register_buffer("scale_P", code.scale_P.to(torch.get_default_dtype()))
        log_temperature = math.log(config.temperature_init - TEMPERATURE_FLOOR)
        self.log_temperature = nn.Parameter(torch.tensor(log_temperature), requires_grad=config.train_temperature)
        set_batch_norm_momentum(self, config.batch_norm_momentum)

    @property
    def temperature(self) -> Tensor:
        """Softmax temperature T = 0.001 + exp(t), a scalar to be read (detached from the graph)."""
        return self._temperature().detach()

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Scores at the images' size, already divided by the temperature."""
        height, width = images_N3HW.shape[-2:]
        features = self.backbone(pad_to_multiple(images_N3HW, self.backbone.size_multiple))
        x = self.aspp(features[32])
        for stride, fusion in zip(self.feature_strides, self.fusions, strict=True):
            x = fusion(x, features[stride])
        code = self.predict_code(self.depthwise(x))
        scores = self.dupsample(code)[..., :height, :width]
        return SegmentationOutput(
            logits_NCHW=scores / self._temperature(), low_resolution_NKhw=code * self.scale_P[:, None, None]
        )

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy at full resolution (the paper's second, preferred loss)."""
        loss = cross_entropy(output.logits_NCHW, labels_NHW)
        return LossTerms(total=loss, terms={"cross_entropy": loss.detach()})

    def _temperature(self) -> Tensor:
        return TEMPERATURE_FLOOR + self.log_temperature.exp()
