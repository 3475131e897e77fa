"""One driver at a time per run, and its progress for whoever looks.

    runs/<run>/drivers/<n>.json    created exclusively by the n-th driver that works on the run: who it is
    runs/<run>/progress.json       written anew every `BEAT_SECONDS` by the newest of them: counts, speed, time left

Two jobs over the same tables would both do the same shards: nothing would be twice in the tables
(`pipelines.tables.commits`), but the work would be. So a job claims a run before it works on it. A run whose last
driver ended, or died on this machine, is free at once; one whose driver ran elsewhere is watched for `WATCH_SECONDS`:
if progress.json still changes meanwhile, the driver lives and the second job ends with exit code 4 (`exit_codes.BUSY`).
No clock is compared with another machine's. A driver that was cut off and comes back finds a newer claim and ends the
same way.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines import storage
from pipelines.drivers import Driver
from pipelines.exit_codes import BUSY, JobStoppedError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
WATCH_SECONDS = 20.0
ENDED = ("finished", "failed", "stopped", "interrupted")


@dataclass(kw_only=True, slots=True)
class Progress:
    """What progress.json says, kept current by the job and written by its heartbeat.

    Attributes:
        num_planned: images of the run.
        num_images, num_failures: in the tables by now, what earlier drivers did included.
        num_here: of both together, by this driver; its speed is measured by them.
        began: when this driver began to work, by `time.monotonic`.
        state: "working", "publishing", or one of `ENDED`.
    """

    num_planned: int
    num_images: int = 0
    num_failures: int = 0
    num_here: int = 0
    began: float = field(default_factory=time.monotonic)
    state: str = "working"

    @property
    def images_per_second(self) -> float:
        """Of this driver, its start-up included."""
        return self.num_here / max(1e-9, time.monotonic() - self.began)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the seconds that are left at the present speed (null before the first image)."""
        left = self.num_planned - self.num_images - self.num_failures
        speed = self.images_per_second
        return {
            "state": self.state,
            "num_planned": self.num_planned,
            "num_images": self.num_images,
            "num_failures": self.num_failures,
            "images_per_second": round(speed, 3),
            "seconds_left": round(left / speed, 1) if self.num_here else None,
        }


@contextmanager
def claimed(tables: str, run_id: str, progress: Progress) -> Iterator["Heartbeat"]:
    """Hold a run for the length of some work on it, while progress.json is kept current.

    Args:
        tables: URI of the tables' folder.
        run_id: of a planned run.
        progress: what the work changes as it goes.

    Raises:
        JobStoppedError: another driver works on it, code `BUSY`.
    """
    number, earlier = _newest_claim(tables, run_id)
    if earlier is not None and not earlier.is_dead_here() and _is_alive(tables, run_id, number):
        raise _busy(run_id, earlier)
    mine = storage.json_bytes(dataclasses.asdict(Driver.this_process()))
    if not storage.create_exclusive(_claim_uri(tables, run_id, number + 1), mine):
        raise _busy(run_id, _newest_claim(tables, run_id)[1])
    heartbeat = Heartbeat(tables, run_id, number + 1, progress)
    heartbeat.start()
    try:
        yield heartbeat
        progress.state = "finished"
    except KeyboardInterrupt:
        progress.state = "interrupted"
        raise
    except JobStoppedError:
        progress.state = "stopped"
        raise
    except BaseException:
        progress.state = "failed"
        raise
    finally:
        heartbeat.stop()


class Heartbeat:
    """Writes progress.json from a thread of its own; see `claimed`."""

    def __init__(self, tables: str, run_id: str, number: int, progress: Progress) -> None:
        self._tables, self._run_id, self._number, self._progress = tables, run_id, number, progress
        self._stop = threading.Event()
        self._successor: Driver | None = None
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write once, then every `BEAT_SECONDS`."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Write the last state, unless a newer driver writes by now."""
        self._stop.set()
        self._thread.join()
        self._beat()

    def check(self) -> None:
        """Raise where a newer driver has taken the run over.

        Raises:
            JobStoppedError: code `BUSY`.
        """
        if self._successor is not None:
            raise _busy(self._run_id, self._successor)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        try:
            number, newest = _newest_claim(self._tables, self._run_id)
            if number != self._number:
                self._successor = newest
                return
            self._beats += 1
            values = {"driver": self._number, "beat": self._beats, "written_at": datetime.now(UTC).isoformat()}
            storage.write_atomic(
                _progress_uri(self._tables, self._run_id), storage.json_bytes(values | self._progress.to_dict())
            )
        except Exception as error:  # a store that hiccups costs a beat, not the night
            logger.warning("could not write the progress of run %s: %s", self._run_id, error)


def read_progress(tables: str, run_id: str) -> dict[str, Any]:
    """What the newest driver of a run wrote last; empty before its first line."""
    try:
        values: dict[str, Any] = storage.read_json(_progress_uri(tables, run_id))
    except FileNotFoundError:
        return {}
    return values


def _is_alive(tables: str, run_id: str, number: int) -> bool:
    """Whether the run's newest driver still writes; takes `WATCH_SECONDS` where it does not say that it ended."""
    first = read_progress(tables, run_id)
    if first.get("driver") == number and first.get("state") in ENDED:
        return False
    logger.info("run %s has a driver that may be alive; watching it for up to %.0f s", run_id, WATCH_SECONDS)
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        now = read_progress(tables, run_id)
        if now.get("state") in ENDED and now.get("driver") == number:
            return False
        if now != first:
            return True
    return False


def _newest_claim(tables: str, run_id: str) -> tuple[int, Driver | None]:
    """Number and description of the newest driver; 0 and None before the first."""
    uris = storage.list_files(storage.join(tables, "runs", run_id, "drivers"))
    if not uris:
        return 0, None
    number = max(int(uri.rpartition("/")[2].removesuffix(".json")) for uri in uris)
    return number, Driver(**storage.read_json(_claim_uri(tables, run_id, number)))


def _busy(run_id: str, driver: Driver | None) -> JobStoppedError:
    who = f"process {driver.pid} on {driver.host}, since {driver.claimed_at}" if driver else "another job"
    return JobStoppedError(
        f"run {run_id} of these tables is being worked on by {who}; wait for it, or end it and give this command again",
        BUSY,
    )


def _claim_uri(tables: str, run_id: str, number: int) -> str:
    return storage.join(tables, "runs", run_id, "drivers", f"{number:04d}.json")


def _progress_uri(tables: str, run_id: str) -> str:
    return storage.join(tables, "runs", run_id, "progress.json")
