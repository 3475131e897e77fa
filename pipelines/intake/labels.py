"""Label files: stored values as they are, or colours that name the classes.

Plain gray PNGs are decoded by kornia-rs, in half of Pillow's time; everything else by Pillow. What is refused, and at
which stage, is as in `pipelines.intake.images`; and so is what is lossy, or turned by its EXIF data.
"""

import io

import cv2
import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipelines.intake.colours import gray_spread
from pipelines.intake.formats import ImageError, is_plain_gray_png
from pipelines.intake.headers import (
    MAX_BYTES,
    MAX_PIXELS,
    check_png,
    check_size,
    open_file,
    orientation_of,
    refusal,
    sample_bits,
)


def decode_labels(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a label file to its stored values, (H, W): palettes to indices, gray to values, 1 bit to 0 and 1.

    Raises:
        ImageError: the file is broken, lossy (JPEG, WebP), in colour, or is turned by an EXIF orientation.
    """
    plain_HW = _plain_labels(data, max_pixels=max_pixels)
    if plain_HW is not None:
        return plain_HW
    image, orientation = _open_label(data, max_pixels=max_pixels)
    try:
        one_channel = image.mode in ("P", "L", "1") or image.mode.startswith("I")
        values_HW = np.asarray(image) if one_channel else None
        bits = sample_bits(image, data)
    except MemoryError:
        raise
    except Exception as error:  # see decode_image
        raise refusal(image.format, error) from error
    if values_HW is None:
        raise ImageError(
            f"a label file has mode {image.mode}, expected one channel of class indices (modes P, L, I;16 or 1); "
            "convert its colours to indices first, for example "
            "numpy.argmax((rgb[..., None, :] == palette).all(-1), -1), and save them as an 8-bit PNG; or write "
            "`colours: rgb` into the class table, where the importer takes one",
            "validate",
        )
    _refuse_turned(orientation)
    return _label_values(values_HW, spread=gray_spread(image, bits))


def decode_label_colours(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a label file whose colours name the classes, to 8-bit RGB (H, W, 3): palettes to their colours, gray to
    three equal levels.

    Raises:
        ImageError: the file is broken, lossy (JPEG, WebP), of more than 8 bits, transparent somewhere, or is turned by
            an EXIF orientation.
    """
    file, orientation = _open_label(data, max_pixels=max_pixels)
    image: Image.Image = file
    try:
        bits = sample_bits(file, data)
        colour = image.mode in ("RGB", "RGBA", "P", "L", "LA", "1") and bits <= 8
        opaque = True
        if colour and (image.mode in ("RGBA", "LA") or "transparency" in image.info):
            image = image.convert("RGBA")
            opaque = image.getchannel("A").getextrema() == (255, 255)
        rgb_HW3 = np.asarray(image.convert("RGB")) if colour and opaque else None
    except MemoryError:
        raise
    except Exception as error:  # see decode_image
        raise refusal(file.format, error) from error
    if rgb_HW3 is None:
        found = "transparent pixels" if colour else f"mode {image.mode} and {bits} bits"
        raise ImageError(
            f"a label file has {found}, expected opaque colours of 8 bits; save it as an 8-bit RGB PNG", "validate"
        )
    _refuse_turned(orientation)
    return rgb_HW3


def encode_labels_png(labels_HW: NDArray[np.uint8]) -> bytes:
    """A label map as 8-bit one-channel PNG; equal maps give equal bytes with one version of OpenCV.

    Rows are not filtered: a filter serves photos. Label maps, which consist of runs, are written and read two to three
    times as fast without, and at this level are no larger than with filters and a lower one.
    """
    if labels_HW.dtype != np.uint8 or labels_HW.ndim != 2:
        raise ValueError(f"labels are {labels_HW.dtype} of shape {labels_HW.shape}, expected uint8 (H, W)")
    settings = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 3]
    written, data = cv2.imencode(".png", np.ascontiguousarray(labels_HW), settings)
    if not written:
        raise ValueError(f"labels of shape {labels_HW.shape} cannot be written as PNG; each side must be 1 or more")
    return data.tobytes()


def _plain_labels(data: bytes, *, max_pixels: int) -> NDArray[np.uint8] | None:
    """The levels of a whole 8-bit gray PNG; None for any other file, and for one that kornia-rs does not read."""
    if len(data) > MAX_BYTES or not is_plain_gray_png(data):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    check_size(height, width, max_pixels=max_pixels)
    check_png(io.BytesIO(data))  # to the end marker, which is beyond what a decoder reads
    try:
        return np.asarray(decode_image_png_u8(data, (height, width), "mono")[..., 0])
    except Exception:
        return None


def _open_label(data: bytes, *, max_pixels: int) -> tuple[ImageFile.ImageFile, int]:
    """The decoded file and its orientation."""
    image = open_file(data, max_pixels=max_pixels, max_bytes=MAX_BYTES)
    if image.format in ("JPEG", "WEBP"):
        raise ImageError(
            f"a label file is a {image.format}, whose compression changes class values; save labels as PNG", "validate"
        )
    try:
        orientation = orientation_of(image, [])
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # see decode_image
        raise refusal(image.format, error) from error
    return image, orientation


def _refuse_turned(orientation: int) -> None:
    if orientation != 1:
        raise ImageError(
            f"a label file carries orientation {orientation}, expected an upright one; save it again without the tag",
            "validate",
        )


def _label_values(values_HW: NDArray[np.generic], *, spread: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values_HW.dtype == np.bool_ or values_HW.dtype == np.uint8:
        return values_HW.astype(np.uint8) // np.uint8(spread)
    values = values_HW.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"label values from {low} to {high} do not fit 16 bits; save class indices from 0", "validate")
    return values.astype(np.uint16)
