"""Image files written by hand, for what Pillow reads but does not write; and the pictures that they show."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Chunks = Sequence[tuple[bytes, bytes]]

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step and column step of each pass of an interlaced PNG."""

_LONG_TAGS = {256, 257, 273, 278, 279, 322, 323, 324, 325}
"""TIFF tags whose values are written with 4 bytes; 2 for all others."""


def picture(height: int = 12, width: int = 20) -> NDArray[np.uint8]:
    """Smooth colours, so that lossy formats stay close, with no symmetry that would hide a turn."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 4], axis=2).astype(np.uint8)


def turned_for(orientation: int, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a camera stores for `upright` under an orientation, after the table of the EXIF standard (tag 0x0112):
    "the 0th row of the stored picture is the ... of the upright one, its 0th column the ..."."""
    return {
        1: upright,  # row 0 = top, column 0 = left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def exif_of(orientation: int) -> bytes:
    """EXIF data with nothing but an orientation, which may be an impossible one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_rows(
    rows: Sequence[bytes],
    *,
    width: int,
    bits: int,
    colour: int,
    before: Chunks = (),
    after: Chunks = (),
    height: int | None = None,
) -> bytes:
    """A PNG of any bit depth and colour type, with further chunks before and after its pixels.

    `height` is what the header says, where that is not the number of rows.
    """
    header = struct.pack(">IIBBBBB", width, len(rows) if height is None else height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", body), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be told apart, have the checksums of what they hold now."""
    fixed, place = data[:8], 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        fixed += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return fixed[: len(data)]


def interlaced_png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    """An RGB PNG in Adam7 order."""
    height, width = pixels_HW3.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    rows = [
        row.tobytes()
        for first_row, first_column, row_step, column_step in _ADAM7
        for row in pixels_HW3[first_row::row_step, first_column::column_step]
    ]
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def packed(values: Iterable[int], bits: int) -> bytes:
    """Values of few bits, the first one in the highest bits, padded to whole bytes."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))


def tiff_of_chunks(
    chunks: Sequence[bytes],
    *,
    height: int,
    width: int,
    tags: Mapping[int, Sequence[int]],
    order: str = "<",
    tile: tuple[int, int] | None = None,
) -> bytes:
    """A TIFF of one picture, whose strips, or tiles of a height and width, are given as they stand in the file."""
    body = bytearray(8)
    offsets: list[int] = []
    for chunk in chunks:
        offsets.append(len(body))
        body += chunk
    sizes = [len(chunk) for chunk in chunks]
    places = {273: offsets, 279: sizes} if tile is None else {322: [tile[1]], 323: [tile[0]], 324: offsets, 325: sizes}
    fields: dict[int, Sequence[int]] = {256: [width], 257: [height], **places, **tags}
    directory, tail = struct.pack(f"{order}H", len(fields)), b""
    behind = len(body) + 2 + 12 * len(fields) + 4
    for tag in sorted(fields):
        kind, letter = (4, "I") if tag in _LONG_TAGS else (3, "H")
        value = struct.pack(f"{order}{len(fields[tag])}{letter}", *fields[tag])
        directory += struct.pack(f"{order}HHI", tag, kind, len(fields[tag]))
        if len(value) > 4:
            directory += struct.pack(f"{order}I", behind + len(tail))
            tail += value
        else:
            directory += value.ljust(4, b"\0")
    body[:8] = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, len(body))
    return bytes(body) + directory + bytes(4) + tail


def tiles_of(pixels: NDArray[np.uint8], side: int) -> list[bytes]:
    """A picture cut into squares, row by row; those on the right and at the bottom are padded with zeros."""
    rows, columns = (-(-length // side) * side for length in pixels.shape[:2])
    padded = np.zeros((rows, columns, *pixels.shape[2:]), dtype=pixels.dtype)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    starts = product(range(0, rows, side), range(0, columns, side))
    return [padded[row : row + side, column : column + side].tobytes() for row, column in starts]


def bmp_of_rows(
    body: bytes, *, height: int, width: int, bits: int, compression: int = 0, behind_header: bytes = b""
) -> bytes:
    """A BMP with the usual header of 40 bytes; colour masks or a palette stand behind it. `height` < 0 is top-down."""
    offset = 14 + 40 + len(behind_header)
    start = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 2835, 2835, 0, 0)
    return start + header + behind_header + body


def bmp_runs(indices_HW: NDArray[np.uint8]) -> bytes:
    """The body of an 8-bit BMP with run lengths (RLE8), bottom row first."""
    body = b""
    for row in indices_HW[::-1]:
        for value, group in groupby(row.tolist()):
            length = len(list(group))
            body += b"".join(bytes([min(255, length - done), value]) for done in range(0, length, 255))
        body += b"\0\0"
    return body + b"\0\1"


def with_bytes(data: bytes, place: int, replacement: bytes) -> bytes:
    """The file with some bytes of it replaced; `place` < 0 counts from the end."""
    place %= len(data)
    return data[:place] + replacement + data[place + len(replacement) :]


def cmyk_profile() -> bytes:
    """An ICC profile of a press that prints gray only: each of cyan, magenta and yellow takes a quarter of the light,
    black takes all.

    Real ones are copyrighted and large. Source: ICC.1:2001-04, sections 6.1 and 6.5.6 (lut8Type); Lab is 8-bit coded.
    """
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(0x10000 * (row == column) for row in range(3) for column in range(3)))
    light = [round(255 * (1 - (c + m + y) / 4) * (1 - k)) for c, m, y, k in product((0, 1), repeat=4)]
    table = b"".join(bytes([level, 128, 128]) for level in light)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(lut))
    d50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    header = struct.pack(">I4sI4s4s4s", 128 + 16 + len(lut), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50
    return header.ljust(128, b"\0") + tags + lut
