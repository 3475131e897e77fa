"""Large images of a shard: from where they lie, window by window, through the network in tiles.

One image is open at a time: the next one's file is opened when the last tile of the one before has been read. Their
tiles share batches all the same. What goes wrong with an image becomes its failure, and no other's.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.intake.formats import ImageError
from pipelines.intake.headers import MAX_BYTES
from pipelines.intake.sources import Source, SourceError
from pipelines.intake.windows import ImageWindows, num_pixels, open_windows, return_free_memory
from pipelines.night_report.drift import mean_brightness
from pipelines.nightly.fetch import Failure, fetch_bytes
from pipelines.nightly.rows import FIRST_BYTES, WorkItem
from segcore.inference import Member
from segcore.tile_grid import TilingConfig
from segcore.tiling import MaskTooLargeError, TiledImage, TiledMap, predict_tiled

T = TypeVar("T")


class Reading(Protocol):
    """How a piece of an image is read: in which thread, and for how long at most."""

    def __call__(self, item: WorkItem, read: Callable[[], T]) -> T:
        """What `read` returns, or raises; or a TimeoutError, after which nothing more of the item is read."""


def read_here(item: WorkItem, read: Callable[[], T]) -> T:
    """In the calling thread, for as long as it takes."""
    return read()


def open_in_place(item: WorkItem, *, whole_px: int, in_tiles: bool) -> None:
    """A file that was not sent because of its size: set its source, or fetch it where its image is decoded at once.

    Args:
        item: gets `source`; or `data`, or `failure` where that could not be fetched.
        whole_px: larger images are shown in tiles,
        in_tiles: if they can be.

    Raises:
        ImageError: it is not an image, or too large a file for one that is decoded at once.
        SourceError: the store failed, or the file has changed since it was listed.
    """
    uri, size_bytes = item.planned["uri"], item.planned["size_bytes"]
    item.attempts = 1
    source = Source(uri=uri)
    if source.size_bytes != size_bytes:
        raise SourceError(f"it had {size_bytes} bytes when it was listed and has {source.size_bytes} now")
    (item.first_bytes,) = source.spans([(0, FIRST_BYTES)])
    if in_tiles and num_pixels(source) > whole_px:
        item.source = source
    elif size_bytes > MAX_BYTES:
        raise ImageError(
            f"the file has {size_bytes} bytes, over the budget of {MAX_BYTES} of an image that is decoded at once; cut "
            "it into tiles",
            "validate",
        )
    else:
        data, item.failure, item.attempts = fetch_bytes(uri, size_bytes)
        item.data = data or b""


def segment_tiled(
    members: Sequence[Member],
    items: Sequence[WorkItem],
    *,
    tiling: TilingConfig,
    batch_size: int,
    max_pixels: int,
    reading: Reading = read_here,
    busy: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[int, TiledMap]:
    """Show images in tiles; those that are missing from the result have their failure set.

    Args:
        members: the networks.
        items: each with a source, or decoded already.
        tiling: how tiles are cut.
        batch_size: largest number of tiles per network call.
        max_pixels: of an image.
        reading: of files; pixels that are decoded already are just taken.
        busy: entered while the network works.

    Returns:
        Maps by the items' places.
    """
    owners: dict[TiledImage, WorkItem] = {}
    maps: dict[int, TiledMap] = {}
    opened = _opened(items, owners, max_pixels, reading)
    for image, found in predict_tiled(members, opened, config=tiling, batch_size=batch_size, busy=busy):
        item = owners.pop(image)
        if isinstance(found, Exception):
            item.failure = item.failure or failure_of(found, stage="infer")
        else:
            maps[item.place] = found
    return {item.place: maps[item.place] for item in items if item.failure is None}


def failure_of(error: Exception, *, stage: str) -> Failure:
    """What an image's decoder or its store raised, or anything else in a stage."""
    if isinstance(error, ImageError):
        return Failure.of(error, stage=error.stage, retryable=False)
    if isinstance(error, MaskTooLargeError):
        return Failure.of(error, stage="encode", retryable=False)
    if isinstance(error, TimeoutError):  # those of a store are `SourceError`s
        return Failure.of(error, stage="decode", retryable=False)
    return Failure.of(error, stage="fetch" if isinstance(error, SourceError) else stage, retryable=True)


def _opened(
    items: Iterable[WorkItem], owners: dict[TiledImage, WorkItem], max_pixels: int, reading: Reading
) -> Iterator[TiledImage]:
    """The images, each open until the next is asked for; `owners` gets the item of each."""
    for item in items:
        if item.image is not None:
            decoded = TiledImage(
                height=item.image.height, width=item.image.width, read=partial(_window, item.image.pixels_HW3)
            )
            owners[decoded] = item
            yield decoded
            continue
        assert item.source is not None
        started = time.perf_counter()
        try:
            opening = partial(open_windows, item.source, max_pixels=max_pixels)
            windows = item.windows = reading(item, opening)
        except (ImageError, SourceError, MemoryError, TimeoutError) as error:
            item.failure = failure_of(error, stage="decode")
            continue
        item.decode_ms += 1000 * (time.perf_counter() - started)
        brightness = _Brightness()
        read = partial(_read_window, item, windows, brightness, reading)
        image = TiledImage(height=windows.height, width=windows.width, read=read)
        owners[image] = item
        yield image
        windows.close()
        item.decode_ms += 1000 * windows.read_seconds
        item.brightness = brightness.mean
        try:
            item.source.check_unchanged()
        except SourceError as error:
            item.failure = failure_of(error, stage="fetch")
        item.source = None


def _window(pixels_HW3: NDArray[np.uint8], rows: slice, columns: slice) -> NDArray[np.uint8]:
    return pixels_HW3[rows, columns]


def _read_window(
    item: WorkItem, windows: ImageWindows, brightness: "_Brightness", reading: Reading, rows: slice, columns: slice
) -> NDArray[np.uint8]:
    if columns.start == 0:
        return_free_memory()
    pixels_HW3 = reading(item, partial(windows.read, rows, columns))
    brightness.add(rows, columns, pixels_HW3)
    return pixels_HW3


class _Brightness:
    """Mean brightness of an image from its tiles in order: of each, what no tile before it has shown."""

    def __init__(self) -> None:
        self._top = self._bottom = self._left = 0
        self._total, self._num_pixels = 0.0, 0

    def add(self, rows: slice, columns: slice, pixels_HW3: NDArray[np.uint8]) -> None:
        """The next tile of its row of tiles, or the first of the next one."""
        if columns.start == 0:
            self._top, self._bottom, self._left = self._bottom, rows.stop, 0
        new_hw3 = pixels_HW3[self._top - rows.start :, self._left - columns.start :]
        self._left = columns.stop
        num_pixels = new_hw3.shape[0] * new_hw3.shape[1]
        self._total += num_pixels * mean_brightness(new_hw3)
        self._num_pixels += num_pixels

    @property
    def mean(self) -> float | None:
        return self._total / self._num_pixels if self._num_pixels else None
