"""Threads for work that may never end: decoding of files that nobody vouches for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic
from typing import Any, Generic, TypeVar

LOOK_SECONDS = 1.0
"""How often a waiter looks for calls that have taken too long."""

T = TypeVar("T")


class TimedCall(Generic[T]):
    """A call that waits for a thread, is in work, or is done; `TimedThreads.result` gives what it returned."""

    def __init__(self, work: Callable[[], T], seconds: float) -> None:
        self.seconds = seconds
        self.future: Future[T] = Future()
        self.began: float | None = None
        self.is_abandoned = False
        self._work = work

    def run(self) -> None:
        """Do the work, in whatever thread calls this."""
        self.began = monotonic()
        try:
            result = self._work()
        except BaseException as error:  # the waiter raises it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class TimedThreads:
    """Threads that share a queue of calls, each of which is waited for a limited time from when its work began.

    A thread cannot be ended from outside. One whose call takes too long is abandoned: another takes its place, and it
    ends by itself if the call ever returns. Code that holds Python's global lock all the while stops the waiters too;
    Pillow's decoders release it. The threads are daemons, so that none of them keeps the process alive.
    """

    def __init__(self, num_threads: int, *, seconds: float, name: str) -> None:
        self._seconds = seconds
        self._name = name
        self._queue: SimpleQueue[TimedCall[Any]] = SimpleQueue()
        self._in_work: set[TimedCall[Any]] = set()
        self._lock = threading.Lock()
        for _ in range(num_threads):
            self._start_thread()

    @property
    def num_abandoned(self) -> int:
        """Threads that still work on a call that nobody waits for."""
        with self._lock:
            return sum(call.is_abandoned for call in self._in_work)

    def submit(self, work: Callable[[], T], *, times: float = 1.0) -> TimedCall[T]:
        """Queue a call, which may take a number of times the limit."""
        call = TimedCall(work, times * self._seconds)
        self._queue.put(call)
        return call

    def result(self, call: TimedCall[T]) -> T:
        """Wait for a call and return what it returned.

        Raises:
            TimeoutError: its work took longer than the limit; whatever the call itself raised.
        """
        while not call.is_abandoned:
            try:
                return call.future.result(timeout=min(LOOK_SECONDS, self._seconds))
            except TimeoutError:
                if call.future.done():  # the call's own
                    raise
            self._abandon_overdue()
        raise TimeoutError(f"{self._name}: it took more than {call.seconds:g} s")

    def _abandon_overdue(self) -> None:
        """Of all calls: where every thread is stuck, a call waits for one whose own waiter may be busy elsewhere."""
        now = monotonic()
        with self._lock:
            for call in self._in_work:
                is_overdue = call.began is not None and now - call.began > call.seconds
                if is_overdue and not call.is_abandoned and not call.future.done():
                    call.is_abandoned = True
                    self._start_thread()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._queue.get()
            with self._lock:
                self._in_work.add(call)
            call.run()
            with self._lock:
                self._in_work.remove(call)
                if call.is_abandoned:  # another thread has this one's place
                    return
            del call  # and with it the result, which nobody else may need by now
