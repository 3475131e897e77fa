"""TIFF files that Pillow does not write: tiles, separate planes, both byte orders, huge ones that share their bytes."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
_UNCOMPRESSED, _DEFLATE = 1, 8


def tiff_bytes(
    pixels_HWK: NDArray[np.generic],
    *,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int = 0,
    separate_planes: bool = False,
    deflate: bool = True,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    tags: Sequence[tuple[int, int, tuple[int, ...]]] = (),
) -> bytes:
    """A TIFF of 8-bit or 16-bit gray (one channel) or RGB (three).

    Args:
        pixels_HWK: uint8 or uint16.
        tile: height and width of tiles; strips without.
        rows_per_strip: 0: one strip.
        separate_planes: one after the other, in place of interleaved.
        deflate: compress strips or tiles.
        order: "<" or ">".
        big: BigTIFF.
        tags: further ones: number, type, values.
    """
    height, width, channels = pixels_HWK.shape
    cell_height, cell_width = tile or (rows_per_strip or height, width)
    planes = [pixels_HWK[..., k : k + 1] for k in range(channels)] if separate_planes else [pixels_HWK]
    cells: list[bytes] = []
    for plane in planes:
        for top in range(0, height, cell_height):
            for left in range(0, width, cell_width):
                cell = plane[top : top + cell_height, left : left + cell_width]
                if tile:
                    filling = [(0, tile[0] - cell.shape[0]), (0, tile[1] - cell.shape[1]), (0, 0)]
                    cell = np.pad(cell, filling, mode="edge")
                raw = cell.astype(cell.dtype.newbyteorder(order)).tobytes()
                cells.append(zlib.compress(raw) if deflate else raw)
    bits = 8 * pixels_HWK.dtype.itemsize
    entries = _entries(
        height,
        width,
        (cell_height, cell_width),
        is_tiled=tile is not None,
        bits=bits,
        channels=channels,
        deflate=deflate,
    )
    entries += [(284, _SHORT, (2 if separate_planes else 1,)), *tags]
    body = b"".join(cells)
    starts = np.cumsum([0, *map(len, cells)])[:-1].tolist()
    return _file(entries, body, starts, list(map(len, cells)), is_tiled=tile is not None, order=order, big=big)


def shared_tiff_bytes(
    height: int, width: int, *, side: int, contents: Sequence[NDArray[np.uint8]], pick: Callable[[int], int]
) -> bytes:
    """A huge RGB TIFF of a few kilobytes: tile number i of side x side pixels is `contents[pick(i)]`, stored once."""
    cells = [zlib.compress(np.ascontiguousarray(each).tobytes()) for each in contents]
    starts = np.cumsum([0, *map(len, cells)])[:-1].tolist()
    chosen = [pick(number) for number in range(-(-height // side) * -(-width // side))]
    entries = _entries(height, width, (side, side), is_tiled=True, bits=8, channels=3, deflate=True)
    return _file(
        [*entries, (284, _SHORT, (1,))],
        b"".join(cells),
        [starts[each] for each in chosen],
        [len(cells[each]) for each in chosen],
        is_tiled=True,
        order="<",
        big=False,
    )


def _entries(
    height: int, width: int, cell: tuple[int, int], *, is_tiled: bool, bits: int, channels: int, deflate: bool
) -> list[tuple[int, int, tuple[int, ...]]]:
    entries = [
        (256, _LONG, (width,)),
        (257, _LONG, (height,)),
        (258, _SHORT, (bits,) * channels),
        (259, _SHORT, (_DEFLATE if deflate else _UNCOMPRESSED,)),
        (262, _SHORT, (2 if channels == 3 else 1,)),
        (277, _SHORT, (channels,)),
    ]
    return entries + ([(322, _LONG, (cell[1],)), (323, _LONG, (cell[0],))] if is_tiled else [(278, _LONG, (cell[0],))])


def _file(
    entries: list[tuple[int, int, tuple[int, ...]]],
    body: bytes,
    starts: list[int],
    counts: list[int],
    *,
    is_tiled: bool,
    order: str,
    big: bool,
) -> bytes:
    """Header, pixels, what does not fit the directory, the directory."""
    header_bytes = 16 if big else 8
    pointer, kind = ("Q", _LONG8) if big else ("I", _LONG)
    starts = [start + header_bytes for start in starts]
    entries = [
        *entries,
        (324 if is_tiled else 273, kind, tuple(starts)),
        (325 if is_tiled else 279, _LONG, tuple(counts)),
    ]
    data = bytearray(body)
    directory = b""
    for number, type_, values in sorted(entries):
        packed = struct.pack(f"{order}{len(values)}{_FORMATS[type_]}", *values)
        if len(packed) > struct.calcsize(pointer):
            place = header_bytes + len(data)
            data += packed
            packed = struct.pack(order + pointer, place)
        directory += struct.pack(f"{order}HH{pointer}", number, type_, len(values))
        directory += packed.ljust(struct.calcsize(pointer), b"\0")
    place = header_bytes + len(data)
    name = b"II" if order == "<" else b"MM"
    header = name + (struct.pack(f"{order}HHHQ", 43, 8, 0, place) if big else struct.pack(f"{order}HI", 42, place))
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return header + bytes(data) + count + directory + struct.pack(order + pointer, 0)
