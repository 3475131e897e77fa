"""Places where a test may stop a process and kill it: at exactly this step, as often as it takes, once per token.

    SEGPIPE_FAULT=commits.staged@/some/folder/token python jobs/segment.py ...

The first process that comes to the named point creates the token file, with its process id, and waits there to be
killed, or for a file TOKEN.released, when the world has gone on without it; everyone after it passes. Some points are
passed many times and are counted: `train.step=17@/some/folder/token` stops where 17 steps were done. Several are
separated by commas. Without the variable nothing happens. A name that no code has would never be met: the tests take
theirs from `POINTS`.
"""

import os
import time
from pathlib import Path

VARIABLE = "SEGPIPE_FAULT"

DRIVER_POINTS = ("commits.plan", "commits.planned", "commits.publish", "commits.snapshot", "commits.published")
WORKER_POINTS = ("commits.stage", "commits.staged", "commits.committed", "commits.promote", "commits.promoted")
STAGE_POINTS = {
    "prepare": ("prepare.part", "prepare.recorded"),
    "fit_label_pca": ("label_pca.part", "label_pca.fitted"),
    "evaluate": ("evaluate.slice", "evaluate.scored"),
}
"""Of other stages: where a worker has done a piece of its work, and where the driver knows of it."""
TRAIN_POINTS = ("train.step", "train.write", "train.written")
"""In the workers of a training, counted in optimiser steps since its beginning: before a step; before a checkpoint is
written, and before it is registered."""
POINTS = (
    *DRIVER_POINTS,
    *WORKER_POINTS,
    *(point for points in STAGE_POINTS.values() for point in points),
    *TRAIN_POINTS,
)


def fault_point(name: str, *, count: int | None = None) -> None:
    """Wait for a kill, if the environment names this point, at this count, and nobody has waited here before."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    assert name in POINTS, f"{name!r} is not in fault_points.POINTS"
    for each in wanted.split(","):
        point, _, token = each.partition("@")
        point, _, at = point.partition("=")
        if point == name and at in ("", str(count)):
            _wait_once(token)


def _wait_once(token: str) -> None:
    try:
        with Path(token).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    while not Path(f"{token}.released").exists():
        time.sleep(0.2)
