"""Odd TIFF files."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.pipelines.zoo.specimen import Specimen, gray_as_rgb, one_colour
from tests.pipelines.zoo.writers import (
    cmyk_profile,
    encoded,
    packed,
    picture,
    tiff_of_chunks,
    tiles_of,
    turned_for,
    with_bytes,
)

HEIGHT, WIDTH = 48, 64
PICTURE = picture(HEIGHT, WIDTH)
IMAGE = Image.fromarray(PICTURE)
PLAIN = encoded(IMAGE, "TIFF")
GRAY_HW = PICTURE[..., 0]
RAMP_HW = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH)

# Tags of an uncompressed picture; see TIFF 6.0, section 8, for their numbers.
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA, FORMAT = 258, 259, 262, 277, 284, 338, 339
RGB = {BITS: [8, 8, 8], COMPRESSION: [1], PHOTOMETRIC: [2], SAMPLES: [3]}
GRAY = {BITS: [8], COMPRESSION: [1], PHOTOMETRIC: [1], SAMPLES: [1]}
DEFLATE = 8


def tiff_specimens() -> Iterator[Specimen]:
    """All of them."""
    yield from _compressions()
    yield from _layouts()
    yield from _deep()
    yield from _colour_spaces()
    yield from _alpha()
    yield from _refused()
    yield from _broken()


def _compressions() -> Iterator[Specimen]:
    for name, options in (
        ("raw", {}),
        ("tiff_lzw", {}),
        ("tiff_deflate", {}),
        ("packbits", {}),
        ("tiff_lzw", {"tiffinfo": {317: 2}}),
        ("tiff_deflate", {"big_tiff": True}),
    ):
        words = [name.removeprefix("tiff_"), *("predictor" if key == "tiffinfo" else key for key in options)]
        data = encoded(IMAGE, "TIFF", compression=name, **options)
        yield Specimen(name=f"{' '.join(words)}.tif", data=data, pixels_HW3=PICTURE)
    data = encoded(IMAGE, "TIFF", compression="tiff_jpeg", quality=95)
    yield Specimen(name="jpeg inside.tif", data=data, pixels_HW3=PICTURE, tolerance=3.0)
    one_bit = Image.fromarray(GRAY_HW > 100)
    yield Specimen(
        name="fax group 4.tif",
        data=encoded(one_bit, "TIFF", compression="group4"),
        mode="1",
        notes=("mode 1 was converted to RGB",),
        pixels_HW3=gray_as_rgb(np.where(GRAY_HW > 100, 255, 0)),
    )


def _layouts() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    whole, planes = [PICTURE.tobytes()], [PICTURE[..., band].tobytes() for band in range(3)]
    strips = [PICTURE[row : row + 10].tobytes() for row in range(0, HEIGHT, 10)]
    tiles = tiles_of(PICTURE, 32)
    deflated, deflated_tiles = RGB | {COMPRESSION: [DEFLATE]}, [zlib.compress(tile) for tile in tiles]
    separate = RGB | {PLANAR: [2]}
    for name, data in (
        ("big endian", tiff_of_chunks(whole, **size, tags=RGB, order=">")),
        ("strips", tiff_of_chunks(strips, **size, tags=RGB | {278: [10]})),
        ("tiles", tiff_of_chunks(tiles, **size, tags=RGB, tile=(32, 32))),
        ("deflated tiles", tiff_of_chunks(deflated_tiles, **size, tags=deflated, tile=(32, 32))),
        ("separate planes", tiff_of_chunks(planes, **size, tags=separate)),
        ("deflated separate planes", tiff_of_chunks(
            [zlib.compress(plane) for plane in planes], **size, tags=separate | {COMPRESSION: [DEFLATE]}
        )),
    ):  # fmt: skip
        yield Specimen(name=f"{name}.tif", data=data, pixels_HW3=PICTURE)
    stored = np.ascontiguousarray(turned_for(5, PICTURE))
    yield Specimen(
        name="orientation 5.tif",
        data=tiff_of_chunks([stored.tobytes()], height=WIDTH, width=HEIGHT, tags=RGB | {274: [5]}),
        orientation=5,
        notes=("EXIF orientation 5 was applied",),
        pixels_HW3=PICTURE,
    )
    pages = [Image.fromarray(np.roll(PICTURE, 9 * step, axis=1)) for step in range(3)]
    yield Specimen(
        name="three pages.tif",
        data=encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        notes=("the first of several frames was taken",),
        pixels_HW3=PICTURE,
    )
    circle = tiff_of_chunks(whole, **size, tags=RGB)
    directory = struct.unpack("<I", circle[4:8])[0]
    following = directory + 2 + 12 * struct.unpack_from("<H", circle, directory)[0]
    yield Specimen(
        name="pages in a circle.tif",
        data=with_bytes(circle, following, struct.pack("<I", directory)),
        pixels_HW3=PICTURE,
    )


def _deep() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    deep_HW = (RAMP_HW * 21 % 65536).astype(np.uint16)
    divided = gray_as_rgb(np.round(deep_HW / 257))
    for order, name, mode in (("<", "gray 16 bits", "I;16"), (">", "gray 16 bits big endian", "I;16B")):
        yield Specimen(
            name=f"{name}.tif",
            data=tiff_of_chunks(
                [deep_HW.astype(f"{order}u2").tobytes()], **size, tags=GRAY | {BITS: [16]}, order=order
            ),
            mode=mode,
            notes=("16-bit values were divided by 257",),
            pixels_HW3=divided,
        )
    yield Specimen(
        name="gray 16 bits deflated.tif",
        data=encoded(Image.fromarray(deep_HW), "TIFF", compression="tiff_deflate"),
        mode="I;16",
        notes=("16-bit values were divided by 257",),
        pixels_HW3=divided,
    )
    twelve_HW = RAMP_HW * 13 % 4096
    yield Specimen(
        name="gray 12 bits.tif",
        data=tiff_of_chunks([packed(row, 12) for row in twelve_HW], **size, tags=GRAY | {BITS: [12], 278: [1]}),
        mode="I;12",
        notes=("12-bit values were scaled from 0..4095 to 0..255",),
        pixels_HW3=gray_as_rgb(np.round(twelve_HW * 255 / 4095)),
    )
    yield Specimen(
        name="gray 12 bits in 16, largest value told.tif",
        data=tiff_of_chunks([twelve_HW.astype("<u2").tobytes()], **size, tags=GRAY | {BITS: [16], 281: [4095]}),
        mode="I;16",
        notes=("16-bit values were divided by 257", "every value is below 4096"),
        pixels_HW3=gray_as_rgb(np.round(twelve_HW / 257)),
    )
    yield Specimen(
        name="integers of 32 bits that fit 16.tif",
        data=encoded(Image.fromarray(deep_HW.astype(np.int32)), "TIFF"),
        mode="I",
        notes=("16-bit values were divided by 257",),
        pixels_HW3=divided,
    )
    rgb16 = RGB | {BITS: [16, 16, 16]}
    deep_HW3 = PICTURE.astype(np.uint16) * 257
    deflated = [zlib.compress(deep_HW3[..., band].tobytes()) for band in range(3)]
    planes = tiff_of_chunks(deflated, **size, tags=rgb16 | {PLANAR: [2], COMPRESSION: [DEFLATE]})
    whole = tiff_of_chunks([deep_HW3.tobytes()], **size, tags=rgb16)
    for name, data in (("colour 16 bits", whole), ("deflated separate planes of 16 bits", planes)):
        yield Specimen(
            name=f"{name}.tif",
            data=data,
            mode="RGB;16",
            notes=("16-bit RGB: the high byte of each sample was kept",),
            pixels_HW3=PICTURE,
        )


def _colour_spaces() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    yield Specimen(
        name="white is zero.tif",
        data=tiff_of_chunks([(255 - GRAY_HW).tobytes()], **size, tags=GRAY | {PHOTOMETRIC: [0]}),
        mode="L",
        notes=("mode L was converted to RGB",),
        pixels_HW3=gray_as_rgb(GRAY_HW),
    )
    two_bits_HW = RAMP_HW % 4
    yield Specimen(
        name="gray 2 bits.tif",
        data=tiff_of_chunks([packed(row, 2) for row in two_bits_HW], **size, tags=GRAY | {BITS: [2], 278: [1]}),
        mode="L",
        notes=("mode L was converted to RGB",),
        pixels_HW3=gray_as_rgb(two_bits_HW * 85),
    )
    palette = Image.fromarray(GRAY_HW).convert("P")
    palette.putpalette([(index * 7 + band * 50) % 256 for index in range(256) for band in range(3)])
    yield Specimen(
        name="palette.tif",
        data=encoded(palette, "TIFF"),
        mode="P",
        notes=("mode P was converted to RGB",),
        pixels_HW3=np.asarray(palette.convert("RGB")),
    )
    red_ink = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    for name, profile, note, colour in (
        ("cmyk", None, "CMYK was converted without an ICC profile", (255, 0, 0)),
        ("cmyk with profile", cmyk_profile(), "CMYK was converted through its ICC profile", (119, 119, 119)),
    ):
        yield Specimen(
            name=f"{name}.tif",
            data=encoded(red_ink, "TIFF", icc_profile=profile),
            mode="CMYK",
            notes=(note,),
            pixels_HW3=one_colour(colour, height=HEIGHT, width=WIDTH),
            tolerance=2.0,  # L* 50 is not exactly a level of sRGB
        )
    ycbcr = IMAGE.convert("YCbCr")
    yield Specimen(
        name="ycbcr.tif",
        data=encoded(ycbcr, "TIFF"),
        mode="YCbCr",
        notes=("mode YCbCr was converted to RGB",),
        pixels_HW3=PICTURE,
        tolerance=2.0,
    )


def _alpha() -> Iterator[Specimen]:
    """A fourth sample: no meaning, colours multiplied by it (associated), or not."""
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    alpha_HW1 = np.full((HEIGHT, WIDTH, 1), 102, dtype=np.uint8)  # 0.4
    over_white = np.round(PICTURE * 0.4 + 255 * 0.6).astype(np.uint8)
    multiplied = np.round(PICTURE * 0.4).astype(np.uint8)
    note = ("transparency was laid over white",)
    for kind, name, colours, mode, notes, expected in (
        (0, "fourth sample of no meaning", PICTURE, "RGB", (), PICTURE),
        (1, "associated alpha", multiplied, "RGBA", note, over_white),
        (2, "alpha", PICTURE, "RGBA", note, over_white),
    ):
        tags = RGB | {BITS: [8] * 4, SAMPLES: [4], EXTRA: [kind]}
        yield Specimen(
            name=f"{name}.tif",
            data=tiff_of_chunks([np.concatenate([colours, alpha_HW1], axis=2).tobytes()], **size, tags=tags),
            mode=mode,
            notes=notes,
            pixels_HW3=expected,
            tolerance=1.5 if notes else 0.0,
        )
    gray_HW2 = np.dstack([multiplied[..., 0], alpha_HW1[..., 0]])
    yield Specimen(
        name="gray with associated alpha.tif",
        data=tiff_of_chunks([gray_HW2.tobytes()], **size, tags=GRAY | {BITS: [8, 8], SAMPLES: [2], EXTRA: [1]}),
        mode="La",
        notes=note,
        pixels_HW3=np.repeat(over_white[..., :1], 3, axis=2),
        tolerance=1.5,
    )


def _refused() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    signed_HW = (RAMP_HW.astype(np.int16) - 1000).astype("<i2")
    double = np.ones((HEIGHT, WIDTH)).tobytes()
    small = zlib.compress(bytes(16384 * 16384 // 64))
    for name, data, message in (
        ("signed 16 bits", tiff_of_chunks([signed_HW.tobytes()], **size, tags=GRAY | {BITS: [16], FORMAT: [2]}),
         "values from -1000 to 2071 in mode I do not fit 16 bits"),
        ("integers of 32 bits", encoded(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"),
         "values from 0 to 70000 in mode I do not fit 16 bits"),
        ("floats", encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "mode F have no agreed range"),
        ("double precision", tiff_of_chunks([double], **size, tags=GRAY | {BITS: [64], FORMAT: [3]}),
         "variant that is not supported .unknown pixel mode"),
        ("lab", encoded(IMAGE.convert("LAB"), "TIFF"), "mode LAB have no agreed range"),
        ("unknown compression", tiff_of_chunks([b"?"], **size, tags=RGB | {COMPRESSION: [34887]}),
         "variant that is not supported .34887"),
        ("planes of 16 bits", tiff_of_chunks(
            [(PICTURE[..., band].astype("<u2") * 257).tobytes() for band in range(3)],
            **size, tags=RGB | {BITS: [16] * 3, PLANAR: [2]}), "separate planes of more than 8 bits"),
        ("60000 x 60000", tiff_of_chunks([b"?"], height=60000, width=60000, tags=RGB),
         "60000 x 60000 = 3600000000 pixels, over the budget"),
        ("huge tiles of a small picture", tiff_of_chunks(
            [small], **size, tags=GRAY | {COMPRESSION: [DEFLATE]}, tile=(16384, 16384)),
         "tiles of 16384 x 16384 pixels, over the budget"),
        ("preview of a raw photo", tiff_of_chunks([PICTURE.tobytes()], **size, tags=RGB | {254: [1]}),
         "a preview .NewSubfileType 1., as in a camera's raw file"),
    ):  # fmt: skip
        yield Specimen(name=f"{name}.tif", data=data, stage="validate", message=message)


def _broken() -> Iterator[Specimen]:
    size: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
    whole = tiff_of_chunks([PICTURE.tobytes()], **size, tags=RGB)
    directory = struct.unpack("<I", whole[4:8])[0]
    for name, data in (
        ("half", PLAIN[: len(PLAIN) // 2]),
        ("header", PLAIN[:8]),
        ("directory beyond the end", with_bytes(whole, 4, b"\xf0\xff\xff\xff")),
        ("65535 entries", with_bytes(whole, directory, b"\xff\xff")[: directory + 14]),
        ("no strips", tiff_of_chunks([], **size, tags=RGB)),
        ("strip cut short", tiff_of_chunks([PICTURE.tobytes()[:500]], **size, tags=RGB)),
        ("2 to the 31 samples", tiff_of_chunks([b"?"], **size, tags=RGB | {SAMPLES: [65535]})),
        ("lzw of noise", tiff_of_chunks([PICTURE.tobytes()[:900]], **size, tags=RGB | {COMPRESSION: [5]})),
    ):
        yield Specimen(name=f"{name}.tif", data=data, stage="decode", message="the TIFF file is truncated or broken")
