"""Metrics of a running job: harmless where Ray does not run, cheap where it does."""

import subprocess
import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import live_metrics
from pipelines.nightly import run
from pipelines.nightly.claims import Progress
from pipelines.nightly.stage_timer import StageTimer
from pipelines.nightly.worker import ShardSegmenter
from pipelines.nightly.worker_job import ShardReport
from pipelines.tables.runs import PartFile, ShardCommit


def test_without_ray_nothing_happens_and_ray_is_not_imported() -> None:
    code = (
        "import sys; from pipelines import live_metrics as m; m.count('segpipe_images', 3); "
        "m.show('segpipe_images_waiting', 1); assert not m._made and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_is_an_error_even_without_ray() -> None:
    with pytest.raises(KeyError, match="segpipe_image"):
        live_metrics.count("segpipe_image", 1)


def test_a_call_costs_microseconds(ray_session: None) -> None:
    live_metrics.count("segpipe_stage_seconds", 1, {"stage": "infer"})
    fastest = float("inf")
    for _ in range(20):  # of 20, so that other load does not matter
        began = time.perf_counter()
        for _ in range(100):
            live_metrics.count("segpipe_stage_seconds", 0.01, {"stage": "infer"})
        fastest = min(fastest, (time.perf_counter() - began) / 100)
    assert fastest < 1e-3  # a shard makes ten such calls, and takes seconds


def test_a_missing_label_is_an_error(ray_session: None) -> None:
    with pytest.raises(ValueError, match="stage"):
        live_metrics.count("segpipe_stage_seconds", 1)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What is counted and shown, by name and labels."""
    found: dict[str, float] = {}

    def count(name: str, amount: float, labels: Mapping[str, str] | None = None) -> None:
        key = " ".join([name, *(labels or {}).values()])
        found[key] = found.get(key, 0.0) + amount

    monkeypatch.setattr(live_metrics, "count", count)
    monkeypatch.setattr(live_metrics, "show", found.__setitem__)
    return found


def test_a_shard_is_counted_with_what_is_left(recorded: dict[str, float]) -> None:
    files = tuple(
        PartFile(table=table, staged="", path="", num_rows=num_rows, num_bytes=0, sha256="")
        for table, num_rows in (("predictions", 60), ("masks", 60), ("failures", 4))
    )
    report = ShardReport(
        result=ShardCommit(run_id="000001", shard=0, attempt="a", files=files),
        began=0.0,
        ended=1.0,
        worker_began=0.0,
        peak_memory_bytes=0,
        worker_pid=1,
        seconds={},
    )
    run._show(report, Progress(num_planned=200, num_images=60, num_failures=4))
    assert recorded == {
        "segpipe_shards": 1,
        "segpipe_images": 60,
        "segpipe_failures": 4,
        "segpipe_images_waiting": 136,
    }


def test_seconds_by_stage_add_up_however_often_they_are_shown(recorded: dict[str, float]) -> None:
    clock = iter(range(100))
    worker: Any = SimpleNamespace(timer=StageTimer(now=lambda: float(next(clock))), shown_seconds={})
    for _ in range(3):
        with worker.timer.stage("infer"):
            pass
        ShardSegmenter._show_stages(worker)
    assert recorded["segpipe_stage_seconds infer"] == 3
    assert sum(recorded.values()) == sum(worker.shown_seconds.values()) > 3
