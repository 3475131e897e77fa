"""`segment` against a bare loop that decodes in threads and runs the same network on the same cores; and its memory.

    python benchmarks/segment_throughput.py [--images DIR] [--backbone efficientnet_lite0] [--rounds 3]

The bare loops write nothing and compute nothing but the class map: one process with as many threads as there are cores,
and as many processes of one thread; with the allocator of the job's workers. A last one also has the job's preparation
of the network (`segcore.inference.prepare`), so that what it gains can be told from what the job costs. Rates are taken
between the first tenth and the last twentieth of the images, so that start-up is apart; it is reported beside them.
Memory is the peak of a worker for n and for 4 n images.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.dataset as ds
import report
import torch
import tyro
from numpy.typing import NDArray
from random_models import write_random_model

from pipelines import storage
from pipelines.checkpoints import load_model
from pipelines.cluster import worker_environment
from pipelines.datasets.scenes import draw_scene
from pipelines.demo_images import jpeg
from pipelines.intake.images import decode_image
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import SegmentResult, segment
from segcore.backbones import BACKBONES
from segcore.inference import prepare
from segcore.models import DeepLabV3PlusConfig

DISTINCT_PHOTOS = 24
DECODE_THREADS = 2
PREPARED = "bare loop, 1 process, batch normalisation folded"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    images: str = ""
    """Folder of photos; default: generated ones of 512 x 683."""
    backbone: str = "efficientnet_lite0"
    """Of a DeepLabV3+ with random weights, output stride 16, 19 classes."""
    num_images: int = 120
    """Per side and round; photos are repeated under other names."""
    num_images_memory: int = 100
    """n of the memory figures, with a small network; the other figure is of 4 n."""
    rounds: int = 3
    """Both sides are measured in turn, as often as this."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        photos = _photos(Path(scratch, "photos"), config.images, config.num_images)
        model = _write_model(Path(scratch, "model"), config.backbone)
        start_up: list[float] = []
        sides = {
            "`segment`, 1 worker": partial(_job_rate, photos, model, Path(scratch, "tables"), start_up, workers=1),
            f"`segment`, {cores} workers": partial(
                _job_rate, photos, model, Path(scratch, "tables"), start_up, workers=cores
            ),
            "bare loop, 1 process": partial(_bare_rate, photos, model, processes=1, threads=cores),
            f"bare loop, {cores} processes": partial(_bare_rate, photos, model, processes=cores, threads=1),
            PREPARED: partial(_bare_rate, photos, model, processes=1, threads=cores, prepared=True),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(config.rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                rates[side].append(sides[side]())
                print(f"round {turn + 1}: {side} {rates[side][-1]:.2f} images/s", flush=True)
        memory = _memory(Path(scratch), config)
    _write(config, cores, rates, start_up, memory)


def _write(
    config: BenchmarkConfig,
    cores: int,
    rates: dict[str, list[float]],
    start_up: list[float],
    memory: dict[int, int],
) -> None:
    bare = [side for side in rates if side.startswith("bare loop") and side != PREPARED]
    best_bare = max(bare, key=lambda side: np.median(rates[side]))
    rows = [
        (side, f"{np.median(each):.2f}", f"{report.median_ratio(each, rates[best_bare]):.2f}")
        for side, each in rates.items()
    ]
    of_folded = report.median_ratio(rates["`segment`, 1 worker"], rates[PREPARED])
    (n, small), (many, large) = sorted(memory.items())
    source = "of --images" if config.images else "generated, 512 x 683"
    text = f"""## Batch segmentation

DeepLabV3+ on {config.backbone}, output stride 16, {config.num_images} photos ({source}) per side and round,
{config.rounds} rounds. `segment` decodes, runs the network, computes confidences, entropy and margin, encodes masks,
writes and commits Parquet; the bare loops decode, run the network and take the argmax.

{report.table((f"on {cores} cores", "images/s (median)", f"of {best_bare} (median over rounds)"), rows)}

Workers and processes share the cores equally. Target: at least 0.90 of the best bare loop with the network as it was
trained. `segment` folds batch normalisation first; it has {of_folded:.2f} of a bare loop that does so too.
Start-up of `segment` (Ray, workers, model; apart): {np.median(start_up):.1f} s.

Peak resident memory of a worker: {small / 2**20:.0f} MiB for {n} images, {large / 2**20:.0f} MiB for {many}
(ratio {large / small:.3f})."""
    print(text)
    report.write_section("segment_throughput", text)


def _job_rate(photos: Path, model: str, tables: Path, start_up: list[float], *, workers: int) -> float:
    """Steady images per second of the job; what else it took goes to `start_up`."""
    started = time.perf_counter()
    result = _segment(photos, model, tables, workers=workers)
    seconds = time.perf_counter() - started
    created = ds.dataset(tables / "predictions").to_table(columns=["created_at"])["created_at"].to_numpy()
    rate = _steady_rate(np.sort(created).astype("datetime64[us]").astype(np.float64) / 1e6)
    start_up.append(seconds - (result.num_images + result.num_failures) / rate)
    return rate


def _segment(photos: Path, model: str, tables: Path, *, workers: int) -> SegmentResult:
    shutil.rmtree(tables, ignore_errors=True)
    config = SegmentConfig(
        images=str(photos),
        model=model,
        tables=str(tables),
        workers=workers,
        threads=(os.cpu_count() or 1) // workers,
        decode_threads=DECODE_THREADS,
        images_per_shard=16,
        page=False,
        tracking_uri=f"sqlite:///{tables.parent / 'mlflow.db'}",
    )
    return segment(config)


def _steady_rate(times: NDArray[np.float64]) -> float:
    first, last = len(times) // 10, len(times) - 1 - len(times) // 20
    return float((last - first) / (times[last] - times[first]))


def _bare_rate(photos: Path, model: str, *, processes: int, threads: int, prepared: bool = False) -> float:
    """Steady images per second of bare loops that share the photos."""
    paths = sorted(str(path) for path in photos.iterdir())
    # The same allocator as the job's workers have: it is no merit of the job's machinery.
    allocator = worker_environment(use_gpu=False)["env_vars"]
    spawn = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, allocator), ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        shares = [paths[index::processes] for index in range(processes)]
        loops = [pool.submit(_bare_loop, share, model, threads, prepared) for share in shares]
        times = np.sort(np.concatenate([loop.result() for loop in loops]))
    return _steady_rate(times)


def _bare_loop(paths: list[str], model: str, threads: int, prepared: bool) -> NDArray[np.float64]:
    """When each class map was there; in the memory layout and batch size that are fastest on a CPU."""
    torch.set_num_threads(threads)
    bundle = load_model(model)
    network = bundle.model.to(memory_format=torch.channels_last)
    if prepared:
        prepare(network, "cpu")
    mean = torch.tensor(bundle.card.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(bundle.card.std).view(1, 3, 1, 1) * 255
    times: list[float] = []
    with torch.inference_mode():
        for pixels_HW3 in _decoded_ahead(paths):
            image = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None]
            image = image.to(torch.float32, memory_format=torch.channels_last)
            # max, since argmax alone takes several times longer on a CPU
            classes = network((image - mean) / std).logits_NCHW.max(dim=1).indices.to(torch.uint8).numpy()
            assert classes.shape[1:] == pixels_HW3.shape[:2]
            times.append(time.time())
    return np.asarray(times)


def _decoded_ahead(paths: list[str]) -> Iterator[NDArray[np.uint8]]:
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for path in paths:
            waiting.append(pool.submit(_decode, path))
            if len(waiting) > 2 * DECODE_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(path: str) -> NDArray[np.uint8]:
    return decode_image(Path(path).read_bytes()).pixels_HW3


def _memory(scratch: Path, config: BenchmarkConfig) -> dict[int, int]:
    """Peak memory of a worker in bytes, by number of images."""
    model = _write_model(scratch / "small model", "mobilenet_v3_small")
    peaks: dict[int, int] = {}
    for count in (config.num_images_memory, 4 * config.num_images_memory):
        photos = _photos(scratch / f"photos {count}", config.images, count)
        peaks[count] = _segment(photos, model, scratch / "tables", workers=1).peak_memory_bytes
    return peaks


def _photos(folder: Path, source: str, count: int) -> Path:
    """`count` photos in a new folder."""
    if source:
        data = [Path(uri).read_bytes() for uri in storage.list_files(source)]
        data = [each for each in data if each.startswith(b"\xff\xd8\xff")]
    else:
        data = [jpeg(draw_scene(seed, height=512, width=683)[0]) for seed in range(DISTINCT_PHOTOS)]
    folder.mkdir(parents=True)
    for index in range(count):
        Path(folder, f"photo-{index:05d}.jpg").write_bytes(data[index % len(data)])
    return folder


def _write_model(folder: Path, backbone: str) -> str:
    spec = BACKBONES[backbone]
    config = DeepLabV3PlusConfig(backbone=backbone, output_stride=16)
    return write_random_model(folder, config, height=512, width=683, mean=spec.mean, std=spec.std)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
