"""How long a run will take, by those before it."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.nightly.forecast import Forecast, forecast_run, summary_uri
from tests.pipelines.committed_nights import commit_night, listing, plan_night


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _night(tables: str, number: int, speed: float | None, *, model: str = "m", **changes: Any) -> None:
    plan = plan_night(tables, listing({f"{index}": "v1" for index in range(number)}), model=model)
    run = commit_night(tables, plan, model=model)
    summary = {"images_per_second": speed, "workers": 2, "threads": 3, "use_gpu": False} | changes
    storage.write_atomic(summary_uri(tables, run.settings.run_id), storage.json_bytes(summary))


def _forecast(tables: str, *, model: str = "m", workers: int = 2, use_gpu: bool = False) -> Forecast | None:
    return forecast_run(
        tables,
        num_images=600,
        model_digest=model,
        config_digest="c",
        workers=workers,
        threads=3,
        use_gpu=use_gpu,
    )


def _check(found: Forecast | None, *, seconds: float, images_per_second: float, num_runs: int) -> None:
    assert found is not None and found.num_runs == num_runs
    assert (found.seconds, found.images_per_second) == pytest.approx((seconds, images_per_second))


def test_without_a_run_of_this_model_on_this_kind_of_device_nothing_is_foretold(tmp_path: Path) -> None:
    tables = str(tmp_path)
    assert _forecast(tables) is None
    _night(tables, 1, 10.0, model="other")
    _night(tables, 2, 10.0, use_gpu=True)
    _night(tables, 3, None)
    commit_night(tables, plan_night(tables, listing({"an older version": "v1"} | {f"{i}": "v1" for i in range(3)})))
    assert _forecast(tables) is None
    found = _forecast(tables, use_gpu=True, workers=6)
    _check(found, seconds=20, images_per_second=30, num_runs=1)


def test_the_median_of_the_newest_runs_counts_and_workers_share_the_work(tmp_path: Path) -> None:
    tables = str(tmp_path)
    for number, speed in enumerate((1000.0, 6.0, 600.0, 6.0, 7.0, 5.0), start=1):  # the first is one too many
        _night(tables, number, speed)
    _check(_forecast(tables), seconds=100, images_per_second=6, num_runs=5)
    _check(_forecast(tables, workers=4), seconds=50, images_per_second=12, num_runs=5)
