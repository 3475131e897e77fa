"""Copy-paste for semantic segmentation: pixels of chosen classes from one training crop onto another.

Source: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance segmentation", arXiv
2012.07177. There objects are pasted; label maps have none, so all pixels of the chosen classes of a crop are. As there,
both crops are augmented for themselves first, and edges are not blended.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyPasteConfig:
    """Which classes are pasted, and how often. docs/training.md says when that helps."""

    classes: tuple[str, ...] = ()
    """Names of the classes whose pixels are pasted; none: no copy-paste."""
    probability: float = 0.5
    """Share of the crops that are pasted on."""
    donors: int = 256
    """Training images to take pixels from, at most; every worker keeps them, encoded, in memory. They are chosen once,
    so that each class has about as many."""
    min_pixels: int = 100
    """Pixels of one of the classes that an image must have to be a donor."""

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability is {self.probability}; expected above 0 up to 1 (no classes: no copy-paste)")
        if self.donors < 1 or self.min_pixels < 1:
            raise ValueError(f"donors is {self.donors} and min_pixels {self.min_pixels}; both must be 1 or more")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {', '.join(self.classes)}; name each once")


def paste_classes(
    image_3HW: Tensor,
    labels_HW: Tensor,
    donor_3HW: Tensor,
    donor_labels_HW: Tensor,
    *,
    classes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Image and labels with the donor's pixels, and their labels, wherever the donor has one of the classes.

    Args:
        image_3HW, labels_HW: a crop, uint8.
        donor_3HW, donor_labels_HW: another of the same size.
        classes: (n,) uint8 class indices.
    """
    pasted_HW = torch.isin(donor_labels_HW, classes)
    return torch.where(pasted_HW, donor_3HW, image_3HW), torch.where(pasted_HW, donor_labels_HW, labels_HW)
