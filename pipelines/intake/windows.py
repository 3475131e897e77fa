"""Windows of images that are too large to be decoded to an array, from files that may be too large to be held.

What is done to pixels is what `pipelines.intake.images` does: its table of policies holds here too, window by window.

| format | how | memory, beside the windows |
|---|---|---|
| TIFF in strips or tiles | only the pieces that a window touches are read and decoded (`tiff_pieces`) | 256 MiB |
| JPEG, PNG, BMP | decoded once, into Pillow's memory: they can be decoded from the top only | 4 bytes a pixel |
| another TIFF, GIF, WebP | likewise, up to `images.MAX_PIXELS` | likewise |

Gray and palette images take 1 byte a pixel in place of 4, 16-bit gray 2; a progressive JPEG needs its coefficients as
well while it is decoded, 3 to 6 bytes a pixel. What would take more than `MAX_DECODED_BYTES` is refused before anything
is decoded. A file is read where it lies, a piece at a time; only libtiff wants a whole file at once.
"""

import contextlib
import ctypes
import time
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin

from pipelines.intake.colours import notes_of_parts, to_rgb
from pipelines.intake.formats import ImageError, sniff, webp_size
from pipelines.intake.headers import (
    MAX_BYTES,
    MAX_PIXELS,
    check_png,
    note_frames,
    open_header,
    orientation_of,
    refusal,
    sample_bits,
    source_mode,
)
from pipelines.intake.jpeg_files import load_jpeg
from pipelines.intake.sources import Source, SourceError
from pipelines.intake.tiff_pieces import MAX_PIECE_PIXELS, TiffPieces

MAX_FILE_BYTES = 2**33
"""8 GiB: twice a billion pixels of 8-bit RGB, uncompressed."""

MAX_DECODED_BYTES = 3 * 2**30
"""Of an image that must be decoded as a whole, so that a worker with a small network stays below 4 GB."""

HEAD_BYTES = 1024
"""Of a file, enough to tell what it is, a PNG's bit depth and a WebP's size."""

_MAX_NOTES = 16  # of indices beyond a palette there may be one in each window
_TURNED = (5, 6, 7, 8)
_UPSIDE_DOWN = (3, 4, 6, 7)
_MIRRORED = (2, 3, 7, 8)


class StoredPixels(Protocol):
    """Pixels of an image as they are stored, before the orientation is applied."""

    def crop(self, rows: slice, columns: slice, notes: list[str]) -> NDArray[np.uint8]:
        """RGB of some stored rows and columns, uint8 (h, w, 3); what was done to them joins `notes`."""


def num_pixels(source: Source) -> int:
    """Pixels that a file's header promises.

    Raises:
        ImageError: it is not an image, or its header is broken.
        SourceError: the store failed.
    """
    with source.open() as file:
        width, height = _header(source, file)[0].size
        return height * width


def return_free_memory() -> None:
    """Give the system back what is free in the heap, where the C library is glibc.

    The little that each tile leaves lies between the large arrays that it took, so these find no room where the last
    tile's were: without this a heap of which 0.5 GB are in use grows to 2 GB. Call it once for each row of tiles, and
    after whatever took a lot at once.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(kw_only=True, slots=True, eq=False)
class ImageWindows:
    """An open image, upright; the attributes of the same names are those of `pipelines.intake.images.DecodedImage`.

    Attributes:
        format: of the file, as `pipelines.intake.images.sniff` calls it.
        height, width: upright.
        turn: the EXIF orientation by which stored windows are turned: `orientation`, but for a TIFF that was decoded
            as a whole, which Pillow has turned by then.
        stored: its pixels; None once it is closed.
        header_notes: what the header told; `notes` has that and what was done to the pixels that were read.
        read_seconds: spent in reading and decoding windows.
    """

    format: str
    height: int
    width: int
    source_height: int
    source_width: int
    source_mode: str
    orientation: int
    turn: int
    header_notes: list[str]
    stored: StoredPixels | None
    file: BinaryIO
    read_seconds: float = 0.0
    _pixel_notes: list[str] | None = None

    @property
    def pixels_at_once(self) -> int:
        """The most that one `read` may have to decode."""
        if isinstance(self.stored, TiffPieces):
            return MAX_PIECE_PIXELS
        return self.height * self.width

    @property
    def notes(self) -> list[str]:
        return [*self.header_notes, *(self._pixel_notes or ())]

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """RGB pixels of some upright rows and columns within the image, uint8 (h, w, 3). One thread at a time.

        Raises:
            ImageError: they are broken, or have no agreed range.
            SourceError: the store failed.
        """
        assert self.stored is not None, "the windows are closed"
        started = time.perf_counter()
        notes: list[str] = []
        try:
            pixels_hw3 = self.stored.crop(*self._stored_window(rows, columns), notes)
        except (ImageError, MemoryError, SourceError):
            raise
        except Exception as error:  # a trust boundary: see images.decode_image
            raise refusal(self.format, error) from error
        if self.turn in _UPSIDE_DOWN:
            pixels_hw3 = pixels_hw3[::-1]
        if self.turn in _MIRRORED:
            pixels_hw3 = pixels_hw3[:, ::-1]
        if self.turn in _TURNED:
            pixels_hw3 = pixels_hw3.swapaxes(0, 1)
        parts = [notes] if self._pixel_notes is None else [self._pixel_notes, notes]
        self._pixel_notes = notes_of_parts(parts)[:_MAX_NOTES]
        self.read_seconds += time.perf_counter() - started
        return pixels_hw3

    def _stored_window(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        if self.turn in _TURNED:
            rows, columns = columns, rows
        if self.turn in _UPSIDE_DOWN:
            rows = slice(self.source_height - rows.stop, self.source_height - rows.start)
        if self.turn in _MIRRORED:
            columns = slice(self.source_width - columns.stop, self.source_width - columns.start)
        return rows, columns

    def close(self) -> None:
        """Let go of the pixels and the file; sizes and notes stay."""
        self.stored = None
        self.file.close()


def open_windows(source: Source, *, max_pixels: int, max_decoded_bytes: int = MAX_DECODED_BYTES) -> ImageWindows:
    """Open an image. Of a PNG, whose orientation may stand behind its pixels, everything is decoded now.

    Raises:
        ImageError: not an image, broken, over `max_pixels`, or of a kind that cannot be read in little memory.
        SourceError: the store failed.
    """
    file = source.open()
    try:
        return _open_windows(source, file, max_pixels, max_decoded_bytes)
    except BaseException:
        file.close()
        raise


def _open_windows(source: Source, file: BinaryIO, max_pixels: int, max_decoded_bytes: int) -> ImageWindows:
    image, head = _header(source, file, max_pixels=max_pixels, is_read_on=True)
    notes: list[str] = []
    width, height = image.size
    try:
        bits = sample_bits(image, head)
        mode = source_mode(image, bits)
        pieces = TiffPieces.of(image, source) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        if pieces is None:
            _check_decodable(image, source, max_decoded_bytes)
        stored: StoredPixels = pieces or _DecodedOnce(image, bits)
        if image.format == "PNG":
            image.load()
        orientation = orientation_of(image, notes)
        note_frames(image, notes)
    except (ImageError, MemoryError, SourceError):
        raise
    except Exception as error:  # a trust boundary: see images.decode_image
        raise refusal(image.format, error) from error
    if image.format == "TIFF" and orientation in _TURNED:
        width, height = height, width  # Pillow's TIFF plugin swaps them at opening
    upright = (width, height) if orientation in _TURNED else (height, width)
    return ImageWindows(
        format=image.format or "",
        height=upright[0],
        width=upright[1],
        source_height=height,
        source_width=width,
        source_mode=mode,
        orientation=orientation,
        turn=1 if image.format == "TIFF" and pieces is None else orientation,
        header_notes=notes,
        stored=stored,
        file=file,
    )


def _header(
    source: Source, file: BinaryIO, *, max_pixels: int = 2**62, is_read_on: bool = False
) -> tuple[ImageFile.ImageFile, bytes]:
    """The opened image, of which nothing is decoded, and the file's first bytes; checked first if it is read on."""
    if source.size_bytes > MAX_FILE_BYTES:
        raise ImageError(
            f"the file has {source.size_bytes} bytes, over the budget of {MAX_FILE_BYTES}; cut it into tiles",
            "validate",
        )
    (head,) = source.spans([(0, HEAD_BYTES)])
    name = sniff(head)
    if name == "WEBP":  # whose decoder reserves memory for all pixels to tell their number
        _check_held(name, source)
        _check_whole(name, *(webp_size(head) or (0, 0)))
    if name == "PNG" and is_read_on:
        check_png(file)
    try:
        return open_header(name, file, max_pixels=max_pixels), head
    except ImageError as error:
        if isinstance(error.__cause__, SourceError):
            raise error.__cause__ from None
        raise


def _check_held(name: str, source: Source) -> None:
    if source.size_bytes > MAX_BYTES:
        raise ImageError(
            f"the {name} file has {source.size_bytes} bytes, over the budget of {MAX_BYTES} of files that must be held "
            "as a whole; save it as a TIFF with tiles",
            "validate",
        )


def _check_whole(name: str, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        remedy = (
            "; save it with tiles (`vips tiffsave in.tif out.tif --tile`, or `gdal_translate -co TILED=YES`)"
            if name == "TIFF"
            else "; save it as a TIFF with tiles"
        )
        raise ImageError(
            f"this {name} of {height} x {width} = {height * width} pixels cannot be read piece by piece, and as a "
            f"whole it is over the budget of {MAX_PIXELS}{remedy}",
            "validate",
        )


def _check_decodable(image: ImageFile.ImageFile, source: Source, max_decoded_bytes: int) -> None:
    """Refuse what cannot be read by pieces and is too large to be decoded at once."""
    if image.format == "TIFF":
        _check_held(image.format, source)
    width, height = image.size
    if image.format in ("TIFF", "GIF"):
        _check_whole(image.format, height, width)
    needed = decoded_bytes(image)
    if needed > max_decoded_bytes:
        raise ImageError(
            f"decoding this {image.format} of {height} x {width} pixels takes {needed} bytes, over the budget of "
            f"{max_decoded_bytes}; save it as a TIFF with tiles, which is read piece by piece",
            "validate",
        )


def decoded_bytes(image: ImageFile.ImageFile) -> int:
    """Memory that Pillow takes to decode an image: its pixels, and a progressive JPEG's coefficients (16 bits each)."""
    width, height = image.size
    per_pixel = 1.0 if image.mode in ("1", "L", "P") else 2.0 if image.mode.startswith("I;16") else 4.0
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.info.get("progressive"):
        samples = [h * v for _, h, v, _ in image.layer]
        per_pixel += 2 * sum(samples) / max(1, *samples)
    return round(height * width * per_pixel)


class _DecodedOnce:
    """An image that is decoded as a whole when its first window is asked for; implements `StoredPixels`."""

    def __init__(self, image: ImageFile.ImageFile, bits: int) -> None:
        self.image, self.bits = image, bits
        self.is_loaded = False
        self.rgb: Image.Image | None = None  # of a GIF, whose first frame may lie anywhere in the picture
        self.notes: list[str] = []

    def crop(self, rows: slice, columns: slice, notes: list[str]) -> NDArray[np.uint8]:
        if not self.is_loaded:
            self._load()
            self.is_loaded = True
        piece = (self.rgb or self.image).crop((columns.start, rows.start, columns.stop, rows.stop))
        if self.rgb is None:
            piece.format = self.image.format  # which a crop has lost
            piece = to_rgb(piece, self.bits, notes)
        notes += self.notes
        pixels_hw3: NDArray[np.uint8] = np.asarray(piece)
        return pixels_hw3

    def _load(self) -> None:
        if isinstance(self.image, JpegImagePlugin.JpegImageFile):
            load_jpeg(self.image)
        self.image.load()
        if self.image.format == "GIF":
            self.rgb = to_rgb(self.image, self.bits, self.notes)
        return_free_memory()  # a progressive JPEG's coefficients
