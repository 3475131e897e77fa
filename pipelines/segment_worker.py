"""The Ray Data part of `segment`: fetch shards, segment them, commit them.

1. One row is one shard of the plan; Ray Data never splits a row, so a shard arrives at one worker whole.
2. Fetching tasks turn it into encoded bytes, which travel through the object store: decoded photos are 20 times larger.
3. Worker actors decode in threads, and one thread of each runs the network. Two shards are in work at once, so that the
   network has the next shard's images while the last one's masks are encoded, staged and committed.
4. A row of numbers per shard comes back. The results are on storage, committed.

What is wrong with an image goes to its row of `failures`, never into an exception: Ray Data would drop the whole shard.
"""

import dataclasses
import logging
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipelines import commits
from pipelines.cluster import worker_environment
from pipelines.commits import Run, RunSettings, ShardCommit
from pipelines.ensembles import MemberModel, load_member
from pipelines.images import ImageError, decode_image
from pipelines.segment_fetch import Failure, fetch_shard, from_stream, to_stream
from pipelines.segment_rows import FIRST_BYTES, ShardRows, WorkItem
from pipelines.training_data import decoding_threads
from segcore.inference import Predictions, predict_ensemble, prepare

logger = logging.getLogger(__name__)

SHARDS_AT_ONCE = 2
PENDING_BYTES = 256 * 2**20
"""Decoded images of one shard that wait for others of their size; the largest group goes first when there are more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJob:
    """What every worker needs to know; small, since Ray copies it to each of them.

    Attributes:
        tables: URI of the tables' folder.
        settings: of the run.
        members: models that each worker loads, and whose class probabilities are averaged; one or more.
        batch_size: largest number of images per network call.
        threads: CPU threads of a worker's network.
        decode_threads: of a worker.
        use_gpu: one GPU per worker.
    """

    tables: str
    settings: RunSettings
    members: tuple[MemberModel, ...]
    batch_size: int
    threads: int
    decode_threads: int
    use_gpu: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What one shard cost and gave.

    Attributes:
        shard: its number.
        num_images: segmented.
        num_failures: in the failures table.
        began, ended: seconds since 1970 by the worker's clock.
        worker_began: when that worker had loaded its model.
        peak_memory_bytes: largest resident memory of the worker so far.
        worker_pid: of the worker's process.
    """

    shard: int
    num_images: int
    num_failures: int
    began: float
    ended: float
    worker_began: float
    peak_memory_bytes: int
    worker_pid: int


def segment_shards(run: Run, shards: list[int], *, job: WorkerJob, workers: int) -> Iterator[ShardReport]:
    """Segment and commit some shards of a run, and report each as it is done; Ray must run."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has just set DEBUG; our own bar shows progress
    rows = [
        pa.table({"shard": [shard], "payload": pa.array([to_stream(items)], pa.large_binary())})
        for shard, items in zip(shards, run.shard_items(shards), strict=True)
    ]
    fetched = ray.data.from_arrow(rows).map_batches(
        fetch_shard,
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=workers),
        num_cpus=0.5,  # it waits more than it works; and Ray Data would fuse it into the actors if it asked for as much
    )
    done = fetched.map_batches(
        ShardSegmenter,
        fn_constructor_args=(job,),
        compute=ActorPoolStrategy(
            size=workers, max_concurrent_calls_per_actor=SHARDS_AT_ONCE, enable_true_multi_threading=True
        ),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=job.threads,
        num_gpus=1 if job.use_gpu else 0,
        runtime_env=worker_environment(use_gpu=job.use_gpu),
    )
    for report in done.iter_rows():
        yield ShardReport(**report)


class ShardSegmenter:
    """A worker: the models, the threads that decode, and the one that runs the network."""

    def __init__(self, job: WorkerJob) -> None:
        torch.set_num_threads(1)  # of this thread; the network's has its own number
        self.job = job
        self.members = [load_member(member) for member in job.members]
        for member in self.members:
            prepare(member.model, "cuda" if job.use_gpu else "cpu")
        # One thread: one stream of kernels, and one pool of OpenMP threads beside it.
        self.network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.network.submit(_use_threads, job.threads).result()
        self.decoders = decoding_threads(job.decode_threads)
        self.began = time.time()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Segment, stage, commit and promote one shard; returns its `ShardReport` as a row."""
        began = time.time()
        job, shard = self.job, int(batch["shard"][0].as_py())
        result = commits.read_commit(job.tables, job.settings.run_id, shard)
        if result is None:  # else: this worker, or another one, died after its commit
            items = from_stream(batch["payload"][0].as_buffer())
            rows = self._segment(items)
            planned = items["work_id"].to_pylist()
            attempt = commits.stage(job.tables, job.settings, shard=shard, planned=planned, rows=rows.tables())
            result = commits.commit(job.tables, attempt)
        commits.promote(job.tables, result)
        return pa.Table.from_pylist([self._report(result, began)])

    def _segment(self, items: pa.Table) -> ShardRows:
        rows = ShardRows(settings=self.job.settings)
        waiting: deque[Future[list[_Seen]]] = deque()
        for batch in batches_of_one_size(
            self._decoded(items, rows), batch_size=self.job.batch_size, pending_bytes=PENDING_BYTES
        ):
            waiting.append(self.network.submit(self._see, batch))
            if len(waiting) > 1:  # the network has its next batch while this thread encodes the last one
                _collect(waiting.popleft().result(), rows)
        while waiting:
            _collect(waiting.popleft().result(), rows)
        return rows

    def _decoded(self, items: pa.Table, rows: ShardRows) -> Iterator[WorkItem]:
        """Images in the plan's order, decoded ahead by a bounded number; the others go to `rows` as failures."""
        decoding: deque[Future[WorkItem]] = deque()
        for item in _work_items(items):
            decoding.append(self.decoders.submit(decode_item, item))
            if len(decoding) > self.job.decode_threads + self.job.batch_size:
                yield from _usable(decoding.popleft().result(), rows)
        while decoding:
            yield from _usable(decoding.popleft().result(), rows)

    def _see(self, batch: list[WorkItem]) -> list["_Seen"]:
        """Run the network; a batch that fails is tried again image by image, so that only the culprit is lost."""
        started = time.perf_counter()
        found = self._predict(batch)
        if isinstance(found, Predictions):
            infer_ms = 1000 * (time.perf_counter() - started) / len(batch)
            return [_Seen(item=item, found=found, index=index, infer_ms=infer_ms) for index, item in enumerate(batch)]
        if len(batch) > 1:
            return [seen for item in batch for seen in self._see([item])]
        batch[0].failure = found
        return [_Seen(item=batch[0], found=None, index=0, infer_ms=0.0)]

    def _predict(self, batch: list[WorkItem]) -> Predictions | Failure:
        """Returns before anything else is tried: an exception keeps the failed batch's activations alive."""
        images_NHW3 = np.stack([item.image.pixels_HW3 for item in batch if item.image is not None])
        images_N3HW = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2)
        uris = [item.planned["uri"] for item in batch]
        try:
            return predict_ensemble(self.members, images_N3HW, image_ids=uris)
        except (RuntimeError, ValueError, MemoryError) as error:  # PyTorch's out-of-memory errors are RuntimeErrors
            logger.warning("the network failed on a batch of %d images", len(batch), exc_info=True)
            if self.job.use_gpu:
                # Raises where the device itself is broken for this process, and every later image would fail too: the
                # worker dies, and the shard, which has no commit, is done again.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            return Failure.of(error, stage="infer", retryable=True)

    def _report(self, result: ShardCommit, began: float) -> dict[str, Any]:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        report = ShardReport(
            shard=result.shard,
            num_images=result.num_rows("predictions"),
            num_failures=result.num_rows("failures"),
            began=began,
            ended=time.time(),
            worker_began=self.began,
            peak_memory_bytes=unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            worker_pid=os.getpid(),
        )
        return dataclasses.asdict(report)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the network found in an image: row `index` of `found`, or nothing where it failed."""

    item: WorkItem
    found: Predictions | None
    index: int
    infer_ms: float


def _use_threads(num_threads: int) -> None:
    """Let PyTorch use this many cores in the calling thread, whatever other threads ask for later."""
    torch.set_num_threads(num_threads)
    # A thread takes its number at its first use of PyTorch's pool from what any thread set last: use it now.
    torch.get_num_threads()


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


def decode_item(item: WorkItem) -> WorkItem:
    """Decode an image, or set its failure."""
    if item.failure is not None:
        return item
    started = time.perf_counter()
    try:
        item.image = decode_image(item.data)
    except ImageError as error:
        item.failure = Failure.of(error, stage=error.stage, retryable=False)
    except MemoryError as error:
        item.failure = Failure.of(error, stage="decode", retryable=True)
    item.decode_ms = 1000 * (time.perf_counter() - started)
    item.data = b""
    return item


def _usable(item: WorkItem, rows: ShardRows) -> Iterator[WorkItem]:
    if item.failure is None:
        yield item
    else:
        rows.add_failure(item)


def _collect(seen: list[_Seen], rows: ShardRows) -> None:
    for each in seen:
        if each.found is None:
            rows.add_failure(each.item)
        else:
            rows.add_prediction(each.item, each.found, each.index, infer_ms=each.infer_ms)
        each.item.image = None


def _work_items(items: pa.Table) -> Iterator[WorkItem]:
    """One at a time, so that the bytes of a shard are copied out of the object store image by image."""
    failures = items.select(["stage", "error", "message", "retryable"]).to_pylist()
    attempts = items["attempts"].to_pylist()
    data = items["data"]
    for place, planned in enumerate(items.drop_columns([*failures[0], "attempts", "data"]).to_pylist()):
        content = data[place].as_py() or b""
        failure = Failure(**failures[place]) if failures[place]["stage"] else None
        yield WorkItem(
            place=place,
            planned=planned,
            data=content,
            first_bytes=content[:FIRST_BYTES],
            attempts=attempts[place],
            failure=failure,
        )
