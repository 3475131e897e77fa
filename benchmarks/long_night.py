"""A night of many small images by `jobs/segment.py`: memory over its course, and whether its page's times add up.

    python benchmarks/long_night.py [--num-images 10000] [--workers 2]

The job runs as a user starts it, in a process of its own, Ray included. Once a second the resident memory of the job
and of its Ray workers is read from /proc (Linux). Then the same command runs once more, with nothing new to do.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
import tyro
from numpy.typing import NDArray
from random_models import write_random_model

from pipelines import storage
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.demo_images import jpeg
from segcore.models import ENetConfig

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 96, 128
DISTINCT_IMAGES = 200
CAMERAS = 4
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    num_images: int = 10_000
    """Of the night."""
    workers: int = 2
    """Of the job, one thread each."""


@dataclass(kw_only=True, slots=True)
class Memory:
    """Resident bytes of a job's processes, second by second."""

    seconds: list[float] = field(default_factory=list)
    driver: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_images(Path(scratch, "images"), config.num_images)
        write_random_model(Path(scratch, "model"), ENetConfig(), height=HEIGHT, width=WIDTH, num_classes=len(CLASSES))
        memory = Memory()
        seconds = _run(Path(scratch), config, memory)
        summary = storage.read_json(str(Path(scratch, "tables", "runs", "000001", "summary.json")))
        again = _run(Path(scratch), config, Memory())
    assert summary["images"] == config.num_images, summary
    _write(config, summary, memory, seconds, again)


def _write(config: BenchmarkConfig, summary: dict[str, Any], memory: Memory, seconds: float, again: float) -> None:
    stages: dict[str, float] = summary["stages"]
    rows = [(stage, f"{each:.1f}", f"{each / seconds:.1%}") for stage, each in stages.items()]
    total = sum(stages.values())
    rows.append(("all stages", f"{total:.1f}", f"{total / seconds:.1%}"))
    text = f"""## A long night

{config.num_images:,} JPEGs of {HEIGHT} x {WIDTH} of {CAMERAS} cameras, ENet with random weights, {config.workers}
workers of one thread, by `python jobs/segment.py`: {seconds:.1f} s from the command to its end, interpreter and imports
included; {summary["images_per_second"]:.1f} images/s while the workers worked. The same command again, nothing new:
{again:.1f} s.

{report.table(("stage, as the page has it", "seconds", "of the wall time"), rows)}

Target: the stages add up to the wall time within 5 %.

{report.table(("resident MiB (mean)", *_COURSE), _courses(memory))}

Target: flat. The first fifth has the start-up, and the last one the page."""
    print(text)
    report.write_section("long_night", text)


_COURSE = tuple(f"fifth {number} of the time" for number in range(1, 6))


def _courses(memory: Memory) -> list[tuple[str, ...]]:
    at = np.asarray(memory.seconds)
    fifths = np.clip((5 * (at - at[0]) / (at[-1] - at[0])).astype(int), 0, 4)
    return [
        (name, *(f"{_mean(values, fifths == number) / 2**20:.0f}" for number in range(5)))
        for name, values in (("the job itself", memory.driver), ("largest Ray worker", memory.workers))
    ]


def _mean(values: list[int], chosen: NDArray[np.bool_]) -> float:
    return float(np.asarray(values, dtype=np.float64)[chosen].mean())


def _run(scratch: Path, config: BenchmarkConfig, memory: Memory) -> float:
    """Run the job; returns its wall time."""
    command = [sys.executable, str(ROOT / "jobs" / "segment.py"), "--images", str(scratch / "images")]
    command += ["--model", str(scratch / "model"), "--tables", str(scratch / "tables"), "--threads", "1"]
    command += ["--workers", str(config.workers), "--tracking-uri", f"sqlite:///{scratch / 'mlflow.db'}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.perf_counter()
    job = subprocess.Popen(command, env=environment | {"RAY_AUTH_MODE": "disabled"})
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(job.pid, ended, memory))
    watch.start()
    code = job.wait()
    seconds = time.perf_counter() - started
    ended.set()
    watch.join()
    if code:
        raise RuntimeError(f"the job ended with {code}; its messages stand above")
    return seconds


def _watch(job: int, ended: threading.Event, memory: Memory) -> None:
    while not ended.wait(1.0):
        resident = {pid: _resident_bytes(pid) for pid in (job, *_ray_workers(job))}
        memory.seconds.append(time.monotonic())
        memory.driver.append(resident.pop(job))
        memory.workers.append(max(resident.values(), default=0))


def _ray_workers(job: int) -> list[int]:
    """Ray's workers, whose names begin with `ray::`, below a process."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found: list[int] = []
    frontier = {job}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += frontier
    return [pid for pid in found if _command(pid).startswith("ray::")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _write_images(folder: Path, count: int) -> None:
    data = [jpeg(draw_scene(seed, height=HEIGHT, width=WIDTH)[0]) for seed in range(DISTINCT_IMAGES)]
    for index in range(count):
        path = folder / f"camera-{index % CAMERAS}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[index % len(data)])


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
