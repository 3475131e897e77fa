"""Odd PNG files."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.pipelines.zoo.specimen import Specimen, gray_as_rgb
from tests.pipelines.zoo.writers import (
    encoded,
    exif_of,
    interlaced_png,
    packed,
    picture,
    png_chunk,
    png_of_rows,
    turned_for,
    with_bytes,
)

HEIGHT, WIDTH = 48, 64
PICTURE = picture(HEIGHT, WIDTH)
PLAIN = encoded(Image.fromarray(PICTURE), "PNG")
ROWS = [row.tobytes() for row in PICTURE]
PALETTE = np.array([[index * 16, 255 - index * 16, index] for index in range(16)], dtype=np.uint8)
RAMP_HW = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH)
OVER_WHITE = "transparency was laid over white"
MIB = 2**20


def png_specimens() -> Iterator[Specimen]:
    """All of them."""
    yield from _sound()
    yield from _bit_depths()
    yield from _transparent()
    yield from _palettes()
    yield from _animated()
    yield from _broken()
    yield from _bombs()


def _sound() -> Iterator[Specimen]:
    yield Specimen(name="plain.png", data=PLAIN, pixels_HW3=PICTURE)
    yield Specimen(name="png named.jpg", data=PLAIN, pixels_HW3=PICTURE)
    yield Specimen(name="interlaced.png", data=interlaced_png(PICTURE), pixels_HW3=PICTURE)
    yield Specimen(name="page behind png.png", data=PLAIN + b"<html>", pixels_HW3=PICTURE)
    stored = np.ascontiguousarray(turned_for(6, PICTURE))
    rows = [row.tobytes() for row in stored]
    late = [(b"eXIf", exif_of(6).removeprefix(b"Exif\0\0"))]
    yield Specimen(
        name="exif behind pixels.png",
        data=png_of_rows(rows, width=HEIGHT, bits=8, colour=2, after=late),
        orientation=6,
        notes=("EXIF orientation 6 was applied",),
        pixels_HW3=PICTURE,
    )
    for height, width in ((1, 1), (1, 5000), (5000, 1)):
        pixels_HW3 = picture(height, width)
        yield Specimen(
            name=f"{height} x {width}.png",
            data=encoded(Image.fromarray(pixels_HW3), "PNG"),
            pixels_HW3=pixels_HW3,
        )


def _bit_depths() -> Iterator[Specimen]:
    for bits in (1, 2, 4, 8):
        values_HW = RAMP_HW % 2**bits
        mode = "1" if bits == 1 else "L"
        yield Specimen(
            name=f"gray {bits} bits.png",
            data=png_of_rows([packed(row, bits) for row in values_HW], width=WIDTH, bits=bits, colour=0),
            mode=mode,
            notes=(f"mode {mode} was converted to RGB",),
            pixels_HW3=gray_as_rgb(values_HW * (255 // (2**bits - 1))),
        )
        if bits < 8:
            yield Specimen(
                name=f"palette {bits} bits.png",
                data=png_of_rows(
                    [packed(row, bits) for row in values_HW],
                    width=WIDTH,
                    bits=bits,
                    colour=3,
                    before=[(b"PLTE", PALETTE[: 2**bits].tobytes())],
                ),
                mode="P",
                notes=("mode P was converted to RGB",),
                pixels_HW3=PALETTE[values_HW],
            )
    deep_HW = (RAMP_HW * 21 % 65536).astype(">u2")
    yield Specimen(
        name="gray 16 bits.png",
        data=png_of_rows([row.tobytes() for row in deep_HW], width=WIDTH, bits=16, colour=0),
        mode="I;16",
        notes=("16-bit values were divided by 257",),
        pixels_HW3=gray_as_rgb(np.round(deep_HW / 257)),
    )
    yield Specimen(
        name="gray 12 bits in 16.png",
        data=png_of_rows([row.astype(">u2").tobytes() for row in deep_HW % 4096], width=WIDTH, bits=16, colour=0),
        mode="I;16",
        notes=("16-bit values were divided by 257", "every value is below 4096"),
        pixels_HW3=gray_as_rgb(np.round(deep_HW % 4096 / 257)),
    )
    deep_HW3 = (PICTURE.astype(">u2") * 257).astype(">u2")
    yield Specimen(
        name="colour 16 bits.png",
        data=png_of_rows([row.tobytes() for row in deep_HW3], width=WIDTH, bits=16, colour=2),
        mode="RGB;16",
        notes=("16-bit RGB: the high byte of each sample was kept",),
        pixels_HW3=PICTURE,
    )


def _transparent() -> Iterator[Specimen]:
    alpha_HW1 = (RAMP_HW[..., None] % 256).astype(np.uint8)
    over_white = np.round(PICTURE * (alpha_HW1 / 255) + 255 * (1 - alpha_HW1 / 255)).astype(np.uint8)
    rgba_HW4 = np.concatenate([PICTURE, alpha_HW1], axis=2)
    yield Specimen(
        name="rgba.png",
        data=encoded(Image.fromarray(rgba_HW4), "PNG"),
        mode="RGBA",
        notes=(OVER_WHITE,),
        pixels_HW3=over_white,
        tolerance=0.5,
    )
    deep_HW4 = (rgba_HW4.astype(">u2") * 257).astype(">u2")
    yield Specimen(
        name="rgba 16 bits.png",
        data=png_of_rows([row.tobytes() for row in deep_HW4], width=WIDTH, bits=16, colour=6),
        mode="RGBA;16",
        notes=("16-bit RGBA", OVER_WHITE),
        pixels_HW3=over_white,
        tolerance=0.5,
    )
    gray_HW = PICTURE[..., 0]
    for bits, dtype, factor in ((8, ">u1", 1), (16, ">u2", 257)):
        rows = [row.tobytes() for row in (np.dstack([gray_HW, alpha_HW1[..., 0]]).astype(dtype) * factor).astype(dtype)]
        yield Specimen(
            name=f"gray with alpha {bits} bits.png",
            data=png_of_rows(rows, width=WIDTH, bits=bits, colour=4),
            mode="LA" if bits == 8 else "RGBA;16",
            notes=(OVER_WHITE,) if bits == 8 else ("16-bit RGBA", OVER_WHITE),
            pixels_HW3=np.repeat(over_white[..., :1], 3, axis=2),
            tolerance=0.5,
        )
    yield from _transparent_values()


def _transparent_values() -> Iterator[Specimen]:
    """One gray value or colour stands for transparency (tRNS)."""
    for bits in (1, 2, 4, 8):
        values_HW = RAMP_HW % 2**bits
        shown_HW = np.where(values_HW == 1, 255, values_HW * (255 // (2**bits - 1)))
        yield Specimen(
            name=f"transparent gray {bits} bits.png",
            data=png_of_rows(
                [packed(row, bits) for row in values_HW],
                width=WIDTH,
                bits=bits,
                colour=0,
                before=[(b"tRNS", struct.pack(">H", 1))],
            ),
            mode="1" if bits == 1 else "L",
            notes=(OVER_WHITE,),
            pixels_HW3=gray_as_rgb(shown_HW),
        )
    deep_HW = (RAMP_HW * 21 % 65536).astype(">u2")
    yield Specimen(
        name="transparent gray 16 bits.png",
        data=png_of_rows(
            [row.tobytes() for row in deep_HW],
            width=WIDTH,
            bits=16,
            colour=0,
            before=[(b"tRNS", struct.pack(">H", 2100))],
        ),
        mode="I;16",
        notes=("16-bit values were divided by 257", OVER_WHITE),
        pixels_HW3=gray_as_rgb(np.where(deep_HW == 2100, 255, np.round(deep_HW / 257))),
    )
    colour = PICTURE[10, 10]
    is_colour_HW1 = (colour == PICTURE).all(axis=2, keepdims=True)
    for bits, factor in ((8, 1), (16, 257)):
        pixels = (PICTURE.astype(f">u{bits // 8}") * factor).astype(f">u{bits // 8}")
        yield Specimen(
            name=f"transparent colour {bits} bits.png",
            data=png_of_rows(
                [row.tobytes() for row in pixels],
                width=WIDTH,
                bits=bits,
                colour=2,
                before=[(b"tRNS", struct.pack(">3H", *(int(value) * factor for value in colour)))],
            ),
            mode="RGB" if bits == 8 else "RGB;16",
            notes=(OVER_WHITE,) if bits == 8 else ("16-bit RGB", OVER_WHITE),
            pixels_HW3=np.where(is_colour_HW1, 255, PICTURE).astype(np.uint8),
        )


def _palettes() -> Iterator[Specimen]:
    values_HW = RAMP_HW % 4
    rows = [packed(row, 4) for row in values_HW]
    palette = (b"PLTE", PALETTE[:4].tobytes())
    shown = PALETTE[values_HW]
    one = np.where((values_HW == 2)[..., None], 255, shown).astype(np.uint8)
    half_HW1 = np.array([0, 1, 0.2, 1])[values_HW][..., None]
    for name, alphas, pixels_HW3 in (
        ("one", b"\xff\xff\x00", one),
        ("several", b"\x00\xff\x33", np.round(shown * half_HW1 + 255 * (1 - half_HW1)).astype(np.uint8)),
    ):
        yield Specimen(
            name=f"palette with {name} transparent.png",
            data=png_of_rows(rows, width=WIDTH, bits=4, colour=3, before=[palette, (b"tRNS", alphas)]),
            mode="P",
            notes=(OVER_WHITE,),
            pixels_HW3=pixels_HW3,
            tolerance=0.5,
        )
    yield Specimen(
        name="index beyond the palette.png",
        data=png_of_rows([packed(row, 4) for row in RAMP_HW % 16], width=WIDTH, bits=4, colour=3, before=[palette]),
        mode="P",
        notes=("index 15 is beyond the palette of 4 colours", "mode P was converted to RGB"),
    )


def _animated() -> Iterator[Specimen]:
    frames = [Image.fromarray(np.roll(PICTURE, 7 * step, axis=1)) for step in range(3)]
    moving = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    note = "the first of several frames was taken"
    yield Specimen(name="animated.png", data=moving, notes=(note,), pixels_HW3=PICTURE)
    still = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield Specimen(name="animated with a still picture.png", data=still, notes=(note,), pixels_HW3=PICTURE)


def _broken() -> Iterator[Specimen]:
    text = png_chunk(b"tEXt", b"Comment\0a word")
    with_text = PLAIN[:33] + text + PLAIN[33:]
    pixels = PLAIN.index(b"IDAT") + 4
    for name, data, message in (
        ("wrong checksum of a text", with_bytes(with_text, 33 + len(text) - 1, b"?"), "chunk b'tEXt' at byte 33"),
        ("wrong checksum of the header", with_bytes(PLAIN, 29, b"????"), "chunk b'IHDR' at byte 8"),
        ("flipped bit", with_bytes(PLAIN, pixels + 50, bytes([PLAIN[pixels + 50] ^ 4])), "chunk b'IDAT'"),
        ("no end", PLAIN[:-12], "without IEND"),
        ("half", PLAIN[: len(PLAIN) // 2], "without IEND"),
        ("nothing but the signature", PLAIN[:8], "without IEND"),
    ):
        yield Specimen(name=f"{name}.png", data=data, stage="decode", message=message)
    unknown = png_of_rows(ROWS, width=WIDTH, bits=8, colour=7)
    yield Specimen(name="no such colour type.png", data=unknown, stage="decode", message="truncated or broken")
    empty = png_of_rows([], width=0, bits=8, colour=2)
    yield Specimen(name="no pixels.png", data=empty, stage="decode", message="truncated or broken")


def _bombs() -> Iterator[Specimen]:
    packed_bytes = zlib.compress(bytes(2 * MIB))
    for kind, body in (
        (b"zTXt", b"Comment\0\0" + packed_bytes),
        (b"iTXt", b"Comment\0\1\0en\0Comment\0" + packed_bytes),
        (b"iCCP", b"profile\0\0" + packed_bytes),
    ):
        yield Specimen(
            name=f"bomb in {kind.decode()}.png",
            data=png_of_rows(ROWS, width=WIDTH, bits=8, colour=2, before=[(kind, body)]),
            stage="validate",
            message="Decompressed data too large",
        )
    yield Specimen(
        name="60000 x 60000.png",
        data=png_of_rows([], height=60000, width=60000, bits=8, colour=2),
        stage="validate",
        message="60000 x 60000 = 3600000000 pixels, over the budget",
    )
