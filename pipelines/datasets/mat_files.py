"""Label maps in MATLAB files of version 5 to 7, as SBD and PASCAL Context publish them.

The file is a header of 128 bytes and then elements, each a tag (type and size) and its bytes:

    matrix = flags (8 bytes), dimensions, name, then    numbers:    one element of values, column after column
                                                        structure:  length of a field's name, names, a matrix per field
    compressed = one element under zlib

SciPy 1.17's own reader is not used: files with flipped bytes end the process in it (SIGSEGV), which no try/except
catches.

Source: MathWorks, "MAT-File Format", chapter 1, "MAT-File Level 5 File Format".
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.intake.formats import ImageError

SUFFIX = ".mat"
MAX_UNPACKED_BYTES = 2**28
"""256 MiB of one variable; a label map of VOC has 0.4."""

_HEADER_BYTES = 128
_VERSION_73 = 0x0200
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STRUCTURE, _NUMERIC = 2, range(6, 16)  # classes of matrices
_COMPLEX = 0x0800

_Element = tuple[int, memoryview]


def read_label_map(data: bytes, *, variable: str, field: str | None = None) -> NDArray[np.uint16]:
    """The label map of a MATLAB file, (H, W).

    Args:
        variable: its name, or that of the structure which holds it.
        field: of the structure; None: the variable is the map itself.

    Raises:
        ImageError: the file is none, is broken, lacks the map, or that is no matrix of integers from 0 to 65535.
    """
    name = variable if field is None else f"{variable}.{field}"
    order = _byte_order(data)
    found = _variable(memoryview(data)[_HEADER_BYTES:], variable, order)
    if found is not None and field is not None:
        found = _field(found, field, order)
    if found is None:
        raise ImageError(f"the MATLAB file has no {name}; expected it to hold the label map", "validate")
    values_HW = _numbers(found, name, order)
    with np.errstate(invalid="ignore"):  # no number: what comes out differs from it, which is noticed next
        values = values_HW.astype(np.uint16)
    if not np.array_equal(values, values_HW):
        raise ImageError(
            f"{name} of the MATLAB file has values from {values_HW.min()} to {values_HW.max()}, "
            "expected integers from 0 to 65535",
            "validate",
        )
    return values


def _byte_order(data: bytes) -> str:
    """`<` or `>`."""
    marks = {b"IM": "<", b"MI": ">"}
    order = marks.get(data[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None:
        raise _broken("its header of 128 bytes does not end in IM or MI")
    (version,) = struct.unpack_from(f"{order}H", data, _HEADER_BYTES - 4)
    if version == _VERSION_73:
        raise ImageError(
            "the MATLAB file has version 7.3, expected 5 to 7; save it again in MATLAB with `save -v7`", "decode"
        )
    return order


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """Type and bytes of each element."""
    position = 0
    while position < len(data):
        if len(data) - position < 8:
            raise _broken("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, start = kind & 0xFFFF, min(kind >> 16, 4), position + 4
            position += 8
        else:
            position = start + (size if kind == _COMPRESSED else math.ceil(size / 8) * 8)
        if start + size > len(data):
            raise _broken("it ends within an element")
        yield kind, data[start : start + size]


def _variable(data: memoryview, name: str, order: str) -> memoryview | None:
    """The matrix of a name."""
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            kind, content = _next(_elements(_unpacked(content), order))
        if kind == _MATRIX and bytes(_head(content, order)[2]) == name.encode():
            return content
    return None


def _unpacked(data: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise _broken(str(error)) from error
    if not unpacker.eof:
        raise _broken(f"what is compressed in it is cut off, or has more than {MAX_UNPACKED_BYTES} bytes")
    return memoryview(content)


def _head(matrix: memoryview, order: str) -> tuple[int, tuple[int, ...], memoryview, Iterator[_Element]]:
    """Flags with the class in the lowest byte, dimensions, name, and the elements that follow."""
    elements = _elements(matrix, order)
    flags, sizes, name = (_next(elements)[1] for _ in range(3))
    if len(flags) != 8 or len(sizes) % 4:
        raise _broken("a matrix has no flags or dimensions")
    return struct.unpack_from(f"{order}I", flags)[0], struct.unpack(f"{order}{len(sizes) // 4}i", sizes), name, elements


def _field(matrix: memoryview, name: str, order: str) -> memoryview | None:
    """The field of a single structure."""
    flags, sizes, _, elements = _head(matrix, order)
    if flags & 0xFF != _STRUCTURE or math.prod(sizes) != 1:
        return None
    length_bytes, names = _next(elements)[1], bytes(_next(elements)[1])
    (length,) = struct.unpack(f"{order}i", length_bytes) if len(length_bytes) == 4 else (0,)
    if length < 1:
        raise _broken("a structure has no names of fields")
    for start in range(0, len(names), length):
        _, content = _next(elements)
        if names[start : start + length].rstrip(b"\0") == name.encode():
            return content
    return None


def _numbers(matrix: memoryview, name: str, order: str) -> NDArray[np.generic]:
    """The numbers of a matrix (H, W)."""
    flags, sizes, _, elements = _head(matrix, order)
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX or len(sizes) != 2 or min(sizes) < 1:
        raise ImageError(
            f"{name} of the MATLAB file has {'no numbers' if flags & 0xFF not in _NUMERIC else 'numbers'} and the "
            f"dimensions {sizes}, expected a matrix of integers",
            "validate",
        )
    kind, content = _next(elements)
    if kind not in _NUMBERS or len(content) != math.prod(sizes) * np.dtype(_NUMBERS[kind]).itemsize:
        raise _broken(f"{name} has not the values that its dimensions {sizes} tell")
    return np.frombuffer(content, order + _NUMBERS[kind]).reshape(sizes, order="F")


def _next(elements: Iterator[_Element]) -> _Element:
    element = next(elements, None)
    if element is None:
        raise _broken("an element is missing")
    return element


def _broken(reason: str) -> ImageError:
    return ImageError(f"the MATLAB file is truncated or broken: {reason}; restore it", "decode")
