"""How a training that runs in Ray workers shows itself on the driver: a progress bar, and one line per epoch.

Worker output reaches a driver late, prefixed and twice; an actor that both ends call is simpler to read.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import live_metrics
from pipelines.progress import progress
from pipelines.training.position import keep_snapshot

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REASON = "checkpoint/reason"
"""Metric of a report: why its checkpoint was written within an epoch."""
STOP = "the job is told to stop"
"""One of the reasons."""


class ProgressBoard:
    """A Ray actor: the first worker writes, the driver takes."""

    def __init__(self) -> None:
        self.steps = 0
        self.lines: list[str] = []
        self.error = ""
        self.stopping = False
        self.saved = False

    def stop(self) -> None:
        """The job is to end: ask the workers for a checkpoint."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self.stopping

    def registered(self) -> None:
        """A checkpoint that `stop` asked for is complete, and Ray Train will resume from it."""
        self.saved = True

    def has_saved(self) -> bool:
        """Whether `registered` was called."""
        return self.saved

    def advance(self, steps: int) -> None:
        """Set the optimiser steps done so far, those of earlier starts included."""
        self.steps = steps

    def say(self, line: str) -> None:
        """Leave a line for the driver's log."""
        self.lines.append(line)

    def give_up(self, error: str) -> None:
        """Leave the reason why another start would end in the same way."""
        self.error = error

    def reason_to_give_up(self) -> str:
        """What `give_up` was told, or nothing."""
        return self.error

    def take(self) -> tuple[int, list[str]]:
        """Steps done so far, and the lines since the last call."""
        lines, self.lines = self.lines, []
        return self.steps, lines


class ControllerCallback(UserCallback):
    """What Ray calls in its controller: deaths go to the driver's log, and the list of checkpoints is kept twice."""

    def __init__(self, board: Any, run_folder: str) -> None:
        self.board = board
        self.run_folder = run_folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Put a worker's death into the driver's log; Ray decides afterwards whether to start the workers again."""
        for rank, error in sorted(worker_exceptions.items()):
            first_line = str(error).strip().partition("\n")[0]
            self.board.say.remote(f"worker {rank} failed ({type(error).__name__}: {first_line})")

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """A checkpoint is complete and registered."""
        if checkpoint is not None:
            keep_snapshot(self.run_folder)
        if metrics[0].get(REASON) == STOP:
            self.board.registered.remote()


@contextlib.contextmanager
def watched_board(description: str, *, total_steps: int) -> Iterator[Any]:
    """Start a board, show what is written to it until the block ends, and yield the actor's handle."""
    # On the driver's node, like Ray Train's controller: the training goes on when any other node dies.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(ProgressBoard)
    board: Any = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()

    def watch() -> None:
        shown = 0
        with progress(description, total=total_steps, unit="steps") as advance:
            last_round = False
            while not last_round:
                last_round = ended.wait(POLL_SECONDS)
                try:
                    steps, lines = ray.get(board.take.remote(), timeout=10)
                except ray.exceptions.GetTimeoutError:  # a busy machine: nothing is lost, the lines come later
                    continue
                except Exception:  # the cluster is going down, and fit() says why
                    logger.debug("the progress board does not answer", exc_info=True)
                    return
                for line in lines:
                    logger.info("%s", line)
                if steps > shown:  # after a worker's death the count goes back; the bar waits
                    advance(steps - shown)
                    live_metrics.count("segpipe_train_steps", steps - shown)
                    shown = steps

    thread = threading.Thread(target=watch, name="training-progress", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(timeout=15)
        ray.kill(board)
