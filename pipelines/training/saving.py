"""When a training writes a checkpoint within an epoch, and how checkpoints are written while the steps go on.

About once a second all workers ask the first one, whose answer is the same for all: no; or save, since it is time,
since a node is about to be taken away, or since the job was told to stop. The state is copied to the host's memory
between two steps; a thread of Ray Train's writes it to the run's folder, and tells the controller when all of it is
there. At most one is on its way.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.collective
from ray.train import Checkpoint, CheckpointUploadMode

from pipelines import storage
from pipelines.fault_points import fault_point
from pipelines.training.progress import STOP
from pipelines.training.state import Files

ASK_SECONDS = 1.0
"""Between two questions: a notice may wait that long, and the cost of a question (milliseconds) is small beside it."""
WRITE_ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
"""After the first failure to write; doubled after each. The storage below has retried the request by then."""
DEADLINE_MARGIN_SECONDS = 15.0
"""Before a node is taken away, at least; more where writing takes long."""
PREEMPTION, TIME, STEPS = "a node is being taken away", "time", "steps"
"""Why a checkpoint is written within an epoch; or `STOP`."""


@dataclass(kw_only=True, slots=True)
class SaveClock:
    """When it is time; what the first worker decides with.

    Attributes:
        seconds: between two checkpoints within an epoch; 0: none for the sake of time.
        last_saved: when the last checkpoint was begun, seconds.
        write_seconds: how long writing took at most.
        answered: notices that were answered.
    """

    seconds: float
    last_saved: float
    write_seconds: float = 0.0
    answered: set[object] = field(default_factory=set)

    def reason(self, now: float, *, steps_due: bool, deadline: float | None, notified: bool, stop: bool) -> str:
        """Why to save now, or "".

        Args:
            now: seconds since 1970.
            steps_due: whether the number of steps asks for it.
            deadline: when the first of the workers' nodes goes, seconds since 1970; None where nobody says.
            notified: whether one of them will go.
            stop: whether the job is told to stop.

        A node that goes is answered twice: at once, as notices may be short, and shortly before the deadline.
        """
        if stop and STOP not in self.answered:
            self.answered.add(STOP)
            return STOP
        if notified:
            margin = max(DEADLINE_MARGIN_SECONDS, 3 * self.write_seconds)
            phase = (deadline, deadline is not None and now >= deadline - margin)
            if phase not in self.answered:
                self.answered |= {phase, (deadline, False)}
                return PREEMPTION
        if steps_due:
            return STEPS
        return TIME if self.seconds and now - self.last_saved >= self.seconds else ""


class Saver:
    """One worker's part in saving; all workers make the same calls in the same order.

    Args:
        board: see `pipelines.training.progress`.
        run_folder: URI.
        rank: of this worker.
        seconds: see `SaveClock`.
        every_steps: steps of an epoch between two checkpoints; 0: none for the sake of steps.
    """

    def __init__(self, board: Any, *, run_folder: str, rank: int, seconds: float, every_steps: int) -> None:
        self.board = board
        self.run_folder = run_folder
        self.rank = rank
        self.every_steps = every_steps
        self.clock = SaveClock(seconds=seconds, last_saved=time.time())
        self.idle = threading.Event()
        self.idle.set()
        self.begin_epoch(0)

    def begin_epoch(self, steps: int) -> None:
        """Steps of an epoch are counted from here."""
        self.asked_at, self.asked_seconds, self.next_question = steps, time.time(), steps + 1

    def reason_after(self, step: int) -> str:
        """Whether to save after this step of the epoch, and why; the same on all workers."""
        steps_due = self.every_steps > 0 and step % self.every_steps == 0
        if step != self.next_question and not steps_due:
            return ""
        # A collective: every worker gets what the first one knows.
        notice = ray.train.get_preemption_info()
        answer = None
        if self.rank == 0:
            now = time.time()
            deadline = notice.deadline_ms / 1000 if notice and notice.deadline_ms else None
            reason = self.clock.reason(
                now,
                steps_due=steps_due,
                deadline=deadline,
                notified=notice is not None,
                stop=ray.get(self.board.is_stopping.remote()),
            )
            if reason == TIME and not self.idle.is_set():
                reason = ""  # the storage is slower than the clock: later
            answer = (reason, step + self._steps_to_next_question(now - self.asked_seconds, step - self.asked_at))
            self.asked_at, self.asked_seconds = step, now
        reason, self.next_question = ray.train.collective.broadcast_from_rank_zero(answer)
        return str(reason)

    @staticmethod
    def _steps_to_next_question(seconds: float, steps: int) -> int:
        """As many as take `ASK_SECONDS`, at the pace since the last question, but at most twice as many as since then.

        A slow first step (compilation) or a validation in between makes the next question early, never late.
        """
        return max(1, min(2 * steps, round(ASK_SECONDS * steps / max(seconds, 1e-6))))

    def save(self, files: Files, metrics: dict[str, Any], name: str, *, count: int) -> None:
        """Write this worker's files of a checkpoint and report it; returns when the one before is written.

        Args:
            files: may be empty.
            metrics: of the report; those of the first worker count.
            name: of the checkpoint, the same on all workers.
            count: optimiser steps done since the beginning.
        """
        self.idle.wait()
        self.clock.last_saved = time.time()
        if not files:
            ray.train.report(metrics, checkpoint_dir_name=name, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        context = ray.train.get_context().get_storage()
        checkpoint = Checkpoint(context.build_checkpoint_path_from_name(name), context.storage_filesystem)
        self.idle.clear()

        def write(checkpoint: Checkpoint, name: str) -> Checkpoint:
            began = time.time()
            try:
                fault_point("train.write", count=count)
                write_files(files, storage.join(self.run_folder, name), say=self._say)
                fault_point("train.written", count=count)
            finally:
                self.idle.set()
                self.clock.write_seconds = max(self.clock.write_seconds, time.time() - began)
            return checkpoint

        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,  # "local" is where it stays
        )

    def _say(self, line: str) -> None:
        self.board.say.remote(f"worker {self.rank}: {line}")


def write_files(files: Files, folder: str, *, say: Callable[[str], object]) -> None:
    """Write files into a checkpoint's folder; each failure is told, and all is tried again, `WRITE_ATTEMPTS` times.

    Raises:
        Exception: the last attempt's. Ray Train then ends this group of workers, and the next resumes from the
            checkpoint before.
    """
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        try:
            for name, data in files.items():
                storage.write_atomic(storage.join(folder, name), data)
            return
        except Exception as error:  # of an object store: botocore's exceptions are no OSErrors
            trouble = f"checkpoint {folder} cannot be written ({type(error).__name__}: {error})"
            if attempt == WRITE_ATTEMPTS:
                say(f"{trouble}; given up after {attempt} attempts, the steps since the last one will be done again")
                raise
            pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
            say(f"{trouble}; attempt {attempt + 1} of {WRITE_ATTEMPTS} in {pause:.0f} s")
            time.sleep(pause)
