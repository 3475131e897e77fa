"""Odd GIF, WebP and BMP files, and files that are no images at all."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.pipelines.zoo.specimen import Specimen, gray_as_rgb
from tests.pipelines.zoo.writers import bmp_of_rows, bmp_runs, encoded, exif_of, picture, turned_for, with_bytes

HEIGHT, WIDTH = 48, 64
PICTURE = picture(HEIGHT, WIDTH)
IMAGE = Image.fromarray(PICTURE)
INDICES_HW = (np.arange(HEIGHT * WIDTH) // 100 % 16).astype(np.uint8).reshape(HEIGHT, WIDTH)
PALETTE = np.array([[index * 16 % 256, 255 - index, index * 3 % 256] for index in range(256)], dtype=np.uint8)
FIRST = "the first of several frames was taken"
OVER_WHITE = "transparency was laid over white"
FROM_PALETTE = "mode P was converted to RGB"


def other_specimens() -> Iterator[Specimen]:
    """All of them."""
    yield from _gif()
    yield from _webp()
    yield from _bmp()
    yield from _foreign()


def _indexed(indices_HW: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(indices_HW).convert("P")
    image.putpalette(PALETTE.tobytes())
    return image


def _gif() -> Iterator[Specimen]:
    image = _indexed(INDICES_HW)
    plain = encoded(image, "GIF")
    shown = PALETTE[INDICES_HW]
    yield Specimen(name="plain.gif", data=plain, mode="P", notes=(FROM_PALETTE,), pixels_HW3=shown)
    yield Specimen(name="interlaced.gif", data=encoded(image, "GIF", interlace=True), mode="P", notes=(FROM_PALETTE,),
                   pixels_HW3=shown)  # fmt: skip
    yield Specimen(
        name="transparent.gif",
        data=encoded(image, "GIF", transparency=3),
        mode="P",
        notes=(OVER_WHITE,),
        pixels_HW3=np.where((INDICES_HW == 3)[..., None], 255, shown).astype(np.uint8),
    )
    frames = [_indexed(np.roll(INDICES_HW, 5 * step, axis=1)) for step in range(3)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Specimen(name="animated.gif", data=moving, mode="P", notes=(FROM_PALETTE, FIRST), pixels_HW3=shown)
    yield Specimen(name="second frame cut.gif", data=moving[: len(moving) * 2 // 3], mode="P",
                   notes=(FROM_PALETTE, FIRST), pixels_HW3=shown)  # fmt: skip
    wide = np.full((HEIGHT + 10, WIDTH + 20, 3), 255, dtype=np.uint8)
    wide[:HEIGHT, :WIDTH] = shown
    yield Specimen(
        name="first frame covers a part.gif",
        data=with_bytes(plain, 6, struct.pack("<HH", WIDTH + 20, HEIGHT + 10)),  # the size of the screen
        mode="P",
        notes=(FROM_PALETTE, "the first frame covers a part"),
        pixels_HW3=wide,
    )
    frame = plain[plain.index(b",", 13 + 3 * 256 if plain[10] & 7 == 7 else 13 + 3 * 2 ** ((plain[10] & 7) + 1)) : -1]
    yield Specimen(name="2000 frames.gif", data=plain[:-1] + 2000 * frame + b";", mode="P",
                   notes=(FROM_PALETTE, FIRST), pixels_HW3=shown)  # fmt: skip
    size = len(plain) - 1 - len(frame) + 5  # of the frame: separator, left, top; then width and height
    yield Specimen(name="65535 x 65535.gif", data=with_bytes(plain, size, b"\xff\xff\xff\xff"), stage="validate",
                   message="over the budget")  # fmt: skip
    yield Specimen(name="half.gif", data=plain[: len(plain) // 2], stage="decode", message="truncated or broken")
    yield Specimen(name="script.gif", data=b"GIF89a=1;alert(1)//", stage="decode", message="truncated or broken")


def _webp() -> Iterator[Specimen]:
    lossless = encoded(IMAGE, "WEBP", lossless=True)
    yield Specimen(name="lossless.webp", data=lossless, pixels_HW3=PICTURE)
    yield Specimen(name="lossy.webp", data=encoded(IMAGE, "WEBP", quality=95), pixels_HW3=PICTURE, tolerance=5.0)
    alpha_HW1 = np.full((HEIGHT, WIDTH, 1), 102, dtype=np.uint8)
    yield Specimen(
        name="alpha.webp",
        data=encoded(Image.fromarray(np.concatenate([PICTURE, alpha_HW1], axis=2)), "WEBP", lossless=True),
        mode="RGBA",
        notes=(OVER_WHITE,),
        pixels_HW3=np.round(PICTURE * 0.4 + 255 * 0.6).astype(np.uint8),
        tolerance=1.0,
    )
    frames = [Image.fromarray(np.roll(PICTURE, 5 * step, axis=1)) for step in range(3)]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield Specimen(name="animated.webp", data=moving, notes=(FIRST,), pixels_HW3=PICTURE)
    turned = Image.fromarray(np.ascontiguousarray(turned_for(8, PICTURE)))
    yield Specimen(
        name="orientation 8.webp",
        data=encoded(turned, "WEBP", lossless=True, exif=exif_of(8)),
        orientation=8,
        notes=("EXIF orientation 8 was applied",),
        pixels_HW3=PICTURE,
    )
    extended = encoded(IMAGE, "WEBP", lossless=True, exif=exif_of(1))  # whose first chunk gives the size of the canvas
    for name, data, size in (
        ("extended", with_bytes(extended, 24, b"\xff\xff\xff\xff\xff\xff"), "16777216 x 16777216"),
        ("lossless", with_bytes(lossless, 21, b"\xff\xff\xff\x0f"), "16384 x 16384"),
    ):
        yield Specimen(name=f"bomb, {name}.webp", data=data, stage="validate", message=f"{size} = .* over the budget")
    yield Specimen(name="half.webp", data=lossless[: len(lossless) // 2], stage="decode", message="truncated or broken")
    yield Specimen(name="header.webp", data=lossless[:12], stage="decode", message="truncated or broken")


def _bmp() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    bgr = PICTURE[..., ::-1]
    bgrx = np.concatenate([bgr, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    red, green, blue = (PICTURE[..., band].astype(np.uint16) for band in range(3))
    high_colour = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2")
    colours = np.concatenate([PALETTE[:, ::-1], np.zeros((256, 1), np.uint8)], axis=1).tobytes()
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    yield Specimen(name="plain.bmp", data=encoded(IMAGE, "BMP"), pixels_HW3=PICTURE)
    yield Specimen(name="32 bits.bmp", data=bmp_of_rows(bgrx[::-1].tobytes(), **size, bits=32), pixels_HW3=PICTURE)
    top_down = bmp_of_rows(bgr.tobytes(), height=-HEIGHT, width=WIDTH, bits=24)
    yield Specimen(name="top down.bmp", data=top_down, pixels_HW3=PICTURE)
    yield Specimen(
        name="16 bits 565.bmp",
        data=bmp_of_rows(high_colour[::-1].tobytes(), **size, bits=16, compression=3, behind_header=masks),
        pixels_HW3=PICTURE,
        tolerance=5.0,  # steps of 8 levels
    )
    for name, body, compression in (
        ("8 bits", INDICES_HW[::-1].tobytes(), 0),
        ("run lengths", bmp_runs(INDICES_HW), 1),
    ):
        yield Specimen(
            name=f"{name}.bmp",
            data=bmp_of_rows(body, **size, bits=8, compression=compression, behind_header=colours),
            mode="P",
            notes=(FROM_PALETTE,),
            pixels_HW3=PALETTE[INDICES_HW],
        )
    one_bit = Image.fromarray(PICTURE[..., 0] > 100)
    yield Specimen(
        name="1 bit.bmp",
        data=encoded(one_bit, "BMP"),
        mode="1",
        notes=("mode 1 was converted to RGB",),
        pixels_HW3=gray_as_rgb(np.where(PICTURE[..., 0] > 100, 255, 0)),
    )
    old = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    yield Specimen(name="os2.bmp", data=old + bgr[::-1].tobytes(), pixels_HW3=PICTURE)
    for name, data, stage, message in (
        ("jpeg inside", bmp_of_rows(b"?", **size, bits=24, compression=4), "validate", "Unsupported BMP compression"),
        ("run lengths cut", bmp_of_rows(
            bmp_runs(INDICES_HW)[:90], **size, bits=8, compression=1, behind_header=colours),
         "decode", "truncated or broken"),
        ("half", encoded(IMAGE, "BMP")[:3000], "decode", "truncated or broken"),
        ("50000 x 50000", bmp_of_rows(b"?", height=50000, width=50000, bits=24), "validate", "over the budget"),
        ("a text that begins with BM", b"BMX results of today", "decode", "truncated or broken"),
    ):  # fmt: skip
        yield Specimen(name=f"{name}.bmp", data=data, stage=stage, message=message)


def _foreign() -> Iterator[Specimen]:
    """By their beginnings; the message must name what they are."""

    def media(brands: bytes) -> bytes:
        return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(40)

    noise = np.random.default_rng(3).integers(128, 256, 200).astype(np.uint8).tobytes()
    for name, data, what in (
        ("empty.jpg", b"", "the file is empty .0 bytes"),
        ("one byte.jpg", b"\xff", "begins with"),
        ("noise.jpg", noise, "not an image of a known kind and begins with"),
        ("error page.jpg", b"\n <!DOCTYPE html><title>503 Service Unavailable</title>", "an HTML page"),
        ("error of a store.png", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        ("error.json.png", b'{"error": "not found"}', "a JSON document"),
        ("drawing.svg", b'<?xml version="1.0"?><svg xmlns="x"></svg>', "an SVG drawing"),
        ("bare drawing.svg", b'<svg xmlns="x"></svg>', "an SVG drawing"),
        ("document.pdf", b"%PDF-1.7\n", "a PDF document"),
        ("photo.heic", media(b"heic\0\0\0\0mif1heic"), "a HEIC photo"),
        ("photo.avif", media(b"avif\0\0\0\0avifmif1miaf"), "an AVIF image"),
        ("avif behind mif1.avif", media(b"mif1\0\0\0\0mif1avif"), "an AVIF image"),
        ("film.mp4", media(b"isom\0\0\2\0isomiso2avc1mp41"), "an MP4 video"),
        ("film.mov", media(b"qt  \0\0\2\0qt  "), "a QuickTime video"),
        ("film.mkv", b"\x1aE\xdf\xa3\x01\0\0\0", "a Matroska or WebM video"),
        ("film.avi", b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        ("sound.wav", b"RIFF\0\0\0\0WAVEfmt ", "a WAV sound"),
        ("archive.zip", b"PK\x03\x04\x14\0", "a ZIP archive"),
        ("archive.gz", b"\x1f\x8b\x08\0", "a gzip archive"),
        ("layers.psd", b"8BPS\0\1", "a Photoshop document"),
        ("scan.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        ("photo.jxl", b"\xff\x0a\xfa\x7f", "a JPEG XL image"),
        ("favicon.ico", b"\0\0\1\0\1\0\x10\x10", "a Windows icon"),
        ("raw.cr2", b"II*\0\x10\0\0\0CR\x02\0", "a Canon raw photo"),
        ("scan.dcm", bytes(128) + b"DICM", "a DICOM image"),
        ("pixels.ppm", b"P6\n2 2\n255\n", "a Netpbm image"),
        ("notes.txt", b"the camera was cleaned\r\n", "plain text"),
        ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    ):
        yield Specimen(name=name, data=data, stage="sniff", message=what)
