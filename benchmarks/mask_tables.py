"""Run lengths of masks beside pycocotools and PNG, and one mask fetched from a large file.

    python benchmarks/mask_tables.py [--scenes 12] [--rounds 9] [--file-megabytes 100]

Masks are label maps of generated scenes at 1440 x 1920: plain ones, a scene of half that size enlarged, and busy ones,
four such scenes side by side. pycocotools encodes one binary mask per class, given to it as
uint8 in Fortran order; making those arrays from a label map, and a label map from the decoded ones, is timed apart. The
large file holds distinct masks, cut, enlarged and mirrored from the scenes, and is merged as `maintain` merges files.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray
from pycocotools import mask as coco
from report import interleaved_seconds, median_ratio, table, write_section

from pipelines import storage
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.pictures import indexed_png_bytes
from pipelines.tables import commits
from pipelines.tables.mask_reader import find_masks, mask_index, read_mask
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import Footer, masks_table, parquet_bytes
from segcore import IGNORE_INDEX
from segcore.run_lengths import decode, encode

HEIGHT, WIDTH = 1440, 1920
NUM_CLASSES = len(CLASSES) + 1  # the objects' ignored border counts as a class: a network gives each pixel one
PALETTE = (*(colour for _, colour in CLASSES), (0, 0, 0))
FOOTER = Footer(
    class_names=(*(name for name, _ in CLASSES), "border"), palette=PALETTE, model_digest="none", run_id="000001"
)

Mask = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    scenes: int = 12
    """Distinct masks."""
    rounds: int = 9
    """Every side goes over all of them this often, in turn."""
    file_megabytes: int = 100
    """Size of the file from which single masks are fetched."""
    fetches: int = 200
    """Masks fetched from it."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    kinds = {
        "plain": [_scene(seed).repeat(2, axis=0).repeat(2, axis=1) for seed in range(config.scenes)],
        "busy": [_four_scenes(4 * seed) for seed in range(config.scenes)],
    }
    runs = {kind: np.mean([len(encode(mask)[0]) for mask in masks]) for kind, masks in kinds.items()}
    codecs = {kind: _codecs(masks, config.rounds) for kind, masks in kinds.items()}
    sizes = {kind: _sizes(masks) for kind, masks in kinds.items()}
    text = f"""## Masks as run lengths

`python benchmarks/mask_tables.py`: {config.scenes} plain and {config.scenes} busy label maps at {HEIGHT} x {WIDTH} (a
generated scene enlarged twice, {runs["plain"]:,.0f} runs on average; four scenes side by side, {runs["busy"]:,.0f}
runs), {NUM_CLASSES} classes; one thread.

{_side_by_side(("side", "ms per mask (median)", "times ours (median over rounds)"), codecs)}

Targets: encoded at least 20 times and decoded at least 50 times faster. "encode" and "decode" alone time pycocotools'
own code, its arrays being there; it takes and gives binary masks, ours label maps. Each result is dropped before the
next.

{_side_by_side(("stored as", "kB per mask", "times ours"), sizes)}

{_fetching(kinds["busy"], config)}"""
    print(text)
    write_section("mask_tables", text)


def _scene(seed: int) -> Mask:
    _, labels_HW = draw_scene(seed, height=HEIGHT // 2, width=WIDTH // 2)
    return np.where(labels_HW == IGNORE_INDEX, np.uint8(len(CLASSES)), labels_HW)


def _four_scenes(seed: int) -> Mask:
    return np.block([[_scene(seed), _scene(seed + 1)], [_scene(seed + 2), _scene(seed + 3)]])


def _side_by_side(header: tuple[str, str, str], rows_of_kind: dict[str, list[tuple[str, str, str]]]) -> str:
    """One table from those of several kinds of masks, which have the same first column."""
    first, *others = header
    columns = [first, *(f"{kind}: {other}" for kind in rows_of_kind for other in others)]
    rows = [
        [each[0][0], *(cell for row in each for cell in row[1:])] for each in zip(*rows_of_kind.values(), strict=True)
    ]
    return table(columns, rows)


def _binary(mask_HW: Mask) -> NDArray[np.uint8]:
    """One binary mask per class that occurs, as pycocotools wants them: (H, W, n) uint8, Fortran order."""
    classes = np.unique(mask_HW)
    return np.asfortranarray((mask_HW[..., None] == classes).astype(np.uint8))


def _codecs(masks: list[Mask], rounds: int) -> list[tuple[str, str, str]]:
    prepared = [_binary(mask_HW) for mask_HW in masks]
    theirs = [coco.encode(binary_HWn) for binary_HWn in prepared]
    classes = [np.unique(mask_HW) for mask_HW in masks]
    ours = [encode(mask_HW) for mask_HW in masks]
    for mask_HW, runs, rles, values in zip(masks, ours, theirs, classes, strict=True):
        np.testing.assert_array_equal(decode(*runs, height=HEIGHT, width=WIDTH), mask_HW)
        np.testing.assert_array_equal(_label_map(rles, values), mask_HW)
    pairs = list(zip(theirs, classes, strict=True))
    sides: dict[str, Callable[[], object]] = {
        "ours, encode": _one_by_one(encode, masks),
        "pycocotools, encode": _one_by_one(coco.encode, prepared),
        "pycocotools, arrays made and encode": _one_by_one(lambda mask_HW: coco.encode(_binary(mask_HW)), masks),
        "ours, decode": _one_by_one(lambda runs: decode(*runs, height=HEIGHT, width=WIDTH), ours),
        "pycocotools, decode": _one_by_one(coco.decode, theirs),
        "pycocotools, decode and label map": _one_by_one(lambda pair: _label_map(*pair), pairs),
    }
    seconds = interleaved_seconds(sides, rounds=rounds)
    rows = []
    for side, spent in seconds.items():
        peer = "ours, encode" if "encode" in side else "ours, decode"
        milliseconds = f"{1000 * statistics.median(spent) / len(masks):.2f}"
        rows.append((side, milliseconds, f"{median_ratio(spent, seconds[peer]):.1f}"))
    return rows


def _one_by_one(work: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], object]:
    """Each result is dropped before the next: else both sides wait for new pages of memory, ours most of its time."""

    def all_of_them() -> None:
        for item in items:
            work(item)

    return all_of_them


def _label_map(rles: list[dict[str, object]], classes: NDArray[np.uint8]) -> Mask:
    binary_HWn = coco.decode(rles)
    mask_HW = np.zeros(binary_HWn.shape[:2], np.uint8)
    for number, index in enumerate(classes):
        mask_HW[binary_HWn[..., number] == 1] = index
    return mask_HW


def _sizes(masks: list[Mask]) -> list[tuple[str, str, str]]:
    rows = masks_table([str(index) for index in range(len(masks))], [(HEIGHT, WIDTH)] * len(masks), _runs(masks))
    sizes = {
        "a row of `masks` (zstd, a file of all of them)": len(parquet_bytes("masks", rows, FOOTER)),
        "indexed PNG, default compression": sum(len(indexed_png_bytes(mask, PALETTE)) for mask in masks),
        "pycocotools' counts": sum(len(rle["counts"]) for mask in masks for rle in coco.encode(_binary(mask))),
    }
    ours = next(iter(sizes.values()))
    return [(name, f"{size / len(masks) / 1000:.1f}", f"{size / ours:.2f}") for name, size in sizes.items()]


def _runs(masks: list[Mask]) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    return [encode(mask_HW) for mask_HW in masks]


def _fetching(masks: list[Mask], config: BenchmarkConfig) -> str:
    with tempfile.TemporaryDirectory() as folder:
        ids, num_groups, size = _write_large(folder, masks, config.file_megabytes * 10**6)
        chosen = np.random.default_rng(1).choice(ids, config.fetches).tolist()
        index = mask_index(folder)
        cold, warm = [], []
        for work_id in chosen:
            started = time.perf_counter()
            read_mask(folder, work_id).pixels()
            between = time.perf_counter()
            next(find_masks(index, [work_id])).pixels()
            cold.append(between - started)
            warm.append(time.perf_counter() - between)
    rows = [
        (name, *(f"{1000 * value:.1f}" for value in np.percentile(spent, (50, 95, 100))))
        for name, spent in (("`read_mask`: snapshot, footer, mask", cold), ("`find_masks`, index in memory", warm))
    ]
    return f"""One mask by work id, fetched and decoded, of a merged file of {size / 1e6:.0f} MB ({len(ids):,} masks in
{num_groups} row groups, sorted by work id, in the system's file cache). Target: below 20 ms.

{table((f"of {config.fetches} masks", "median ms", "95th percentile ms", "largest ms"), rows)}"""


def _write_large(folder: str, masks: list[Mask], num_bytes: int) -> tuple[list[str], int, int]:
    """A snapshot with one file of masks of about this size; its ids, row groups and size."""
    sample = [_varied(masks, number) for number in range(2 * len(masks))]
    each = _file_bytes(sample, range(len(sample)))
    count = round(num_bytes / (len(each) / len(sample)))
    runs = [_varied(masks, number) for number in range(count)]
    data = _file_bytes(runs, range(count))
    path = "masks/run_date=2026-11-20/merged-000001-000001-0123456789abcdef.parquet"
    storage.write_atomic(storage.join(folder, path), data)
    file = {"table": "masks", "path": path, "num_rows": count, "num_bytes": len(data), "run_id": "000001"}
    snapshot = Snapshot(
        number=1,
        run_ids=("000001",),
        files=(file | {"sha256": storage.sha256(data)},),
        class_names=FOOTER.class_names,
        palette=FOOTER.palette,
    )
    commits.create_snapshot(folder, snapshot)
    footer = pq.read_metadata(Path(folder, path))
    return [_work_id(number) for number in range(count)], footer.num_row_groups, len(data)


def _varied(masks: list[Mask], number: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A mask like no other: a cut of a scene, enlarged to full size, every second one mirrored."""
    rng = np.random.default_rng(number)
    mask_HW = masks[number % len(masks)]
    height = int(rng.integers(HEIGHT * 6 // 10, HEIGHT))
    width = height * WIDTH // HEIGHT
    top, left = int(rng.integers(HEIGHT - height + 1)), int(rng.integers(WIDTH - width + 1))
    cut = mask_HW[top : top + height, left : left + width]
    full_HW = cv2.resize(cut, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    return encode(np.asarray(full_HW[:, ::-1] if number % 2 else full_HW, dtype=np.uint8))


def _work_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _file_bytes(runs: list[tuple[NDArray[np.uint8], NDArray[np.int32]]], numbers: range) -> bytes:
    rows = masks_table([_work_id(number) for number in numbers], [(HEIGHT, WIDTH)] * len(runs), runs)
    return parquet_bytes("masks", rows.sort_by("work_id"), FOOTER)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
