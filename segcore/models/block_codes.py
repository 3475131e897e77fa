"""What a data-dependent decoder is built from: its settings, and the tensors that it takes from a label code."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from segcore.label_code import LabelCode

TEMPERATURE_FLOOR = 1e-3

Layer = tuple[Tensor, Tensor]
"""Weight (outputs x inputs) and bias of a dense layer."""

CodeScale = Literal["none", "block", "whiten"]
CODE_SCALES: tuple[CodeScale, ...] = get_args(CodeScale)
Temperature = Literal["learned", "fixed", "off"]
TEMPERATURES: tuple[Temperature, ...] = get_args(Temperature)


@dataclass(frozen=True, kw_only=True, slots=True)
class DUpsampleConfig:
    """Data-dependent upsampling and its losses."""

    num_components: int = 64
    """Length of the code; the label PCA must have as many (the paper: 64 with ResNet-50, 128 with Xception-65)."""

    hidden_channels: int = 0
    """Width of the decoder's hidden layer: 0 for a linear code, an autoencoder's own width for an autoencoder."""

    freeze_basis: bool = True
    """Keep the decoder as it was fitted to the labels; False trains it on."""

    code_scale: CodeScale = "block"
    """Unit of the predicted code: label blocks as they are, norm / block side, or each component's root mean square."""

    code_batch_norm: bool = False
    """Normalise the predicted code, as the published sizes count it, instead of giving it a bias."""

    temperature: Temperature = "learned"
    """Softmax temperature: learned, fixed at temperature_init, or off (1)."""

    temperature_init: float = 0.1
    """Softmax temperature at the start, above 0.001."""

    cross_entropy_weight: float = 1.0
    """Of the loss at full resolution: cross-entropy of softmax(scores / T)."""

    code_loss_weight: float = 0.0
    """Of the loss at low resolution: |predicted code - code of the labels|^2 per pixel."""

    def __post_init__(self) -> None:
        if self.num_components < 1 or self.hidden_channels < 0:
            raise ValueError(
                f"num_components is {self.num_components} and hidden_channels {self.hidden_channels}; "
                "expected at least 1 and at least 0"
            )
        if self.code_scale not in CODE_SCALES:
            raise ValueError(f"unknown code_scale {self.code_scale!r}; known: {', '.join(CODE_SCALES)}")
        if self.temperature not in TEMPERATURES:
            raise ValueError(f"unknown temperature {self.temperature!r}; known: {', '.join(TEMPERATURES)}")
        if self.temperature_init <= TEMPERATURE_FLOOR:
            raise ValueError(f"temperature_init is {self.temperature_init}; it must be above {TEMPERATURE_FLOOR}")
        weights = (self.cross_entropy_weight, self.code_loss_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"cross_entropy_weight and code_loss_weight are {weights}; give one or both, above 0")
        if self.cross_entropy_weight == 0 and (self.temperature == "learned" or not self.freeze_basis):
            raise ValueError(
                "cross_entropy_weight is 0, and nothing else trains the temperature or the basis; "
                "give temperature 'fixed' or 'off' with freeze_basis, or a cross_entropy_weight"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCode:
    """What a network takes from a label code.

    Attributes:
        encoder: layers from one-hot blocks to codes.
        hidden: layers of the decoder before its last one, each followed by ReLU.
        basis_DO: weight of its last layer: W where the code is linear.
        bias_D: bias of its last layer.
        scale_P: s, the predicted code's unit in each component.
        mean_P, std_P: mean and deviation of the training labels' codes, before scaling.
        block_side: R.
    """

    encoder: tuple[Layer, ...]
    hidden: tuple[Layer, ...]
    basis_DO: Tensor
    bias_D: Tensor
    scale_P: Tensor
    mean_P: Tensor
    std_P: Tensor
    block_side: int


def block_code(label_pca: LabelCode, config: DUpsampleConfig, *, block_side: int, num_classes: int) -> BlockCode:
    """Check a label code against the network, and derive its units.

    Args:
        label_pca: of the training labels.
        config: of the head.
        block_side: R, the factor by which the head enlarges.
        num_classes: C.

    Raises:
        ValueError: block side, classes, components or hidden width differ from the network's.
    """
    hidden_channels = label_pca.decoder[-1].weight_OI.shape[1] if len(label_pca.decoder) > 1 else 0
    for name, found, expected, remedy in (
        ("block side", label_pca.block_side, block_side, "output stride"),
        ("number of classes", label_pca.num_classes, num_classes, "class table"),
        ("number of components", label_pca.num_components, config.num_components, "num_components"),
        ("decoder's hidden width", hidden_channels, config.hidden_channels, "hidden_channels"),
    ):
        if found != expected:
            raise ValueError(
                f"the label PCA's {name} is {found}, the network's {remedy} asks for {expected}; fit a label PCA with "
                f"{expected} on this dataset's training labels, or change {remedy}"
            )
    layers = [(torch.tensor(layer.weight_OI), torch.tensor(layer.bias_O)) for layer in label_pca.decoder]
    mean_P, square_P = torch.tensor(label_pca.mean_code_P), torch.tensor(label_pca.mean_square_P).clamp(min=0)
    scale_P = torch.ones_like(square_P)
    if config.code_scale == "block":
        scale_P = scale_P * label_pca.block_side
    elif config.code_scale == "whiten":
        # A component that the labels never use would get unit 0 and leave the span.
        scale_P = square_P.sqrt()
        scale_P = scale_P.clamp(min=max(1e-3 * float(scale_P.max()), 1e-6))
    return BlockCode(
        encoder=tuple((torch.tensor(layer.weight_OI), torch.tensor(layer.bias_O)) for layer in label_pca.encoder),
        hidden=tuple(layers[:-1]),
        basis_DO=layers[-1][0],
        bias_D=layers[-1][1],
        scale_P=scale_P,
        mean_P=mean_P,
        std_P=(square_P - mean_P**2).clamp(min=0).sqrt(),
        block_side=block_side,
    )


def blank_block_code(config: DUpsampleConfig, *, block_side: int, num_classes: int) -> BlockCode:
    """Zeros of the right shapes, for a network whose state dict is loaded next."""
    entries, components = num_classes * block_side**2, config.num_components
    widths = (components, config.hidden_channels) if config.hidden_channels else (components,)

    def chain(*sizes: int) -> tuple[Layer, ...]:
        return tuple((torch.zeros(after, before), torch.zeros(after)) for before, after in pairwise(sizes))

    *hidden, (basis_DO, bias_D) = chain(*widths, entries)
    return BlockCode(
        encoder=chain(entries, *reversed(widths)),
        hidden=tuple(hidden),
        basis_DO=basis_DO,
        bias_D=bias_D,
        scale_P=torch.ones(components),
        mean_P=torch.zeros(components),
        std_P=torch.zeros(components),
        block_side=block_side,
    )
