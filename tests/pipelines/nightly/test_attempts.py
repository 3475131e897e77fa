"""Attempts at a shard: killers are found after three deaths, and nobody else is ever blamed."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.nightly import attempts
from pipelines.nightly.attempts import Attempt, Turns

RUN, SHARD = "000001", 7
IMAGES = [f"image {index}" for index in range(8)]


class Died(BaseException):
    """The process is gone: nothing after the line that raises it is done."""


@pytest.fixture
def tables() -> Iterator[str]:
    """In memory: a disk's syncs would take most of the time."""
    uri = "memory://test_attempts"
    yield uri
    storage.remove_tree(uri)


def markers(tables: str) -> list[str]:
    return storage.list_files(storage.join(tables, "runs", RUN, "attempts"))


def work(attempt: Attempt, killers: Iterable[str], *, dies_at: str = "") -> list[str]:
    """What a worker does with the shard: returns the images that it gives up, or dies.

    Args:
        attempt: that has just begun.
        killers: images that kill the process whenever they are in work.
        dies_at: the process dies, for a reason of its own, while this image, or "the first", is alone in work.
    """
    given_up = [image for image in IMAGES if attempt.failure(image)]
    left = [image for image in IMAGES if image not in given_up]
    if not attempt.is_careful:
        if set(killers) & set(left) or dies_at:
            raise Died
        return given_up
    for image in sorted(left, key=lambda image: image in attempt.suspects):
        attempt.works_on(image, stage="decode")
        attempt.works_on(image, stage="infer")
        if image in killers or dies_at in (image, "the first"):
            raise Died
    attempt.works_on("", stage="")
    return given_up


def work_until_done(tables: str, killers: Iterable[str]) -> tuple[list[str], int]:
    """Images given up, and how often the process died."""
    for deaths in range(100):
        try:
            return work(attempts.begin(tables, RUN, SHARD), killers), deaths
        except Died:
            continue
    raise AssertionError("the shard is not done after 100 deaths")


def test_a_shard_without_deaths_costs_one_small_file(tables: str) -> None:
    attempt = attempts.begin(tables, RUN, SHARD)
    assert (attempt.number, attempt.is_careful, attempt.suspects) == (1, False, frozenset())
    assert work(attempt, []) == []
    assert markers(tables) == [f"{tables}/runs/{RUN}/attempts/00007/1.json"]
    assert len(storage.read_bytes(markers(tables)[0])) < 500
    attempts.clear(tables, RUN)
    assert markers(tables) == []
    attempts.clear(tables, RUN)


@pytest.mark.parametrize("killers", [[], IMAGES[:1], IMAGES[-1:], IMAGES[2:5], IMAGES])
def test_every_killer_is_found_and_costs_two_deaths_more(tables: str, killers: list[str]) -> None:
    given_up, deaths = work_until_done(tables, killers)
    assert sorted(given_up) == sorted(killers)
    assert deaths == (1 + 2 * len(killers) if killers else 0)


def test_a_killers_failure_says_what_happened(tables: str) -> None:
    work_until_done(tables, IMAGES[3:4])
    failure = attempts.begin(tables, RUN, SHARD).failure(IMAGES[3])
    assert failure is not None
    assert (failure.stage, failure.error, failure.retryable) == ("infer", "WorkerDied", False)
    assert "died 2 times while it had this image alone in work" in failure.message


def test_the_image_that_one_death_names_is_a_suspect(tables: str) -> None:
    for _ in range(2):
        with pytest.raises(Died):
            work(attempts.begin(tables, RUN, SHARD), IMAGES[5:6])
    third = attempts.begin(tables, RUN, SHARD)
    assert third.suspects == {IMAGES[5]} and third.failure(IMAGES[5]) is None


def test_deaths_for_other_reasons_blame_nobody(tables: str) -> None:
    """Nodes that go, jobs that are killed: at any image, but not twice at the same one."""
    generator = np.random.default_rng(0)
    for dies_at in generator.permutation(IMAGES).tolist():
        with pytest.raises(Died):
            work(attempts.begin(tables, RUN, SHARD), [], dies_at=dies_at)
    assert work_until_done(tables, []) == ([], 0)


def test_a_job_that_is_always_killed_at_its_first_image_blames_nobody(tables: str) -> None:
    for _ in range(1 + len(IMAGES)):
        with pytest.raises(Died):
            work(attempts.begin(tables, RUN, SHARD), [], dies_at="the first")
    assert work_until_done(tables, []) == ([], 0)


def test_deaths_before_and_after_the_images_blame_nobody(tables: str) -> None:
    for _ in range(3):
        attempts.begin(tables, RUN, SHARD)  # and dies
    for _ in range(3):
        work(attempts.begin(tables, RUN, SHARD), [])  # and dies before its commit
    last = attempts.begin(tables, RUN, SHARD)
    assert last.is_careful and not last.suspects
    assert not any(last.failure(image) for image in IMAGES)


def test_a_shard_beside_the_killers_is_not_blamed(tables: str) -> None:
    """It dies with it, at full speed and while it waits for its turn."""
    for _ in range(4):
        attempts.begin(tables, RUN, SHARD + 1)
    beside = attempts.begin(tables, RUN, SHARD + 1)
    assert beside.is_careful
    assert work(beside, []) == []
    assert work_until_done(tables, IMAGES[:1])[0] == IMAGES[:1]


def test_a_worker_that_ends_itself_is_no_death(tables: str) -> None:
    first = attempts.begin(tables, RUN, SHARD)
    first.stopped_waiting(IMAGES[1], "it took too long")
    first.stopped_waiting(IMAGES[2], "so did this")
    first.gives_up()
    second = attempts.begin(tables, RUN, SHARD)
    assert (second.number, second.is_careful, second.suspects) == (2, False, frozenset())
    failure = second.failure(IMAGES[1])
    assert failure is not None
    assert (failure.error, failure.message, failure.stage) == ("TimeoutError", "it took too long", "decode")
    assert second.failure(IMAGES[2]) is not None and second.failure(IMAGES[3]) is None


def test_a_careful_attempt_that_ends_itself_blames_the_clock_not_the_death(tables: str) -> None:
    for _ in range(4):
        attempt = attempts.begin(tables, RUN, SHARD)
        attempt.works_on(IMAGES[0], stage="decode")
        attempt.gives_up()
    assert attempts.begin(tables, RUN, SHARD).failure(IMAGES[0]) is None


def test_attempts_that_begin_at_once_have_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: attempts.begin(str(tmp_path), RUN, SHARD), range(16)))
    assert sorted(each.number for each in begun) == list(range(1, 17))


def test_shards_run_together_and_a_careful_one_alone() -> None:
    turns = Turns()
    active: set[int] = set()
    together: list[int] = []
    lock = threading.Lock()
    pair = threading.Barrier(2, timeout=20)

    def careless(number: int) -> None:
        with turns.together():
            with lock:
                active.add(number)
                assert 100 not in active
                together.append(len(active))
            pair.wait()
            with lock:
                active.remove(number)

    def careful() -> None:
        with turns.alone():
            with lock:
                assert not active
                active.add(100)
            with lock:
                active.remove(100)

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(careless, number) for number in range(2)]
        calls += [pool.submit(careful) for _ in range(2)]
        for call in calls:
            call.result(timeout=20)
    assert max(together) == 2


def test_one_that_waits_to_be_alone_is_not_overtaken() -> None:
    turns = Turns()
    order: list[str] = []
    begun = threading.Event()

    def careful() -> None:
        begun.set()
        with turns.alone():
            order.append("alone")

    def careless() -> None:
        with turns.together():
            order.append("together")

    with ThreadPoolExecutor(2) as pool:
        with turns.together():
            first = pool.submit(careful)
            begun.wait(timeout=20)
            while not turns._num_waiting:
                pass
            second = pool.submit(careless)
        first.result(timeout=20)
        second.result(timeout=20)
    assert order == ["alone", "together"]
