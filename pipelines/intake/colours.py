"""From Pillow's pixel formats to 8-bit RGB; the policy stands in `pipelines.intake.images`."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageCms

from pipelines.intake.formats import ImageError

BACKGROUND = (255, 255, 255, 255)

_DARK = "every value is below 4096, as of a 12-bit camera, so the picture is dark"


def to_rgb(image: Image.Image, bits: int, notes: list[str]) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB, not turned yet.

    Args:
        image: as a plugin of Pillow loaded it, or cut out of that with the same `format`; its notice of transparency
            may be changed.
        bits: per sample, as stored in the file.
        notes: gets a line for each step that was not plain copying.

    Raises:
        ImageError: stage `validate`: its values have no agreed range.
    """
    if image.mode.startswith("I"):
        return _deep_gray_to_rgb(image, 4095 if bits == 12 else 65535, notes)
    if bits == 16:
        notes.append(f"16-bit {image.mode}: the high byte of each sample was kept")
    if image.mode == "P":
        _note_palette(image, notes)
    uncovered = _uncovered(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append("transparency was laid over white")
        rgb = _over_white(image, bits)
    elif image.mode == "CMYK":
        rgb = _cmyk_to_rgb(image, notes)
    elif image.mode in ("RGB", "RGBX", "L", "1", "P", "YCbCr"):
        if image.mode != "RGB":
            notes.append(f"mode {image.mode} was converted to RGB")
        rgb = image.convert("RGB") if image.mode != "RGB" else image
    else:
        raise ImageError(
            f"images of mode {image.mode} have no agreed range of values; save it as 8-bit or 16-bit PNG", "validate"
        )
    if uncovered is not None:
        notes.append("the first frame covers a part of the picture; the rest is white")
        rgb.paste(BACKGROUND[:3], (0, 0), uncovered)
    return rgb


def notes_of_parts(parts: Iterable[Iterable[str]]) -> list[str]:
    """The notes of an image from those of its parts, each once; what must hold for every value, only where it does."""
    found = [tuple(notes) for notes in parts]
    merged = dict.fromkeys(note for notes in found for note in notes)
    return [note for note in merged if note != _DARK or all(_DARK in notes for notes in found)]


def _over_white(image: Image.Image, bits: int) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(transparent, int):
        # PNG gives the transparent gray in the file's bits, and Pillow looks for it among pixels spread over 0..255.
        image.info["transparency"] = transparent * gray_spread(image, bits)
    if bits == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # as the pixels
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB")


def _uncovered(image: Image.Image) -> Image.Image | None:
    """Mask of what the first frame of a GIF leaves out of the picture; None where it covers all, as nearly always."""
    box = getattr(image, "dispose_extent", None) if image.format == "GIF" else None
    if box is None or box == (0, 0, *image.size):
        return None
    mask = Image.new("L", image.size, 255)
    mask.paste(0, box)
    return mask


def _deep_gray_to_rgb(image: Image.Image, white: int, notes: list[str]) -> Image.Image:
    values_HW = np.asarray(image)
    low, high = int(values_HW.min()), int(values_HW.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"values from {low} to {high} in mode {image.mode} do not fit 16 bits; save it as 8-bit or 16-bit PNG",
            "validate",
        )
    if white == 65535:
        notes.append(f"mode {image.mode}: 16-bit values were divided by 257")
    else:
        notes.append(f"12-bit values were scaled from 0..{white} to 0..255")
    if white == 65535 and high < 4096:
        notes.append(_DARK)
    levels = ((np.arange(65536) * 510 + white) // (2 * white)).clip(max=255).astype(np.uint8)  # rounded to the nearest
    gray_HW = levels[values_HW]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        notes.append("transparency was laid over white")
        gray_HW[values_HW == transparent] = BACKGROUND[0]
    return Image.fromarray(gray_HW).convert("RGB")


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


def _note_palette(image: Image.Image, notes: list[str]) -> None:
    num_colours = len(image.getpalette() or ()) // 3
    largest = int(np.asarray(image).max())
    if largest >= num_colours:
        notes.append(f"index {largest} is beyond the palette of {num_colours} colours")


def gray_spread(image: Image.Image, bits: int) -> int:
    """Step between two gray values of an image in mode L: Pillow shows 4-bit gray 3 as 3 * 17."""
    return 255 // (2**bits - 1) if image.mode == "L" and bits < 8 else 1
