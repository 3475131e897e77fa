"""One image of 20,000 x 20,000 pixels through `segment`: the worker's peak memory, and time; tiles beside the whole.

    python benchmarks/huge_images.py [--side 20000] [--rounds 3]

The network is DeepLab V3 on MobileNet V3 small with random weights and 19 classes, batch normalisation folded as in the
jobs: of random networks, those that end at full resolution say noise, and this one enlarges its scores 16 times. Part
one runs the job on one file at a time, with one worker of as many threads as there are cores, and takes the worker's
largest resident memory and the row's own times. Part two shows one image of 4096 x 4096 pixels as a whole and in tiles,
interleaved, in this process. Needs 3 GB of disk and takes about 20 minutes on two cores.
"""

import multiprocessing
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import report
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from random_models import MEAN, NUM_CLASSES, STD, write_random_model

from pipelines.datasets.scenes import draw_scene
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import segment
from segcore.inference import InferenceConfig, Member, predict_ensemble, prepare
from segcore.models import DeepLabV3Config, build_model
from segcore.run_lengths import decode
from segcore.tile_grid import TilingConfig, tile_axis
from segcore.tiling import TiledImage, TiledMap, predict_tiled

SCENE_PX = 1000
WHOLE_PX = 4096
TILE_PX = 512
STRIP_ROWS = 8
BUDGET_BYTES = 4 * 10**9
NETWORK = DeepLabV3Config(backbone="mobilenet_v3_small", output_stride=16, aspp_channels=64)
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    side: int = 20_000
    """Of the huge images, in pixels; a multiple of 1000."""
    rounds: int = 3
    """Of tiles beside the whole."""
    formats: tuple[str, ...] = ("TIFF, strips", "TIFF, tiles", "JPEG", "progressive JPEG")
    """Which files are made and segmented."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    seconds, share, agreement = _tiles_beside_the_whole(config.rounds)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = write_random_model(Path(scratch, "model"), NETWORK, height=1024, width=1024)
        for name in config.formats:
            file = Path(scratch, name, "image")
            file.parent.mkdir()
            _in_a_process(_write_image, str(file), name, config.side)
            rows.append(_segmented(name, file, model, Path(scratch)))
            file.unlink()
            print(rows[-1], flush=True)
    ratio = report.median_ratio(seconds["tiles"], seconds["whole"])
    header = ("file", "MB", "tiles", "million runs", "worker's peak, GB", "reading, s", "network, s", "job, s")
    text = f"""## Huge images

DeepLab V3 on MobileNet V3 small (random weights, {NUM_CLASSES} classes), one image of {config.side:,} x {config.side:,}
pixels at a time through `segment`, one worker of {os.cpu_count()} threads, tiles of {TilingConfig().tile_px} pixels
that overlap by at least {TilingConfig().overlap_px}. Reading runs beside the network. Target: a peak below
{BUDGET_BYTES / 1e9:.0f} GB.

{report.table(header, rows)}

One image of {WHOLE_PX} x {WHOLE_PX} pixels in tiles takes {ratio:.2f} times what it takes as a whole (median of
{config.rounds} rounds); the tiles hold {share:.2f} times its pixels. {100 * agreement:.2f} % of its pixels have
the same class: the network sees further than the overlap, and its image pooling all of a tile."""
    print(text)
    report.write_section("huge_images", text)


def _segmented(name: str, file: Path, model: str, scratch: Path) -> tuple[str, ...]:
    """A row of the table."""
    size = file.stat().st_size
    tables = scratch / f"{name} tables"
    started = time.perf_counter()
    result = segment(
        SegmentConfig(
            images=str(file.parent),
            model=model,
            tables=str(tables),
            threads=os.cpu_count() or 1,
            page=False,
            tracking_uri=f"sqlite:///{scratch / 'mlflow.db'}",
        )
    )
    seconds = time.perf_counter() - started
    assert (result.num_images, result.num_failures) == (1, 0), f"{name}: the image was not segmented"
    columns = ["num_tiles", "decode_ms", "infer_ms"]
    (found,) = ds.dataset(tables / "predictions").to_table(columns=columns).to_pylist()
    return (
        name,
        f"{size / 1e6:,.0f}",
        str(found["num_tiles"]),
        f"{_num_runs(tables) / 1e6:.1f}",
        f"{result.peak_memory_bytes / 1e9:.2f}",
        f"{found['decode_ms'] / 1000:.0f}",
        f"{found['infer_ms'] / 1000:.0f}",
        f"{seconds:.0f}",
    )


def _num_runs(tables: Path) -> int:
    (part,) = (tables / "masks").rglob("*.parquet")
    lengths = pq.read_table(part, columns=["lengths"])["lengths"]
    return int(pc.sum(pc.list_value_length(lengths)).as_py())


def _tiles_beside_the_whole(rounds: int) -> tuple[dict[str, list[float]], float, float]:
    """Seconds of each, pixels of all tiles over pixels of the image, and the share of pixels of equal class."""
    member = Member(model=_network(), mean=MEAN, std=STD, config=InferenceConfig())
    prepare(member.model, "cpu")
    pixels_HW3 = np.concatenate(list(_bands(WHOLE_PX // SCENE_PX * SCENE_PX)))
    pixels_HW3 = np.pad(pixels_HW3, [(0, WHOLE_PX - len(pixels_HW3))] * 2 + [(0, 0)], mode="reflect")
    image = TiledImage(height=WHOLE_PX, width=WHOLE_PX, read=lambda rows, columns: pixels_HW3[rows, columns])
    images_13HW = torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None]

    def tiles() -> Pixels:
        ((_, found),) = predict_tiled([member], [image], config=TilingConfig())
        assert isinstance(found, TiledMap), found
        return decode(found.values, found.lengths, height=WHOLE_PX, width=WHOLE_PX)

    def whole() -> Pixels:
        predictions_HW: Pixels = predict_ensemble([member], images_13HW).predictions_NHW[0]
        return predictions_HW

    axis = tile_axis(WHOLE_PX, TilingConfig())
    share = (len(axis.starts) * axis.size / WHOLE_PX) ** 2
    agreement = float((tiles() == whole()).mean())
    return report.interleaved_seconds({"tiles": tiles, "whole": whole}, rounds=rounds), share, agreement


def _in_a_process(work: Callable[..., None], *arguments: Any) -> None:
    """What it takes is not this process's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(work, *arguments).result()


def _write_image(path: str, name: str, side: int) -> None:
    if name == "TIFF, strips":
        _write_tiff(path, side, tile_px=0)
    elif name == "TIFF, tiles":
        _write_tiff(path, side, tile_px=TILE_PX)
    else:
        image = Image.new("RGB", (side, side))
        for number, band in enumerate(_bands(side)):
            image.paste(Image.fromarray(band), (0, number * SCENE_PX))
        image.save(path, "JPEG", quality=90, progressive=name == "progressive JPEG")


def _bands(side: int) -> Iterator[Pixels]:
    """Rows of scenes, from the top down: a dozen, each with noise of its own."""
    random = np.random.default_rng(0)
    scenes = [draw_scene(seed, height=SCENE_PX, width=SCENE_PX)[0] for seed in range(12)]
    grain = random.integers(0, 24, (SCENE_PX, side, 3)).astype(np.uint8)
    for _ in range(side // SCENE_PX):
        band = np.concatenate([scenes[index] for index in random.integers(0, 12, side // SCENE_PX)], axis=1)
        yield np.minimum(band, 231) + np.roll(grain, int(random.integers(side)), axis=1)


def _write_tiff(path: str, side: int, *, tile_px: int) -> None:
    """8-bit RGB: in strips of 8 rows, not compressed; or in tiles, by Deflate. A band is in memory at a time."""
    starts: list[int] = []
    counts: list[int] = []
    with open(path, "wb") as file:
        file.write(b"II*\0" + b"\0" * 4)
        for cell in _tiles_of(side, tile_px) if tile_px else _strips_of(side):
            data = zlib.compress(cell.tobytes(), 1) if tile_px else cell.tobytes()
            starts.append(file.tell())
            counts.append(len(data))
            file.write(data)
        tables = []
        for values in (starts, counts, [8, 8, 8]):
            tables.append(file.tell())
            file.write(struct.pack(f"<{len(values)}{'H' if len(values) == 3 else 'I'}", *values))
        compression = 8 if tile_px else 1
        entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, tables[2]), (259, 3, 1, compression)]
        entries += [(262, 3, 1, 2), (277, 3, 1, 3), (284, 3, 1, 1)]
        if tile_px:
            entries += [(322, 4, 1, tile_px), (323, 4, 1, tile_px)]
            entries += [(324, 4, len(starts), tables[0]), (325, 4, len(starts), tables[1])]
        else:
            entries += [(278, 4, 1, STRIP_ROWS), (273, 4, len(starts), tables[0]), (279, 4, len(starts), tables[1])]
        directory = file.tell()
        file.write(struct.pack("<H", len(entries)))
        file.write(b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)))
        file.write(struct.pack("<I", 0))
        file.seek(4)
        file.write(struct.pack("<I", directory))


def _strips_of(side: int) -> Iterator[Pixels]:
    for band in _bands(side):
        for top in range(0, SCENE_PX, STRIP_ROWS):
            yield band[top : top + STRIP_ROWS]


def _tiles_of(side: int, tile_px: int) -> Iterator[Pixels]:
    waiting = np.empty((0, side, 3), np.uint8)
    for number, band in enumerate(_bands(side)):
        waiting = np.concatenate([waiting, band])
        is_last = (number + 1) * SCENE_PX == side
        while len(waiting) >= tile_px or (is_last and len(waiting)):
            row, waiting = waiting[:tile_px], waiting[tile_px:]
            for left in range(0, side, tile_px):
                cell = row[:, left : left + tile_px]
                yield np.pad(cell, [(0, tile_px - cell.shape[0]), (0, tile_px - cell.shape[1]), (0, 0)], mode="edge")


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(NETWORK, NUM_CLASSES)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
