"""What every network takes and gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class SegmentationOutput:
    """What a network returns, in training and in evaluation alike.

    Attributes:
        logits_NCHW: class scores at the input's size; `softmax(dim=1)` gives probabilities.
        auxiliary_NCHW: scores of the auxiliary heads at the input's size; the network weighs them in its loss.
        presence_NC: scores of "this class occurs in the image" (EncNet), or None.
        low_resolution_NKhw: the code that a data-dependent decoder expands (DUpsampling), or None.
    """

    logits_NCHW: Tensor
    auxiliary_NCHW: tuple[Tensor, ...] = ()
    presence_NC: Tensor | None = None
    low_resolution_NKhw: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Named scalar loss terms and their weighted sum.

    Attributes:
        total: the scalar to call `backward` on.
        terms: each term before weighting, by name, for the log.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def plus(self, name: str, loss: Tensor, *, weight: float) -> "LossTerms":
        """These terms and one more: `weight` times `loss` is added to the total."""
        return LossTerms(total=self.total + weight * loss, terms={**self.terms, name: loss.detach()})


class SegmentationModel(Protocol):
    """The contract of every entry of `MODELS`; each is an `nn.Module`.

    Attributes:
        num_classes: C, without the ignored value.
        backbone: the part that pre-trained weights fill (`load_pretrained`); the rest is "decoder" to the optimiser.
        head: the last step, of `segcore.models.heads`.
    """

    num_classes: int
    backbone: nn.Module
    head: nn.Module

    def __call__(self, images_N3HW: Tensor) -> SegmentationOutput:
        """Score normalised images of any height and width; padding and cropping are the network's business."""
        ...

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Loss of `output` against integer labels of the input's size; `IGNORE_INDEX` pixels do not count."""
        ...


class PretrainedPart(Protocol):
    """The `backbone` of a network that keeps more of an image classifier than `segcore.backbones.Backbone` has."""

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the classifier's weights.

        Raises:
            ValueError: a tensor is missing, has another shape, or has no place; nothing is changed then.
        """
        ...
