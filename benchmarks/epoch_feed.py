"""An epoch of training batches: Ray Data and our threads against a torch DataLoader over MosaicML's StreamingDataset.

    python benchmarks/epoch_feed.py --peers PEERS [--rounds 3] [--images 800]

PEERS as in `benchmarks/doctor_speed.py --help`. Both sides read the same JPEGs and label PNGs from a local disk, decode
them with the same function, draw the same kind of crop with the same augmentation, and give uint8 batches to somebody
who does nothing else. Ours decodes in threads of the training process and reads in Ray tasks, which check every shard's
SHA-256; theirs does both in the DataLoader's processes. As many threads as processes. Each round starts both anew; the
first epoch, which pays for the start, is left out.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import report
import torch
import tyro
from peers import peer_modules

from pipelines.cluster import ray_cluster
from pipelines.datasets.scenes import ScenesConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.recipes import find_recipe
from pipelines.shards import PreparedDataset, open_dataset, read_part
from pipelines.training.batches import Pass, training_batches
from pipelines.training.rows import shard_rows
from pipelines.training.tasks import TASKS
from segcore.augment_config import AugmentConfig

TARGET = 1.0
BATCH_SIZE = 8
EPOCHS = 3
HEIGHT, WIDTH = 360, 480
RECIPE = "camvid.deeplab_v3plus_efficientnet_lite0"
FILL = (124, 116, 104)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    peers: str | None = None
    """Folder into which MosaicML Streaming was installed; without it it must be importable."""
    rounds: int = 3
    """Starts of each side."""
    images: int = 800
    """Of an epoch; a multiple of 8."""
    workers: int = 2
    """Threads of ours that decode; processes of theirs."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    peers = peer_modules(config.peers, "streaming")
    if peers is None:
        return
    (streaming,) = peers
    rates: dict[str, list[float]] = {"Ray Data": [], "StreamingDataset": []}
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(num_cpus_needed=config.workers + 1, why="readers"):
        scenes = ScenesConfig(num_train=config.images, num_val=8, height=HEIGHT, width=WIDTH)
        prepare(PrepareConfig(dataset=scenes, output=f"{scratch}/data", images_per_part=64))
        dataset = open_dataset(f"{scratch}/data")
        _write_mds(streaming, dataset, f"{scratch}/mds")
        sides = {"Ray Data": partial(_ours, dataset), "StreamingDataset": partial(_theirs, streaming, f"{scratch}/mds")}
        for turn in range(config.rounds):
            for name, batches in sides.items():
                rates[name].append(_rate(batches(config), config.images))
                print(f"round {turn + 1}, {name}: {rates[name][-1]:.1f} images/s", flush=True)
    ratio = report.median_ratio(rates["Ray Data"], rates["StreamingDataset"])
    rows = [[name, f"{statistics.median(found):.0f}"] for name, found in rates.items()]
    text = f"""## An epoch against MosaicML's StreamingDataset

{report.table(["batches from", "images/s"], rows)}

Ray Data against StreamingDataset: **{ratio:.2f}** (target >= {TARGET:g}: {"met" if ratio >= TARGET else "missed"}).
{config.images} scenes of {HEIGHT} x {WIDTH} (JPEG, PNG) on a local disk; crops of 256 x 256 as `{RECIPE}`
augments them, batch {BATCH_SIZE}, {config.workers} decoding threads of ours, {config.workers} processes of a DataLoader
of theirs (streaming {streaming.__version__}); {EPOCHS - 1} epochs after the first, medians of {config.rounds} rounds in
turn."""
    print(text)
    report.write_section("epoch_feed", text)


def _augment() -> AugmentConfig:
    augment = find_recipe(RECIPE).augment
    assert isinstance(augment, AugmentConfig)
    return replace(augment, crop_height=256, crop_width=256)


def _rate(batches: Iterator[int], images: int) -> float:
    """Images per second of the epochs after the first."""
    seen, began = 0, 0.0
    for count in batches:
        seen += count
        if seen == images:
            began = time.perf_counter()
    assert seen == EPOCHS * images, f"{seen} images came, expected {EPOCHS * images}"
    return (EPOCHS - 1) * images / (time.perf_counter() - began)


def _ours(dataset: PreparedDataset, config: BenchmarkConfig) -> Iterator[int]:
    (rows,) = shard_rows(dataset, split="train", seed=1, first_epoch=0).streaming_split(1, equal=True)
    batches = training_batches(
        [Pass(rows=rows, epoch=epoch) for epoch in range(EPOCHS)],
        draw=lambda row, generator: TASKS["segmentation"].training_pair(row, generator, _AUGMENT, FILL),
        batch_size=BATCH_SIZE,
        steps_per_epoch=config.images // BATCH_SIZE,
        shuffle_buffer=256,
        seed=1,
        rank=0,
        world_size=1,
        num_threads=config.workers,
        pin_memory=False,
    )
    for batch in batches:
        yield len(batch.images_N3HW)


def _write_mds(streaming: Any, dataset: PreparedDataset, folder: str) -> None:
    columns = {"image_id": "str", "image": "bytes", "label": "bytes"}
    with streaming.MDSWriter(out=folder, columns=columns) as out:
        for part in dataset.splits["train"].parts:
            for row in read_part(dataset, part, columns=tuple(columns)).to_pylist():
                out.write(row)


def _theirs(streaming: Any, folder: str, config: BenchmarkConfig) -> Iterator[int]:
    class Crops(streaming.StreamingDataset):  # type: ignore[misc]  # of a module that need not be there
        """Decodes and augments in the DataLoader's processes, as its documentation shows."""

        def __getitem__(self, index: int) -> Any:
            return TASKS["segmentation"].training_pair(super().__getitem__(index), _GENERATOR, _AUGMENT, FILL)

    streaming.base.util.clean_stale_shared_memory()
    crops = Crops(local=folder, shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1)
    loader: Any = torch.utils.data.DataLoader(
        crops, batch_size=BATCH_SIZE, num_workers=config.workers, persistent_workers=True, drop_last=True
    )
    for _ in range(EPOCHS):
        for images_N3HW, _ in loader:
            yield len(images_N3HW)


_AUGMENT = _augment()
_GENERATOR = torch.Generator().manual_seed(1)

if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
