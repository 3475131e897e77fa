"""What a training step costs, and which images it saw."""

import json
import os
import time
from pathlib import Path

import torch

from pipelines.training.worker import Worker

BOARD_SECONDS = 0.5

BATCH_LOG_VARIABLE = "SEGPIPE_BATCH_LOG"
"""A folder: every worker writes there which images each of its steps used. To find the batch before a loss that is not
finite, and for the tests. Where the recipe samples, numbers are those of visits (`pipelines.training.visits`)."""


class StepWatch:
    """Times of one start of a training: waiting for batches, and steps. The very first step is timed apart."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.steps_of_start = 0
        self.shown_at = 0.0

    def begin_epoch(self) -> None:
        """Count from here."""
        self.began = self.timed_from = self.asked = time.perf_counter()
        self.waited_seconds = 0.0
        self.timed_steps = 0
        self.startup: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the epoch, or its rest, began."""
        return time.perf_counter() - self.began

    def got_batch(self) -> None:
        """The next batch is here."""
        self.waited_seconds += time.perf_counter() - self.asked

    def made_step(self, steps: int) -> None:
        """The step is made, or is at work on the device.

        Args:
            steps: done since the beginning of the training, for the progress bar.
        """
        self.asked = time.perf_counter()
        self.steps_of_start += 1
        self.timed_steps += 1
        worker = self.worker
        if self.steps_of_start == 1:
            if worker.device.type == "cuda":
                torch.cuda.synchronize(worker.device)
            computed = time.perf_counter() - self.began - self.waited_seconds
            worker.say(f"first batch came after {self.waited_seconds:.1f} s, first step took {computed:.1f} s")
            self.startup = {"train/startup_seconds": time.time() - worker.job.submitted_at}
            self.timed_from = self.asked = time.perf_counter()
            self.waited_seconds, self.timed_steps = 0.0, 0
        if worker.rank == 0 and self.asked - self.shown_at > BOARD_SECONDS:
            self.shown_at = self.asked
            worker.board.advance.remote(steps)

    def metrics(self) -> dict[str, float]:
        """Speeds over the epoch's steps of this start, once the device has done them."""
        if not self.timed_steps:
            return self.startup
        seconds = time.perf_counter() - self.timed_from
        return self.startup | {
            "train/images_per_second": self.timed_steps * self.worker.job.recipe.batch_size / seconds,
            "train/data_wait_fraction": self.waited_seconds / seconds,
        }


def log_batch(rows: tuple[int, ...], *, epoch: int, step: int, rank: int) -> None:
    """Append the images of a step, by their numbers in the split, where `BATCH_LOG_VARIABLE` names a folder."""
    if folder := os.environ.get(BATCH_LOG_VARIABLE):
        with Path(folder, f"worker-{rank:05d}.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, "step": step, "rows": rows}) + "\n")
