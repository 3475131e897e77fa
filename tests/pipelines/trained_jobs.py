"""Trainings in processes of their own, which tests kill at exact steps, and what their workers saw."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pipelines import fault_points, storage
from pipelines.training.position import latest_checkpoint
from pipelines.training.step_watch import BATCH_LOG_VARIABLE
from tests.pipelines.processes import descendants, kill, stopped_at, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import json
import os
import signal
import sys

from pipelines import cli
from pipelines.train import TrainConfig, train
from pipelines.training import saving
from tests.pipelines.learnable_dataset import tiny_recipe

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
settings = json.loads(sys.argv[1])
recipe = tiny_recipe(epochs=settings.pop("epochs"), batch_size=settings.pop("batch_size", 8))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
cli.main(lambda: TrainConfig(recipe=recipe, experiment="tests", **settings), train)
"""


class TrainJob:
    """A training that was started; leaving the block kills it and everything below it.

    Args:
        settings: of `TrainConfig`, and `epochs`, `batch_size` of the tiny recipe.
        log: file for its output, appended to.
        program: what runs with them.
        faults: where to stop, see `pipelines.fault_points`.
        batch_log: folder for what the workers see.
        environment: further variables.
    """

    def __init__(
        self,
        settings: dict[str, object],
        log: Path,
        *,
        program: str = PROGRAM,
        faults: str = "",
        batch_log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        variables = os.environ | {"PYTHONPATH": str(REPOSITORY), fault_points.VARIABLE: faults} | (environment or {})
        if batch_log:
            batch_log.mkdir(exist_ok=True)
            variables[BATCH_LOG_VARIABLE] = str(batch_log)
        with log.open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(settings)],
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
                env=variables,
            )

    def __enter__(self) -> "TrainJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()

    def kill_all(self) -> None:
        """SIGKILL to the driver and whatever runs below it."""
        family = descendants(self.driver.pid)
        self.driver.kill()
        self.driver.wait()
        kill(family)

    def wait_for(self, met: Callable[[], bool], *, seconds: float = 240) -> None:
        """Wait until something has happened; fails where the driver ends first, or it takes too long."""
        wait_for(met, self.driver, self.log, seconds=seconds)

    def stopped_at(self, token: Path) -> int:
        """Wait until a process stops at the fault point of `token`; its id."""
        return stopped_at(token, self.driver, self.log)

    def registered(self, run_folder: Path, name: str) -> None:
        """Wait until the run would resume from this checkpoint."""

        def is_latest() -> bool:
            with contextlib.suppress(ValueError):  # Ray writes the list in place
                return latest_checkpoint(str(run_folder)) == str(run_folder / name)
            return False

        self.wait_for(is_latest)

    def finish(self, *, seconds: float = 400) -> None:
        """Wait for a good end."""
        assert self.driver.wait(timeout=seconds) == 0, self.said()

    def said(self) -> str:
        """The end of the log."""
        return self.log.read_text()[-6000:]


def logged_batches(folder: Path) -> dict[tuple[int, int, int], list[list[int]]]:
    """Images by epoch, step and worker: every visit, as a repeated step has several."""
    visits: dict[tuple[int, int, int], list[list[int]]] = {}
    for file in sorted(folder.glob("worker-*.jsonl")):
        rank = int(file.stem.removeprefix("worker-"))
        for line in file.read_text().splitlines():
            each = json.loads(line)
            visits.setdefault((each["epoch"], each["step"], rank), []).append(each["rows"])
    return visits


def run_id(run_folder: Path) -> str:
    """MLflow run of a training."""
    return str(storage.read_json(str(run_folder / "run.json"))["mlflow_run_id"])
