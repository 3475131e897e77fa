"""Intake of image and label files that nobody vouches for.

Pillow decodes (Pillow 13 survived files that end a process in torchvision's PNG decoder), and what is plain and
frequent simplejpeg (JPEGs in colour) and kornia-rs (label PNGs), after `intake.headers` has looked at the file's first
bytes and at the size that it promises. Whatever is wrong with a file, `ImageError` comes out, with the stage that
refused it. Policy, each step of which leaves a line in `notes`:

| found | done |
|---|---|
| EXIF orientation (TIFF: its own tag) | applied; a broken or unknown one counts as upright |
| 16 bits, gray | divided by 257, rounded: 0..65535 to 0..255 |
| 12 bits, gray (TIFF) | 0..4095 to 0..255 likewise |
| 32-bit or signed integers | as 16 bits, where every value fits 0..65535; refused otherwise |
| 16 bits, colour | Pillow keeps the high byte, at most one level away from division by 257 |
| floats, Lab | refused: their range is not agreed |
| 1 bit, gray, palette | to RGB; an index without a colour as Pillow shows it |
| transparency | laid over white, as a browser shows it |
| CMYK | to sRGB through the file's ICC profile, or by Pillow's plain formula where there is none |
| several frames | the first one, of an APNG its still picture; what it does not cover is white |
| further pictures behind a JPEG (MPO) | not read |

And refused, at stage `validate`, before any pixel is decoded: more bytes or pixels than the budget, a TIFF tile larger
than the budget of pixels, compressed texts or profiles in a PNG beyond 1 MiB, variants that Pillow does not read, and a
TIFF whose first picture is a preview (a camera's raw file). Refused at stage `decode`: what is truncated, since a
half-gray picture gives wrong masks. That a file is whole shows in a PNG's checksums, all of which are verified, and in
a JPEG's end marker. A JPEG has no checksums: bits that flipped inside it show as wrong colours, not as an error; and
rows that a PNG's own writer left out, with checksums that are right, are black.

12 bits stored in 16 look like a dark 16-bit image. TIFF's MaxSampleValue, which may tell them apart, is "not to be used
to affect the visual appearance" (TIFF 6.0, section 8); nor is it here, but a note says that all values are small.

An ICC profile of an RGB or gray image is not applied.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from pipelines.intake.colours import to_rgb
from pipelines.intake.formats import ImageError
from pipelines.intake.headers import (
    MAX_BYTES,
    MAX_PIXELS,
    check_size,
    note_frames,
    open_file,
    orientation_of,
    refusal,
    sample_bits,
    source_mode,
)
from pipelines.intake.jpeg_files import load_jpeg, plain_jpeg_pixels, plain_jpeg_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Endings (lower case) of file names that are taken for images; the content decides what they are."""

TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
"""What brings a picture upright that is stored with an EXIF orientation."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodedImage:
    """An image as 8-bit RGB, upright.

    Attributes:
        pixels_HW3: uint8; read-only where Pillow decoded them.
        height, width: of the upright picture.
        source_height, source_width: as stored in the file, before the orientation is applied.
        source_mode: Pillow's name of the stored pixel format, with its bits where they are 12 or 16 ("RGB;16").
        orientation: EXIF orientation that was applied, 1 to 8; 1 = stored upright.
        reduction: how many times `pixels_HW3` is smaller than the picture on each side, rounded up; 1 unless asked for.
        notes: what was done to the pixels; empty for a plain 8-bit RGB file.
    """

    pixels_HW3: NDArray[np.uint8]
    source_height: int
    source_width: int
    source_mode: str
    orientation: int
    notes: tuple[str, ...]
    reduction: int = 1

    @property
    def height(self) -> int:
        return self.source_width if self.orientation >= 5 else self.source_height

    @property
    def width(self) -> int:
        return self.source_height if self.orientation >= 5 else self.source_width


def reduction_to(height: int, width: int, *, min_side: int) -> int:
    """The largest of 1, 2, 4 and 8 by which both sides may be divided, rounded up, to stay at least `min_side` long."""
    return max((by for by in (2, 4, 8) if -(-min(height, width) // by) >= min_side), default=1)


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, min_side: int | None = None
) -> DecodedImage:
    """Decode a JPEG, PNG, WebP, TIFF, BMP or GIF file to upright 8-bit RGB. Threads may call it at the same time.

    Args:
        data: the file.
        max_pixels, max_bytes: budgets.
        min_side: for a look at the whole picture: a plain JPEG in colour is decoded at an eighth, a quarter or a half
            of its sides where both stay at least this long (`reduction_to`). All of the file is read, and a broken one
            refused, as ever; what is saved are the pixels. Other files are decoded as they are.

    Raises:
        ImageError: the file is empty, not an image, over a budget, truncated or broken.
    """
    plain = _plain_jpeg(data, max_pixels=max_pixels, min_side=min_side) if len(data) <= max_bytes else None
    if plain is not None:
        return plain
    image = open_file(data, max_pixels=max_pixels, max_bytes=max_bytes)
    notes: list[str] = []
    width, height = image.size
    try:
        bits = sample_bits(image, data)
        mode = source_mode(image, bits)
        if image.format == "PNG":
            image.load()  # else getexif does, and a flipped bit in the pixels passes for broken EXIF
        orientation = orientation_of(image, notes)
        if image.format == "TIFF" and orientation >= 5:
            width, height = height, width  # Pillow's TIFF plugin swaps them at opening
        pixels_HW3 = None
        if orientation == 1 and _is_colour_jpeg(image):
            pixels_HW3, reduction = _jpeg_pixels(data, height, width, min_side=min_side)
        if pixels_HW3 is None:
            pixels_HW3, reduction = _upright(image, orientation, bits, notes), 1
        note_frames(image, notes)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a trust boundary: broken files raise anything, from OSError to struct.error
        raise refusal(image.format, error) from error
    return DecodedImage(
        pixels_HW3=pixels_HW3,
        source_height=height,
        source_width=width,
        source_mode=mode,
        orientation=orientation,
        reduction=reduction,
        notes=tuple(notes),
    )


def _plain_jpeg(data: bytes, *, max_pixels: int, min_side: int | None) -> DecodedImage | None:
    """A JPEG in colour of which nothing is to be said; None for any other file, and for a broken one."""
    size = plain_jpeg_size(data)
    if size is None:
        return None
    height, width = size
    check_size(height, width, max_pixels=max_pixels)
    pixels_HW3, reduction = _jpeg_pixels(data, height, width, min_side=min_side)
    if pixels_HW3 is None:
        return None
    return DecodedImage(
        pixels_HW3=pixels_HW3,
        source_height=height,
        source_width=width,
        source_mode="RGB",
        orientation=1,
        reduction=reduction,
        notes=(),
    )


def _jpeg_pixels(data: bytes, height: int, width: int, *, min_side: int | None) -> tuple[NDArray[np.uint8] | None, int]:
    reduction = 1 if min_side is None else reduction_to(height, width, min_side=min_side)
    return plain_jpeg_pixels(data, height=-(-height // reduction), width=-(-width // reduction)), reduction


def _is_colour_jpeg(image: ImageFile.ImageFile) -> bool:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return False
    return image.mode == "RGB" and image.layers == 3 and "adobe" not in image.info


def _upright(image: ImageFile.ImageFile, orientation: int, bits: int, notes: list[str]) -> NDArray[np.uint8]:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        load_jpeg(image)
    image.load()
    rgb = to_rgb(image, bits, notes)
    if image.format != "TIFF":  # whose plugin turns the picture while it loads
        for turn in TURNS.get(orientation, ()):
            rgb = rgb.transpose(turn)
    return np.asarray(rgb)
