r"""Label statistics beside PNG decoding, and beside scikit-learn's IncrementalPCA.

    python benchmarks/label_statistics.py --labels trainannot --ignored-value 11     # CamVid's folder of PNGs
    python benchmarks/label_statistics.py                                            # generated label maps

One thread, both sides of a ratio in turn in one run, median over rounds:
(a) images per second of decoding plus statistics, over those of decoding alone (Pillow): at least 0.5 at R = 8;
(b) pixels per second of the statistics, over those of IncrementalPCA on the same blocks, which it is handed as dense
    one-hot rows ready-made: at least 100 at R = 8.
Writes its section into docs/benchmarks.md and ends with 1 where a target is missed.
"""

import argparse
import io
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import interleaved_seconds, median_ratio, table, write_section
from sklearn.decomposition import IncrementalPCA
from threadpoolctl import threadpool_limits

from segcore import IGNORE_INDEX
from segcore.label_blocks import BlockStatistics, pad_to_blocks
from segcore.label_code import to_blocks

NUM_GENERATED = 48
MAX_DECODED = 96
DECODE_ROUNDS = 21
PEER_MAPS = 8
PEER_ROUNDS = 3
PEER_REPEATS = 20  # of our side, which takes milliseconds
NUM_COMPONENTS = 64
BATCH_SIZE = 1024
TARGETS = {"decode": 0.5, "peer": 100.0}
"""At R = 8."""

Map = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMaps:
    """Label maps as `prepare` stores them: PNG, class indices, 255 where ignored."""

    origin: str
    pngs: list[bytes]
    num_classes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rates in label megapixels per second, and the median of their ratio over rounds."""

    block_side: int
    ours: float
    peer: float
    ratio: float


def decode(png: bytes) -> Map:
    """Pillow, nothing else."""
    return np.asarray(Image.open(io.BytesIO(png)))


def encode(labels_HW: Map) -> bytes:
    """PNG as `prepare` writes it."""
    sink = io.BytesIO()
    Image.fromarray(labels_HW).save(sink, format="png")
    return sink.getvalue()


def read_folder(folder: Path, ignored_value: int) -> LabelMaps:
    """The PNG label maps of a folder, evenly thinned to at most 96."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise SystemExit(f"{folder} holds no *.png; give a folder of label maps")
    chosen = paths[:: -(-len(paths) // MAX_DECODED)]
    found = [decode(path.read_bytes()) for path in chosen]
    maps = [np.where(labels_HW == ignored_value, np.uint8(IGNORE_INDEX), labels_HW) for labels_HW in found]
    num_classes = max(int(labels_HW[labels_HW != IGNORE_INDEX].max(initial=0)) for labels_HW in maps) + 1
    origin = f"{len(maps)} of the {len(paths)} label maps in `{folder.name}`"
    return LabelMaps(origin=origin, pngs=[encode(labels_HW) for labels_HW in maps], num_classes=num_classes)


def generate() -> LabelMaps:
    """Street-like maps: bands with jagged borders, boxes, thin poles, ignored seams."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:360, :480]
    maps = []
    for _ in range(NUM_GENERATED):
        labels_HW = np.zeros((360, 480), np.uint8)
        jagged = rng.integers(-3, 4, 480).cumsum() / 3
        for c, height in enumerate(sorted(rng.uniform(80, 330, 4)), start=1):
            labels_HW[rows > height + jagged * rng.normal() + 9 * np.sin(columns / rng.uniform(15, 60))] = c
        for _ in range(25):
            row, column = int(rng.integers(0, 350)), int(rng.integers(0, 470))
            height, width = int(rng.integers(8, 90)), int(rng.integers(2, 60))
            labels_HW[row : row + height, column : column + width] = rng.integers(0, 11)
        seam = (labels_HW != np.roll(labels_HW, 1, axis=0)) & (rng.random((360, 480)) < 0.5)
        maps.append(np.where(seam, np.uint8(IGNORE_INDEX), labels_HW))
    return LabelMaps(
        origin=f"{NUM_GENERATED} generated label maps", pngs=[encode(labels_HW) for labels_HW in maps], num_classes=11
    )


def beside_decoding(labels: LabelMaps, block_side: int) -> Comparison:
    """(a): `ours` decodes and counts, `peer` only decodes."""
    state = BlockStatistics.zero(block_side, labels.num_classes)
    num_pixels = sum(decode(png).size for png in labels.pngs)
    for png in labels.pngs:  # compiles, and touches every page that the counts will need
        state.update(decode(png))

    def decode_all() -> None:
        for png in labels.pngs:
            decode(png)

    def decode_and_count() -> None:
        for png in labels.pngs:
            state.update(decode(png))

    seconds = interleaved_seconds({"decode": decode_all, "both": decode_and_count}, rounds=DECODE_ROUNDS)
    return Comparison(
        block_side=block_side,
        ours=num_pixels / 1e6 / statistics.median(seconds["both"]),
        peer=num_pixels / 1e6 / statistics.median(seconds["decode"]),
        ratio=median_ratio(seconds["decode"], seconds["both"]),
    )


def beside_incremental_pca(labels: LabelMaps, block_side: int) -> Comparison:
    """(b): neither side decodes, and IncrementalPCA does not have to make its one-hot rows."""
    step = max(1, len(labels.pngs) // PEER_MAPS)
    maps = [decode(png) for png in labels.pngs[::step][:PEER_MAPS]]
    rows_MD = np.concatenate([one_hot_rows(labels_HW, block_side, labels.num_classes) for labels_HW in maps])
    megapixels = len(rows_MD) * block_side**2 / 1e6
    state = BlockStatistics.zero(block_side, labels.num_classes)
    peer = IncrementalPCA(n_components=NUM_COMPONENTS, batch_size=BATCH_SIZE)

    def count() -> None:
        for _ in range(PEER_REPEATS):
            for labels_HW in maps:
                state.update(labels_HW)

    def fit() -> None:
        peer.fit(rows_MD)

    count()
    seconds = interleaved_seconds({"ours": count, "peer": fit}, rounds=PEER_ROUNDS)
    ours = [value / PEER_REPEATS for value in seconds["ours"]]
    return Comparison(
        block_side=block_side,
        ours=megapixels / statistics.median(ours),
        peer=megapixels / statistics.median(seconds["peer"]),
        ratio=median_ratio(seconds["peer"], ours),
    )


def one_hot_rows(labels_HW: Map, block_side: int, num_classes: int) -> NDArray[np.float32]:
    """Blocks M x D in single precision, which IncrementalPCA computes in, at half the cost of double."""
    labels_MS = to_blocks(pad_to_blocks(labels_HW, block_side), block_side)
    classes_C = np.arange(num_classes, dtype=np.uint8)
    one_hot_MCS = labels_MS[:, None, :] == classes_C[:, None]
    rows_MD: NDArray[np.float32] = one_hot_MCS.reshape(len(labels_MS), -1).astype(np.float32)
    return rows_MD


def section(labels: LabelMaps, decoding: list[Comparison], peers: list[Comparison]) -> str:
    """Markdown of the results."""
    rates = [row(c, f"{c.ratio:.2f}") for c in decoding]
    peer_rates = [row(c, f"{c.ratio:.0f}") for c in peers]
    return f"""## Label statistics

`python benchmarks/label_statistics.py`, on {labels.origin} ({labels.num_classes} classes), one thread.
Rates are label megapixels per second.

(a) PNG decoding (Pillow) plus statistics, beside decoding alone. Target at R = 8: at least {TARGETS["decode"]}.

{table(("R", "decode", "decode + statistics", "ratio"), rates)}

(b) Statistics beside scikit-learn's IncrementalPCA ({NUM_COMPONENTS} components, batches of {BATCH_SIZE}) on the same
blocks, handed to it as dense one-hot rows in single precision. Target at R = 8: at least {TARGETS["peer"]:.0f}. The
solve is not in our side; it comes once per dataset, however large.

{table(("R", "IncrementalPCA", "statistics", "ratio"), peer_rates)}"""


def row(comparison: Comparison, ratio: str) -> tuple[str, ...]:
    """One line of a table."""
    return str(comparison.block_side), f"{comparison.peer:.3g}", f"{comparison.ours:.3g}", ratio


def main() -> int:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of PNG label maps; without it, maps are generated")
    parser.add_argument("--ignored-value", type=int, default=IGNORE_INDEX, help="value of ignored pixels in them")
    arguments = parser.parse_args()
    labels = generate() if arguments.labels is None else read_folder(arguments.labels, arguments.ignored_value)
    with threadpool_limits(limits=1):
        decoding = [beside_decoding(labels, block_side) for block_side in (8, 16)]
        peers = [beside_incremental_pca(labels, block_side) for block_side in (8, 16)]
    text = section(labels, decoding, peers)
    print(text)
    write_section("label_statistics", text)
    missed = decoding[0].ratio < TARGETS["decode"] or peers[0].ratio < TARGETS["peer"]
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
