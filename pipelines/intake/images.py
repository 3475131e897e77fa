"""Intake of image and label files that nobody vouches for.

Pillow decodes (Pillow 13 survived files that end a process in torchvision's PNG decoder), and what is plain and
frequent simplejpeg (JPEGs in colour) and kornia-rs (label PNGs), after this module has looked at the file's first bytes
and, from its header, at its size. Whatever is wrong with a file, `ImageError` comes out, with the stage that refused
it. Policy, each step of which leaves a line in `notes`:

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

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipelines.intake.colours import gray_spread, to_rgb
from pipelines.intake.formats import ImageError, PixelBudgetError, is_plain_gray_png, png_fault, sniff, webp_size
from pipelines.intake.jpeg_files import load_jpeg, plain_jpeg_pixels, plain_jpeg_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Endings (lower case) of file names that are taken for images; the content decides what they are."""

MAX_PIXELS = 2**27
"""134 million: above every camera of 2026, 400 MB once decoded. `intake.windows` reads larger ones in pieces."""

MAX_BYTES = 2**29
"""512 MiB of file."""


# The plugins themselves, not Image.open: it would try others, and its bomb check warns where ours has a policy.
_OPENERS: Mapping[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
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
# TIFF tags
_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE, _COMPRESSION, _PLANAR = 258, 259, 284
_TILE_WIDTH, _TILE_LENGTH = 322, 323

_NOT_SUPPORTED = (
    # What Pillow says of a sound file that it cannot or, for fear of bombs, will not read.
    "unknown pixel mode",
    "cannot handle",
    "Unsupported BMP",
    "not yet supported",
    "Decompressed data too large",
    "Too much memory used in text chunks",
)
_HEAD_BYTES = 64

# Pillow warns about broken EXIF on stderr, once per process; here it becomes a note. Large images have our own budget.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
    image = _open(data, max_pixels=max_pixels, max_bytes=max_bytes)
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
    _check_size(height, width, max_pixels=max_pixels)
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


def _plain_labels(data: bytes, *, max_pixels: int) -> NDArray[np.uint8] | None:
    """The levels of a whole 8-bit gray PNG; None for any other file, and for one that kornia-rs does not read."""
    if len(data) > MAX_BYTES or not is_plain_gray_png(data):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    _check_size(height, width, max_pixels=max_pixels)
    check_png(io.BytesIO(data))  # to the end marker, which is beyond what a decoder reads
    try:
        return np.asarray(decode_image_png_u8(data, (height, width), "mono")[..., 0])
    except Exception:
        return None


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


def _open_label(data: bytes, *, max_pixels: int) -> tuple[ImageFile.ImageFile, int]:
    """The decoded file and its orientation."""
    image = _open(data, max_pixels=max_pixels, max_bytes=MAX_BYTES)
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


def _open(data: bytes, *, max_pixels: int, max_bytes: int) -> ImageFile.ImageFile:
    """Read the header, and refuse what its numbers promise, before anything is decoded."""
    name = sniff(data)
    if len(data) > max_bytes:
        raise ImageError(
            f"the file has {len(data)} bytes, over the budget of {max_bytes}; cut it into tiles", "validate"
        )
    file = io.BytesIO(data)
    if name == "PNG":
        check_png(file)
    return open_header(name, file, max_pixels=max_pixels)


def open_header(name: str, file: BinaryIO, *, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of a file whose format `sniff` has told; no pixel is decoded.

    Raises:
        ImageError: the header is broken, or of a variant that we refuse; as `PixelBudgetError`: it promises more than
            `max_pixels`, or a TIFF's tiles do.
    """
    # Globals of Pillow that other packages set; its limit serves where it reserves memory before we see a size (GIF).
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = max(min(max_pixels, MAX_PIXELS), Image.MAX_IMAGE_PIXELS or 0)
    file.seek(0)
    if name == "WEBP":
        _check_size(*(webp_size(file.read(_HEAD_BYTES)) or (0, 0)), max_pixels=max_pixels)
        file.seek(0)
    try:
        image = _OPENERS[name](file)
        width, height = image.size
        _check_size(height, width, max_pixels=max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, max_pixels=min(max_pixels, MAX_PIXELS))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the {name} file is over the budget: {error}; cut it into tiles", "validate") from error
    except Exception as error:  # see decode_image
        raise refusal(name, error) from error
    return image


def check_png(file: BinaryIO) -> None:
    """Read a PNG file to its end.

    Raises:
        ImageError: stage `decode`: it is not whole.
    """
    fault = png_fault(file)
    if fault:
        raise ImageError(f"the PNG file is truncated or broken: {fault}", "decode")


def _check_size(height: int, width: int, *, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PixelBudgetError(
            f"the image is {height} x {width} = {height * width} pixels, over the budget of {max_pixels}; "
            "cut it into tiles or shrink it",
            "validate",
        )


def _check_tiff(image: TiffImagePlugin.TiffImageFile, *, max_pixels: int) -> None:
    tags = image.tag_v2
    height, width = int(tags.get(_TILE_LENGTH, 1)), int(tags.get(_TILE_WIDTH, 1))
    if height * width > max_pixels:  # a whole tile is unpacked at once, however little of it lies in the image
        raise PixelBudgetError(
            f"the TIFF file has tiles of {height} x {width} pixels, over the budget of {max_pixels}; "
            "save it with tiles of 512 x 512",
            "validate",
        )
    if tags.get(_PLANAR) == 2 and tags.get(_COMPRESSION, 1) == 1 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
        raise ImageError(  # Pillow 13 takes the samples for bytes, without a word
            "the TIFF file has uncompressed separate planes of more than 8 bits, which are not supported; "
            "save it with deflate compression",
            "validate",
        )
    if int(tags.get(_SUBFILE_TYPE, 0)) & 1:
        raise ImageError(
            "the first picture of the TIFF file is a preview (NewSubfileType 1), as in a camera's raw file; "
            "develop it to a JPEG or a plain TIFF first",
            "validate",
        )


def refusal(name: str | None, error: Exception) -> ImageError:
    """What an exception of Pillow's means: a variant that it does not read, or a broken file."""
    # A KeyError inside an opener: a table of Pillow's lacks this variant ("unsupported mode", in its own words).
    if any(text in str(error) for text in _NOT_SUPPORTED) or isinstance(error.__cause__, KeyError):
        return ImageError(
            f"the {name} file is of a variant that is not supported ({error}); save it as an 8-bit RGB PNG", "validate"
        )
    return ImageError(f"the {name} file is truncated or broken: {type(error).__name__}: {error}", "decode")


def sample_bits(image: ImageFile.ImageFile, head: bytes) -> int:
    """Bits per sample as stored; `head` begins as the file does."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return head[24]  # IHDR follows the signature: length, "IHDR", width, height, bit depth
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))))
    return 8


def source_mode(image: ImageFile.ImageFile, bits: int) -> str:
    """Pillow's name of the stored pixel format, with its bits per sample where they are 12 or 16."""
    if image.mode.startswith("I;16") and bits == 12:
        return "I;12"
    return f"{image.mode};16" if bits == 16 and not image.mode.startswith("I") else image.mode


def orientation_of(image: ImageFile.ImageFile, notes: list[str]) -> int:
    """EXIF orientation, 1 to 8; what is found joins `notes`. A PNG must be loaded before."""
    try:
        if image.format == "JPEG" and "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # which raises; the plugin has read it before, and kept silent
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # EXIF is decoration: a broken one costs the orientation, not the image
        notes.append(f"EXIF is broken and was ignored ({type(error).__name__}: {error})")
        return 1
    if not isinstance(found, int) or not 1 <= found <= 8:
        notes.append(f"EXIF orientation {found!r} is not in 1..8 and was ignored")
        return 1
    if found != 1:
        notes.append(f"EXIF orientation {found} was applied")
    return found


def note_frames(image: ImageFile.ImageFile, notes: list[str]) -> None:
    """Note that a file has several frames or pictures."""
    try:
        animated = bool(getattr(image, "is_animated", False))
    except Exception:  # the frames behind the first are broken; the first has been decoded
        animated = True
    if animated:
        notes.append("the first of several frames was taken")
    if image.format == "JPEG" and "mp" in image.info:
        notes.append("the first of several pictures (MPO) was taken")


def _label_values(values_HW: NDArray[np.generic], *, spread: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values_HW.dtype == np.bool_ or values_HW.dtype == np.uint8:
        return values_HW.astype(np.uint8) // np.uint8(spread)
    values = values_HW.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"label values from {low} to {high} do not fit 16 bits; save class indices from 0", "validate")
    return values.astype(np.uint16)
