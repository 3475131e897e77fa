"""`prepare` and `fit_label_pca` on two workers against one.

    python benchmarks/worker_scaling.py [--rounds 3] [--images 1600]

Stages run inside one embedded Ray whose processes are warm, in turn with one worker and with two, on generated scenes
whose image files lie in a folder. What is timed is the whole stage, the solving of the label PCA and the report
included.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import report
import tyro

from pipelines import storage
from pipelines.cluster import ray_cluster
from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.demo_images import jpeg
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.intake.labels import encode_labels_png
from pipelines.prepare import PrepareConfig, prepare

TARGET = 1.7
HEIGHT, WIDTH = 360, 480
DISTINCT_IMAGES = 40
BLOCK_SIDE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    rounds: int = 3
    """Times that each side runs, after one that is not counted."""
    images: int = 1600
    """Pairs, in shards of 16."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(num_cpus_needed=2, why="two workers"):
        place = Path(scratch)
        source = _write_pairs(place / "raw", config.images)
        data = _prepare(place / "data", source, workers=2)
        sides: dict[str, Callable[[Path, int], object]] = {
            "prepare": lambda output, workers: _prepare(output, source, workers=workers),
            "fit_label_pca": lambda output, workers: _fit(output, data, workers=workers),
        }
        for stage, run in sides.items():
            seconds = _interleaved(run, place / "output", rounds=config.rounds)
            ratio = report.median_ratio(seconds["1"], seconds["2"])
            medians = [f"{sorted(seconds[side])[config.rounds // 2]:.1f}" for side in ("1", "2")]
            met = "met" if ratio >= TARGET else "missed"
            rows.append([stage, *medians, f"**{ratio:.2f}**", f">= {TARGET}: {met}"])
    text = f"""## Two workers against one

{report.table(["stage", "1 worker, s", "2 workers, s", "ratio", "target"], rows)}

{config.images} pairs of {HEIGHT} x {WIDTH} in shards of 16, label blocks of side {BLOCK_SIDE}; medians of
{config.rounds} rounds in turn, Ray started before."""
    print(text)
    report.write_section("worker_scaling", text)


def _interleaved(run: Callable[[Path, int], object], output: Path, *, rounds: int) -> dict[str, list[float]]:
    def once(workers: int) -> None:
        shutil.rmtree(output, ignore_errors=True)
        run(output, workers)

    once(2)  # imports, compiled kernels
    return report.interleaved_seconds({"1": lambda: once(1), "2": lambda: once(2)}, rounds=rounds)


def _prepare(output: Path, source: FolderConfig, *, workers: int) -> str:
    prepare(PrepareConfig(dataset=source, output=str(output), images_per_part=16, workers=workers))
    return str(output)


def _fit(output: Path, data: str, *, workers: int) -> None:
    fit_label_pca(
        FitLabelPCAConfig(data=data, output=str(output), block_side=BLOCK_SIDE, num_components=32, workers=workers)
    )


def _write_pairs(folder: Path, count: int) -> FolderConfig:
    scenes = [draw_scene(seed, height=HEIGHT, width=WIDTH) for seed in range(DISTINCT_IMAGES)]
    files = [(jpeg(pixels_HW3), encode_labels_png(labels_HW)) for pixels_HW3, labels_HW in scenes]
    for index in range(count):
        image, label = files[index % len(files)]
        for kind, name, data in (("images", f"{index:05d}.jpg", image), ("labels", f"{index:05d}.png", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / name).write_bytes(data)
    classes = {"names": [name for name, _ in CLASSES], "ignore": [255]}
    storage.write_atomic(str(folder / "classes.json"), storage.json_bytes(classes))
    return FolderConfig(
        images=str(folder / "images"), labels=str(folder / "labels"), classes=str(folder / "classes.json")
    )


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
