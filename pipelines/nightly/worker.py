"""The Ray Data part of `segment`: fetch shards, segment them, commit them.

1. One row is a stretch of shards, by their numbers alone; Ray Data never splits a row. What is in a shard its worker
   reads in the plan. Each row costs the driver 8 ms, so that of many shards a stretch has up to `MAX_STRETCH`.
2. Worker actors fetch a shard ahead, decode in threads, and one thread of each runs the network. Two stretches are in
   work at once, so that the network has the next shard's images while the last one's masks are encoded, staged and
   committed.
3. A report per shard comes back. The results are on storage, committed.

Images above a size are set aside while the others of their shard are segmented; their tiles then share batches
(`pipelines.nightly.tiles`). An image for which alone the device has no memory is shown in tiles too.

What is wrong with an image goes to its row of `failures`, never into an exception: Ray Data would drop the whole shard.
An image that kills the process is found by `pipelines.nightly.attempts`; one whose decoding does not end, by the clock.
"""

import dataclasses
import logging
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy

from pipelines import live_metrics
from pipelines.cluster import worker_environment
from pipelines.ensembles import load_member
from pipelines.intake.formats import ImageError, PixelBudgetError
from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source, SourceError
from pipelines.intake.timed_threads import TimedCall, TimedThreads
from pipelines.nightly import attempts
from pipelines.nightly.attempts import Attempt, Turns
from pipelines.nightly.challenge import challenger_from_dict
from pipelines.nightly.fetch import Failure, fetch_images, stays_in_place
from pipelines.nightly.rival import Rival
from pipelines.nightly.rows import FIRST_BYTES, ShardRows, WorkItem
from pipelines.nightly.stage_timer import SHARD, StageTimer
from pipelines.nightly.tiles import failure_of, open_in_place, segment_tiled
from pipelines.nightly.worker_job import ShardReport, WorkerJob
from pipelines.tables import commits
from pipelines.tables.runs import ShardCommit
from segcore.inference import Predictions, predict_ensemble, prepare
from segcore.tiling import TiledMap

logger = logging.getLogger(__name__)

T = TypeVar("T")

STRETCHES_AT_ONCE = 2
"""Of a worker."""

ENOUGH_STRETCHES = 512
MAX_STRETCH = 32
STRETCHES_LEFT = 4  # for each worker, once they become shorter
PENDING_BYTES = 256 * 2**20
"""Decoded images of one shard that wait for others of their size; the largest group goes first when there are more."""

MAX_ABANDONED_THREADS = 4
"""Of a worker, each busy with an image that took too long; with more it ends itself, and Ray starts another."""

EXIT_GAVE_UP, EXIT_DEVICE_LOST = 75, 74
"""Exit codes of workers that end themselves, for Ray's log; EX_TEMPFAIL and EX_IOERR of BSD's sysexits."""


def segment_shards(shards: Sequence[int], *, job: WorkerJob, workers: int) -> Iterator[ShardReport]:
    """Segment and commit some shards of the job's run, and report each; Ray must run."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has just set DEBUG; our own bar shows progress
    rows = [
        pa.table({"shards": pa.array([stretch], pa.list_(pa.int32()))})
        for stretch in stretches(shards, workers=workers)
    ]
    done = ray.data.from_arrow(rows).map_batches(
        ShardSegmenter,
        fn_constructor_args=(job,),
        compute=ActorPoolStrategy(
            size=workers, max_concurrent_calls_per_actor=STRETCHES_AT_ONCE, enable_true_multi_threading=True
        ),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=job.threads,
        num_gpus=1 if job.use_gpu else 0,
        runtime_env=worker_environment(use_gpu=job.use_gpu),
    )
    for row in done.iter_rows():
        yield ShardReport.from_json(row["report"])


def stretches(shards: Sequence[int], *, workers: int) -> Iterator[Sequence[int]]:
    """Cut shards into what workers are given at once: some thousand stretches at most, the last ones shorter.

    The last of them are short so that no worker is left alone with many shards.
    """
    longest = min(max(len(shards) // ENOUGH_STRETCHES, 1), MAX_STRETCH)
    start = 0
    while start < len(shards):
        length = min(longest, max((len(shards) - start) // (STRETCHES_LEFT * workers), 1))
        yield shards[start : start + length]
        start += length


class ShardSegmenter:
    """A worker: the models, the threads that decode, and the one that runs the network."""

    def __init__(self, job: WorkerJob) -> None:
        torch.set_num_threads(1)  # of this thread; the network's has its own number
        self.job = job
        self.members = [load_member(member) for member in job.members]
        for member in self.members:
            prepare(member.model, "cuda" if job.use_gpu else "cpu")
        self.rival = _rival(job)
        # One thread: one stream of kernels, and one pool of OpenMP threads beside it.
        self.network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.network.submit(_use_threads, job.threads).result()
        self.plan = commits.PlannedShards(job.tables, job.settings.run_id)
        self.fetchers = ThreadPoolExecutor(STRETCHES_AT_ONCE, thread_name_prefix="fetch")
        self.decoders = TimedThreads(job.decode_threads, seconds=job.image_seconds, name="decode")
        self.turns = Turns()
        self.attempts: set[Attempt] = set()  # in work
        self.began = time.time()
        self.timer = StageTimer()
        self.shown_seconds: dict[str, float] = {}  # by stage, to Prometheus

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Segment, stage, commit and promote a stretch of shards; returns their `ShardReport`s."""
        reports = []
        for found in self._fetched(batch["shards"][0].as_py()):
            with self.timer.stage(SHARD):
                reports.append(self._do_shard(found).to_json())
        return pa.table({"report": reports})

    def _fetched(self, shards: list[int]) -> "Iterator[ShardCommit | tuple[int, pa.Table]]":
        """Shards as `_fetch` gives them, one ahead."""
        fetching: deque[Future[ShardCommit | tuple[int, pa.Table]]] = deque()
        for shard, items in zip(shards, self.plan.items(shards), strict=True):
            fetching.append(self.fetchers.submit(self._fetch, shard, items))
            if len(fetching) > 1:
                yield fetching.popleft().result()
        while fetching:
            yield fetching.popleft().result()

    def _fetch(self, shard: int, items: pa.Table) -> "ShardCommit | tuple[int, pa.Table]":
        """A shard with the bytes of its images; or its commit, where this worker or another one died after it."""
        result = commits.read_commit(self.job.tables, self.job.settings.run_id, shard)
        return (shard, fetch_images(items)) if result is None else result

    def _do_shard(self, found: "ShardCommit | tuple[int, pa.Table]") -> ShardReport:
        began = time.time()
        result = found if isinstance(found, ShardCommit) else self._attempt(*found)
        with self.timer.stage("commit"):
            commits.promote(self.job.tables, result)
        return self._report(result, began)

    def _attempt(self, shard: int, items: pa.Table) -> ShardCommit:
        """Segment, stage and commit; alone in this process where the shard, or another in its process, killed one."""
        with self.turns.together():
            attempt = attempts.begin(self.job.tables, self.job.settings.run_id, shard)
            if not attempt.is_careful:
                return self._work_on(shard, items, attempt)
        logger.warning("attempt %d at shard %d works on one image at a time: a worker died", attempt.number, shard)
        with self.turns.alone():
            return self._work_on(shard, items, attempt)

    def _work_on(self, shard: int, items: pa.Table, attempt: Attempt) -> ShardCommit:
        job = self.job
        rows = ShardRows(settings=job.settings)
        self.attempts.add(attempt)
        try:
            if attempt.is_careful:
                self._segment_one_by_one(items, rows, attempt)
            else:
                self._segment(items, rows, attempt)
            planned = items["work_id"].to_pylist()
            with self.timer.stage("commit"):
                staged = commits.stage(job.tables, job.settings, shard=shard, planned=planned, rows=rows.tables())
                return commits.commit(job.tables, staged)
        finally:
            self.attempts.discard(attempt)

    def _segment(self, items: pa.Table, rows: ShardRows, attempt: Attempt) -> None:
        waiting: deque[Future[list[_Seen]]] = deque()
        tiled: list[WorkItem] = []
        decoded = self._decoded(_work_items(items, attempt), rows, tiled, attempt, ahead=self._num_ahead)
        for batch in batches_of_one_size(decoded, batch_size=self.job.batch_size, pending_bytes=PENDING_BYTES):
            waiting.append(self.network.submit(self._see, batch, attempt))
            if len(waiting) > 1:  # the network has its next batch while this thread encodes the last one
                self._encode(waiting.popleft().result(), rows)
        if tiled:
            waiting.append(self.network.submit(self._see_tiled, tiled, attempt))
        while waiting:
            self._encode(waiting.popleft().result(), rows)

    def _encode(self, seen: "list[_Seen]", rows: ShardRows) -> None:
        with self.timer.stage("encode"):
            _collect(seen, rows)

    def _decode(self, item: WorkItem) -> WorkItem:
        with self.timer.stage("decode"):
            return decode_item(item, whole_px=self.job.whole_px, in_tiles=self.job.tiling is not None)

    def _segment_one_by_one(self, items: pa.Table, rows: ShardRows, attempt: Attempt) -> None:
        """One image is in work at any time, and its name is on storage before."""
        if self.decoders.num_abandoned:
            self._give_up()  # images of other shards are in work here as well
        for item in _work_items(items, attempt):
            work_id = item.planned["work_id"]
            tiled: list[WorkItem] = []
            if item.failure is None:
                attempt.works_on(work_id, stage="decode")
            for decoded in self._decoded([item], rows, tiled, attempt, ahead=0):
                attempt.works_on(work_id, stage="infer")
                self._encode(self.network.submit(self._see, [decoded], attempt).result(), rows)
            if tiled:
                attempt.works_on(work_id, stage="infer")  # and its tiles are decoded meanwhile
                self._encode(self.network.submit(self._see_tiled, tiled, attempt).result(), rows)
        attempt.works_on("", stage="")

    @property
    def _num_ahead(self) -> int:
        return self.job.decode_threads + self.job.batch_size

    def _decoded(
        self, items: Iterable[WorkItem], rows: ShardRows, tiled: list[WorkItem], attempt: Attempt, *, ahead: int
    ) -> Iterator[WorkItem]:
        """Images in the order that they come in, decoded ahead by a number.

        Of the others, those that are to be shown in tiles go to `tiled`, and failures to `rows`.
        """
        decoding: deque[tuple[WorkItem, TimedCall[WorkItem]]] = deque()
        for item in items:
            decoding.append((item, self.decoders.submit(partial(self._decode, item))))
            if len(decoding) > ahead:
                yield from self._usable(*decoding.popleft(), rows, tiled, attempt)
        while decoding:
            yield from self._usable(*decoding.popleft(), rows, tiled, attempt)

    def _usable(
        self, item: WorkItem, call: TimedCall[WorkItem], rows: ShardRows, tiled: list[WorkItem], attempt: Attempt
    ) -> Iterator[WorkItem]:
        try:
            item = self.decoders.result(call)
        except TimeoutError:
            failure = failure_of(self._stopped_waiting(item, attempt, seconds=call.seconds), stage="decode")
            item = dataclasses.replace(item, data=b"", failure=failure)  # a thread still has the original
        if item.failure is not None:
            rows.add_failure(item)
        elif item.source is not None:
            tiled.append(item)
        else:
            yield item

    def _stopped_waiting(self, item: WorkItem, attempt: Attempt, *, seconds: float) -> TimeoutError:
        """Note that a thread is stuck with an image, and end this process where there are too many such threads."""
        error = TimeoutError(f"decoding took more than {seconds:g} s; if this machine is slow, raise --image-seconds")
        attempt.stopped_waiting(item.planned["work_id"], str(error))
        if attempt.is_careful or self.decoders.num_abandoned > MAX_ABANDONED_THREADS:
            self._give_up()
        return error

    def _give_up(self) -> NoReturn:
        """End this process, which has threads that nobody can stop; Ray starts another and repeats its calls."""
        logger.warning(
            "%d threads are still busy with images that took too long: this worker ends itself",
            self.decoders.num_abandoned,
        )
        for attempt in tuple(self.attempts):
            attempt.gives_up()
        os._exit(EXIT_GAVE_UP)

    def _see(self, batch: list[WorkItem], attempt: Attempt) -> list["_Seen"]:
        """Run the network; a batch that fails is tried again in halves, so that only the culprit is lost."""
        started = time.perf_counter()
        with self.timer.stage("infer"):
            found = self._predict(batch)
        if isinstance(found, Predictions):
            infer_ms = 1000 * (time.perf_counter() - started) / len(batch)
            if self.rival is not None:
                self.rival.look_at(batch, found, infer_ms=infer_ms)
            return [_Seen(item=item, found=found, index=index, infer_ms=infer_ms) for index, item in enumerate(batch)]
        if len(batch) > 1:
            middle = len(batch) // 2
            return [*self._see(batch[:middle], attempt), *self._see(batch[middle:], attempt)]
        if found.is_out_of_memory and self.job.tiling:
            notes = (f"as a whole the device had no memory for it ({found.error})",)
            return self._see_tiled(batch, attempt, notes=notes)
        batch[0].failure = found
        return [_Seen(item=batch[0], found=None)]

    def _see_tiled(self, items: list[WorkItem], attempt: Attempt, *, notes: tuple[str, ...] = ()) -> list["_Seen"]:
        """Show images in tiles: sources that are yet to be opened, and images that are decoded already."""
        job = self.job
        assert job.tiling is not None
        if any(member.config.crf.iterations for member in self.members):
            notes = (*notes, "the CRF refined each tile by itself")
        show = partial(
            segment_tiled,
            tiling=job.tiling,
            batch_size=job.batch_size,
            max_pixels=job.max_pixels,
            reading=partial(self._read, attempt),
        )
        try:
            maps = show(self.members, items, busy=partial(self.timer.stage, "infer"))
        except Exception as error:  # see _predict; what is wrong with one image is its failure already
            logger.warning("the network failed on the tiles of %d images", len(items), exc_info=True)
            if job.use_gpu:
                _check_device()
            maps = {}
            for item in items:
                item.failure = item.failure or Failure.of(error, stage="infer", retryable=True)
        if self.rival is not None:
            self.rival.look_at_tiled(items, maps, show)
        return [_Seen(item=item, found=maps.get(item.place), notes=notes) for item in items]

    def _read(self, attempt: Attempt, item: WorkItem, read: Callable[[], T]) -> T:
        """Open a file for tiles, or read one of them, in the threads that decode and with their time limit.

        Where all of an image is decoded at once, it has as many times longer as it has more pixels than one that is
        shown whole; before it is open, as the largest image has.
        """
        num_pixels = item.windows.pixels_at_once if item.windows else self.job.max_pixels
        times = max(1.0, num_pixels / self.job.whole_px)

        def timed() -> T:
            with self.timer.stage("decode"):
                return read()

        call = self.decoders.submit(timed, times=times)
        try:
            return self.decoders.result(call)
        except TimeoutError:
            raise self._stopped_waiting(item, attempt, seconds=call.seconds) from None

    def _predict(self, batch: list[WorkItem]) -> Predictions | Failure:
        """Returns before anything else is tried: an exception keeps the failed batch's activations alive."""
        uris = [item.planned["uri"] for item in batch]
        try:
            images_NHW3 = np.stack([item.image.pixels_HW3 for item in batch if item.image is not None])
            images_N3HW = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2)
            return predict_ensemble(self.members, images_N3HW, image_ids=uris)
        except Exception as error:  # every image ends in a row: PyTorch out of memory, scores that are not finite, ...
            logger.warning("the network failed on a batch of %d images", len(batch), exc_info=True)
            if self.job.use_gpu:
                _check_device()
            return Failure.of(error, stage="infer", retryable=True)

    def _show_stages(self) -> None:
        """Tell Prometheus where the time since the last call went."""
        shown, self.shown_seconds = self.shown_seconds, self.timer.seconds()
        for stage, seconds in self.shown_seconds.items():
            live_metrics.count("segpipe_stage_seconds", seconds - shown.get(stage, 0.0), {"stage": stage})

    def _report(self, result: ShardCommit, began: float) -> ShardReport:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        self._show_stages()
        return ShardReport(
            result=result,
            began=began,
            ended=time.time(),
            worker_began=self.began,
            peak_memory_bytes=unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            worker_pid=os.getpid(),
            seconds=self.timer.seconds(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the network found in an image: row `index` of `found`, its map of tiles, or nothing where it failed."""

    item: WorkItem
    found: Predictions | TiledMap | None
    index: int = 0
    infer_ms: float = 0.0
    notes: tuple[str, ...] = ()


def _rival(job: WorkerJob) -> Rival | None:
    """The run's challenger; without one, or where its model has gone since the plan, nothing is compared."""
    challenger = challenger_from_dict(job.settings.challenger)
    if challenger is None:
        return None
    try:
        return Rival(challenger, job.settings, device="cuda" if job.use_gpu else "cpu")
    except ValueError as error:
        logger.warning("nothing is compared: %s", error)
        return None


def _use_threads(num_threads: int) -> None:
    """Let PyTorch use this many cores in the calling thread, whatever other threads ask for later."""
    torch.set_num_threads(num_threads)
    # A thread takes its number at its first use of PyTorch's pool from what any thread set last: use it now.
    torch.get_num_threads()


def _check_device() -> None:
    """After a failure: end the process where its device is lost, as by a kernel's illegal access to memory.

    Every later image would fail too. The shards in work have no commit and are done again; `pipelines.nightly.attempts`
    finds an image that does this every time.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        logger.exception("the GPU is lost for this process, which ends itself")
        os._exit(EXIT_DEVICE_LOST)
    torch.cuda.empty_cache()


def batches_of_one_size(items: Iterable[WorkItem], *, batch_size: int, pending_bytes: int) -> Iterator[list[WorkItem]]:
    """Group decoded images by size; what waits for others of its size stays below a number of bytes."""
    groups: dict[tuple[int, ...], list[WorkItem]] = {}
    waiting_bytes = 0
    for item in items:
        assert item.image is not None
        pixels_HW3 = item.image.pixels_HW3
        group = groups.setdefault(pixels_HW3.shape, [])
        group.append(item)
        waiting_bytes += pixels_HW3.nbytes
        ready = pixels_HW3.shape if len(group) == batch_size else None
        if ready is None and waiting_bytes > pending_bytes:
            ready = max(groups, key=lambda shape: len(groups[shape]) * int(np.prod(shape)))
        if ready is not None:
            batch = groups.pop(ready)
            waiting_bytes -= len(batch) * int(np.prod(ready))
            yield batch
    yield from groups.values()


def decode_item(item: WorkItem, *, whole_px: int, in_tiles: bool) -> WorkItem:
    """Decode an image, or set its failure; of more than `whole_px` pixels, set its source if tiles can be shown."""
    if item.failure is not None:
        return item
    started = time.perf_counter()
    try:
        if stays_in_place(item.planned["size_bytes"]):
            open_in_place(item, whole_px=whole_px, in_tiles=in_tiles)
        if item.source is None and item.failure is None:
            item.image = decode_image(item.data, max_pixels=whole_px)
    except PixelBudgetError as error:
        if in_tiles:
            item.source = Source(data=item.data)
        else:
            item.failure = failure_of(error, stage="decode")
    except (ImageError, SourceError, MemoryError) as error:
        item.failure = failure_of(error, stage="decode")
    item.decode_ms = 1000 * (time.perf_counter() - started)
    item.data = b""
    return item


def _collect(seen: list[_Seen], rows: ShardRows) -> None:
    for each in seen:
        if each.found is not None:
            try:
                if isinstance(each.found, TiledMap):
                    rows.add_tiled(each.item, each.found, notes=each.notes)
                else:
                    rows.add_prediction(each.item, each.found, each.index, infer_ms=each.infer_ms)
            except Exception as error:  # every image ends in a row: a lack of memory
                each.item.failure = Failure.of(error, stage="encode", retryable=True)
        if each.item.failure is not None:
            rows.add_failure(each.item)
        elif each.item.comparison is not None:
            rows.comparisons[each.item.place] = each.item.comparison
        each.item.image = None


def _work_items(items: pa.Table, attempt: Attempt) -> Iterator[WorkItem]:
    """One at a time, so that the bytes of a shard are copied out of its table image by image; suspects last."""
    failures = items.select(["stage", "error", "message", "retryable"]).to_pylist()
    tries = items["attempts"].to_pylist()
    data = items["data"]
    rows = items.drop_columns([*failures[0], "attempts", "data"]).to_pylist()
    for place in sorted(range(len(rows)), key=lambda place: rows[place]["work_id"] in attempt.suspects):
        content = data[place].as_py() or b""
        earlier = attempt.failure(rows[place]["work_id"])
        fetching = Failure(**failures[place]) if failures[place]["stage"] else None
        yield WorkItem(
            place=place,
            planned=rows[place],
            data=content,
            first_bytes=content[:FIRST_BYTES],
            attempts=attempt.number - 1 if earlier else tries[place],
            failure=earlier or fetching,
        )
