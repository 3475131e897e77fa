"""Intake of image and label files that nobody vouches for.

Pillow decodes (Pillow 13 survived files that end a process in torchvision's PNG decoder), after this module has looked
at the file's first bytes and, from its header, at its size. Whatever is wrong with a file, `ImageError` comes out, with
the stage that refused it. Policy, each step of which leaves a line in `notes`:

| found | done |
|---|---|
| EXIF orientation (TIFF: its own tag) | applied; a broken or unknown one counts as upright |
| 16 bits, gray | divided by 257, rounded: 0..65535 to 0..255 |
| 16 bits, colour | Pillow keeps the high byte, at most one level away from division by 257 |
| 1 bit, gray, palette | to RGB |
| transparency | laid over white, as a browser shows it |
| CMYK | to sRGB through the file's ICC profile, or by Pillow's plain formula where there is none |
| several frames | the first one; of a JPEG with further pictures behind it (MPO) nothing but the first is read |
| truncated | refused: a half-gray picture gives wrong masks |

An ICC profile of an RGB or gray image is not applied.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Endings (lower case) of file names that are taken for images; the content decides what they are."""

MAX_PIXELS = 2**27
"""134 million: above every camera of 2026, 400 MB once decoded. Larger pictures want to be cut into tiles first."""

MAX_BYTES = 2**29
"""512 MiB of file."""

BACKGROUND = (255, 255, 255, 255)

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
# The plugins themselves, not Image.open: it would try others, and its bomb check warns where ours has a policy.
_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
_BITS_PER_SAMPLE = 258  # TIFF tag

# Pillow warns about broken EXIF on stderr, once per process; here it becomes a note.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(ValueError):
    """A file that is not a usable image or label.

    Attributes:
        stage: `sniff` (not an image at all), `validate` (an image that we refuse) or `decode` (a broken image).
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return ImageError, (str(self), self.stage)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodedImage:
    """An image as 8-bit RGB, upright.

    Attributes:
        pixels_HW3: uint8, read-only.
        source_height, source_width: as stored in the file, before the orientation is applied.
        source_mode: Pillow's name of the stored pixel format, with its bits where they are 16 ("RGB;16").
        orientation: EXIF orientation that was applied, 1 to 8; 1 = stored upright.
        notes: what was done to the pixels; empty for a plain 8-bit RGB file.
    """

    pixels_HW3: NDArray[np.uint8]
    source_height: int
    source_width: int
    source_mode: str
    orientation: int
    notes: tuple[str, ...]


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> DecodedImage:
    """Decode a JPEG, PNG, WebP, TIFF, BMP or GIF file to upright 8-bit RGB. Threads may call it at the same time.

    Raises:
        ImageError: the file is empty, not an image, over a budget, truncated or broken.
    """
    image = _open(data, max_pixels=max_pixels, max_bytes=max_bytes)
    notes: list[str] = []
    width, height = image.size
    try:
        source_mode = _source_mode(image, data)
        if image.format == "PNG":
            image.load()  # else getexif does, and a flipped bit in the pixels passes for broken EXIF
        orientation = _orientation(image, notes)
        if image.format == "TIFF" and orientation >= 5:
            width, height = height, width  # Pillow's TIFF plugin swaps them at opening
        image.load()
        rgb = _to_rgb(image, source_mode, notes)
        if image.format != "TIFF":  # whose plugin turns the picture while it loads
            for turn in _TURNS.get(orientation, ()):
                rgb = rgb.transpose(turn)
        pixels_HW3: NDArray[np.uint8] = np.asarray(rgb)
        _note_frames(image, notes)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a trust boundary: broken files raise anything, from OSError to struct.error
        raise _broken(image.format, error) from error
    return DecodedImage(
        pixels_HW3=pixels_HW3,
        source_height=height,
        source_width=width,
        source_mode=source_mode,
        orientation=orientation,
        notes=tuple(notes),
    )


def decode_labels(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a label file to its stored values, (H, W): palettes to indices, gray to values, 1 bit to 0 and 1.

    Raises:
        ImageError: the file is broken, lossy (JPEG, WebP), in colour, or is turned by an EXIF orientation.
    """
    image = _open(data, max_pixels=max_pixels, max_bytes=MAX_BYTES)
    if image.format in ("JPEG", "WEBP"):
        raise ImageError(
            f"a label file is a {image.format}, whose compression changes class values; save labels as PNG", "validate"
        )
    try:
        orientation = _orientation(image, [])
        image.load()
        one_channel = image.mode in ("P", "L", "1") or image.mode.startswith("I")
        values_HW = np.asarray(image) if one_channel else None
    except MemoryError:
        raise
    except Exception as error:  # see decode_image
        raise _broken(image.format, error) from error
    if values_HW is None:
        raise ImageError(
            f"a label file has mode {image.mode}, expected one channel of class indices (modes P, L, I;16 or 1); "
            "convert its colours to indices first, for example "
            "numpy.argmax((rgb[..., None, :] == palette).all(-1), -1), and save them as an 8-bit PNG",
            "validate",
        )
    if orientation != 1:
        raise ImageError(
            f"a label file carries orientation {orientation}, expected an upright one; save it again without the tag",
            "validate",
        )
    return _label_values(values_HW, bits=_gray_bits(image, data))


def encode_labels_png(labels_HW: NDArray[np.uint8]) -> bytes:
    """A label map as 8-bit one-channel PNG; equal maps give equal bytes with one version of Pillow and zlib."""
    if labels_HW.dtype != np.uint8 or labels_HW.ndim != 2:
        raise ValueError(f"labels are {labels_HW.dtype} of shape {labels_HW.shape}, expected uint8 (H, W)")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels_HW)).save(file, "PNG", compress_level=6)
    return file.getvalue()


def sniff(data: bytes) -> str:
    """The format that the first bytes tell: JPEG, PNG, WEBP, TIFF, BMP or GIF.

    Raises:
        ImageError: stage `sniff`: none of them.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)", "sniff")
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError(
        f"not an image: it begins with {data[:12]!r}; expected a JPEG, PNG, WebP, TIFF, BMP or GIF file", "sniff"
    )


def _open(data: bytes, *, max_pixels: int, max_bytes: int) -> ImageFile.ImageFile:
    name = sniff(data)
    if len(data) > max_bytes:
        raise ImageError(
            f"the file has {len(data)} bytes, over the budget of {max_bytes}; cut it into tiles", "validate"
        )
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a global of Pillow that other packages set
    try:
        image = _OPENERS[name](io.BytesIO(data))
        width, height = image.size
    except Exception as error:  # see decode_image
        raise _broken(name, error) from error
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {height} x {width} = {height * width} pixels, over the budget of {max_pixels}; "
            "cut it into tiles or shrink it",
            "validate",
        )
    return image


def _broken(name: str | None, error: Exception) -> ImageError:
    return ImageError(f"the {name} file is truncated or broken: {type(error).__name__}: {error}", "decode")


def _source_mode(image: ImageFile.ImageFile, data: bytes) -> str:
    bits: object = 8
    if isinstance(image, PngImagePlugin.PngImageFile):
        bits = data[24]  # IHDR follows the signature: length, "IHDR", width, height, bit depth
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    return f"{image.mode};16" if bits == 16 and not image.mode.startswith("I") else image.mode


def _orientation(image: ImageFile.ImageFile, notes: list[str]) -> int:
    try:
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


def _to_rgb(image: Image.Image, source_mode: str, notes: list[str]) -> Image.Image:
    if source_mode.endswith(";16") and not source_mode.startswith("I"):
        notes.append(f"16-bit {source_mode[:-3]}: the high byte of each sample was kept")
    if image.mode.startswith("I"):
        return _sixteen_bits_to_rgb(image, notes)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append("transparency was laid over white")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image, notes)
    if image.mode not in ("RGB", "RGBX", "L", "1", "P", "YCbCr"):
        raise ImageError(
            f"images of mode {image.mode} have no agreed range of values; save it as 8-bit or 16-bit PNG", "validate"
        )
    if image.mode != "RGB":
        notes.append(f"mode {image.mode} was converted to RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def _sixteen_bits_to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    values_HW = np.asarray(image).astype(np.int64)
    low, high = int(values_HW.min()), int(values_HW.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"values from {low} to {high} in mode {image.mode} do not fit 16 bits; save it as 8-bit or 16-bit PNG",
            "validate",
        )
    notes.append(f"mode {image.mode}: 16-bit values were divided by 257")
    return Image.fromarray(((values_HW + 128) // 257).astype(np.uint8)).convert("RGB")


def _cmyk_to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except Exception as error:  # a profile of another colour space, or a broken one
            notes.append(f"CMYK: the ICC profile could not be used ({error}); converted without it")
        else:
            if converted is not None:
                notes.append("CMYK was converted through its ICC profile")
                return converted
    else:
        notes.append("CMYK was converted without an ICC profile")
    return image.convert("RGB")


def _note_frames(image: ImageFile.ImageFile, notes: list[str]) -> None:
    try:
        animated = bool(getattr(image, "is_animated", False))
    except Exception:  # the frames behind the first are broken; the first has been decoded
        animated = True
    if animated:
        notes.append("the first of several frames was taken")


def _gray_bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """Bits of a gray sample where Pillow spreads fewer than 8 over 0..255, otherwise 8."""
    if image.mode != "L":
        return 8
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0])
    return 8


def _label_values(values_HW: NDArray[np.generic], *, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values_HW.dtype == np.bool_ or values_HW.dtype == np.uint8:
        spread = 255 // (2**bits - 1)  # 1 for 8 bits: Pillow shows 4-bit gray 3 as 3 * 17
        return values_HW.astype(np.uint8) // np.uint8(spread)
    values = values_HW.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"label values from {low} to {high} do not fit 16 bits; save class indices from 0", "validate")
    return values.astype(np.uint16)
