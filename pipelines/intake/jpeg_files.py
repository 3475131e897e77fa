"""JPEG files: truncated and broken ones, which libjpeg decodes with a warning that nobody passes on, are refused here.

Plain ones in colour are decoded by simplejpeg. Its pixels are Pillow's, as libjpeg-turbo makes both; but it tells what
libjpeg warns of, and other threads run meanwhile, while Pillow packs the pixels again and holds Python's lock for that.
"""

import io
from typing import BinaryIO, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from pipelines.intake.formats import ImageError

_END = b"\xff\xd9"
_ARITHMETIC = b"\xff\xc9"  # marker of the frame
_SCAN, _APP0, _APP2 = b"\xda", b"\xe0", b"\xe2"
_FRAMES = (b"\xc0", b"\xc1", b"\xc2")  # baseline, extended, progressive: Huffman-coded
_TABLES_AND_TEXT = (b"\xdb", b"\xc4", b"\xdd", b"\xfe")  # DQT, DHT, DRI, COM
_FILLER = b"\x55\xaa\x33\x66" * 16
_BLOCK_BYTES = 2**22
_TWICE_PIXELS = 2**27
"""Of the largest picture that is held twice, 1 GB; of larger ones the second copies are small."""


def load_jpeg(image: JpegImagePlugin.JpegImageFile) -> None:
    """Decode an opened JPEG, and refuse what libjpeg, which only warns, makes up.

    Where the data stop before the end marker does, everything behind is of one colour. So a picture whose end is of one
    colour is decoded again with other bytes in front of the marker: they change nothing in a whole file. Not done for
    progressive files, of which the first scans cover the picture, nor for arithmetic coding, which reads such bytes.

    Raises:
        ImageError: stage `decode`.
    """
    assert image.fp is not None
    file = cast(BinaryIO, image.fp)
    scan = file.tell()
    # Inside a scan the marker's bytes cannot occur; a thumbnail's marker stands before the scan, in the EXIF data.
    end = _find(file, _END, start=scan)
    image.load()
    if end < 0:
        raise ImageError("the JPEG file is truncated or broken: it has no end marker", "decode")
    width, height = image.size
    tail = image.crop((width // 2, max(0, height - 8), width, height))
    if tail.getcolors(1) is None or "progressive" in image.info:
        return
    file.seek(0)
    if _ARITHMETIC in file.read(scan):
        return
    if not _is_the_same(image, file, end):
        raise ImageError("the JPEG file is truncated or broken: its data stop before its end marker", "decode")


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in colour with whose header nothing is odd; None for any other file.

    One that Pillow would open likewise and find nothing in but the size, in a quarter of the time: three channels of 8
    bits, baseline or progressive, and beside the tables of the coding nothing but a JFIF header, texts and a colour
    profile, which are not applied. So no EXIF data, of which the orientation were to be read.
    """
    size = None
    place = 2  # behind the start marker
    while data[place : place + 1] == b"\xff":
        kind, length = data[place + 1 : place + 2], int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == _SCAN:
            return size
        start = data[place + 4 : place + 18]  # of the segment's content
        if kind in _FRAMES and size is None and start.startswith(b"\x08") and start[5:6] == b"\x03":
            size = int.from_bytes(start[1:3], "big"), int.from_bytes(start[3:5], "big")
        elif not (
            kind in _TABLES_AND_TEXT
            or (kind == _APP0 and length >= 16 and start.startswith(b"JFIF\0"))
            or (kind == _APP2 and start.startswith(b"ICC_PROFILE\0"))
        ):
            return None
        place += 2 + length
    return None


def plain_jpeg_pixels(data: bytes, *, height: int, width: int) -> NDArray[np.uint8] | None:
    """What `load_jpeg` makes of a JPEG of three channels without Adobe's marker, which says what they mean.

    Args:
        data: the file.
        height, width: of the picture, or a half, a quarter or an eighth of its own, rounded up: libjpeg leaves away
            the frequencies that do not fit.

    Returns:
        (height, width, 3) RGB; None for what libjpeg does not read without a warning, or finds of another size.
    """
    try:
        pixels_HW3 = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, strict=True)
    except ValueError:
        return None
    return cast("NDArray[np.uint8]", pixels_HW3) if pixels_HW3.shape == (height, width, 3) else None


def _is_the_same(image: JpegImagePlugin.JpegImageFile, file: BinaryIO, end: int) -> bool:
    """Whether a JPEG, decoded again with filler in front of its end marker at byte `end`, shows the same."""
    longer = JpegImagePlugin.JpegImageFile(cast(BinaryIO, _Filled(file, end)))
    width, height = image.size
    if width * height > _TWICE_PIXELS:  # of which memory has no second copy: at an eighth of their sides
        longer.draft(longer.mode, (width // 8, height // 8))
        longer.load()
        file.seek(0)
        image = JpegImagePlugin.JpegImageFile(file)
        image.draft(image.mode, (width // 8, height // 8))
    return longer.tobytes() == image.tobytes()


class _Filled(io.RawIOBase):
    """A JPEG file with filler in front of its end marker, and nothing behind that."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end
        self._tail = _FILLER + _END
        self._place = 0

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._place
        if left > 0:
            self._file.seek(self._place)
            data = self._file.read(left if size < 0 else min(size, left))
        else:
            data = self._tail[-left:][: size if size >= 0 else None]
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        assert whence != io.SEEK_END
        self._place = offset + (self._place if whence == io.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _find(file: BinaryIO, wanted: bytes, *, start: int) -> int:
    """Place of some bytes in a file, from a place on; -1 where they are not."""
    file.seek(start)
    place, rest = start, b""
    while block := file.read(_BLOCK_BYTES):
        found = (rest + block).find(wanted)
        if found >= 0:
            return place - len(rest) + found
        place += len(block)
        rest = block[1 - len(wanted) :]
    return -1
