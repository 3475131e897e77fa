"""A run's time: every moment counts for one stage, and the stages add up."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from pipelines import storage
from pipelines.night_report.summary import STAGES, RunClock, read_summary, write_summary
from pipelines.nightly.stage_timer import SHARD, WORKER_STAGES, StageTimer


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def pass_seconds(self, seconds: float) -> None:
        self.time += seconds


@dataclass(frozen=True, kw_only=True)
class Report:
    """The part of a `ShardReport` that the clock reads."""

    worker_began: float
    ended: float
    worker_pid: int
    seconds: dict[str, float]
    num_images: int = 5
    num_failures: int = 1
    peak_memory_bytes: int = 7


def _lap_work(clock: RunClock, reports: list[Report], *, workers: int) -> None:
    clock.lap_work(cast(Any, reports), workers=workers)


def _split(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(WORKER_STAGES, 0.0) | seconds


def test_a_workers_moments_count_for_the_network_first() -> None:
    now = Clock()
    timer = StageTimer(now)
    now.pass_seconds(1)  # no shard yet
    with timer.stage(SHARD):
        with timer.stage("decode"):
            now.pass_seconds(2)
            with timer.stage("infer"):
                now.pass_seconds(4)  # decoding beside the network costs nothing
                with timer.stage("encode"):
                    now.pass_seconds(8)
        with timer.stage("encode"), timer.stage("decode"):
            now.pass_seconds(16)
        with timer.stage("commit"):
            now.pass_seconds(32)
        now.pass_seconds(64)  # a shard, and nothing at work
    now.pass_seconds(128)
    expected = {"fetch": 129, "decode": 2, "infer": 12, "encode": 16, "commit": 32, "idle": 64}
    assert timer.seconds() == expected
    assert sum(timer.seconds().values()) == now.time - 1000


def test_a_stage_ends_when_its_block_fails() -> None:
    now = Clock()
    timer = StageTimer(now)
    with pytest.raises(ValueError, match="broken"), timer.stage("infer"):
        raise ValueError("broken")
    now.pass_seconds(3)
    assert timer.seconds()["fetch"] == 3


def test_laps_and_the_workers_shares_add_up_to_the_wall_time() -> None:
    now = Clock()
    clock = RunClock(now)
    for seconds, stage in ((2, "list"), (3, "check"), (5, "ray"), (1, "plan")):
        now.pass_seconds(seconds)
        clock.lap(stage)
    began = now.time
    now.pass_seconds(100)
    first = Report(worker_began=began + 10, worker_pid=1, ended=began + 50, seconds=_split(infer=30, fetch=10))
    reports = [
        replace(first, ended=began + 95, seconds=_split(infer=70, fetch=15)),
        first,  # an earlier one of the same worker
        Report(worker_began=began + 20, worker_pid=2, ended=began + 90, seconds=_split(infer=50, commit=20)),
    ]
    _lap_work(clock, reports, workers=2)
    assert clock.seconds["load"] == pytest.approx(10)
    expected = {"fetch": 7.5, "decode": 0, "infer": 60, "encode": 0, "commit": 10, "idle": 12.5}
    assert {stage: clock.seconds[stage] for stage in WORKER_STAGES} == pytest.approx(expected)
    assert clock.images_per_second == pytest.approx(18 / 90)
    now.pass_seconds(4)
    clock.lap("publish")
    summary = clock.summary(
        "000001", images=15, failures=3, reports=cast(Any, reports), workers=2, threads=1, use_gpu=False
    )
    assert summary.seconds == pytest.approx(115) == pytest.approx(sum(summary.stages.values()))
    assert summary.computed == 18 and set(summary.stages) == set(STAGES)


def test_workers_whose_clocks_are_ahead_claim_no_more_than_there_was() -> None:
    now = Clock()
    clock = RunClock(now)
    now.pass_seconds(10)
    ahead = Report(worker_began=now.time - 500, ended=now.time, worker_pid=1, seconds=_split(infer=490, fetch=10))
    _lap_work(clock, [ahead], workers=1)
    assert sum(clock.seconds.values()) == pytest.approx(10)
    assert clock.seconds["infer"] == pytest.approx(9.8) and clock.seconds["load"] == pytest.approx(0)


def test_a_run_without_work_has_no_speed_and_every_run_its_own_time() -> None:
    now = Clock()
    clock = RunClock(now)
    now.pass_seconds(10)
    _lap_work(clock, [], workers=1)
    first = clock.summary("000001", images=4, failures=0, reports=[], workers=1, threads=1, use_gpu=False)
    assert first.images_per_second is None and first.seconds == 10 and first.stages["load"] == 10
    assert first.hours_per_million() is None
    clock.start_run()
    now.pass_seconds(3)
    clock.lap("plan")
    second = clock.summary("000002", images=4, failures=0, reports=[], workers=1, threads=1, use_gpu=False)
    assert second.seconds == 3 == sum(second.stages.values())


def test_the_time_before_the_job_counts_for_its_first_run() -> None:
    now = Clock()
    clock = RunClock(now, began=now.time - 7)
    now.pass_seconds(3)
    clock.lap("check")
    first = clock.summary("000001", images=4, failures=0, reports=[], workers=1, threads=1, use_gpu=False)
    assert (first.stages["start"], first.seconds) == (7, 10) and sum(first.stages.values()) == 10
    clock.start_run()
    assert clock.seconds["start"] == 0


def test_a_summary_reads_back_and_later_fields_do_not_disturb(tmp_path: Path) -> None:
    tables = str(tmp_path)
    assert read_summary(tables, "000001") is None
    now = Clock()
    clock = RunClock(now)
    now.pass_seconds(36)
    report = Report(worker_began=now.time - 20, ended=now.time, worker_pid=1, seconds=_split(infer=20))
    _lap_work(clock, [report], workers=1)
    summary = clock.summary(
        "000001",
        images=5,
        failures=1,
        reports=cast(Any, [report]),
        workers=1,
        threads=2,
        use_gpu=False,
        cost_per_hour=12.0,
        predicted_seconds=24.0,
    ).with_stage("page", 4.0)
    assert summary.seconds == 40 and summary.stages["page"] == 4
    assert summary.cost_per_million() == pytest.approx(40 / 3600 * 12 / 6 * 1e6)
    assert summary.cost_per_million(predicted=True) == pytest.approx(24 / 3600 * 12 / 6 * 1e6)
    write_summary(tables, summary)
    assert read_summary(tables, "000001") == summary
    uri = storage.join(tables, "runs", "000001", "summary.json")
    storage.write_atomic(uri, storage.json_bytes(storage.read_json(uri) | {"of a later version": 1}))
    assert read_summary(tables, "000001") == summary
