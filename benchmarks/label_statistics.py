r"""Label statistics beside PNG decoding, and beside scikit-learn's IncrementalPCA.

    python benchmarks/label_statistics.py --labels trainannot --ignored-value 11     # CamVid's folder of PNGs
    python benchmarks/label_statistics.py                                            # generated label maps

One thread per process, both sides of a ratio in turn in one run, median over rounds, at R = 8 and R = 16:
(a) images per second of decoding plus statistics, over those of decoding alone (Pillow);
(b) pixels per second of the statistics, over those of IncrementalPCA on the same blocks, which it is handed as dense
    one-hot rows ready-made;
(c) the whole job on at least 60 megapixels: seconds of IncrementalPCA (extrapolated), over those of statistics + solve;
(d) seconds of one process that decodes and counts, over those of two that share the files, merge included.
Writes its section into docs/benchmarks.md and ends with 1 where a target is missed. Takes about 4 minutes.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
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
from segcore.label_pca import solve

NUM_GENERATED = 48
MAX_DECODED = 96
DECODE_ROUNDS = 21
PEER_MAPS = 8
PEER_ROUNDS = 3
PEER_REPEATS = 20  # of our side, which takes milliseconds
NUM_COMPONENTS = 64
BATCH_SIZE = 1024
WHOLE_MEGAPIXELS = 60
WHOLE_ROUNDS = 3
PEER_SIZES = (6, 12)  # maps that IncrementalPCA is timed on, to extrapolate from
PROCESS_ROUNDS = 21
BLOCK_SIDES = (8, 16)
TARGETS = {"decode": (0.7, 0.3), "peer": (300.0, 300.0), "whole": (10.0, 10.0), "processes": (1.8, 0.0)}
"""At each block side. Two processes at R = 16 are for information: the states that they merge are 16 times as large."""

Map = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMaps:
    """Label maps as `prepare` stores them: PNG, class indices, 255 where ignored."""

    origin: str
    pngs: list[bytes]
    num_classes: int

    @property
    def some(self) -> list[bytes]:
        """Evenly thinned to at most 96."""
        return self.pngs[:: -(-len(self.pngs) // MAX_DECODED)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rates in label megapixels per second, or seconds where said, and the median of their ratio over rounds."""

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
    """The PNG label maps of a folder."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise SystemExit(f"{folder} holds no *.png; give a folder of label maps")
    found = [decode(path.read_bytes()) for path in paths]
    maps = [np.where(labels_HW == ignored_value, np.uint8(IGNORE_INDEX), labels_HW) for labels_HW in found]
    num_classes = max(int(labels_HW[labels_HW != IGNORE_INDEX].max(initial=0)) for labels_HW in maps) + 1
    origin = f"the {len(maps)} label maps in `{folder.name}`"
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
    pngs = labels.some
    state = BlockStatistics.zero(block_side, labels.num_classes)
    num_pixels = sum(decode(png).size for png in pngs)
    for png in pngs:  # compiles, and touches every page that the counts will need
        state.update(decode(png))

    def decode_all() -> None:
        for png in pngs:
            decode(png)

    def decode_and_count() -> None:
        for png in pngs:
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
    maps = spread(labels, PEER_MAPS)
    rows_MD = one_hot_rows(maps, block_side, labels.num_classes)
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


def whole_job(labels: LabelMaps, block_side: int) -> tuple[Comparison, float]:
    """(c): seconds of both for the same pixels; and IncrementalPCA's rate at the larger size over that at the smaller.

    Maps are repeated up to 60 megapixels where there are fewer.
    """
    maps = [decode(png) for png in labels.pngs]
    megapixels = sum(labels_HW.size for labels_HW in maps) / 1e6
    repeats = max(1, -(-WHOLE_MEGAPIXELS // max(1, int(megapixels))))

    def count_and_solve() -> None:
        state = BlockStatistics.zero(block_side, labels.num_classes)
        for labels_HW in itertools.chain.from_iterable(itertools.repeat(maps, repeats)):
            state.update(labels_HW)
        solve(state, num_components=NUM_COMPONENTS)

    sides = {str(size): incremental_pca(labels, size, block_side) for size in PEER_SIZES}
    seconds = interleaved_seconds(
        {"ours": count_and_solve, **{name: side.fit for name, side in sides.items()}}, rounds=WHOLE_ROUNDS
    )
    # Rows are whole blocks: pixels that IncrementalPCA has seen, ignored ones and padding included.
    small, large = (sides[str(size)].megapixels / statistics.median(seconds[str(size)]) for size in PEER_SIZES)
    ours, peer = statistics.median(seconds["ours"]), megapixels * repeats / large
    return Comparison(block_side=block_side, ours=ours, peer=peer, ratio=peer / ours), large / small


@dataclass(frozen=True, kw_only=True, slots=True)
class IncrementalFit:
    """IncrementalPCA with the one-hot rows of some maps."""

    rows_MD: NDArray[np.float32]
    megapixels: float

    def fit(self) -> None:
        """From scratch."""
        IncrementalPCA(n_components=NUM_COMPONENTS, batch_size=BATCH_SIZE).fit(self.rows_MD)


def incremental_pca(labels: LabelMaps, num_maps: int, block_side: int) -> IncrementalFit:
    """The rows of evenly spread maps."""
    maps = spread(labels, num_maps)
    rows_MD = one_hot_rows(maps, block_side, labels.num_classes)
    return IncrementalFit(rows_MD=rows_MD, megapixels=sum(labels_HW.size for labels_HW in maps) / 1e6)


def two_processes(labels: LabelMaps, block_side: int) -> tuple[Comparison, float]:
    """(d): seconds from the command to start until the statistics of all files lie in this process.

    Processes are started before, and have compiled and met every file; the state of a single one is not sent. The
    number beside is the same ratio where both sides decode and nothing else: what the machine has to give.
    """
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for start in range(2):
        here, there = context.Pipe()
        process = context.Process(target=count_on_command, args=(there, labels, block_side, start), daemon=True)
        process.start()
        connections.append(here)
        processes.append(process)
    for connection in connections:
        connection.recv()

    def run(command: str, workers: list[Connection]) -> None:
        for connection in workers:
            connection.send(command)
        states = [BlockStatistics.from_arrays(found) for connection in workers if (found := connection.recv())]
        for other in states[1:]:
            states[0].merge(other)

    seconds = interleaved_seconds(
        {
            "one": lambda: run("count all", connections[:1]),
            "two": lambda: run("count half", connections),
            "one decodes": lambda: run("decode all", connections[:1]),
            "two decode": lambda: run("decode half", connections),
        },
        rounds=PROCESS_ROUNDS,
    )
    for connection, process in zip(connections, processes, strict=True):
        connection.send("end")
        process.join()
    comparison = Comparison(
        block_side=block_side,
        ours=statistics.median(seconds["two"]),
        peer=statistics.median(seconds["one"]),
        ratio=median_ratio(seconds["one"], seconds["two"]),
    )
    return comparison, median_ratio(seconds["one decodes"], seconds["two decode"])


def count_on_command(connection: Connection, labels: LabelMaps, block_side: int, start: int) -> None:
    """One of the two processes: decodes, or decodes and counts, all files, or every second one from `start` on."""

    def count(pngs: Sequence[bytes]) -> BlockStatistics:
        state = BlockStatistics.zero(block_side, labels.num_classes)
        for png in pngs:
            state.update(decode(png))
        return state

    with threadpool_limits(limits=1):
        count(labels.pngs)
        connection.send("ready")
        while (command := connection.recv()) != "end":
            pngs = labels.pngs[start::2] if command.endswith("half") else labels.pngs
            if command.startswith("decode"):
                for png in pngs:
                    decode(png)
                connection.send(None)
                continue
            state = count(pngs)
            connection.send(state.to_arrays() if command.endswith("half") else None)


def spread(labels: LabelMaps, num_maps: int) -> list[Map]:
    """That many maps, or all where there are fewer, evenly spread over the data."""
    step = max(1, len(labels.pngs) // num_maps)
    return [decode(png) for png in labels.pngs[::step][:num_maps]]


def one_hot_rows(maps: Sequence[Map], block_side: int, num_classes: int) -> NDArray[np.float32]:
    """Blocks M x D in single precision, which IncrementalPCA computes in, at half the cost of double."""
    classes_C = np.arange(num_classes, dtype=np.uint8)
    rows = []
    for labels_HW in maps:
        labels_MS = to_blocks(pad_to_blocks(labels_HW, block_side), block_side)
        one_hot_MCS = labels_MS[:, None, :] == classes_C[:, None]
        rows.append(one_hot_MCS.reshape(len(labels_MS), -1).astype(np.float32))
    return np.concatenate(rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """One comparison per block side for each letter; beside (c) the linearity, beside (d) decoding alone."""

    decoding: list[Comparison]
    peers: list[Comparison]
    whole: list[tuple[Comparison, float]]
    processes: list[tuple[Comparison, float]]
    load: str

    def missed(self) -> bool:
        """Whether a target is."""
        found = {
            "decode": self.decoding,
            "peer": self.peers,
            "whole": [comparison for comparison, _ in self.whole],
            "processes": [comparison for comparison, _ in self.processes],
        }
        return any(
            comparison.ratio < target
            for name, comparisons in found.items()
            for comparison, target in zip(comparisons, TARGETS[name], strict=True)
        )


def section(labels: LabelMaps, results: Results) -> str:
    """Markdown of the results."""
    rates = [row(c, f"{c.ratio:.2f}") for c in results.decoding]
    peer_rates = [row(c, f"{c.ratio:.0f}") for c in results.peers]
    whole = [(*row(c, f"{c.ratio:.0f}"), f"{linearity:.2f}") for c, linearity in results.whole]
    processes = [(*row(c, f"{c.ratio:.2f}"), f"{ratio:.2f}") for c, ratio in results.processes]
    return f"""## Label statistics

`python benchmarks/label_statistics.py`, on {labels.origin} ({labels.num_classes} classes), one thread per process.
Rates are label megapixels per second.

(a) PNG decoding (Pillow) plus statistics, beside decoding alone, on {len(labels.some)} of the maps. Target: at least
{TARGETS["decode"][0]} at R = 8 and {TARGETS["decode"][1]} at R = 16.

{table(("R", "decode", "decode + statistics", "ratio"), rates)}

(b) Statistics beside scikit-learn's IncrementalPCA ({NUM_COMPONENTS} components, batches of {BATCH_SIZE}) on the same
blocks, handed to it as dense one-hot rows in single precision. Target: at least {TARGETS["peer"][0]:.0f}. The
solve is not in our side; it comes once per dataset, however large.

{table(("R", "IncrementalPCA", "statistics", "ratio"), peer_rates)}

(c) The whole job on {WHOLE_MEGAPIXELS} megapixels or more (all maps, repeated where there are fewer): statistics and
solve, measured, beside IncrementalPCA, **extrapolated** linearly from {PEER_SIZES[1]} maps; nobody decodes. The last
column is IncrementalPCA's rate on {PEER_SIZES[1]} maps over that on {PEER_SIZES[0]}: 1 where its cost is linear.
Target: at least {TARGETS["whole"][0]:.0f}.

{table(("R", "IncrementalPCA s", "statistics + solve s", "ratio", "linearity"), whole)}

(d) Decoding and statistics of all maps by one process and by two that take every second file each, sending and merging
their states included, starting them not; median over {PROCESS_ROUNDS} rounds. Target at R = 8: at least
{TARGETS["processes"][0]}. Other load on the cores takes from two processes first; the load average before and after
these rounds was {results.load}. The last column is the same ratio of decoding alone: what the machine has to give.

{table(("R", "one process s", "two processes s", "ratio", "of decoding alone"), processes)}"""


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
        decoding = [beside_decoding(labels, block_side) for block_side in BLOCK_SIDES]
        before = os.getloadavg()[0]
        processes = [two_processes(labels, block_side) for block_side in BLOCK_SIDES]
        load = f"{before:.1f} and {os.getloadavg()[0]:.1f}"
        peers = [beside_incremental_pca(labels, block_side) for block_side in BLOCK_SIDES]
        whole = [whole_job(labels, block_side) for block_side in BLOCK_SIDES]
    results = Results(decoding=decoding, peers=peers, whole=whole, processes=processes, load=load)
    text = section(labels, results)
    print(text)
    write_section("label_statistics", text)
    return int(results.missed())


if __name__ == "__main__":
    sys.exit(main())
