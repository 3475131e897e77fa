"""Which image of a shard kills the worker that has it in work.

A process that dies (a decoder's segmentation fault, the system's out-of-memory killer) says nothing, and Ray starts it
again with the same shards, without end. So every attempt at a shard leaves a marker, in which the next one reads what
became of it:

1. Begin    `runs/<run>/attempts/<shard>/<n>.json` is created exclusively, n being the next number. The first attempt
            works at full speed and writes nothing more: one small file per shard.
2. Careful  An attempt that finds earlier ones, and no commit, is careful. It has its process to itself, works on one
            image at a time, and names it in its marker before it begins: that image is alone in work.
3. Verdict  An image that was alone in work when two attempts died is given up for good (`WorkerDied`), and everything
            else of the shard is segmented. One death proves nothing: a node goes, somebody kills the job, and an
            innocent image is in work. A suspect, which one death names, is last in the next attempt, so that only a
            second coincidence can hit it, and not the same one: a job that is killed soon after each start, say.
4. Time     An image that a worker stopped waiting for is named in the marker too, and later attempts leave it alone:
            the thread that still has it may kill the process when other images are in work. A worker with such threads
            gives itself up rather than collect them; it says so in its markers, and no image is blamed for that end.
5. Clear    Nobody reads the markers of a shard that is committed. They are removed with the run's publication.

An image that kills its worker costs three deaths; halving its shard instead would cost one for each halving. A store
that ignores exclusive creation (`commits.exclusive_create_works`) forgets the attempts before the last, so that such an
image is not found there.
"""

import dataclasses
import os
import platform
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipelines import storage
from pipelines.nightly.fetch import Failure

FATAL_DEATHS = 2
"""Deaths with one image alone in work after which that image is given up."""

WORKER_DIED = "WorkerDied"
"""`error` of an image's failure that killed its worker, for which there is no exception."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What an attempt at a shard leaves for those after it.

    Attributes:
        number: of the attempt, from 1.
        in_work: work id of the image that is alone in work; "" where none is, or several are.
        stage: where that image is: decode or infer; infer also while tiles of it are decoded.
        timed_out: work ids of images that the attempt stopped waiting for, each with the message of its failure.
        gave_up: the worker ended itself; nothing killed it.
        host, pid, began_at: whose attempt it is, for people.
    """

    number: int
    in_work: str = ""
    stage: str = ""
    timed_out: dict[str, str] = field(default_factory=dict)
    gave_up: bool = False
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    began_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


class Attempt:
    """An attempt at a shard, and its marker, which it alone writes; threads may share it.

    Attributes:
        number: of the attempt, from 1.
        is_careful: one image at a time, each announced by `works_on`, by a process that does nothing else.
        suspects: work ids of images to end with: one death names each.
    """

    def __init__(self, uri: str, marker: Marker, earlier: Sequence[Marker]) -> None:
        self._uri = uri
        self._marker = marker
        self._lock = threading.Lock()
        deaths = [each for each in earlier if not each.gave_up]
        alone = [each for each in deaths if each.in_work]
        count = Counter(each.in_work for each in alone)
        self.number = marker.number
        self.is_careful = bool(deaths)
        self._failures = {
            work_id: Failure(stage="decode", error="TimeoutError", message=message, retryable=False)
            for each in earlier
            for work_id, message in each.timed_out.items()
        }
        for each in alone:
            if count[each.in_work] >= FATAL_DEATHS:
                self._failures[each.in_work] = _fatal(each, count[each.in_work])
        self.suspects = frozenset(count.keys() - self._failures.keys())

    def failure(self, work_id: str) -> Failure | None:
        """Why an image is to be left alone, by what became of earlier attempts; None for nearly every image."""
        return self._failures.get(work_id)

    def works_on(self, work_id: str, *, stage: str) -> None:
        """From now on one image alone is in work; "" for none."""
        with self._lock:
            self._save(dataclasses.replace(self._marker, in_work=work_id, stage=stage))

    def stopped_waiting(self, work_id: str, message: str) -> None:
        """An image took too long, and a thread still has it."""
        with self._lock:
            self._save(dataclasses.replace(self._marker, timed_out=self._marker.timed_out | {work_id: message}))

    def gives_up(self) -> None:
        """The worker ends itself now, for no image's fault."""
        with self._lock:
            self._save(dataclasses.replace(self._marker, gave_up=True))

    def _save(self, marker: Marker) -> None:
        self._marker = marker
        storage.write_atomic(self._uri, storage.json_bytes(dataclasses.asdict(marker)))


def begin(tables: str, run_id: str, shard: int) -> Attempt:
    """Begin the next attempt at a shard that has no commit. Writes one file, and reads one only after a death."""
    folder = storage.join(_folder(tables, run_id), f"{shard:05d}")
    earlier: list[Marker] = []
    while True:
        marker = Marker(number=1 + max((each.number for each in earlier), default=0))
        uri = storage.join(folder, f"{marker.number}.json")
        if storage.create_exclusive(uri, storage.json_bytes(dataclasses.asdict(marker))):
            return Attempt(uri, marker, earlier)
        names = [uri for uri in storage.list_files(folder) if re.search(r"/\d+\.json$", uri)]
        earlier = [Marker(**storage.read_json(uri)) for uri in names]


def clear(tables: str, run_id: str) -> None:
    """Remove the markers of a published run."""
    storage.remove_tree(_folder(tables, run_id))


def _folder(tables: str, run_id: str) -> str:
    return storage.join(tables, "runs", run_id, "attempts")


def _fatal(marker: Marker, num_deaths: int) -> Failure:
    message = (
        f"the worker died {num_deaths} times while it had this image alone in work, the last time at stage "
        f"{marker.stage} (process {marker.pid} on {marker.host}); look there for a crash or a lack of memory"
    )
    return Failure(stage=marker.stage, error=WORKER_DIED, message=message, retryable=False)


class Turns:
    """Whose turn it is in a process: that of any number of shards at once, or of one that has it to itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_active = 0
        self._num_waiting = 0  # to be alone; nobody else begins before them
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait until nobody is alone or waits to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._num_waiting)
            self._num_active += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else is active, and keep it so."""
        with self._changed:
            self._num_waiting += 1
            try:
                self._changed.wait_for(lambda: not self._num_active)
            finally:
                self._num_waiting -= 1
            self._num_active += 1
            self._alone = True
        try:
            yield
        finally:
            self._alone = False
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._num_active -= 1
            self._changed.notify_all()
