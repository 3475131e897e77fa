"""The identity of a training run, kept in its folder: the same command continues it, another one is refused."""

import time
from typing import Any

from pipelines import storage
from pipelines.manifests import code_commit

RECORD_FILE = "run.json"


def read_record(run_folder: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier start, or None.

    Args:
        run_folder: URI of the run's folder.
        identity: what this start would run: nested JSON values.

    Raises:
        ValueError: the earlier start was another experiment; the message lists what differs.
    """
    uri = storage.join(run_folder, RECORD_FILE)
    if not storage.exists(uri):
        return None
    record: dict[str, Any] = storage.read_json(uri)
    before, now = _flattened(record["identity"]), _flattened(identity)
    changed = [
        f"{field} was {before.get(field)!r} and is {now.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    ]
    if changed:
        raise ValueError(
            f"{run_folder} belongs to another run: {'; '.join(changed)}. A name is one experiment: give a new --name, "
            "or the old settings to continue"
        )
    return record


def claim(run_folder: str, identity: dict[str, Any], *, run_id: str) -> None:
    """Write the record of a new run; of several drivers only one can.

    Raises:
        ValueError: another driver has just done so.
    """
    content = {"identity": identity, "mlflow_run_id": run_id, "code_commit": code_commit(), "started_at": time.time()}
    if not storage.create_exclusive(storage.join(run_folder, RECORD_FILE), storage.json_bytes(content)):
        raise ValueError(f"another job has just started {run_folder}; wait for it, or give a new --name")


def _flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
