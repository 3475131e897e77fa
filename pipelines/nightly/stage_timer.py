"""Where the time of a worker goes whose stages overlap: every moment counts for one of them, so that they add up."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORKER_STAGES = ("fetch", "decode", "infer", "encode", "commit", "idle")
"""In the order of an image's way. `fetch`: the worker waits for the images of its next shard. `idle`: none of the
others is at work, or nothing is left to do."""

SHARD = "shard"
"""What is active while a worker has a shard, whatever it does with it."""

_FIRST_COUNTS = ("infer", "commit", "encode", "decode")


class StageTimer:
    """Seconds by stage of one worker, from its construction on; threads may call it at the same time.

    A moment counts for the network where it runs; else for the latest of the other stages that is at work; else for
    `fetch` where the worker has no shard, and for `idle` where it has one. So decoding that goes on beside the network
    costs nothing, and what `decode` shows is how long the network stood still for it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._active = dict.fromkeys((SHARD, *_FIRST_COUNTS), 0)
        self._seconds = dict.fromkeys(WORKER_STAGES, 0.0)
        self._changed = now()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block: one of `WORKER_STAGES` but `fetch` and `idle`, or `SHARD`."""
        self._change(name, 1)
        try:
            yield
        finally:
            self._change(name, -1)

    def seconds(self) -> dict[str, float]:
        """Until now, by `WORKER_STAGES`; they add up to the time since the construction."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    def _change(self, name: str, by: int) -> None:
        with self._lock:
            self._settle()
            self._active[name] += by

    def _settle(self) -> None:
        now = self._now()
        self._seconds[self._current()] += now - self._changed
        self._changed = now

    def _current(self) -> str:
        for name in _FIRST_COUNTS:
            if self._active[name]:
                return name
        return "idle" if self._active[SHARD] else "fetch"
