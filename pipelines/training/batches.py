"""From shards to training batches: what Ray Data does, and what the train worker does itself.

1. Ray Data reads whole shards in an order shuffled by seed and epoch, verifies their SHA-256 and splits the rows among
   the workers, equally and reproducibly (`rows`). Rows stay encoded: a decoded photo is 20 to 50 times larger.
2. Each worker shuffles its rows within a buffer, decodes and augments them in threads, and keeps a few uint8 batches
   ready. Normalisation happens on the device. What a row becomes is the task's business (`tasks`).
3. It asks for the next epoch's rows before it has decoded the last ones of this: Ray takes half a second to begin.

Everything is a function of (seed, epoch, worker), so a resumed run sees the batches that it would have seen, within an
epoch too: what was seen of it is passed over, still encoded.
"""

import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.shards import TRAINING_COLUMNS, PreparedDataset, read_part
from pipelines.training.position import ROW, images_before
from pipelines.training.visits import REPEAT

if TYPE_CHECKING:
    from ray.data import DataIterator

S = TypeVar("S")
T = TypeVar("T")

Row = dict[str, Any]
Pair = tuple[Tensor, Tensor]
"""An image (3, H, W), uint8, and its labels: a label map (H, W), or a class ()."""

ROWS_AT_A_TIME = 64
"""Encoded images that Ray Data hands over at a time; each time costs a millisecond or two."""
READY_TABLES = 2
"""So many times such images wait for the decoding threads, beyond what Ray Data itself has ready; they are the work of
the time in which Ray Data begins an epoch."""
READY_BATCHES = 3
"""Augmented batches that wait for the network, per worker."""


@dataclass(frozen=True, slots=True)
class Batch:
    """uint8 images of one step on one worker and their labels, (N, H, W) or (N,); in training, in pinned memory where a
    GPU waits for them, and with the numbers of the images' visits (without sampling: of the images in the split)."""

    images_N3HW: Tensor
    labels: Tensor
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One epoch, or the rest of one, as this worker reads it.

    Attributes:
        rows: its share, from `ray.train.get_dataset_shard`; iterating over it reads it.
        epoch: index.
        first_step: step of the epoch at which `rows` begin.
        done: steps of the epoch that were done before; the images of those since `first_step` are passed over.
    """

    rows: "DataIterator"
    epoch: int
    first_step: int = 0
    done: int = 0


def training_batches(
    passes: Sequence[Pass],
    *,
    draw: Callable[[Row, torch.Generator], Pair],
    batch_size: int,
    steps_per_epoch: int,
    shuffle_buffer: int,
    seed: int,
    rank: int,
    world_size: int,
    num_threads: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Augmented batches of all epochs in one stream, so that no epoch waits for its first shard. Starts at the call.

    Args:
        passes: epochs, in order.
        draw: decodes a row and draws its augmented pair.
        batch_size: images per batch over all workers; see `images_before` for this worker's share.
        steps_per_epoch: batches of every epoch; the images that fill no batch are left out.
        shuffle_buffer: encoded images to shuffle within.
        seed, rank, world_size: what the order and the augmentation depend on, beside the epoch.
        num_threads: threads that decode and augment.
        pin_memory: page-lock the batches, for an asynchronous copy to a GPU.

    Raises:
        ValueError: a shard or an image is broken.
        RuntimeError: an epoch has more or fewer batches than `steps_per_epoch`.
    """
    largest, divides = -(-batch_size // world_size), batch_size % world_size == 0
    before = partial(images_before, batch_size=batch_size, rank=rank, world_size=world_size)

    def tables_of(one: Pass) -> Iterable[Any]:
        order = [seed, one.epoch, rank] + ([one.first_step] if one.first_step else [])
        return one.rows.iter_batches(
            batch_size=max(largest, ROWS_AT_A_TIME),
            batch_format="pyarrow",
            prefetch_batches=2,
            local_shuffle_buffer_size=max(shuffle_buffer, largest),
            local_shuffle_seed=int(np.random.SeedSequence(order).generate_state(1)[0]),
        )

    def tables_of_passes() -> Iterator[Any]:
        for one in passes:
            yield from tables_of(one)
            yield None  # its end

    def rows_of_batches() -> Iterator[list[tuple[int, Row]]]:
        tables = started(tables_of_passes, depth=READY_TABLES)
        for one in passes:
            of_this = takewhile(lambda table: table is not None, tables)
            sizes = (before(step + 1) - before(step) for step in count(one.done))
            passed_over = before(one.done) - before(one.first_step)
            # Ray Data's equal split leaves out up to workers - 1 images: a share may lack one image for its last batch.
            repeat_at = None if divides else steps_per_epoch - 1 - one.done
            step = one.done
            for batch in _grouped(of_this, sizes, passed_over=passed_over, repeat_at=repeat_at):
                if step < steps_per_epoch:  # what is too much would open the next epoch
                    yield [(one.epoch, row) for row in batch]
                step += 1
            if step < steps_per_epoch or (divides and step > steps_per_epoch):
                raise RuntimeError(f"worker {rank} got {step} batches in epoch {one.epoch}, expected {steps_per_epoch}")

    def produce() -> Iterator[Batch]:
        crop = partial(_training_crop, draw=draw, seed=seed)
        with decoding_threads(num_threads) as pool:
            for numbered in ordered_ahead(pool, crop, rows_of_batches(), ahead=2):
                batch = _stacked([pair for _, pair in numbered], rows=tuple(number for number, _ in numbered))
                if pin_memory:
                    batch = Batch(batch.images_N3HW.pin_memory(), batch.labels.pin_memory(), batch.rows)
                yield batch

    return started(produce, depth=READY_BATCHES)


def _grouped(
    tables: Iterable[Any], sizes: Iterable[int], *, passed_over: int, repeat_at: int | None
) -> Iterator[list[Row]]:
    """Rows of Arrow tables in groups of these sizes, to the end of the tables; the rest, which fills none, is left out.

    Args:
        tables: what comes.
        sizes: one for every group that may come.
        passed_over: rows to leave out first; they are not copied out of their tables.
        repeat_at: the group that gets its last row twice where only that row is missing.
    """
    remaining = iter(tables)
    ready: list[Row] = []
    for number, size in enumerate(sizes):
        while len(ready) < size and (table := next(remaining, None)) is not None:
            skipped = min(passed_over, table.num_rows)
            passed_over -= skipped
            ready += _as_rows(table.slice(skipped))
        if number == repeat_at and len(ready) == size - 1 > 0:
            ready.append(ready[-1])
        if len(ready) < size:
            return
        yield ready[:size]
        ready = ready[size:]


def _stacked(pairs: list[Pair], *, rows: tuple[int, ...] = ()) -> Batch:
    return Batch(torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs]), rows)


def _training_crop(
    visited: tuple[int, Row], *, draw: Callable[[Row, torch.Generator], Pair], seed: int
) -> tuple[int, Pair]:
    """Decode a row and draw its crop of the epoch that comes with it, whichever worker it landed on; and its number.

    Raises:
        ValueError: the row's shard is broken.
    """
    epoch, row = visited
    if row["error"] is not None:
        raise ValueError(row["error"])
    visit = f"{seed}/{epoch}/{row['image_id']}" + (f"/{row[REPEAT]}" if row.get(REPEAT) else "")
    own_seed = hashlib.blake2b(visit.encode(), digest_size=8).digest()
    return row[ROW], draw(row, torch.Generator().manual_seed(int.from_bytes(own_seed, "little", signed=True)))


def decoded(row: Row) -> Pair:
    """Image (3, H, W) and label map (H, W) of a row of a segmentation dataset, uint8."""
    labels_HW = decode_labels(row["label"]).astype(np.uint8, copy=False)
    return decoded_image(row), torch.from_numpy(_writable(labels_HW))


def decoded_image(row: Row) -> Tensor:
    """Image (3, H, W) of a shard's row, uint8."""
    pixels_HW3 = _writable(decode_image(row["image"]).pixels_HW3)
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1)


def _writable(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels if pixels.flags.writeable else pixels.copy()


def validation_batches(
    dataset: PreparedDataset,
    *,
    split: str,
    decode: Callable[[Row], Pair],
    batch_size: int,
    rank: int,
    world_size: int,
    num_threads: int,
) -> Iterator[Batch]:
    """This worker's share of a split, decoded, in order: batches rank*n/W up to (rank+1)*n/W of the split's n batches.

    A batch holds the same images whatever the number of workers. Ray Train's own splits drop the rows that do not
    divide among the workers, which a score cannot afford.
    """
    num_rows = dataset.splits[split].num_images
    num_batches = -(-num_rows // batch_size)
    first = rank * num_batches // world_size * batch_size
    end = min((rank + 1) * num_batches // world_size * batch_size, num_rows)

    def rows() -> Iterator[Row]:
        offset = 0
        for part in dataset.splits[split].parts:
            start, stop = max(first - offset, 0), min(end - offset, part.num_rows)
            offset += part.num_rows
            if start >= stop:
                continue
            table = read_part(dataset, part, columns=TRAINING_COLUMNS[dataset.task])
            yield from table.slice(start, stop - start).to_pylist()

    def groups() -> Iterator[list[Row]]:
        remaining = rows()
        while group := list(islice(remaining, batch_size)):
            yield group

    ahead = max(2, 2 * num_threads // batch_size)

    def produce() -> Iterator[Batch]:
        with decoding_threads(num_threads) as pool:
            for pairs in ordered_ahead(pool, decode, groups(), ahead=ahead):
                yield _stacked(pairs)

    return started(produce, depth=ahead)


def _as_rows(table: Any) -> list[Row]:
    """Rows of a pyarrow table (Ray's types allow other batch formats)."""
    rows: list[Row] = table.to_pylist()
    return rows


def decoding_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads that call PyTorch one operation on one core at a time: they share the cores with the network."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="decode", initializer=_one_core_per_thread)


def _one_core_per_thread() -> None:
    torch.set_num_threads(1)  # with OpenMP, of the calling thread alone
    cv2.setNumThreads(1)  # of all threads


def ordered_ahead(
    pool: ThreadPoolExecutor, work: Callable[[S], T], groups: Iterator[list[S]], *, ahead: int
) -> Iterator[list[T]]:
    """Apply `work` to every item in threads and yield whole groups, in order, with at most `ahead` groups in work."""
    waiting: deque[list[Future[T]]] = deque()
    for group in groups:
        waiting.append([pool.submit(work, item) for item in group])
        if len(waiting) > ahead:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def started(produce: Callable[[], Iterator[T]], *, depth: int) -> Iterator[T]:
    """Run a generator in a thread, at most `depth` items ahead; it begins now, not at the first `next`.

    An exception of the generator is raised where its item would have come. Dropping the result stops the thread.
    """
    items: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    abandoned = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not abandoned.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in produce():
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # handed over, whatever it is
            put((False, error))

    threading.Thread(target=run, name="batches", daemon=True).start()

    def consume() -> Iterator[T]:
        try:
            while True:
                more, value = items.get()
                if more:
                    yield value
                elif value is None:
                    return
                else:
                    raise value
        finally:
            abandoned.set()

    return consume()


def num_decoding_threads(*, workers_on_this_machine: int, use_gpu: bool) -> int:
    """Threads for decoding: beside a GPU all cores of the worker's share but one; two where the network has them."""
    cores = (os.cpu_count() or 1) // workers_on_this_machine
    return max(2, cores - 1) if use_gpu else 2
