"""A driver of its own process that has opened an MLflow run and works on it until it is killed."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import tracking
from pipelines.tracking import claims, runs

PROGRAM = """
import sys, time
from pipelines import tracking
tracking.connect(sys.argv[1])
with tracking.tracked_run(
    experiment=sys.argv[2], name="killed", job="train", parameters={"workers": 2}, tags={}, work={"key": sys.argv[3]}
) as run:
    run.log_metrics({"loss": 3.0}, step=0)
    print(run.run_id, flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True, slots=True)
class TrackedDriver:
    """A driver that has logged the metric `loss` at step 0 of this run, and does no more."""

    process: "subprocess.Popen[str]"
    run_id: str

    def kill(self) -> None:
        """SIGKILL: it has no time to say anything."""
        self.process.kill()
        self.process.wait()


@contextmanager
def tracked_driver(tracking_uri: str, *, experiment: str, key: str) -> Iterator[TrackedDriver]:
    """Start the driver, as a job `train` with the parameter workers=2 and the work `{"key": key}`."""
    command = [sys.executable, "-c", PROGRAM, tracking_uri, experiment, key]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            run_id = process.stdout.readline().strip()
            assert run_id, "the driver ended before it had a run"
            yield TrackedDriver(process, run_id)
        finally:
            process.kill()


def two_at_once(
    open_work: Callable[[int], AbstractContextManager[tracking.TrackedRun]], *, late: bool = False
) -> tuple[str, str]:
    """Two drivers of one piece of work, as threads: both look for its run before either has created one.

    Args:
        open_work: opens the work's run, given the parameter `workers`; its experiment is there.
        late: the first driver's run begins before the second's, by its start time, but reaches MLflow only when the
            second works on its own.

    Returns:
        The ids of the runs that they worked on.
    """
    both_have_looked, both_work, mine = threading.Barrier(2), threading.Barrier(2), threading.local()
    first_begins, second_works = threading.Event(), threading.Event()
    look, create = claims.held_run, MlflowClient.create_run

    def held_up(client: MlflowClient, experiment: str, work: str) -> str | None:
        found = look(client, experiment, work)
        both_have_looked.wait(timeout=120)
        return found

    def slow(client: MlflowClient, experiment: str, **more: Any) -> Run:
        if mine.workers == 2:
            assert first_begins.wait(timeout=120)
            return create(client, experiment, **more)
        begun = int(time.time() * 1000) - 1
        first_begins.set()
        assert second_works.wait(timeout=120)
        return create(client, experiment, **more | {"start_time": begun})

    def drive(workers: int) -> str:
        mine.workers = workers
        with open_work(workers) as run:
            second_works.set()
            both_work.wait(timeout=120)
            return run.run_id

    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(2) as pool:
        patched.setattr(runs, "held_run", held_up)
        if late:
            patched.setattr(MlflowClient, "create_run", slow)
        first, second = pool.map(drive, (1, 2))
    return first, second
