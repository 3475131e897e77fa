"""Images too large for a network at once: tiles with overlap, whose logits are blended, in bounded memory.

The tiles of an image stand on a grid, have one size and are worked off row by row (`segcore.tile_grid`). Where tiles
overlap, the result is the weighted mean of their logits, l(x) = sum w_k(x) l_k(x) with sum w_k(x) = 1, and the softmax
comes afterwards; a weight is the product of one along the rows and one along the columns. Towards a border at which
another tile goes on, a tile's weight falls as a raised cosine, from 1 at three quarters of the overlap to 0 at one
quarter: the pixels at the very border, which the network's padding disturbs most, do not count. Consequences:

- A network whose scores depend on no more than `overlap_px` / 4 pixels around each pixel gives what it gives for the
  whole image, up to rounding, also at the image's own borders: tiles begin at multiples of the largest output stride,
  so that a strided network has its grid where it would be in the whole image, and the last tile ends with the image.
- Logits are blended, and not probabilities: a tile that is sure of a pixel then outweighs one that is not. Where
  probabilities were averaged before (scales, mirror images, several networks) their logarithms are blended, which is
  the same (`segcore.inference.ensemble_logits`). Scales, mirror images, windows and the CRF see one tile at a time.

What is held of an image: the tile in work, the columns that the next tile adds to, the rows that the next row of tiles
adds to (about the overlap, C floats for each pixel), and the run lengths of what is finished. Never a map of class
scores, never all pixels.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.class_maps import MapStatistics, MapSums, describe
from segcore.inference import InferenceConfig, Member, ensemble_logits
from segcore.run_lengths import encode, join
from segcore.tile_grid import TilingConfig, tile_axis

logger = logging.getLogger(__name__)

MAX_BAND_BYTES = 2**31
"""Of the logits that wait for the next row of tiles: 128 rows of 20,000 pixels and 150 classes take 1.5 GB."""

MAX_RUNS = 2**25
"""Of equal pixels in one mask: while they are written each takes some 40 bytes. 20,000 x 20,000 pixels have so many if
their runs are 12 pixels long; a street's or a field's are ten times as long, noise has one for each pixel."""

_ENCODED_PIXELS = 2**20
"""At once: the room that `encode` takes for a mask of noise stays small."""


class MaskTooLargeError(ValueError):
    """The class map of a large image is so restless that its run lengths would not fit into memory (`MAX_RUNS`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TiledImage:
    """An image that is read window by window.

    Attributes:
        height, width: of the image.
        read: the RGB pixels of some rows and columns, uint8 (h, w, 3). Called from a thread beside the network's, by
            one thread at a time, in the order of the tiles; what it raises costs this image and no other.
        image_id: for messages; may be left out.
    """

    height: int
    width: int
    read: Callable[[slice, slice], NDArray[np.uint8]]
    image_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TiledMap:
    """What the network said of an image in tiles.

    Attributes:
        values, lengths: the class map as run lengths (`segcore.run_lengths`).
        statistics: of all its pixels.
        num_inputs: network inputs: tiles times scales, mirror images, windows and networks.
        grid: tiles down and across.
        tile_height, tile_width: of each tile.
        infer_seconds: of network and blending; tiles of several images in one batch share its time equally.
        encode_seconds: of the run lengths.
    """

    values: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    statistics: MapStatistics
    num_inputs: int
    grid: tuple[int, int]
    tile_height: int
    tile_width: int
    infer_seconds: float
    encode_seconds: float


def why_not_tiled(configs: Sequence[InferenceConfig]) -> str:
    """Why images cannot be shown in tiles to these networks; "" where they can."""
    if any(config.mode == "proposals" for config in configs):
        return "mode 'proposals' looks for objects in the whole image"
    if any(config.short_side_px for config in configs):
        return "short_side_px shows the whole image, made small"
    return ""


def predict_tiled(
    members: Sequence[Member],
    images: Iterable[TiledImage],
    *,
    config: TilingConfig,
    batch_size: int = 1,
    busy: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[TiledImage, TiledMap | Exception]]:
    """Segment large images by the mean of the members' class probabilities, each in tiles.

    Neighbouring tiles of one size share a batch, those of different images too. A batch that fails is tried again in
    halves, down to one tile; then its image has failed, and no other. The next batch is read while the network works.

    Args:
        members: as in `segcore.inference.predict_ensemble`.
        images: asked for the next one when all tiles of the one before have been read, so that one image is open at a
            time.
        config: how tiles are cut; `above_px` is the caller's business.
        batch_size: largest number of tiles per network call.
        busy: entered while the network works, and not while it waits for tiles.

    Yields:
        Each image with its map, or with what `read` or the network raised. Mostly in the order of `images`.

    Raises:
        ValueError: the members cannot be shown tiles (`why_not_tiled`).
    """
    reason = why_not_tiled([member.config for member in members])
    if reason:
        raise ValueError(f"images cannot be shown in tiles: {reason}")
    batches = _batches(_tiles(images, config), batch_size)
    with ThreadPoolExecutor(1, thread_name_prefix="tiles") as reader:
        upcoming = reader.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = reader.submit(next, batches, None)
            with busy():
                done = list(_work(members, batch))
            yield from done


class _Sweep:
    """An image in work: tiles are added row by row, and what no later tile changes leaves as run lengths."""

    def __init__(self, image: TiledImage, config: TilingConfig) -> None:
        self.image = image
        self.rows, self.columns = tile_axis(image.height, config), tile_axis(image.width, config)
        self.given_up = False
        self.num_inputs = 0
        self.infer_seconds = self.encode_seconds = 0.0
        self.sums: MapSums | None = None
        self.left: Tensor | None = None  # of the tile before, the columns that this one adds to
        self.above: dict[int, Tensor] = {}  # of the row of tiles before, by column of tiles, the rows likewise
        self.classes_rW = np.empty((0, image.width), np.uint8)
        self.runs: list[tuple[NDArray[np.uint8], NDArray[np.int32]]] = []

    def tiles(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Number of row and column, and the pixels, of each tile in order."""
        for row, top in enumerate(self.rows.starts):
            for column, left in enumerate(self.columns.starts):
                yield row, column, slice(top, top + self.rows.size), slice(left, left + self.columns.size)

    def give_up(self) -> None:
        """Let go of everything."""
        self.given_up = True
        self.left = None
        self.above.clear()
        self.runs.clear()

    @torch.inference_mode()
    def add(self, row: int, column: int, logits_Chw: Tensor) -> bool:
        """Add the next tile, whose logits are changed; True when it was the last.

        Raises:
            ValueError: the image is too wide for so many classes (`MAX_BAND_BYTES`).
            MaskTooLargeError: see there.
        """
        rows, columns = self.rows, self.columns
        if self.sums is None:
            self._check_budget(len(logits_Chw))
            self.sums = MapSums.zeros(len(logits_Chw))
        top, left = rows.begins[row], columns.begins[column]
        part = logits_Chw[:, top - rows.starts[row] : rows.ends[row] - rows.starts[row]]
        part = part[:, :, left - columns.starts[column] : columns.ends[column] - columns.starts[column]]
        _weigh(part, rows.weights[row], dim=1)
        _weigh(part, columns.weights[column], dim=2)
        if self.left is not None:
            part[:, :, : self.left.shape[2]] += self.left
        right, bottom = columns.done(column), rows.done(row)
        self.left = part[:, :, right - left :].clone() if right < columns.length else None
        block = part[:, :, : right - left]
        above = self.above.pop(column, None)
        if above is not None:
            block[:, : above.shape[1]] += above
        if bottom < rows.length:
            self.above[column] = block[:, bottom - top :].clone()
        self._finish(block[:, : bottom - top], left)
        return right == columns.length and bottom == rows.length

    def _finish(self, block_Crw: Tensor, left: int) -> None:
        """Classes of some pixels that no later tile changes; with the last of their rows, those rows' run lengths.

        Raises:
            MaskTooLargeError: there are more than `MAX_RUNS`.
        """
        assert self.sums is not None
        rows, width = block_Crw.shape[1:]
        if left == 0:
            self.classes_rW = np.empty((rows, self.image.width), np.uint8)
        self.classes_rW[:, left : left + width], sums = describe(block_Crw, are_logits=True, height=rows, width=width)
        self.sums.add(sums)
        if left + width == self.image.width:
            started = time.perf_counter()
            step = max(1, _ENCODED_PIXELS // self.image.width)
            self.runs += [encode(self.classes_rW[start : start + step]) for start in range(0, rows, step)]
            self.encode_seconds += time.perf_counter() - started
            if sum(len(lengths) for _, lengths in self.runs) > MAX_RUNS:
                raise MaskTooLargeError(
                    f"the class map is almost noise: more than {MAX_RUNS} runs of equal pixels in its upper part "
                    f"alone; expected fewer in all of {self.image.height} x {self.image.width} pixels; cut the image, "
                    "or use a model whose masks are smoother"
                )

    def _check_budget(self, num_classes: int) -> None:
        rows, columns = self.rows, self.columns
        waiting = max(end - rows.done(row) for row, end in enumerate(rows.ends))
        band_bytes = 4 * num_classes * waiting * columns.length
        if band_bytes > MAX_BAND_BYTES:
            raise ValueError(
                f"the image is {columns.length} pixels wide: {waiting} rows of its logits, {num_classes} classes, take "
                f"{band_bytes} bytes, over the budget of {MAX_BAND_BYTES}; give a smaller --tiling.overlap-px, or cut "
                "the image"
            )

    def result(self) -> TiledMap:
        """After the last tile.

        Raises:
            ValueError: the scores were not finite.
        """
        assert self.sums is not None
        statistics = self.sums.statistics()
        started = time.perf_counter()
        values, lengths = join(self.runs)
        self.runs.clear()
        return TiledMap(
            values=values,
            lengths=lengths,
            statistics=statistics,
            num_inputs=self.num_inputs,
            grid=(len(self.rows.starts), len(self.columns.starts)),
            tile_height=self.rows.size,
            tile_width=self.columns.size,
            infer_seconds=self.infer_seconds,
            encode_seconds=self.encode_seconds + time.perf_counter() - started,
        )


def _weigh(part_Crw: Tensor, weights: Tensor, *, dim: int) -> None:
    """Multiply by the weights along rows (1) or columns (2), in place; where they are 1 nothing is touched."""
    below_one = torch.nonzero(weights != 1).flatten()
    if not len(below_one):
        return
    inside = torch.nonzero(weights == 1).flatten()  # one piece: where no other tile counts
    lead, tail = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(weights), len(weights))
    shape = [1, -1, 1] if dim == 1 else [1, 1, -1]
    for start, stop in ((0, lead), (tail, len(weights))):
        factors = weights[start:stop].to(part_Crw.device).view(shape)
        part_Crw.narrow(dim, start, stop - start).mul_(factors)


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """A tile that was read, or why it could not be."""

    sweep: _Sweep
    row: int
    column: int
    pixels_HW3: NDArray[np.uint8] | None
    error: Exception | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.pixels_HW3 is None else self.pixels_HW3.shape


def _tiles(images: Iterable[TiledImage], config: TilingConfig) -> Iterator[_Tile]:
    """The tiles of each image; of one that cannot be read, or is given up, no further ones."""
    for image in images:
        sweep = _Sweep(image, config)
        for row, column, rows, columns in sweep.tiles():
            if sweep.given_up:
                break
            try:
                pixels_HW3 = image.read(rows, columns)
            except Exception as error:  # a trust boundary: files and stores raise anything
                yield _Tile(sweep, row, column, None, error.with_traceback(None))
                break
            yield _Tile(sweep, row, column, pixels_HW3)


def _batches(tiles: Iterator[_Tile], batch_size: int) -> Iterator[list[_Tile]]:
    """Neighbouring tiles of one shape."""
    batch: list[_Tile] = []
    for tile in tiles:
        if batch and tile.shape != batch[0].shape:
            yield batch
            batch = []
        batch.append(tile)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _work(members: Sequence[Member], batch: list[_Tile]) -> Iterator[tuple[TiledImage, TiledMap | Exception]]:
    """Show a batch to the network and add it to its images; those that are finished or have failed come out."""
    for tile in batch:
        if tile.error is not None:
            tile.sweep.give_up()
            yield tile.sweep.image, tile.error
    batch = [tile for tile in batch if not tile.sweep.given_up]
    if not batch:
        return
    started = time.perf_counter()
    found = _seen(members, batch)
    network_seconds = (time.perf_counter() - started) / len(batch)
    for tile in batch:
        sweep, seen = tile.sweep, found.pop(0)  # not held any longer
        if sweep.given_up:
            continue
        result = seen if isinstance(seen, Exception) else _added(tile, *seen, network_seconds=network_seconds)
        if isinstance(result, Exception):
            sweep.give_up()
        if result is not None:
            yield sweep.image, result


def _added(tile: _Tile, logits_Chw: Tensor, num_inputs: int, *, network_seconds: float) -> TiledMap | Exception | None:
    """Blend a tile into its image; the map when it was the last one."""
    sweep, started = tile.sweep, time.perf_counter()
    try:
        sweep.num_inputs += num_inputs
        encoded = sweep.encode_seconds
        is_last = sweep.add(tile.row, tile.column, logits_Chw)
        blending_seconds = time.perf_counter() - started - (sweep.encode_seconds - encoded)
        sweep.infer_seconds += network_seconds + blending_seconds
        return sweep.result() if is_last else None
    except Exception as error:  # the image's, whatever it is
        return error.with_traceback(None)


def _seen(members: Sequence[Member], batch: list[_Tile]) -> list[tuple[Tensor, int] | Exception]:
    """Logits of each tile and its number of network inputs, or why there are none."""
    found = _logits(members, batch)
    if not isinstance(found, Exception):
        return list(zip(found[0], found[1].tolist(), strict=True))
    if len(batch) == 1:
        return [found]
    logger.warning("the network failed on %d tiles (%s); trying half as many at once", len(batch), found)
    middle = len(batch) // 2
    return [*_seen(members, batch[:middle]), *_seen(members, batch[middle:])]


def _logits(members: Sequence[Member], batch: list[_Tile]) -> tuple[Tensor, NDArray[np.int64]] | Exception:
    """Returns before anything else is tried: a traceback keeps the failed batch's activations alive."""
    images_NHW3 = np.stack([tile.pixels_HW3 for tile in batch if tile.pixels_HW3 is not None])
    images_N3HW = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2)
    try:
        return ensemble_logits(members, images_N3HW, image_ids=[tile.sweep.image.image_id for tile in batch])
    except Exception as error:  # out of memory, most likely
        failed = error.with_traceback(None)
    if next(members[0].model.parameters()).device.type == "cuda":
        # Raises where the device itself is broken for this process: every later image would fail too.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return failed
