"""The loss of a network's scores: cross-entropy, or what a recipe puts in its place.

Auxiliary heads keep cross-entropy, the code of a data-dependent decoder its distance, and U-Net its border term: their
papers give them so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segcore.losses import cross_entropy, focal_loss, ohem_cross_entropy
from segcore.models.contract import LossTerms
from segcore.region_losses import dice_loss, lovasz_softmax

LossName = Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
REGION_LOSSES: tuple[LossName, ...] = ("dice", "lovasz")
"""Those that weigh classes equally by themselves."""
ClassWeights = Literal["none", "median_frequency", "inverse_log"]
CLASS_WEIGHTS: tuple[ClassWeights, ...] = get_args(ClassWeights)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The loss of the network's scores at the image's size; docs/training.md says which to use when."""

    main: LossName = "cross_entropy"
    """cross_entropy; ohem: of hard pixels alone (Shrivastava 2016, as BiSeNet has it); focal (Lin 2017); dice
    (Milletari 2016); lovasz: Lovasz-Softmax (Berman 2018)."""
    second: LossName | Literal["none"] = "none"
    """Another of them, to be added."""
    second_weight: float = 0.5
    """Factor on the second."""
    class_weights: ClassWeights = "none"
    """Weights of the pixels by class, from the training labels, in cross_entropy, ohem and focal: median_frequency
    (Eigen and Fergus 2015, as SegNet uses it), inverse_log: 1 / ln(1.02 + share of pixels) (ENet)."""
    inverse_log_offset: float = 1.02
    """inverse_log: what is added to the share; 1.02 is ENet's, 1.10, which weighs more evenly, ESPNet's."""
    ohem_threshold: float = 0.7
    """ohem: pixels whose own class has a lower probability are hard."""
    ohem_min_kept: float = 1 / 16
    """ohem: share of the valid pixels that is taken at least, the hardest first."""
    focal_gamma: float = 2.0
    """focal: exponent of 1 - p; 0 is cross-entropy."""

    def __post_init__(self) -> None:
        if self.main not in LOSSES:
            raise ValueError(f"unknown main loss {self.main!r}; known: {', '.join(LOSSES)}")
        if self.second not in (*LOSSES, "none"):
            raise ValueError(f"unknown second loss {self.second!r}; known: none, {', '.join(LOSSES)}")
        if self.second == self.main:
            raise ValueError(f"main and second loss are both {self.main}; give two different ones, or second none")
        if self.second_weight <= 0:
            raise ValueError(f"second_weight is {self.second_weight}; it must be positive (second none leaves it out)")
        if self.class_weights not in CLASS_WEIGHTS:
            raise ValueError(f"unknown class_weights {self.class_weights!r}; known: {', '.join(CLASS_WEIGHTS)}")
        if self.class_weights != "none" and set(self.names) <= set(REGION_LOSSES):
            raise ValueError(
                f"class_weights {self.class_weights} would change nothing in {' and '.join(self.names)}, which weigh "
                "classes equally; leave them none, or give cross_entropy, ohem or focal as one of the losses"
            )
        if self.inverse_log_offset <= 1:
            raise ValueError(f"inverse_log_offset is {self.inverse_log_offset}; it must be above 1, such as 1.02")
        if not 0 < self.ohem_threshold <= 1 or not 0 <= self.ohem_min_kept <= 1:
            raise ValueError(
                f"ohem_threshold is {self.ohem_threshold} and ohem_min_kept {self.ohem_min_kept}; "
                "expected above 0 up to 1, and from 0 to 1"
            )
        if self.focal_gamma < 0:
            raise ValueError(f"focal_gamma is {self.focal_gamma}; expected 0 or more")

    @property
    def names(self) -> tuple[LossName, ...]:
        """The losses that are added."""
        return (self.main,) if self.second == "none" else (self.main, self.second)


class MainLoss(nn.Module):
    """The sum that a `LossConfig` describes, with its terms by name.

    Args:
        config: which losses.
        class_weights: one for each class, or none; they move with the module and are no part of a model's state.
    """

    class_weights_C: Tensor | None

    def __init__(self, config: LossConfig, class_weights: Sequence[float] = ()) -> None:
        super().__init__()
        assert bool(class_weights) == (config.class_weights != "none")
        self.config = config
        weights_C = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights_C", weights_C, persistent=False)

    def forward(self, logits_NCHW: Tensor, labels_NHW: Tensor) -> LossTerms:
        """The loss against integer labels of the scores' size; `IGNORE_INDEX` pixels do not count."""
        losses = {name: self._one(name, logits_NCHW, labels_NHW) for name in self.config.names}
        total = losses[self.config.main]
        if self.config.second != "none":
            total = total + self.config.second_weight * losses[self.config.second]
        return LossTerms(total=total, terms={name: loss.detach() for name, loss in losses.items()})

    def _one(self, name: LossName, logits_NCHW: Tensor, labels_NHW: Tensor) -> Tensor:
        config, weights_C = self.config, self.class_weights_C
        match name:
            case "cross_entropy":
                return cross_entropy(logits_NCHW, labels_NHW, class_weights_C=weights_C)
            case "focal":
                return focal_loss(logits_NCHW, labels_NHW, gamma=config.focal_gamma, class_weights_C=weights_C)
            case "dice":
                return dice_loss(logits_NCHW, labels_NHW)
            case "lovasz":
                return lovasz_softmax(logits_NCHW, labels_NHW)
            case "ohem":
                return ohem_cross_entropy(
                    logits_NCHW,
                    labels_NHW,
                    threshold=config.ohem_threshold,
                    min_kept=config.ohem_min_kept,
                    class_weights_C=weights_C,
                )


def set_main_loss(network: nn.Module, config: LossConfig, class_weights: Sequence[float] = ()) -> None:
    """Replace the loss of a segmentation network's scores; what its loss adds to them stays.

    Args:
        network: one of `MODELS`.
        config, class_weights: see `MainLoss`.
    """
    last_step = network.get_submodule("head").modules()
    heads = [module for module in last_step if isinstance(getattr(module, "main_loss", None), MainLoss)]
    assert len(heads) == 1, "every network has one last step"
    heads[0].main_loss = MainLoss(config, class_weights).to(next(network.parameters()).device)
