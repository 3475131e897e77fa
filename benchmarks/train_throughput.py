"""Training by the job's machinery (Ray Train, Ray Data, decoding, augmentation) against a bare loop over tensors.

    python benchmarks/train_throughput.py [--rounds 3] [--steps 20] [--cases resnet50 efficientnet_lite0]

Both sides run the same network, batch, threads, optimiser, memory layout and allocator on the same machine, in turn.
The bare loop's images are decoded, augmented and normalised before its clock starts: nothing can feed a network
faster. Images per second are counted after the first step of each run; start-up is reported apart. Takes about half
an hour on two cores.
"""

import dataclasses
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from report import table, write_section

from pipelines import tracking
from pipelines.cluster import worker_environment
from pipelines.datasets.scenes import ScenesConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.recipes import Recipe, find_recipe
from pipelines.train import TrainConfig, train
from segcore.augment_config import AugmentConfig
from segcore.networks import build_network
from segcore.optim import build_optimiser, poly_schedule

NUM_CLASSES = 11
TARGET = 0.90
BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What to compare."""

    rounds: int = 3
    """Runs of each side."""
    steps: int = 20
    """Optimiser steps per epoch; a run has two epochs."""
    cases: tuple[str, ...] = ("resnet50", "efficientnet_lite0")
    """Which networks: resnet50 (DeepLabV3+, output stride 16, crop 321), efficientnet_lite0 (stride 32, 320 x 416)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Images per second after the first step, and seconds before it."""

    images_per_second: float
    startup_seconds: float


def main(config: Config) -> None:
    """Measure every case and write the section of `docs/benchmarks.md`."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = str(Path(scratch, "data"))
        scenes = ScenesConfig(num_train=config.steps * BATCH_SIZE, num_val=2, height=360, width=480)
        prepare(PrepareConfig(dataset=scenes, output=data, images_per_part=32))
        for case in config.cases:
            recipe = recipe_of(case)
            job, plain = [], []
            for turn in range(config.rounds):
                job.append(run_job(recipe, data=data, folder=Path(scratch, case, str(turn))))
                plain.append(run_plain(recipe, steps=config.steps))
                print(f"{case}, round {turn + 1}: job {job[-1]}, plain {plain[-1]}", flush=True)
            rows.append(summary(case, job, plain))
    header = ("network", "job images/s", "plain images/s", "ratio", "target", "job start-up s", "plain start-up s")
    text = (
        "## Training: the job against a bare loop\n\n"
        f"{table(header, rows)}\n\n"
        f"Batch {BATCH_SIZE}, one worker, float32, scenes of 360 x 480 (JPEG and PNG); medians of {config.rounds} runs "
        "of each side in turn, after the first step. The job decodes and augments; the bare loop's tensors are ready. "
        "Start-up is everything before the second step: Ray, workers, imports, first shard, first step."
    )
    write_section("train_throughput", text)
    print(text)


def summary(case: str, job: list[Measured], plain: list[Measured]) -> tuple[str, ...]:
    """One row of the table."""
    rates = [statistics.median(each.images_per_second for each in side) for side in (job, plain)]
    waits = [statistics.median(each.startup_seconds for each in side) for side in (job, plain)]
    ratio = rates[0] / rates[1]
    return (
        case,
        f"{rates[0]:.2f}",
        f"{rates[1]:.2f}",
        f"**{ratio:.3f}**",
        f">= {TARGET:.2f}: {'met' if ratio >= TARGET else 'missed'}",
        f"{waits[0]:.1f}",
        f"{waits[1]:.1f}",
    )


def recipe_of(case: str) -> Recipe:
    """A recipe of the project, for two epochs without interruptions."""
    if case == "resnet50":
        recipe = find_recipe("camvid.deeplab_v3plus_resnet50")
        crop = AugmentConfig(crop_height=321, crop_width=321, brightness=0.3, contrast=0.3, saturation=0.3)
        recipe = dataclasses.replace(recipe, augment=crop, precision="float32", channels_last=False)
    else:
        recipe = find_recipe("camvid.bilinear_efficientnet_lite0")
    optim = dataclasses.replace(recipe.optim, warmup_steps=0)
    return dataclasses.replace(recipe, optim=optim, epochs=2, batch_size=BATCH_SIZE, validate_every=2)


def run_job(recipe: Recipe, *, data: str, folder: Path) -> Measured:
    """Run jobs/train.py's stage; its own log has the rate of each epoch."""
    tracking_uri = tracking.connect(f"sqlite:///{folder}/mlflow.db")
    config = TrainConfig(recipe=recipe, data=data, output=str(folder), name="run", tracking_uri=tracking_uri)
    run = tracking.attach(tracking_uri, train(config).run_id)
    (_, startup_seconds), *_ = run.history("train/startup_seconds")
    rates = [rate for _, rate in run.history("train/images_per_second")]
    return Measured(images_per_second=statistics.median(rates), startup_seconds=startup_seconds)


def run_plain(recipe: Recipe, *, steps: int) -> Measured:
    """The bare loop, in a process of its own as the job's worker has."""
    began = time.time()
    command = [sys.executable, __file__, "--child"]
    settings = pickle.dumps((recipe, steps, began))
    # The same allocator as the job's worker has: it is no merit of the job's machinery.
    environment = os.environ | worker_environment(use_gpu=False)["env_vars"]
    child = subprocess.run(command, input=settings, capture_output=True, check=False, env=environment)
    if child.returncode:
        raise RuntimeError(child.stderr.decode())
    return Measured(**json.loads(child.stdout))


def plain_loop(recipe: Recipe, steps: int, began: float) -> Measured:
    """Plain PyTorch over tensors in memory: what every tutorial does, and nothing else."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    crop = recipe.augment
    images = [torch.randn(BATCH_SIZE, 3, crop.crop_height, crop.crop_width) for _ in range(4)]
    labels = [torch.randint(0, NUM_CLASSES, (BATCH_SIZE, crop.crop_height, crop.crop_width)) for _ in range(4)]
    model = build_network(recipe.model, NUM_CLASSES).train()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = [each.to(memory_format=torch.channels_last) for each in images]
    optimiser = build_optimiser(model, recipe.optim)
    schedule = poly_schedule(optimiser, recipe.optim, total_steps=2 * steps)
    startup_seconds, rates = 0.0, []
    for epoch in range(2):
        clock = time.perf_counter()
        for step in range(steps):
            loss = model.loss(model(images[step % 4]), labels[step % 4]).total  # type: ignore[operator]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if epoch == step == 0:
                startup_seconds = time.time() - began
                clock = time.perf_counter()
        timed = steps - 1 if epoch == 0 else steps
        rates.append(timed * BATCH_SIZE / (time.perf_counter() - clock))
    return Measured(images_per_second=statistics.median(rates), startup_seconds=startup_seconds)


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(dataclasses.asdict(plain_loop(*pickle.loads(sys.stdin.buffer.read())))))
    else:
        main(tyro.cli(Config, description=__doc__))
