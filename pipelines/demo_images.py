"""A folder of images as a bucket has them: most are fine, some are unusual, some are broken."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipelines import storage
from pipelines.datasets.scenes import draw_scene

ROTATED = 6
"""EXIF orientation of a camera held upright: turn the stored pixels by 90 degrees clockwise."""

Pixels = NDArray[np.uint8]


def write_mixed_folder(folder: str, *, num_plain: int, seed: int, height: int, width: int) -> int:
    """Write scenes in many formats, and files that are no images; what is there already stays as it is.

    Args:
        folder: local path or URI.
        num_plain: ordinary JPEG files, beside the unusual and the broken ones.
        seed: of the scenes.
        height, width: of the scenes.

    Returns:
        Number of files in the folder that cannot be segmented.
    """
    scenes = [draw_scene(seed + index, height=height, width=width)[0] for index in range(num_plain + 6)]
    files = {f"street-{index:03d}.jpg": jpeg(pixels_HW3) for index, pixels_HW3 in enumerate(scenes[:num_plain])}
    files |= unusual_files(scenes[num_plain:])
    broken = broken_files(scenes[0])
    for name, data in {**files, **broken}.items():
        storage.create_exclusive(storage.join(folder, name), data)
    return len(broken)


def unusual_files(scenes: list[Pixels]) -> dict[str, bytes]:
    """Seven images, from six scenes, that must be segmented: by name, encoded."""
    rotated, grey, transparent, deep, palette, webp = (Image.fromarray(pixels_HW3) for pixels_HW3 in scenes)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = ROTATED
    sixteen_HW = np.asarray(deep.convert("L")).astype(np.uint16) * 257
    alpha = Image.fromarray(np.tile(np.linspace(255, 120, transparent.width).astype(np.uint8), (transparent.height, 1)))
    transparent.putalpha(alpha)
    return {
        "rotated-exif.jpg": _encoded(rotated.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif.tobytes()),
        "grayscale.png": _encoded(grey.convert("L"), "PNG"),
        "transparent-rgba.png": _encoded(transparent, "PNG"),
        "sixteen-bit.png": _encoded(Image.fromarray(sixteen_HW), "PNG"),
        "palette.png": _encoded(palette.quantize(128), "PNG"),
        "modern.webp": _encoded(webp, "WEBP"),
        "UPPERCASE.JPG": jpeg(scenes[0]),
    }


def broken_files(pixels_HW3: Pixels) -> dict[str, bytes]:
    """Five files that no decoder should accept: by name."""
    whole = jpeg(pixels_HW3)
    flipped = bytearray(_encoded(Image.fromarray(pixels_HW3), "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "truncated.jpg": whole[: len(whole) // 2],
        "bit-flipped.png": bytes(flipped),
        "empty.jpg": b"",
        "notes.txt": b"The camera was cleaned on Tuesday.\n",
        "web-page.jpg": b"<!doctype html><title>404 Not Found</title>\n",
    }


def jpeg(pixels_HW3: Pixels) -> bytes:
    """An ordinary JPEG file."""
    return _encoded(Image.fromarray(pixels_HW3), "JPEG")


def _encoded(image: Image.Image, kind: str, *, exif: bytes = b"") -> bytes:
    file = io.BytesIO()
    if kind == "JPEG":
        image.save(file, kind, quality=90, exif=exif)
    else:
        image.save(file, kind)
    return file.getvalue()
