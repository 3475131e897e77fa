"""One MLflow run for one piece of work, of however many drivers that begin it at the same moment.

MLflow gives no order of runs to go by: a run's start time is its client's, taken before the run is there for others to
see. What its SQL stores do promise is that a parameter is written once and never changed. So a run is decided by the
parameter `segpipe.claim`: `held` by the driver that works on it, or `withdrawn`. A driver

1. creates a run of its own,
2. looks for the others of this work, and withdraws those that are not held,
3. holds its own, unless it found one that is held, or its own was withdrawn by another driver meanwhile.

Of two drivers the one that creates its run later sees the other's, at the latest. It withdraws it, so that it is never
held, or learns that it is held, and joins it: two are held at no time, whatever the clocks, the delays and the order of
requests, and wherever a driver dies. A run that was withdrawn is deleted.
"""

import time
from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

WORK_TAG = "segpipe.work"
RECORDED_TAG = "segpipe.recorded_in"
"""A folder that names this run, from then on its only way back in: without the folder the same work begins anew."""
CLAIM_PARAMETER = "segpipe.claim"
HELD = "held"
WITHDRAWN = "withdrawn"
POLITE_SECONDS = 1.0
"""Time that the smallest run id has to be held before the others withdraw it; only so that they seldom try again."""
TRIES = 10


def held_run(client: MlflowClient, experiment: str, work: str) -> str | None:
    """The run of a piece of work that is not FINISHED.

    Args:
        client: of the store.
        experiment: id.
        work: the run's `segpipe.work` tag.
    """
    runs = [run for run in _open_runs(client, experiment, work) if _claim(run) == HELD]
    first = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    return first.info.run_id if first else None


def hold_run(client: MlflowClient, experiment: str, work: str, create: Callable[[], str]) -> tuple[str, bool]:
    """The one run of a piece of work that no run was held of a moment ago, and whether it is this driver's own.

    Args:
        client: of the store.
        experiment: id.
        work: the run's `segpipe.work` tag.
        create: creates a run with that tag; called once more after each time that drivers withdrew each other's.

    Raises:
        RuntimeError: drivers withdrew each other's runs again and again.
        MlflowException: the store does not answer.
    """
    for _ in range(TRIES):
        own = create()
        others = {run.info.run_id: run for run in _open_runs(client, experiment, work) if run.info.run_id != own}
        if others and min(others) < own:
            time.sleep(POLITE_SECONDS)
        held = [key for key, run in sorted(others.items()) if (_claim(run) or _decide(client, key, WITHDRAWN)) == HELD]
        if held:
            _decide(client, own, WITHDRAWN)
            return held[0], False
        if _decide(client, own, HELD) == HELD:
            return own, True
        found = held_run(client, experiment, work)
        if found is not None:
            return found, False
    raise RuntimeError(
        f"MLflow has no run for this work after {TRIES} tries: other drivers withdrew each; start one job at a time"
    )


def _open_runs(client: MlflowClient, experiment: str, work: str) -> list[Run]:
    runs = client.search_runs([experiment], f"tags.`{WORK_TAG}` = '{work}' AND attributes.status != 'FINISHED'")
    return [run for run in runs if RECORDED_TAG not in run.data.tags]


def _claim(run: Run) -> str:
    """What became of a run, or "" before it is decided. One of an earlier version has parameters, but no claim."""
    return str(run.data.params.get(CLAIM_PARAMETER, HELD if run.data.params else ""))


def _decide(client: MlflowClient, run_id: str, claim: str) -> str:
    """Write a claim, or learn which one stands; a run that is withdrawn is deleted."""
    try:
        client.log_param(run_id, CLAIM_PARAMETER, claim)
    except MlflowException:  # another driver wrote, and has perhaps deleted the run since
        run = client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            return WITHDRAWN
        if CLAIM_PARAMETER not in run.data.params:
            raise
        claim = run.data.params[CLAIM_PARAMETER]
    if claim == WITHDRAWN:
        _delete(client, run_id)
    return claim


def _delete(client: MlflowClient, run_id: str) -> None:
    try:
        client.delete_run(run_id)
    except MlflowException:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            raise
