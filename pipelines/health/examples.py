"""Pictures of the images that findings name, drawn in Ray tasks. What cannot be drawn has no picture."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.listing import ClassTable, Sample
from pipelines.health.facts import Read
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.pictures import WRONG_COLOUR, Panel, Pixels, colourise, fit_width, jpeg_bytes, shrink_mask, strip
from segcore import IGNORE_INDEX

WIDTH_PX = 400


class Drawn(NamedTuple):
    """A picture of an example.

    Attributes:
        data: JPEG: the image; two images side by side; or image and label, where they do not fit on each other.
        layer: JPEG: the label in the classes' colours, for above it; empty where it does not fit.
    """

    data: bytes
    layer: bytes


def draw(samples: tuple[Sample, ...], read: Read, class_table: ClassTable) -> Drawn | None:
    """A picture of one pair of files, or of two images that are alike; None where nothing can be decoded."""
    pairs = [_pair(sample, read, class_table) for sample in samples]
    if len(pairs) > 1:
        found = zip(samples, pairs, strict=True)
        panels = [
            Panel(sample.image_id, fit_width(image, width=WIDTH_PX))
            for sample, (image, _) in found
            if image is not None
        ]
        return Drawn(jpeg_bytes(strip(panels)), b"") if panels else None
    ((image, label),) = pairs
    if image is not None and label is not None and image.shape == label.shape:
        height, width = fit_width(image, width=WIDTH_PX).shape[:2]
        layer = np.stack([shrink_mask(label[..., c], height=height, width=width) for c in range(3)], axis=-1)
        return Drawn(jpeg_bytes(fit_width(image, width=WIDTH_PX)), jpeg_bytes(layer))
    panels = [
        Panel(name, fit_width(pixels, width=WIDTH_PX))
        for name, pixels in (("image", image), ("label", label))
        if pixels is not None
    ]
    return Drawn(jpeg_bytes(strip(panels)), b"") if panels else None


def _pair(sample: Sample, read: Read, class_table: ClassTable) -> tuple[Pixels | None, Pixels | None]:
    """Image and label as colours, each None where it cannot be decoded."""
    try:
        image_bytes, label_bytes = read(sample)
    except (OSError, ImageError):
        return None, None
    image = _decoded(image_bytes)
    try:
        return image, _coloured(decode_labels(label_bytes), class_table)
    except ImageError:
        return image, _decoded(label_bytes)


def _decoded(data: bytes) -> Pixels | None:
    try:
        return decode_image(data).pixels_HW3
    except ImageError:
        return None


def _coloured(values_HW: NDArray[np.uint8] | NDArray[np.uint16], class_table: ClassTable) -> Pixels:
    """Classes in their colours, no label hatched, and values that the class table does not know in red."""
    unknown = len(class_table.names)
    indices = np.full(65536, unknown, dtype=np.uint8)
    indices[list(class_table.ignore_values)] = IGNORE_INDEX
    indices[list(class_table.values)] = np.arange(unknown, dtype=np.uint8)
    return colourise(indices[values_HW], (*class_table.palette, WRONG_COLOUR))
