"""Windows of a TIFF, read by its strips or tiles.

A TIFF keeps its pixels in strips or tiles that are compressed one by one. A *piece* is one tile, or some neighbouring
strips: its bytes are put behind a TIFF header of their own, with the tags that say what the bytes mean, and decoded by
`pipelines.intake.images.decode_image`. All that is done to a whole TIFF is therefore done to its pieces, by the same
code: all of Pillow's compressions, palettes, 16 bits, transparency, CMYK profiles. Strips that are not compressed and
follow one another in the file are cut into pieces anew, so that a file of one long strip is no trouble.

Not read this way (`TiffPieces.of` returns None): old-style JPEG, whose tables lie elsewhere in the file; files that do
not say where their strips end; strips or tiles of more than `MAX_PIECE_PIXELS`.
"""

import dataclasses
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from pipelines.intake.colours import notes_of_parts
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source

MAX_PIECE_PIXELS = 2**25
"""Of one strip or tile: 33 million, 0.5 GB while it is decoded."""

MAX_PIECE_BYTES = 2**28
"""Of one strip or tile in the file."""

CACHE_BYTES = 2**28
"""Of decoded pieces: two rows of the network's tiles in an image 40,000 pixels wide, so that none is decoded twice."""

_WANTED_PIXELS = 2**20
"""Of pieces whose size we choose."""

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
# What the bytes of a strip mean: fill order, T4 and T6 options, predictor, colour map, ink set, extra samples, sample
# format, JPEG tables, the YCbCr tags, reference black and white, ICC profile. Nothing else: no orientation, no EXIF.
_MEANING = (
    *(_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR),
    *(266, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532, 34675),
)
_UNCOMPRESSED, _OLD_JPEG, _YCBCR = 1, 6, 6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Cells:
    """Strips or tiles: a grid of equal cells, those of the last row or column cut off where the image ends (strips) or
    filled up beyond it (tiles).

    Attributes:
        height, width: of the image.
        cell_height, cell_width: of a cell.
        spans: start and stop of each cell's bytes: (planes, down, across, 2), int64.
        are_tiles: whether cells are filled up.
        cells_per_piece: cells one below the other that are decoded at once.
    """

    height: int
    width: int
    cell_height: int
    cell_width: int
    spans: NDArray[np.int64]
    are_tiles: bool
    cells_per_piece: int = 1

    @property
    def piece_height(self) -> int:
        return self.cell_height * self.cells_per_piece


@dataclass(slots=True, eq=False)
class TiffPieces:
    """Windows of one TIFF; implements `pipelines.intake.windows.StoredPixels`. One thread at a time."""

    source: Source
    tags: TiffImagePlugin.ImageFileDirectory_v2
    cells: _Cells
    cache_bytes: int = CACHE_BYTES
    _cache: "OrderedDict[tuple[int, int], tuple[NDArray[np.uint8], tuple[str, ...]]]" = field(
        default_factory=OrderedDict
    )

    @staticmethod
    def of(image: TiffImagePlugin.TiffImageFile, source: Source) -> "TiffPieces | None":
        """An opened TIFF, nothing of which is decoded; None where it cannot be read by pieces."""
        cells = _cells(image.tag_v2)
        if cells is None or cells.piece_height * cells.cell_width > MAX_PIECE_PIXELS:
            return None
        return TiffPieces(source=source, tags=image.tag_v2, cells=cells)

    def crop(self, rows: slice, columns: slice, notes: list[str]) -> NDArray[np.uint8]:
        """RGB of some stored rows and columns, uint8 (h, w, 3); what was done to them joins `notes`.

        Raises:
            ImageError: a piece that they need is missing or broken.
            SourceError: the store failed.
        """
        height, width = self.cells.piece_height, self.cells.cell_width
        wanted = [
            (down, across)
            for down in range(rows.start // height, -(-rows.stop // height))
            for across in range(columns.start // width, -(-columns.stop // width))
        ]
        window_hw3 = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        pieces = self._pieces(wanted)
        for piece, (pixels_hw3, _) in pieces.items():
            top, left = piece[0] * height, piece[1] * width
            bottom, right = top + pixels_hw3.shape[0], left + pixels_hw3.shape[1]
            shown = (
                slice(max(top, rows.start), min(bottom, rows.stop)),
                slice(max(left, columns.start), min(right, columns.stop)),
            )
            target = tuple(
                slice(s.start - w.start, s.stop - w.start) for s, w in zip(shown, (rows, columns), strict=True)
            )
            origin = tuple(slice(s.start - o, s.stop - o) for s, o in zip(shown, (top, left), strict=True))
            window_hw3[target] = pixels_hw3[origin]
        notes += notes_of_parts([piece_notes for _, piece_notes in pieces.values()])
        return window_hw3

    def _pieces(
        self, wanted: list[tuple[int, int]]
    ) -> dict[tuple[int, int], tuple[NDArray[np.uint8], tuple[str, ...]]]:
        """Pieces, decoded now or before; the most recently used ones are kept."""
        found = {piece: self._cache.pop(piece) for piece in wanted if piece in self._cache}
        missing = [piece for piece in wanted if piece not in found]
        spans = [self._spans(piece) for piece in missing]
        data = iter(self.source.spans([span for each in spans for span in each]) if missing else [])
        for piece, piece_spans in zip(missing, spans, strict=True):
            parts = [next(data) for _ in piece_spans]
            found[piece] = self._decoded(piece, parts)
        for piece in wanted:
            self._cache[piece] = found[piece]
        held = sum(pixels_hw3.nbytes for pixels_hw3, _ in self._cache.values())
        while held > self.cache_bytes and len(self._cache) > len(wanted):
            _, (pixels_hw3, _) = self._cache.popitem(last=False)
            held -= pixels_hw3.nbytes
        return found

    def _spans(self, piece: tuple[int, int]) -> list[tuple[int, int]]:
        """Of the cells of a piece, plane by plane."""
        first = piece[0] * self.cells.cells_per_piece
        spans = self.cells.spans[:, first : first + self.cells.cells_per_piece, piece[1]].reshape(-1, 2).tolist()
        if any(not 0 < start < stop <= self.source.size_bytes for start, stop in spans):
            raise ImageError("the TIFF file is truncated or broken: a strip or tile lies outside of it", "decode")
        if sum(stop - start for start, stop in spans) > MAX_PIECE_BYTES:
            raise ImageError(
                f"a strip or tile of the TIFF has more than {MAX_PIECE_BYTES} bytes; save it with tiles", "validate"
            )
        return [(start, stop) for start, stop in spans]

    def _decoded(self, piece: tuple[int, int], parts: list[bytes]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """RGB of a piece within the image, and the notes of its decoding."""
        cells = self.cells
        below = cells.height - piece[0] * cells.piece_height
        rows = cells.cell_height if cells.are_tiles else min(cells.piece_height, below)
        decoded = decode_image(self._file(parts, height=rows, width=cells.cell_width), max_pixels=MAX_PIECE_PIXELS)
        inside = decoded.pixels_HW3[:below, : cells.width - piece[1] * cells.cell_width]
        return (inside.copy() if inside.size < decoded.pixels_HW3.size else inside), decoded.notes

    def _file(self, parts: list[bytes], *, height: int, width: int) -> bytes:
        """A TIFF of one piece, in strips."""
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=self.tags.prefix)
        for tag in _MEANING:
            if tag in self.tags:
                directory[tag] = self.tags[tag]
        directory[_WIDTH], directory[_LENGTH] = width, height
        directory[_ROWS_PER_STRIP] = min(self.cells.cell_height, height)
        lengths = [len(part) for part in parts]
        # Pillow adds where the directory ends to the offsets of strips
        directory[_STRIP_OFFSETS] = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
        directory[_STRIP_BYTES] = tuple(lengths)
        header_bytes = 8
        order = "<" if self.tags.prefix == TiffImagePlugin.II else ">"
        header: bytes = self.tags.prefix + struct.pack(f"{order}HL", 42, header_bytes)
        return b"".join([header, directory.tobytes(header_bytes), *parts])


def _cells(tags: TiffImagePlugin.ImageFileDirectory_v2) -> _Cells | None:
    """Where the strips or tiles lie; None where that is not told, or does not suffice."""
    height, width = int(tags[_LENGTH]), int(tags[_WIDTH])
    planes = int(tags.get(_SAMPLES, 1)) if tags.get(_PLANAR, 1) == 2 else 1
    are_tiles = _TILE_OFFSETS in tags
    if are_tiles:
        cell_height, cell_width = int(tags.get(_TILE_LENGTH, 0)), int(tags.get(_TILE_WIDTH, 0))
        starts, counts = tags[_TILE_OFFSETS], tags.get(_TILE_BYTES, ())
    else:
        cell_height, cell_width = min(int(tags.get(_ROWS_PER_STRIP, height)), height), width
        starts, counts = tags.get(_STRIP_OFFSETS, ()), tags.get(_STRIP_BYTES, ())
    if tags.get(_COMPRESSION, 1) == _OLD_JPEG or min(height, width, cell_height, cell_width, planes) < 1:
        return None
    down, across = -(-height // cell_height), -(-width // cell_width)
    if not len(starts) == len(counts) == planes * down * across:
        return None
    start, count = np.asarray(starts, np.int64), np.asarray(counts, np.int64)
    cells = _Cells(
        height=height,
        width=width,
        cell_height=cell_height,
        cell_width=cell_width,
        spans=np.stack([start, start + count], axis=-1).reshape(planes, down, across, 2),
        are_tiles=are_tiles,
    )
    return cells if are_tiles else _regrouped(cells, tags)


def _regrouped(cells: _Cells, tags: TiffImagePlugin.ImageFileDirectory_v2) -> _Cells:
    """Strips in pieces of about `_WANTED_PIXELS`: cut anew, or several at once."""
    wanted_rows = max(1, _WANTED_PIXELS // cells.width)
    planes = len(cells.spans)
    row_bytes = _row_bytes(tags, cells.width, planes)
    first, last = cells.spans[:, 0, 0, 0], cells.spans[:, -1, 0, 1]
    are_contiguous = bool((cells.spans[:, 1:, :, 0] == cells.spans[:, :-1, :, 1]).all())
    if row_bytes and are_contiguous and (last - first == row_bytes * cells.height).all():
        starts = first[:, None] + row_bytes * np.arange(0, cells.height, wanted_rows)[None]
        stops = np.minimum(starts + row_bytes * wanted_rows, last[:, None])
        spans = np.stack([starts, stops], axis=-1)[:, :, None]
        return dataclasses.replace(cells, cell_height=min(wanted_rows, cells.height), spans=spans)
    return dataclasses.replace(cells, cells_per_piece=max(1, wanted_rows // cells.cell_height))


def _row_bytes(tags: TiffImagePlugin.ImageFileDirectory_v2, width: int, planes: int) -> int:
    """Bytes of a row of one plane, where rows are stored as they are; 0 where they are not."""
    bits = set(tags.get(_BITS, (1,)))
    if tags.get(_COMPRESSION, 1) != _UNCOMPRESSED or tags.get(_PHOTOMETRIC, 0) == _YCBCR or len(bits) > 1:
        return 0
    samples = int(tags.get(_SAMPLES, 1)) if planes == 1 else 1
    return -(-width * samples * int(bits.pop()) // 8)
