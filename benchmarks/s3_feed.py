"""A training whose shards lie on S3 against the same one whose shards lie in a folder, at the network's own pace.

    infra/local.sh start && source local/env.sh
    python benchmarks/s3_feed.py --bucket s3://lake/benchmark [--rounds 2]

Any bucket does that the environment gives access to. Both sides run `train` with one worker on the same generated
scenes; images per second are those of the job's own log, after the first step. What
the run has put into the bucket is removed.
"""

import dataclasses
import statistics
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import report
import tyro

from pipelines import storage, tracking
from pipelines.datasets.scenes import ScenesConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.recipes import Recipe, find_recipe
from pipelines.train import TrainConfig, train

TARGET = 0.85
BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    bucket: str = ""
    """URI below which the shards are put for the time of the run. Empty: nothing is measured."""
    rounds: int = 2
    """Trainings of each side."""
    steps: int = 20
    """Optimiser steps per epoch; a training has three epochs."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    if not config.bucket:
        print("no --bucket given: the section of docs/benchmarks.md stays as it is")
        return
    place = storage.join(config.bucket, f"s3-feed-{uuid.uuid4().hex[:8]}")
    rates: dict[str, list[float]] = {"S3": [], "folder": []}
    waits: dict[str, list[float]] = {"S3": [], "folder": []}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            scenes = ScenesConfig(num_train=config.steps * BATCH_SIZE, num_val=2, height=360, width=480)
            folder = str(Path(scratch, "data"))
            prepare(PrepareConfig(dataset=scenes, output=folder, images_per_part=16))
            for uri in storage.list_files(folder):
                storage.write_atomic(storage.join(place, uri.removeprefix(f"{folder}/")), storage.read_bytes(uri))
            for turn in range(config.rounds):
                for side, data in (("S3", place), ("folder", folder)):
                    rate, wait = _train(data, Path(scratch, f"{side}-{turn}"), steps=config.steps)
                    rates[side].append(rate)
                    waits[side].append(wait)
                    print(f"round {turn + 1}, {side}: {rate:.2f} images/s, waiting {wait:.1%}", flush=True)
        finally:
            storage.remove_tree(place)
    _write(config, rates, waits)


def _write(config: BenchmarkConfig, rates: dict[str, list[float]], waits: dict[str, list[float]]) -> None:
    ratio = report.median_ratio(rates["S3"], rates["folder"])
    rows = [[side, f"{statistics.median(rates[side]):.2f}", f"{statistics.median(waits[side]):.1%}"] for side in rates]
    text = f"""## Feeding a training from S3

{report.table(["shards on", "images/s", "waiting for batches"], rows)}

S3 against the folder: **{ratio:.2f}** (target >= {TARGET}: {"met" if ratio >= TARGET else "missed"}). One worker,
MobileNetV3-small with DeepLabV3+ (`scenes.deeplab_v3plus_mobilenetv3`), batch {BATCH_SIZE}, scenes of 360 x 480 in
shards of 16, three epochs of {config.steps} steps; medians of {config.rounds} trainings of each side in turn. The S3
server ran on the same machine."""
    print(text)
    report.write_section("s3_feed", text)


def _recipe() -> Recipe:
    recipe = find_recipe("scenes.deeplab_v3plus_mobilenetv3")
    optim = dataclasses.replace(recipe.optim, warmup_steps=0)
    return dataclasses.replace(recipe, optim=optim, epochs=3, batch_size=BATCH_SIZE, validate_every=3)


def _train(data: str, output: Path, *, steps: int) -> tuple[float, float]:
    """Images per second and the share of time spent waiting, over the epochs after the first."""
    tracking_uri = tracking.connect(f"sqlite:///{output}/mlflow.db")
    result = train(TrainConfig(recipe=_recipe(), data=data, output=str(output), name="run", tracking_uri=tracking_uri))
    run = tracking.attach(tracking_uri, result.run_id)
    rates, waits = (
        [value for step, value in run.history(f"train/{name}") if step > 0]
        for name in ("images_per_second", "data_wait_fraction")
    )
    return statistics.harmonic_mean(rates), statistics.mean(waits)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
