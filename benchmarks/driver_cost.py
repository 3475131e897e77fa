"""What the driver itself computes for each shard of `prepare`, `fit_label_pca` and `segment`.

    python benchmarks/driver_cost.py [--shards 2000 10000]

Each job runs twice, in a process of its own, on shards of one small image: with fewer and with more shards. The
difference of the two processes' CPU seconds, divided by the difference in shards, is what a shard costs the driver;
interpreter, imports and Ray's start are in both. Workers' time is not in it: with enough of them, a cluster's pace ends
where the driver's time does.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import report
import tyro
from random_models import write_random_model

from pipelines import storage
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.demo_images import jpeg
from pipelines.intake.labels import encode_labels_png
from segcore.models import ENetConfig

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 64, 64
DISTINCT_IMAGES = 50
TARGET_MS = 2.0
MANY_SHARDS = 100_000
CPU_MARK = "driver CPU seconds: "
_MEASURED = f"""
import runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("{CPU_MARK}%.3f" % time.process_time(), file=sys.stderr)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    shards: tuple[int, int] = (2000, 10000)
    """Fewer, and more."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    seconds: dict[str, list[float]] = {"prepare": [], "fit_label_pca": [], "segment": []}
    with tempfile.TemporaryDirectory() as scratch:
        model = str(Path(scratch, "model"))
        write_random_model(Path(model), ENetConfig(), height=HEIGHT, width=WIDTH, num_classes=len(CLASSES))
        for count in config.shards:
            place = Path(scratch, str(count))
            _write_pairs(place, count)
            for stage, arguments in _commands(place, model).items():
                seconds[stage].append(_driver_seconds(stage, arguments, place))
                print(f"{stage}, {count} shards: {seconds[stage][-1]:.1f} s of the driver's CPU time", flush=True)
    _write(config, seconds)


def _write(config: BenchmarkConfig, seconds: dict[str, list[float]]) -> None:
    fewer, more = config.shards
    rows = []
    for stage, (first, second) in seconds.items():
        each_ms = 1000 * (second - first) / (more - fewer)
        rows.append([stage, f"{first:.1f}", f"{second:.1f}", f"{each_ms:.2f}", f"{each_ms * MANY_SHARDS / 1000:.0f}"])
    header = ["job", f"CPU s, {fewer:,} shards", f"{more:,} shards", "ms a shard", f"s for {MANY_SHARDS:,} shards"]
    text = f"""## The driver's share of a shard

CPU time of the job's own process on a folder, one image of {HEIGHT} x {WIDTH} in each shard; the rest of a job is its
workers'. Target: below {TARGET_MS:g} ms a shard.

{report.table(header, rows)}

With shards of 64 images, {MANY_SHARDS:,} shards are {64 * MANY_SHARDS / 1e6:.1f} million images."""
    print(text)
    report.write_section("driver_cost", text)


def _commands(place: Path, model: str) -> dict[str, list[str]]:
    tracking = ["--tracking-uri", f"sqlite:///{place / 'mlflow.db'}"]
    source = ["--images", str(place / "images"), "--labels", str(place / "labels"), "--val-fraction", "0"]
    data = str(place / "data")
    return {
        "prepare": [
            *("folder", *source, "--classes", str(place / "classes.json")),
            *("--output", data, "--images-per-part", "1", "--workers", "2"),
        ],
        "fit_label_pca": [
            *("--data", data, "--output", str(place / "pca"), "--block-side", "16", "--num-components", "16"),
            *("--max-recovery-images", "100", "--workers", "2"),
        ],
        "segment": [
            *("--images", str(place / "images"), "--model", model, "--tables", str(place / "tables")),
            *("--images-per-shard", "1", "--workers", "2", "--threads", "1", "--no-page", *tracking),
        ],
    }


def _driver_seconds(stage: str, arguments: list[str], place: Path) -> float:
    command = [sys.executable, "-c", _MEASURED, str(ROOT / "jobs" / f"{stage}.py"), *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{stage} ended with {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(CPU_MARK))
    return float(line.removeprefix(CPU_MARK))


def _write_pairs(place: Path, count: int) -> None:
    scenes = [draw_scene(seed, height=HEIGHT, width=WIDTH) for seed in range(DISTINCT_IMAGES)]
    files = [(jpeg(pixels_HW3), encode_labels_png(labels_HW)) for pixels_HW3, labels_HW in scenes]
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for index in range(count):
        image, label = files[index % len(files)]
        (place / "images" / f"{index:06d}.jpg").write_bytes(image)
        (place / "labels" / f"{index:06d}.png").write_bytes(label)
    classes = {"names": [name for name, _ in CLASSES], "ignore": [255]}
    storage.write_atomic(str(place / "classes.json"), storage.json_bytes(classes))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
