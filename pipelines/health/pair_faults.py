"""What can be wrong with one image and its label, whatever the other pairs are like."""

import io
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.listing import ClassTable
from pipelines.intake.formats import ImageError, image_format
from pipelines.intake.headers import MAX_PIXELS, open_header
from pipelines.intake.images import TURNS, DecodedImage, decode_image
from pipelines.pictures import class_boundaries

LOSSY = ("JPEG", "WEBP")
MIN_EDGE_GAIN = 1.15
"""How much stronger, on average, the image's edges must be below the borders of a turned label."""
MAX_COLOURS_COUNTED = 256
WHITE = 255

Values = NDArray[np.uint8] | NDArray[np.uint16]


class Fault(NamedTuple):
    """The code of the finding to which a pair belongs, and what was found in this pair."""

    code: str
    text: str


def label_fault(data: bytes, error: ImageError, class_table: ClassTable) -> Fault:
    """Why a label file could not be decoded to values.

    Args:
        data: the file.
        error: what `decode_labels` said.
        class_table: whose palette is compared with a label in colours.
    """
    name = image_format(data)
    if name in LOSSY:
        return Fault("label_lossy", str(error))
    if name is not None and error.stage == "validate":
        mode = _mode(name, data)
        if mode not in ("", "1", "L", "P") and not mode.startswith("I"):
            return Fault("label_in_colours", f"mode {mode}; {_colours(data, class_table)}")
    return Fault("label_unreadable", str(error))


def value_fault(label_values: list[int], outside_values: list[int], class_table: ClassTable) -> list[Fault]:
    """Values that the class table does not know."""
    if not outside_values:
        return []
    if outside_values == [WHITE] and set(label_values) <= {0, WHITE}:
        return [Fault("binary_mask", f"the values {label_values} alone, and 255 is not in the class table")]
    shown = ", ".join(map(str, outside_values[:8])) + (", ..." if len(outside_values) > 8 else "")
    return [Fault("label_value_outside_table", f"the value {shown}")]


def size_fault(image: DecodedImage, values_HW: Values) -> Fault:
    """An image and a label of different sizes."""
    text = f"image {image.height} x {image.width}, label {values_HW.shape[0]} x {values_HW.shape[1]} (height x width)"
    if image.orientation >= 5 and values_HW.shape == (image.source_height, image.source_width):
        return Fault(
            "orientation_not_on_label", f"{text}: EXIF orientation {image.orientation} turns the image, not the label"
        )
    return Fault("size_differs", text)


def orientation_fault(image: DecodedImage, values_HW: Values) -> list[Fault]:
    """A label of the right size which was nevertheless drawn on the image as it lies in the file.

    Where the borders of the label, once it is turned as the image was, lie on clearly stronger edges of the image than
    they do as they are, the label was drawn on the image as stored.
    """
    turned = Image.fromarray(values_HW)
    for turn in TURNS[image.orientation]:
        turned = turned.transpose(turn)
    turned_HW = np.asarray(turned)
    if turned_HW.shape != values_HW.shape:
        return []  # not a square and of the upright image's size: it was drawn upright
    as_is, as_stored = (_edge_strength(image, labels_HW) for labels_HW in (values_HW, turned_HW))
    if as_stored <= MIN_EDGE_GAIN * as_is:
        return []
    return [
        Fault(
            "orientation_doubtful",
            f"EXIF orientation {image.orientation} turns the image, and the label's borders fit its edges better when "
            f"the label is turned too (mean edge {as_stored:.1f} against {as_is:.1f})",
        )
    ]


def _edge_strength(image: DecodedImage, labels_HW: NDArray[np.integer]) -> float:
    """Mean gradient of the image's brightness below the label's borders; 0 without any border."""
    border_HW = class_boundaries(labels_HW)
    gray_HW = cv2.cvtColor(image.pixels_HW3, cv2.COLOR_RGB2GRAY)
    gradient_HW = np.abs(cv2.Sobel(gray_HW, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(gray_HW, cv2.CV_32F, 0, 1))
    return float(gradient_HW[border_HW].mean()) if border_HW.any() else 0.0


def _mode(name: str, data: bytes) -> str:
    try:
        return open_header(name, io.BytesIO(data), max_pixels=MAX_PIXELS).mode
    except ImageError:
        return ""


def _colours(data: bytes, class_table: ClassTable) -> str:
    try:
        pixels_HW3 = decode_image(data).pixels_HW3.astype(np.int64)
    except ImageError as error:
        return str(error)
    found = np.unique(pixels_HW3 @ np.array([65536, 256, 1]))
    if len(found) > MAX_COLOURS_COUNTED:
        return f"{len(found)} colours, more than a class table has: it was resized with interpolation, or is a photo"
    colours = {(int(one) >> 16, int(one) >> 8 & 255, int(one) & 255) for one in found}
    if all(red == green == blue for red, green, blue in colours):
        return "three equal channels: keep one of them"
    known = len(colours & set(class_table.palette))
    return f"{known} of its {len(colours)} colours are those of classes"
