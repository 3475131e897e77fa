"""What a file's bytes tell before any decoder sees them: its format, its size, and whether it came whole.

Nothing here decodes a pixel or takes more memory than the file. What decides is the content, never a file's name.
"""

import re
import zlib
from typing import BinaryIO

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
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    # where, what stands there, what such a file is
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x01\x00", "a Windows icon (ICO)"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (8, b"CR\x02", "a Canon raw photo (CR2)"),  # which begins as a TIFF does
    (0, b"IIRO", "an Olympus raw photo (ORF)"),
    (0, b"IIU\x00", "a Panasonic raw photo (RW2)"),
    (0, b"FUJIFILMCCD-RAW", "a Fujifilm raw photo (RAF)"),
    (128, b"DICM", "a DICOM image"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"\x00\x00\x01\xba", "an MPEG video"),
    (0, b"\x00\x00\x01\xb3", "an MPEG video"),
    (0, b"FLV\x01", "a Flash video"),
    (8, b"AVI ", "an AVI video"),
    (8, b"WAVE", "a WAV sound"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file that it points to"),
)
_BRANDS: tuple[tuple[bytes, str], ...] = (
    # of an ISO media file's `ftyp` box; AVIF files name HEIF's brand "mif1" as well, and come first for that
    (b"avif", "an AVIF image"),
    (b"avis", "an AVIF image"),
    (b"heic", "a HEIC photo"),
    (b"heix", "a HEIC photo"),
    (b"hevc", "a HEIC photo"),
    (b"mif1", "a HEIF photo"),
    (b"msf1", "a HEIF photo"),
    (b"crx ", "a Canon raw photo (CR3)"),
    (b"qt  ", "a QuickTime video"),
)
_NETPBM = re.compile(rb"P[1-7]\s")
_HEAD_BYTES = 1024
_BLOCK_BYTES = 2**22


class ImageError(ValueError):
    """A file that is not a usable image or label.

    Attributes:
        stage: `sniff` (not an image at all), `validate` (an image that we refuse) or `decode` (a broken image).
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (str(self), self.stage)


class PixelBudgetError(ImageError):
    """An image whose header promises too many pixels; `pipelines.intake.windows` reads such ones piece by piece."""


def sniff(data: bytes) -> str:
    """The format that the first bytes tell: JPEG, PNG, WEBP, TIFF, BMP or GIF.

    Raises:
        ImageError: stage `sniff`: none of them; the message names what the file is, where that is known.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)", "sniff")
    name = image_format(data)
    if name is None:
        found = foreign_format(data) or f"not an image of a known kind and begins with {data[:12]!r}"
        raise ImageError(f"the file is {found}; expected a JPEG, PNG, WebP, TIFF, BMP or GIF file", "sniff")
    return name


def image_format(data: bytes) -> str | None:
    """JPEG, PNG, WEBP, TIFF, BMP or GIF by the first bytes; None for anything else."""
    if data.startswith(b"II*\x00") and data[8:11] == b"CR\x02":  # a raw photo, whose first picture is a preview
        return None
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def foreign_format(data: bytes) -> str | None:
    """In words, what a file is that is no image of ours ("an AVIF image", "an HTML page"); None where nobody knows."""
    if not data.strip(b"\0"):
        return "nothing but zero bytes, as of an upload whose room was reserved and never filled"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
        return next((what for brand, what in _BRANDS if brand in brands), "an MP4 video")
    for place, magic, what in _FOREIGN:
        if data[place : place + len(magic)] == magic:
            return what
    if _NETPBM.match(data):
        return "a Netpbm image (PBM, PGM, PPM or PAM)"
    return _text_format(data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower())


def _text_format(head: bytes) -> str | None:
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as of a server's error saved under an image's name"
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<?xml") or head.startswith(b"<error>"):
        return "an XML document, as of a store's error saved under an image's name"
    if head.startswith((b'{"', b"{\n", b"{\r", b'[{"')):
        return "a JSON document"
    is_text = bool(head) and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "plain text" if is_text else None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that a WebP file's header promises; None where the header is broken.

    Pillow learns the size from a decoder that has reserved eight bytes per pixel by then.

    Source: RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1.
    """
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    return None


def is_plain_gray_png(data: bytes) -> bool:
    """Whether a whole file is an 8-bit one-channel PNG, not interlaced, that holds its pixels and nothing else."""
    if image_format(data) != "PNG" or data[24:26] != b"\x08\x00" or data[28:29] != b"\x00":
        return False
    place, kinds = 8, set()
    while place < len(data):
        kinds.add(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return kinds == {b"IHDR", b"IDAT", b"IEND"} and place == len(data)


def png_fault(file: BinaryIO) -> str | None:
    """In words, which chunk of a PNG file has a wrong checksum or is missing its end; None for a whole file.

    Pillow checks the chunks in front of the pixels alone. 1 GB/s or more; inflating a PNG takes ten times as long.
    """
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        left, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = place + 8 + left
        checksum = zlib.crc32(kind)
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
        stored = file.read(4)
        if left or len(stored) < 4:
            return f"the file ends in or before the chunk at byte {place}, without IEND"
        if checksum != int.from_bytes(stored, "big"):
            return f"the checksum of chunk {kind!r} at byte {place} is wrong"
        if kind == b"IEND":
            return None
        place = end + 4
