"""What a file says of itself before any pixel is decoded, what is refused for it, and what Pillow's errors mean.

The policy stands in `pipelines.intake.images`.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import BinaryIO

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

from pipelines.intake.formats import ImageError, PixelBudgetError, png_fault, sniff, webp_size

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


def open_file(data: bytes, *, max_pixels: int, max_bytes: int) -> ImageFile.ImageFile:
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
        check_size(*(webp_size(file.read(_HEAD_BYTES)) or (0, 0)), max_pixels=max_pixels)
        file.seek(0)
    try:
        image = _OPENERS[name](file)
        width, height = image.size
        check_size(height, width, max_pixels=max_pixels)
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


def check_size(height: int, width: int, *, max_pixels: int) -> None:
    """Raise PixelBudgetError where there are more than `max_pixels`."""
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
