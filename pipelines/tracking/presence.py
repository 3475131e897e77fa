"""Who works on a run, and what becomes of one whose drivers have ended without a word.

A driver keeps a tag `segpipe.driver.<random>` on its run while it works: its process, its machine, and when it last
said so, every `BEAT_SECONDS`. At its end it takes the tag away; after SIGKILL, lost power or lack of memory it stays. A
run that is RUNNING with tags of dead drivers alone is lost, and marked KILLED with the tag `segpipe.lost_driver` (who,
and when it was noticed) by the next start of the same work or by the next job of the same experiment. Of a process of
this machine it is known whether it lives; one elsewhere counts as dead after `LOST_SECONDS` of silence, by the two
machines' clocks. A driver that was only cut off for longer than that sets the right status at its own end.
"""

import dataclasses
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.drivers import Driver

logger = logging.getLogger(__name__)

BEAT_SECONDS = 60.0
LOST_SECONDS = 600.0
STOP_SECONDS = 5.0
DRIVER_PREFIX = "segpipe.driver."
LOST_TAG = "segpipe.lost_driver"


class Presence:
    """The tag of this driver on one run."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._driver = dataclasses.asdict(Driver.this_process())
        self._run_id = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mlflow presence", daemon=True)
        self.tag = f"{DRIVER_PREFIX}{secrets.token_hex(4)}"

    @property
    def value(self) -> str:
        """What the tag says at this moment."""
        return json.dumps(self._driver | {"beat": round(time.time(), 3)}, sort_keys=True)

    def start(self, run_id: str) -> None:
        """Keep the tag current from now on; the run has it already."""
        self._run_id = run_id
        self._thread.start()

    def stop(self) -> None:
        """Take the tag away."""
        self._stop.set()
        self._thread.join(timeout=STOP_SECONDS)
        _remove_tags(self._client, self._run_id, [self.tag])

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._client.set_tag(self._run_id, self.tag, self.value)
            except Exception as error:  # a server that hiccups costs a beat, not the work
                logger.warning("could not tell MLflow that this job is alive: %s", error)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A driver's tag on a run; `beat` is in seconds since 1970."""

    tag: str
    driver: Driver
    beat: float

    @property
    def is_lost(self) -> bool:
        silent = time.time() - self.beat > LOST_SECONDS
        return self.driver.is_dead_here() or (silent and not self.driver.is_alive_here())


def _drivers(tags: Mapping[str, str]) -> list[_Seen]:
    found = []
    for tag, value in tags.items():
        if tag.startswith(DRIVER_PREFIX):
            fields: dict[str, Any] = json.loads(value)
            beat = float(fields.pop("beat"))
            found.append(_Seen(tag, Driver(**fields), beat))
    return found


def others_work_on(run: Run, presence: Presence | None = None) -> bool:
    """Whether a run has a driver that is not known to be lost, beside the one with this presence."""
    own = presence.tag if presence else ""
    return any(seen.tag != own and not seen.is_lost for seen in _drivers(run.data.tags))


def mark_if_lost(client: MlflowClient, run_id: str, *, noticed_by: str) -> bool:
    """Set a run to KILLED that is RUNNING and whose drivers are all lost, and say why; True where that was so.

    Args:
        client: of the run's store.
        run_id: of any run. One of a version without drivers' tags is left alone: nothing is known.
        noticed_by: the job that looks, for the tag.
    """
    run = client.get_run(run_id)
    seen = _drivers(run.data.tags)
    if run.info.status != "RUNNING" or not seen or not all(each.is_lost for each in seen):
        return False
    now = datetime.now(UTC).isoformat(timespec="seconds")
    who = ", ".join(f"process {each.driver.pid} on {each.driver.host}" for each in seen)
    last = max(each.beat for each in seen)
    heard = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")
    text = f"{who} ended without a word, last heard of at {heard}; noticed at {now} by {noticed_by}"
    logger.warning("MLflow run %s (%s): %s", run.info.run_name, run_id, text)
    client.log_batch(run_id, tags=[RunTag(LOST_TAG, text)])
    client.set_terminated(run_id, "KILLED", end_time=int(last * 1000))
    _remove_tags(client, run_id, [each.tag for each in seen])
    return True


def mark_lost_runs(client: MlflowClient, *, beside: str, noticed_by: str) -> None:
    """Mark every other lost run of a run's experiment; that fails quietly, since no work depends on it."""
    try:
        experiment = client.get_run(beside).info.experiment_id
        for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            if run.info.run_id != beside:
                mark_if_lost(client, run.info.run_id, noticed_by=noticed_by)
    except Exception as error:
        logger.warning("could not look for runs whose jobs have died: %s", error)


def _remove_tags(client: MlflowClient, run_id: str, tags: list[str]) -> None:
    for tag in tags:
        try:
            client.delete_tag(run_id, tag)
        except MlflowException as error:  # another job has just done so, or the server is gone
            logger.debug("could not remove the tag %s of run %s: %s", tag, run_id, error)
