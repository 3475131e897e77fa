"""One driver per run: who may take a run over, and what progress.json says meanwhile."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.drivers import Driver
from pipelines.exit_codes import BUSY, JobStoppedError
from pipelines.nightly import claims as run_claims
from pipelines.nightly.claims import Progress, claimed, read_progress
from tests.pipelines.processes import needs_proc

RUN = "000001"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_claims, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(run_claims, "WATCH_SECONDS", 0.3)


@pytest.fixture
def tables(tmp_path: Path) -> str:
    return str(tmp_path / "tables")


def _foreign_claim(tables: str, number: int, *, host: str = "elsewhere") -> None:
    """A driver on another machine, of which nothing can be known but what it writes."""
    driver = dataclasses.replace(Driver.this_process(), host=host)
    path = Path(tables, "runs", RUN, "drivers", f"{number:04d}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(storage.json_bytes(dataclasses.asdict(driver)))


@contextmanager
def _foreign_heartbeat(tables: str, number: int) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.02):
            beats += 1
            values = {"driver": number, "beat": beats, "state": "working"}
            storage.write_atomic(storage.join(tables, "runs", RUN, "progress.json"), storage.json_bytes(values))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_run_is_free_again_once_its_driver_has_ended(tables: str) -> None:
    for number in (1, 2):
        with claimed(tables, RUN, Progress(num_planned=3)):
            assert read_progress(tables, RUN)["state"] == "working"
        progress = read_progress(tables, RUN)
        assert (progress["driver"], progress["state"]) == (number, "finished")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (JobStoppedError("enough", 3), "stopped"),
        (RuntimeError("a bug"), "failed"),
    ],
)
def test_however_a_driver_ends_it_says_so_and_the_next_one_need_not_wait(
    tables: str, error: BaseException, state: str
) -> None:
    with pytest.raises(type(error)), claimed(tables, RUN, Progress(num_planned=3)):
        raise error
    assert read_progress(tables, RUN)["state"] == state
    began = time.monotonic()
    with claimed(tables, RUN, Progress(num_planned=3)):
        assert time.monotonic() - began < 0.25  # less than it would be watched


def test_a_second_driver_of_the_same_machine_is_refused_while_the_first_works(tables: str) -> None:
    first, second = (claimed(tables, RUN, Progress(num_planned=3)) for _ in range(2))
    with first, pytest.raises(JobStoppedError) as stopped, second:
        pytest.fail("two drivers at once")
    assert stopped.value.exit_code == BUSY
    assert f"process {Driver.this_process().pid}" in str(stopped.value)


def test_a_driver_elsewhere_is_alive_as_long_as_its_progress_changes(tables: str) -> None:
    _foreign_claim(tables, 1)
    late = claimed(tables, RUN, Progress(num_planned=3))
    with _foreign_heartbeat(tables, 1), pytest.raises(JobStoppedError, match="on elsewhere"), late:
        pytest.fail("taken from a driver that lives")
    with claimed(tables, RUN, Progress(num_planned=3)):  # after WATCH_SECONDS without a change
        assert read_progress(tables, RUN)["driver"] == 2


def test_of_two_drivers_that_take_over_at_once_one_wins(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create_exclusive

    def late(uri: str, data: bytes) -> bool:
        _foreign_claim(tables, 1, host="quicker")
        return create(uri, data)

    monkeypatch.setattr(storage, "create_exclusive", late)
    with pytest.raises(JobStoppedError, match="on quicker"), claimed(tables, RUN, Progress(num_planned=3)):
        pytest.fail("two drivers at once")


def test_a_driver_that_was_cut_off_notices_that_it_has_been_replaced(tables: str) -> None:
    mine = claimed(tables, RUN, Progress(num_planned=3))
    with pytest.raises(JobStoppedError, match="on elsewhere") as stopped, mine as heartbeat:
        heartbeat.check()
        _foreign_claim(tables, 2)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            heartbeat.check()
            time.sleep(0.01)
    assert stopped.value.exit_code == BUSY
    assert read_progress(tables, RUN)["driver"] == 1  # and it writes nothing any more: its successor does
    assert read_progress(tables, RUN)["state"] == "working"


@needs_proc
def test_a_dead_driver_of_this_machine_is_replaced_without_waiting(
    tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_claims, "WATCH_SECONDS", 1e6)
    code = (
        "import os, sys; from pipelines.nightly.claims import Progress, claimed\n"
        f"with claimed(sys.argv[1], {RUN!r}, Progress(num_planned=3)): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tables], check=False)
    assert read_progress(tables, RUN)["state"] == "working"
    with claimed(tables, RUN, Progress(num_planned=3)):
        assert read_progress(tables, RUN)["driver"] == 2


def test_progress_tells_counts_speed_and_the_time_left(tables: str) -> None:
    state = Progress(num_planned=100, num_images=40, num_failures=10)
    assert (
        state.to_dict()["seconds_left"] is None
    )  # this driver has done none yet: what was there says nothing of speed
    state.began = time.monotonic() - 5.0
    state.num_here, state.num_images = 20, 60
    values = state.to_dict()
    assert values["images_per_second"] == pytest.approx(4.0, rel=0.05)
    assert values["seconds_left"] == pytest.approx(30 / 4.0, rel=0.05)
    with claimed(tables, RUN, state):
        assert read_progress(tables, RUN).items() >= {"num_planned": 100, "num_images": 60, "num_failures": 10}.items()
    assert json.loads(Path(tables, "runs", RUN, "progress.json").read_text())["written_at"].startswith("20")
