"""Places where a test may stop a process and kill it: at exactly this step, as often as it takes, once per token.

    SEGPIPE_FAULT=commits.staged@/some/folder/token python jobs/segment.py ...

The first process that comes to the named point creates the token file, with its process id, and waits there to be
killed, or for a file TOKEN.released, when the world has gone on without it; everyone after it passes. Without the
variable nothing happens. A name that no code has would never be met: the tests take theirs from `POINTS`.
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
POINTS = (*DRIVER_POINTS, *WORKER_POINTS, *(point for points in STAGE_POINTS.values() for point in points))


def fault_point(name: str) -> None:
    """Wait for a kill, if the environment names this point and nobody has waited here before."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    assert name in POINTS, f"{name!r} is not in fault_points.POINTS"
    point, _, token = wanted.partition("@")
    if point != name:
        return
    try:
        with Path(token).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    while not Path(f"{token}.released").exists():
        time.sleep(0.2)
