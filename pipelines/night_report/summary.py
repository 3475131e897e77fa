"""What a run of `segment` did and where its time went: `runs/<run>/summary.json`, written once the run is published.

    {"run_id": "000007", "images": 9990, "failures": 10, "computed": 10000, "seconds": 412.3, "images_per_second": 25.4,
     "workers": 2, ..., "stages": {"list": 1.2, "check": 0.8, ..., "page": 3.1}}       every field of `RunSummary`

Seconds are those of the job that finished the run, from its process's start, or from the end of the run that it
finished before, to the end of the page. The stages share them without overlap: the driver counts each moment for the
stage that it ends (`RunClock`), and while the workers are at work, each worker does the same
(`pipelines.nightly.stage_timer`); a worker's second counts for 1 / workers. So the stages add up to the wall time,
however much runs at the same time.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines import storage
from pipelines.nightly.stage_timer import WORKER_STAGES

if TYPE_CHECKING:  # Ray reads its environment at import
    from pipelines.nightly.worker_job import ShardReport

SUMMARY_FILE = "summary.json"

STAGES = {
    "start": "start the interpreter, import the packages",
    "check": "read the models, ask MLflow, try the tables",
    "ray": "start Ray, or connect to it",
    "list": "list the images",
    "plan": "compare the listing with what is committed, write the plan",
    "load": "start the workers; each loads the models",
    "fetch": "workers wait for the images of their next shard",
    "decode": "workers decode, and the network waits for it",
    "infer": "workers run the network",
    "encode": "workers encode masks, and the network waits for it",
    "commit": "workers write and commit, and the network waits for it",
    "idle": "workers have nothing left to do, or died",
    "publish": "finish promotions, compute the metrics, write the snapshot",
    "page": "read the tables, draw the samples",
}
"""Every stage of a run's wall time in order, and what happens in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """One published run.

    Attributes:
        run_id: of the tables.
        images: segmented, the run's.
        failures: images that ended in the failures table, the run's.
        deletions: objects that the run marked as gone or as come back.
        computed: of both together, those of the job that finished the run; fewer where another job had begun it.
        seconds: wall time of that job, see above.
        images_per_second: `computed` over the time from the first worker with a model to the last shard; None without.
        workers, threads, use_gpu: as the job was given them.
        peak_memory_bytes: of the largest worker; 0 without any.
        cost_per_hour: of the whole cluster, in any currency; None unless given.
        predicted_seconds: what the plan expected of the work, start-up apart; None where nothing could be said.
        stages: seconds by stage, all of `STAGES`; they add up to `seconds`.
        finished_at: UTC, ISO 8601.
    """

    run_id: str
    images: int
    failures: int
    deletions: int
    computed: int
    seconds: float
    images_per_second: float | None
    workers: int
    threads: int
    use_gpu: bool
    peak_memory_bytes: int
    cost_per_hour: float | None
    predicted_seconds: float | None
    stages: dict[str, float]
    finished_at: str

    def hours_per_million(self, *, predicted: bool = False) -> float | None:
        """For a million images at this run's pace, start-up included, or at the predicted one; None where unknown."""
        seconds = self.predicted_seconds if predicted else self.seconds
        return seconds / 3600 * 1e6 / self.computed if seconds is not None and self.computed else None

    def cost_per_million(self, *, predicted: bool = False) -> float | None:
        """Price of a million images, in the currency of `cost_per_hour`; None where unknown."""
        hours = self.hours_per_million(predicted=predicted)
        return None if hours is None or self.cost_per_hour is None else hours * self.cost_per_hour

    def with_stage(self, stage: str, seconds: float) -> "RunSummary":
        """The same, after some more time in a stage."""
        stages = self.stages | {stage: self.stages[stage] + seconds}
        return dataclasses.replace(self, stages=stages, seconds=self.seconds + seconds)


@dataclass(slots=True)
class RunClock:
    """Splits the time of a job among its runs and their stages; each moment counts for the stage that it ends.

    Attributes:
        now: seconds since 1970, comparable with the workers' clocks.
        began: when the job was started, where its process began with it; the time since counts for `start`.
        seconds: by stage, since the last run ended.
        images_per_second: of the run's work; None without any.
    """

    now: Callable[[], float] = time.time
    began: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    _began: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.start_run()
        if self.began is not None:
            self._began = self._last = min(self.began, self._began)
            self.lap("start")

    def start_run(self) -> None:
        """What follows counts for the next run."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.images_per_second = None
        self._began = self._last = self.now()

    def lap(self, stage: str) -> float:
        """The time since the last call counts for `stage`; returns it."""
        now = self.now()
        elapsed, self._last = now - self._last, now
        self.seconds[stage] += elapsed
        return elapsed

    def lap_work(self, reports: "Sequence[ShardReport]", *, workers: int) -> None:
        """The time since the last call was that of workers: from their start to the last shard.

        Until the first of them had its models it counts for `load`. Of the rest, each worker says what it did with its
        share; what nobody says anything of was idle.
        """
        began = self._last
        elapsed = self.lap("load")
        if not reports:
            return
        work = min(max(began + elapsed - min(report.worker_began for report in reports), 0.0), elapsed)
        self.seconds["load"] -= work
        last_of_worker: dict[tuple[float, int], ShardReport] = {}
        for report in sorted(reports, key=lambda report: report.ended):
            last_of_worker[report.worker_began, report.worker_pid] = report
        split = {
            stage: sum(report.seconds[stage] for report in last_of_worker.values()) / workers for stage in WORKER_STAGES
        }
        # Clocks of two machines differ: what the workers say never adds up to more than the driver saw.
        scale = min(1.0, work / max(sum(split.values()), 1e-9))
        for stage, seconds in split.items():
            self.seconds[stage] += scale * seconds
        self.seconds["idle"] += work - scale * sum(split.values())
        if work > 0:
            self.images_per_second = sum(report.num_images + report.num_failures for report in reports) / work

    def summary(
        self,
        run_id: str,
        *,
        images: int,
        failures: int,
        deletions: int = 0,
        reports: "Sequence[ShardReport]",
        workers: int,
        threads: int,
        use_gpu: bool,
        cost_per_hour: float | None = None,
        predicted_seconds: float | None = None,
    ) -> RunSummary:
        """The run as it is now; see `RunSummary`. `reports` are those of its shards that this job did."""
        return RunSummary(
            run_id=run_id,
            images=images,
            failures=failures,
            deletions=deletions,
            computed=sum(report.num_images + report.num_failures for report in reports),
            seconds=self._last - self._began,
            images_per_second=self.images_per_second,
            workers=workers,
            threads=threads,
            use_gpu=use_gpu,
            peak_memory_bytes=max((report.peak_memory_bytes for report in reports), default=0),
            cost_per_hour=cost_per_hour,
            predicted_seconds=predicted_seconds,
            stages=dict(self.seconds),
            finished_at=datetime.now(UTC).isoformat(),
        )


def write_summary(tables: str, summary: RunSummary) -> None:
    """Store a run's summary, all-or-nothing; again once the page is drawn."""
    storage.write_atomic(_uri(tables, summary.run_id), storage.json_bytes(dataclasses.asdict(summary)))


def read_summary(tables: str, run_id: str) -> RunSummary | None:
    """A run's summary, or None where there is none: the run is not finished, or an older version finished it."""
    try:
        values: dict[str, Any] = storage.read_json(_uri(tables, run_id))
    except FileNotFoundError:
        return None
    known = {each.name for each in dataclasses.fields(RunSummary)}
    return RunSummary(**{name: value for name, value in values.items() if name in known})


def _uri(tables: str, run_id: str) -> str:
    return storage.join(tables, "runs", run_id, SUMMARY_FILE)
