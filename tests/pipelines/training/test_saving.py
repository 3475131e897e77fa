"""When checkpoints are written within an epoch, and what becomes of a write that fails."""

import time
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.training import saving
from pipelines.training.progress import STOP
from pipelines.training.saving import PREEMPTION, STEPS, TIME, SaveClock, Saver, write_files


def ask(
    clock: SaveClock,
    now: float,
    *,
    steps_due: bool = False,
    deadline: float | None = None,
    notified: bool = False,
    stop: bool = False,
) -> str:
    return clock.reason(now, steps_due=steps_due, deadline=deadline, notified=notified, stop=stop)


def test_time_and_steps_ask_for_a_checkpoint() -> None:
    clock = SaveClock(seconds=600, last_saved=1000)
    assert ask(clock, 1599) == "" and ask(clock, 1600) == TIME
    assert ask(clock, 1001, steps_due=True) == STEPS
    assert ask(SaveClock(seconds=0, last_saved=0), 1e9) == ""  # never for the sake of time


def test_a_notice_is_answered_at_once_and_shortly_before_the_deadline() -> None:
    clock = SaveClock(seconds=0, last_saved=0)
    answers = [ask(clock, now, deadline=120, notified=True) for now in (0, 1, 50, 104, 105, 106, 119)]
    assert answers == [PREEMPTION, "", "", "", PREEMPTION, "", ""]
    slow = SaveClock(seconds=0, last_saved=0, write_seconds=20)
    answers = [ask(slow, now, deadline=120, notified=True) for now in (0, 59, 60)]
    assert answers == [PREEMPTION, "", PREEMPTION]


def test_a_short_notice_and_one_without_a_deadline_are_answered_once() -> None:
    clock = SaveClock(seconds=0, last_saved=0)
    assert [ask(clock, now, deadline=10, notified=True) for now in (0, 1, 9)] == [PREEMPTION, "", ""]
    assert [ask(clock, now, notified=True) for now in (20, 21)] == [PREEMPTION, ""]


def test_a_stop_is_answered_once() -> None:
    clock = SaveClock(seconds=0, last_saved=0)
    assert [ask(clock, now, stop=True) for now in (0, 1)] == [STOP, ""]


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"), [(0.1, 10, 20), (1.0, 10, 10), (100.0, 1, 1), (0.5, 1, 2), (0.0, 4, 8)]
)
def test_questions_come_about_once_a_second(seconds: float, steps: int, expected: int) -> None:
    assert Saver._steps_to_next_question(seconds, steps) == expected


FILES = {"one": b"1" * 100, "two": b"22"}


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[float]:
    """A storage that refuses so many writes; what is waited in between comes back."""
    pauses: list[float] = []
    failures = iter(range(times))
    write = storage.write_atomic

    def refuse(uri: str, data: bytes) -> None:
        if next(failures, None) is not None:
            raise OSError("503 Slow Down")
        write(uri, data)

    monkeypatch.setattr(storage, "write_atomic", refuse)
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_a_write_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    pauses = failing(monkeypatch, 3)
    write_files(FILES, str(tmp_path), say=said.append)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    assert pauses == [1, 2, 4]
    assert len(said) == 3 and all("cannot be written (OSError: 503 Slow Down); attempt" in line for line in said)


def test_a_storage_that_is_gone_is_told_and_ends_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    pauses = failing(monkeypatch, 99)
    with pytest.raises(OSError, match="503"):
        write_files(FILES, str(tmp_path), say=said.append)
    assert len(pauses) == saving.WRITE_ATTEMPTS - 1
    assert "given up after 5 attempts" in said[-1]
