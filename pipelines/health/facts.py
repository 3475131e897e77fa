"""What is in an image and its label: one row per pair, made in Ray tasks, which no pair can end, whatever it is.

Rows in the order of the listing are the state of all checks: they are merged by putting them one behind the other.
"""

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage
from pipelines.datasets.listing import ClassTable, Sample
from pipelines.health.hashing import perceptual_hash, shrunk, thumbnail
from pipelines.health.pair_faults import Fault, label_fault, orientation_fault, size_fault, value_fault
from pipelines.intake.formats import ImageError
from pipelines.intake.images import DecodedImage, decode_image, reduction_to
from pipelines.intake.labels import decode_labels
from pipelines.intake.levels import label_counts, level_counts
from pipelines.store_errors import StoreUnavailableError

DARK_LEVEL, BRIGHT_LEVEL = 8, 247
"""8-bit brightness up to which a pixel counts as black, and from which on as white."""
LOOK_PX = 128
"""Brightness is measured on the picture at a half, a quarter or an eighth, where both sides keep so many pixels."""
MAX_VALUES = 300
"""Distinct stored values of a label that are kept."""
GRAY_MODES = ("1", "L", "LA", "La")
GRAY_STEP = 8
"""Most images in colour show it in one pixel of 64."""

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("label_uri", pa.string(), nullable=False),
        # of the image file; null where it cannot be read
        pa.field("image_sha256", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("height", pa.int32()),  # upright
        pa.field("width", pa.int32()),
        pa.field("mode", pa.string()),  # Pillow's, as stored; ";16" behind it for 16 bits
        pa.field("orientation", pa.int8()),  # of EXIF
        pa.field("is_gray", pa.bool_()),  # red, green and blue are the same everywhere
        pa.field("brightness", pa.float32()),  # mean of luma, 0 to 1; this and the next three at LOOK_PX
        pa.field("contrast", pa.float32()),  # its standard deviation
        pa.field("dark_share", pa.float32()),  # of pixels with luma up to 8 of 255
        pa.field("bright_share", pa.float32()),  # from 247 on
        pa.field("perceptual_hash", pa.uint64()),
        pa.field("thumbnail", pa.binary()),  # luma at 16 x 16 points
        # of the label; null where it cannot be read
        pa.field("label_sha256", pa.string()),
        pa.field("label_height", pa.int32()),
        pa.field("label_width", pa.int32()),
        pa.field("label_values", pa.list_(pa.int32())),  # distinct stored values, at most 300
        pa.field("outside_values", pa.list_(pa.int32())),  # those of them that the class table does not know
        pa.field("class_pixels", pa.list_(pa.int64())),  # length C
        pa.field("void_share", pa.float32()),  # of pixels whose value means "no label"
        # what is wrong with this pair by itself
        pa.field("faults", pa.list_(pa.struct([("code", pa.string()), ("text", pa.string())])), nullable=False),
    ]
)
_NULLS: dict[str, Any] = dict.fromkeys(IMAGES_SCHEMA.names)

Read = Callable[[Sample], tuple[bytes, bytes]]


def examine_samples(samples: Iterable[Sample], read: Read, class_table: ClassTable) -> pa.Table:
    """Rows of IMAGES_SCHEMA, one per sample, in their order.

    Raises:
        StoreUnavailableError: the store does not answer, which says nothing about the files.
    """
    cv2.setNumThreads(1)  # the task has one logical CPU; OpenCV would take all cores
    return pa.Table.from_pylist([examine(sample, read, class_table) for sample in samples], schema=IMAGES_SCHEMA)


def examine(sample: Sample, read: Read, class_table: ClassTable) -> dict[str, Any]:
    """A row of IMAGES_SCHEMA.

    Raises:
        StoreUnavailableError: see `examine_samples`.
    """
    faults: list[Fault] = []
    row = _NULLS | {
        "image_id": sample.image_id,
        "split": sample.split,
        "image_uri": sample.image_uri,
        "label_uri": sample.label_uri,
    }
    try:
        image_bytes, label_bytes = read(sample)
    except StoreUnavailableError:
        raise
    except OSError as error:
        which = "label" if sample.label_uri != sample.image_uri and sample.label_uri in str(error) else "image"
        text = f"the {which} file cannot be read: {type(error).__name__}: {error}"
        return row | {"faults": [{"code": f"{which}_unreadable", "text": text}]}
    except ImageError as error:  # of a label that the importer decodes, to make class indices of something else
        return row | {"faults": [{"code": "label_unreadable", "text": str(error)}]}
    image = _image(image_bytes, faults)
    if image is not None:
        row |= {"image_sha256": storage.sha256(image_bytes), "num_bytes": len(image_bytes)} | _image_facts(image)
    values_HW = _values(label_bytes, class_table, faults)
    if values_HW is not None:
        row |= {"label_sha256": storage.sha256(label_bytes)} | _label_facts(values_HW, class_table)
        faults += value_fault(row["label_values"], row["outside_values"], class_table)
    if image is not None and values_HW is not None:
        if values_HW.shape != (image.height, image.width):
            faults.append(size_fault(image, values_HW))
        elif image.orientation != 1:
            faults += orientation_fault(image, values_HW)
    return row | {"faults": [fault._asdict() for fault in faults]}


def _image(data: bytes, faults: list[Fault]) -> DecodedImage | None:
    try:
        return decode_image(data, min_side=LOOK_PX)
    except ImageError as error:
        faults.append(Fault("image_unreadable", str(error)))
        return None


def _values(data: bytes, class_table: ClassTable, faults: list[Fault]) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    try:
        return decode_labels(data)
    except ImageError as error:
        faults.append(label_fault(data, error, class_table))
        return None


def _image_facts(image: DecodedImage) -> dict[str, Any]:
    gray_HW = _brightness(image)
    gray_32 = shrunk(gray_HW)
    shares, levels = level_counts(gray_HW) / gray_HW.size, np.arange(256) / 255
    brightness = float(shares @ levels)
    return {
        "height": image.height,
        "width": image.width,
        "mode": image.source_mode,
        "orientation": image.orientation,
        "is_gray": image.source_mode.partition(";")[0] in (*GRAY_MODES, "I") or _is_gray(image.pixels_HW3),
        "brightness": brightness,
        "contrast": max(float(shares @ levels**2) - brightness**2, 0.0) ** 0.5,
        "dark_share": float(shares[: DARK_LEVEL + 1].sum()),
        "bright_share": float(shares[BRIGHT_LEVEL:].sum()),
        "perceptual_hash": perceptual_hash(gray_32),
        "thumbnail": thumbnail(gray_32),
    }


def _brightness(image: DecodedImage) -> NDArray[np.uint8]:
    """Luma of the picture at LOOK_PX, however it was stored."""
    gray_HW = cv2.cvtColor(image.pixels_HW3, cv2.COLOR_RGB2GRAY)
    left = reduction_to(image.height, image.width, min_side=LOOK_PX) // image.reduction
    if left > 1:
        size = -(-image.width // left), -(-image.height // left)
        gray_HW = cv2.resize(gray_HW, size, interpolation=cv2.INTER_AREA)
    return np.asarray(gray_HW, dtype=np.uint8)


def _is_gray(pixels_HW3: NDArray[np.uint8]) -> bool:
    for some in (pixels_HW3[::GRAY_STEP, ::GRAY_STEP], pixels_HW3):
        if (some[..., 0] != some[..., 1]).any() or (some[..., 0] != some[..., 2]).any():
            return False
    return True


def _label_facts(values_HW: NDArray[np.uint8] | NDArray[np.uint16], class_table: ClassTable) -> dict[str, Any]:
    counts = np.zeros(65536, dtype=np.int64)
    if values_HW.dtype == np.uint8:
        counts[:256] = label_counts(values_HW.astype(np.uint8, copy=False))
        present = np.flatnonzero(counts[:256]).tolist()
    else:
        counts += np.bincount(values_HW.ravel(), minlength=65536)
        present = np.flatnonzero(counts).tolist()
    known = {*class_table.values, *class_table.ignore_values}
    void = int(counts[list(class_table.ignore_values)].sum())
    return {
        "label_height": values_HW.shape[0],
        "label_width": values_HW.shape[1],
        "label_values": present[:MAX_VALUES],
        "outside_values": [value for value in present if value not in known][:MAX_VALUES],
        "class_pixels": counts[list(class_table.values)].tolist(),
        "void_share": void / values_HW.size,
    }
