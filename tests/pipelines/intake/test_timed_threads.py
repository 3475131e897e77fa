"""Threads with a time limit: what ends in time is unharmed by what does not."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from pipelines.intake.timed_threads import TimedCall, TimedThreads
from tests.pipelines.skipping_clock import LIMIT, SkippingClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SkippingClock:
    return SkippingClock(monkeypatch)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _has_begun(call: TimedCall[bool]) -> bool:
    return call.began is not None


def test_results_and_errors_come_back() -> None:
    threads = TimedThreads(2, seconds=30, name="test")

    def fail() -> None:
        raise KeyError("what went wrong")

    def own_timeout() -> None:
        raise TimeoutError("of the call itself")

    assert [threads.result(threads.submit(partial(pow, i, 2))) for i in range(20)] == [i * i for i in range(20)]
    with pytest.raises(KeyError, match="what went wrong"):
        threads.result(threads.submit(fail))
    with pytest.raises(TimeoutError, match="of the call itself"):
        threads.result(threads.submit(own_timeout))
    assert threads.num_abandoned == 0


def test_a_call_that_takes_too_long_is_left_alone_and_another_thread_takes_its_place(clock: SkippingClock) -> None:
    threads = TimedThreads(1, seconds=LIMIT, name="test")
    release = threading.Event()
    stuck = threads.submit(release.wait)
    behind = threads.submit(lambda: "done")
    wait_until(partial(_has_begun, stuck))
    clock.skip(LIMIT + 1)
    with pytest.raises(TimeoutError, match="more than 60 s"):
        threads.result(stuck)
    assert threads.result(behind) == "done"
    assert threads.num_abandoned == 1
    release.set()
    wait_until(lambda: threads.num_abandoned == 0)
    assert threads.result(threads.submit(lambda: "still here")) == "still here"


def test_the_clock_starts_with_the_work_not_with_the_queue(clock: SkippingClock) -> None:
    threads = TimedThreads(1, seconds=LIMIT, name="test")
    releases = [threading.Event() for _ in range(4)]
    calls = [threads.submit(release.wait) for release in releases]
    for call, release in zip(calls, releases, strict=True):  # the last waits nearly three limits for its turn
        wait_until(partial(_has_begun, call))
        clock.skip(LIMIT - 1)
        threads._abandon_overdue()
        release.set()
        assert threads.result(call)
    assert threads.num_abandoned == 0


def test_a_call_behind_a_stuck_one_that_nobody_waits_for_gets_a_thread(clock: SkippingClock) -> None:
    """Two shards share the threads, and the stuck one's worker is busy elsewhere."""
    threads = TimedThreads(1, seconds=LIMIT, name="test")
    release = threading.Event()
    stuck = threads.submit(release.wait)
    wait_until(partial(_has_begun, stuck))
    clock.skip(LIMIT + 1)
    assert threads.result(threads.submit(lambda: "done")) == "done"
    release.set()


def test_an_idle_thread_does_not_keep_its_last_result() -> None:
    class Image:
        """Something large."""

    threads = TimedThreads(1, seconds=30, name="test")
    image = threads.result(threads.submit(Image))
    seen = weakref.ref(image)
    threads.result(threads.submit(lambda: None))
    del image
    gc.collect()
    wait_until(lambda: seen() is None)


def test_no_thread_keeps_the_process_alive() -> None:
    before = set(threading.enumerate())
    TimedThreads(2, seconds=30, name="test")
    started = set(threading.enumerate()) - before
    assert len(started) == 2 and all(thread.daemon for thread in started)
