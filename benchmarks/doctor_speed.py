"""`doctor` and `prepare` against the writers of MosaicML Streaming and LitData, from one folder with as many processes.

    python -m pip install --target PEERS --no-deps mosaicml-streaming litdata "transformers<5" "tokenizers<0.23" \
        "huggingface_hub<1" regex xxhash Brotli "python-snappy<1" cramjam "zstd<2" catalogue lightning-utilities obstore
    python benchmarks/doctor_speed.py --peers PEERS [--rounds 3] [--images 6400]

The peers pin other versions of our packages, so that they lie in a folder of their own. Each is measured in three ways:
`Pillow`, as its documentation shows (files opened by Pillow; both copy the JPEGs, MDSWriter encodes the label PNGs
again, `optimize` stores their pixels as they are), `checked` (the same, and the image is decoded before, so that broken
ones are found), and `bytes` (both files are copied). We decode both, check one against the other and compute
statistics.

Start-up is taken out for everybody: images per second are those of the images beyond the first eighth. `optimize` takes
seconds for its own, so that its rate is noise with fewer than some thousand images.
"""

import importlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import report
import tyro
from peers import peer_modules
from PIL import Image

from pipelines import storage
from pipelines.cluster import ray_cluster
from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.demo_images import jpeg
from pipelines.doctor import DoctorConfig, examine_dataset
from pipelines.prepare import PrepareConfig, prepare

HEIGHT, WIDTH = 360, 480
FEW = 8
"""One in so many images is written to learn what the start costs."""
CHUNK_BYTES = 2**26
TARGET = 1.0

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    peers: str | None = None
    """Folder into which the peers were installed; without it they must be importable."""
    rounds: int = 3
    """Times that each side runs, after one that is not counted."""
    images: int = 6400
    """Pairs, all different."""
    processes: int = 2
    """Of each side."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    peers = peer_modules(config.peers, "streaming", "litdata")
    if peers is None:
        return
    versions = [peer.__version__ for peer in peers]
    with (
        tempfile.TemporaryDirectory() as scratch,
        ray_cluster(num_cpus_needed=config.processes, why=f"{config.processes} workers"),
        ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool,
    ):
        place = Path(scratch)
        _write_pairs(place / "many", config.images)
        _write_pairs(place / "few", config.images // FEW)
        sides = _sides(pool, config.processes)
        calls: dict[str, Callable[[], object]] = {
            f"{name}/{amount}": partial(_once, run, place / amount, place / "output")
            for name, run in sides.items()
            for amount in ("few", "many")
        }
        sizes = {}
        for name, call in calls.items():
            call()  # imports, caches
            sizes[name] = sum(file.stat().st_size for file in (place / "output").rglob("*") if file.is_file())
        seconds = report.interleaved_seconds(calls, rounds=config.rounds)
    text = _section(config, list(sides), seconds, sizes, versions)
    print(text)
    report.write_section("doctor_speed", text)


Side = Callable[[Path, Path], object]
"""Reads the pairs below the first folder and writes into the second."""


def _sides(pool: ProcessPoolExecutor, processes: int) -> dict[str, Side]:
    sides: dict[str, Callable[..., None]] = {"doctor": _doctor, "prepare": _prepare}
    for way in _READ:
        sides[f"MDSWriter, {way}"] = partial(_mds, pool=pool, way=way)
        sides[f"optimize, {way}"] = partial(_litdata, way=way)
    return {name: partial(run, processes=processes) for name, run in sides.items()}


def _once(run: Side, source: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    run(source, output)


def _section(
    config: BenchmarkConfig,
    names: list[str],
    seconds: dict[str, list[float]],
    sizes: dict[str, int],
    versions: list[str],
) -> str:
    more = config.images - config.images // FEW
    rates = {
        name: [
            more / max(many - few, 1e-9)
            for few, many in zip(seconds[f"{name}/few"], seconds[f"{name}/many"], strict=True)
        ]
        for name in names
    }
    rows = []
    for name in names:
        whole = statistics.median(seconds[f"{name}/many"])
        ratios = [f"{report.median_ratio(rates[ours], rates[name]):.2f}" for ours in ("doctor", "prepare")]
        kilobytes = f"{sizes[f'{name}/many'] / config.images / 1e3:.0f}"
        without_start = statistics.median(rates[name])
        rows.append([name, kilobytes, f"{whole:.1f}", f"{config.images / whole:.0f}", f"{without_start:.0f}", *ratios])
    header = ["side", "kB a pair", "all, s", "images/s", "without start", "doctor / this", "prepare / this"]
    return f"""## Doctor and prepare against MosaicML Streaming and LitData

{report.table(header, rows)}

{config.images} pairs of {HEIGHT} x {WIDTH} (JPEG, PNG) on a local disk, {config.processes} processes each, medians of
{config.rounds} rounds in turn; streaming {versions[0]}, litdata {versions[1]}. Ratios are those of images per second
without start. Target of a ratio: {TARGET:g}. Ray and the pool of MDSWriter run before; `optimize` starts its processes
itself. `Pillow`: JPEGs are copied, label PNGs
decoded; MDSWriter encodes them again, `optimize` stores their pixels. `checked`: the same, and JPEGs are decoded
before, as doctor and prepare do, which also check labels and compute statistics. `bytes`: files are copied."""


def _doctor(source: Path, output: Path, *, processes: int) -> None:
    examine_dataset(DoctorConfig(dataset=_folder(source), output=str(output), workers=processes, recovery_images=0))


def _prepare(source: Path, output: Path, *, processes: int) -> None:
    prepare(PrepareConfig(dataset=_folder(source), output=str(output), workers=processes))


def _mds(source: Path, output: Path, *, pool: ProcessPoolExecutor, processes: int, way: str) -> None:
    pairs = _pairs(source)
    jobs = [pool.submit(_write_mds, str(output / str(n)), pairs[n::processes], way) for n in range(processes)]
    for job in jobs:
        job.result()
    importlib.import_module("streaming.base.util").merge_index(str(output))


def _write_mds(output: str, pairs: list[Pair], way: str) -> None:
    writer = importlib.import_module("streaming").MDSWriter
    kinds = ("bytes", "bytes") if way == "bytes" else ("jpeg", "png")
    with writer(
        out=output, columns={"name": "str", "image": kinds[0], "label": kinds[1]}, size_limit=CHUNK_BYTES
    ) as out:
        for pair in pairs:
            out.write(_READ[way](pair))


def _litdata(source: Path, output: Path, *, processes: int, way: str) -> None:
    importlib.import_module("litdata").optimize(
        fn=_READ[way],
        inputs=_pairs(source),
        output_dir=str(output),
        chunk_bytes=CHUNK_BYTES,
        num_workers=processes,
        verbose=False,
    )


def _opened(pair: Pair) -> dict[str, Any]:
    return {"name": Path(pair[0]).stem, "image": Image.open(pair[0]), "label": Image.open(pair[1])}


def _checked(pair: Pair) -> dict[str, Any]:
    row = _opened(pair)
    row["image"].load()
    return row


def _bytes(pair: Pair) -> dict[str, Any]:
    return {"name": Path(pair[0]).stem, "image": Path(pair[0]).read_bytes(), "label": Path(pair[1]).read_bytes()}


_READ: dict[str, Callable[[Pair], dict[str, Any]]] = {"Pillow": _opened, "checked": _checked, "bytes": _bytes}


def _pairs(source: Path) -> list[Pair]:
    return [
        (str(image), str(source / "labels" / f"{image.stem}.png")) for image in sorted((source / "images").iterdir())
    ]


def _folder(source: Path) -> FolderConfig:
    return FolderConfig(
        images=str(source / "images"), labels=str(source / "labels"), classes=str(source / "classes.json")
    )


def _write_pairs(folder: Path, count: int) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(count):
        pixels_HW3, labels_HW = draw_scene(seed, height=HEIGHT, width=WIDTH)
        (folder / f"images/{seed:05d}.jpg").write_bytes(jpeg(pixels_HW3))
        Image.fromarray(labels_HW).save(folder / f"labels/{seed:05d}.png")  # with Pillow's filters, as datasets come
    classes = {"names": [name for name, _ in CLASSES], "ignore": [255]}
    storage.write_atomic(str(folder / "classes.json"), storage.json_bytes(classes))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
