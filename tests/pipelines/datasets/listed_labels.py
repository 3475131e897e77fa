"""What the labels of a listing come to, for the importers' tests."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import DatasetListing
from pipelines.intake.labels import decode_labels


def stored_values(listing: DatasetListing, image_id: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The label map (H, W) of an image as `read` hands it out."""
    (sample,) = (sample for sample in listing.samples if sample.image_id == image_id)
    return decode_labels(listing.read(sample)[1])


def class_indices(listing: DatasetListing, image_id: str) -> NDArray[np.uint8]:
    """The label map (H, W) of an image as it is prepared."""
    return listing.class_table.class_indices(stored_values(listing, image_id))


def ids_of(listing: DatasetListing, split: str) -> set[str]:
    """The images of a split."""
    return {sample.image_id for sample in listing.samples if sample.split == split}


def lines_digest(lines: Iterable[str]) -> str:
    """Compares a class table with what was published, without a second copy of it here."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
