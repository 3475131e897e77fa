"""How long a run will take, by earlier runs of the same model and settings over the same tables."""

import statistics
from dataclasses import dataclass

from pipelines import storage
from pipelines.tables import commits

RUNS_LOOKED_AT = 20
RUNS_USED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What earlier runs let expect.

    Attributes:
        seconds: of the work, start-up apart.
        images_per_second: of all workers together.
        num_runs: that this rests on.
    """

    seconds: float
    images_per_second: float
    num_runs: int


def summary_uri(tables: str, run_id: str) -> str:
    """Where a finished run says how many images it had and how fast it was: JSON."""
    return storage.join(tables, "runs", run_id, "summary.json")


def forecast_run(
    tables: str,
    *,
    num_images: int,
    model_digest: str,
    config_digest: str,
    workers: int,
    threads: int,
    use_gpu: bool,
) -> Forecast | None:
    """Median speed of the newest runs, taken to grow with the workers, and on CPUs with their threads.

    Args:
        tables: URI of the tables' folder.
        num_images: of the run to come.
        model_digest, config_digest: only runs with the same ones count.
        workers, threads, use_gpu: of the run to come; runs on the other kind of device do not count.

    Returns:
        None where no run counts.
    """
    units = workers if use_gpu else workers * threads
    rates: list[float] = []
    for run_id in reversed(commits.run_ids(tables)[-RUNS_LOOKED_AT:]):
        try:
            summary = storage.read_json(summary_uri(tables, run_id))
        except FileNotFoundError:  # not finished, or by an older version
            continue
        settings = commits.read_settings(tables, run_id)
        is_same = (settings.model_digest, settings.config_digest) == (model_digest, config_digest)
        if is_same and summary["use_gpu"] == use_gpu and summary["images_per_second"]:
            units_then = summary["workers"] if use_gpu else summary["workers"] * summary["threads"]
            rates.append(summary["images_per_second"] / units_then)
        if len(rates) == RUNS_USED:
            break
    if not rates:
        return None
    rate = statistics.median(rates) * units
    return Forecast(seconds=num_images / rate, images_per_second=rate, num_runs=len(rates))
