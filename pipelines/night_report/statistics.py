"""A run's rows, piece by piece, and sums over them by camera, from which the table `metrics` is computed."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.night_report.references import QUANTITIES, ModelReference
from pipelines.tables.commits import STORE_THREADS
from pipelines.tables.reader import read_batches, read_table, table_files
from pipelines.tables.runs import RunSettings, ShardCommit, Snapshot

MAX_ROWS_AT_ONCE = 4096
"""Files with more rows are read row group by row group."""

MAX_PREFIXES = 1000
OTHER_PREFIXES = "(others)"
"""Together, the prefixes after the first `MAX_PREFIXES` of a run: there were to be few."""

PREDICTION_COLUMNS = (
    "uri",
    "class_fraction",
    "mean_confidence",
    "mean_entropy",
    "mean_brightness",
    "height",
    "width",
)


def run_pieces(
    tables: str, name: str, run_id: str, snapshot: Snapshot, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, str]]:
    """A run's rows in the snapshot's order, a file or less at a time, and each file's path; empty pieces are left out.

    The next files are read in threads meanwhile, since a store takes its time to open each.

    Args:
        tables: URI of the tables' folder.
        name: of the table.
        run_id: of the run.
        snapshot: that lists its files.
        columns: of the table.
    """
    waiting: deque[tuple[Future[pa.Table], str]] = deque()
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        for file in table_files(snapshot, name, run_id=run_id):
            one = dataclasses.replace(snapshot, files=(file,))  # the reader does not tell which file a row was in
            if file["num_rows"] > MAX_ROWS_AT_ONCE:
                while waiting:
                    yield from _done(*waiting.popleft())
                for batch in read_batches(tables, name, columns=columns, run_id=run_id, snapshot=one):
                    if batch.num_rows:
                        yield pa.Table.from_batches([batch]), file["path"]
                continue
            read = pool.submit(read_table, tables, name, columns=columns, run_id=run_id, snapshot=one)
            waiting.append((read, file["path"]))
            if len(waiting) > STORE_THREADS:
                yield from _done(*waiting.popleft())
        while waiting:
            yield from _done(*waiting.popleft())


def _done(read: Future[pa.Table], path: str) -> Iterator[tuple[pa.Table, str]]:
    rows = read.result()
    if rows.num_rows:
        yield rows, path


@dataclass(slots=True, eq=False)
class Statistics:
    """Sums over some images; two of them add up. Q are the class fractions and, behind them, `references.QUANTITIES`.

    Attributes:
        num_images: segmented.
        num_failures: the others.
        count_Q: images that have a number; rows that an older version wrote have no brightness.
        sum_Q: of the numbers.
        histogram_QB: images per bin of the reference's distributions; no bins without a reference.
    """

    num_images: int
    num_failures: int
    count_Q: NDArray[np.int64]
    sum_Q: NDArray[np.float64]
    histogram_QB: NDArray[np.int64]

    @staticmethod
    def zero(num_quantities: int, num_bins: int) -> "Statistics":
        """Of no image."""
        shape = (num_quantities, num_bins)
        return Statistics(0, 0, np.zeros(num_quantities, np.int64), np.zeros(num_quantities), np.zeros(shape, np.int64))

    def add(self, other: "Statistics") -> None:
        """Merge in place."""
        self.num_images += other.num_images
        self.num_failures += other.num_failures
        self.count_Q += other.count_Q
        self.sum_Q += other.sum_Q
        self.histogram_QB += other.histogram_QB

    @property
    def mean_Q(self) -> NDArray[np.float64]:
        """NaN where no image has a number."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.sum_Q / self.count_Q, dtype=np.float64)


class Night:
    """Adds up a run's rows by prefix."""

    def __init__(self, settings: RunSettings, reference: ModelReference | None, *, prefix_depth: int) -> None:
        self.settings = settings
        self.distributions = reference.distributions if reference else ()
        self.num_quantities = len(settings.class_names) + len(QUANTITIES)
        self.num_bins = max((len(each.counts) for each in self.distributions), default=0)
        self.prefix_depth = prefix_depth
        self.by_prefix: dict[str, Statistics] = {}

    def add_predictions(self, rows: pa.Table) -> None:
        """Rows with `PREDICTION_COLUMNS`."""
        values_NQ = _values(rows, num_classes=len(self.settings.class_names))
        known_NQ = ~np.isnan(values_NQ)
        bins_NQ = np.full(values_NQ.shape, self.num_bins)  # of what is missing: one behind the last
        for quantity, distribution in enumerate(self.distributions):
            known_N = known_NQ[:, quantity]
            bins_NQ[known_N, quantity] = distribution.bins(values_NQ[known_N, quantity])
        for statistics, places in self._by_prefix(rows["uri"].to_pylist()):
            statistics.num_images += len(places)
            statistics.count_Q += known_NQ[places].sum(axis=0)
            statistics.sum_Q += np.nansum(values_NQ[places], axis=0)
            if self.num_bins:
                flat = bins_NQ[places] + np.arange(self.num_quantities) * (self.num_bins + 1)
                counts = np.bincount(flat.ravel(), minlength=self.num_quantities * (self.num_bins + 1))
                statistics.histogram_QB += counts.reshape(self.num_quantities, -1)[:, :-1]

    def add_failures(self, uris: Sequence[str]) -> None:
        """Images that are in `failures`."""
        for statistics, places in self._by_prefix(uris):
            statistics.num_failures += len(places)

    def add(self, by_prefix: Mapping[str, Statistics]) -> None:
        """The sums of another piece of the run."""
        for prefix, statistics in by_prefix.items():
            self._of(prefix).add(statistics)

    def total(self) -> Statistics:
        """Of the whole run."""
        total = Statistics.zero(self.num_quantities, self.num_bins)
        for statistics in self.by_prefix.values():
            total.add(statistics)
        return total

    def _by_prefix(self, uris: Sequence[str]) -> Iterable[tuple[Statistics, list[int]]]:
        places: dict[str, list[int]] = {}
        for place, uri in enumerate(uris):
            places.setdefault(prefix_of(uri, self.settings.images, depth=self.prefix_depth), []).append(place)
        return [(self._of(prefix), found) for prefix, found in places.items()]

    def _of(self, prefix: str) -> Statistics:
        if prefix not in self.by_prefix and len(self.by_prefix) >= MAX_PREFIXES:
            prefix = OTHER_PREFIXES
        return self.by_prefix.setdefault(prefix, Statistics.zero(self.num_quantities, self.num_bins))


def count_shards(
    tables: str,
    settings: RunSettings,
    reference: ModelReference | None,
    prefix_depth: int,
    shards: Sequence[ShardCommit],
) -> dict[str, Statistics]:
    """The sums over some committed shards of a run by prefix; their files are in their places.

    Args:
        tables: URI of the tables' folder.
        settings: of the run.
        reference: whose distributions' bins are counted.
        prefix_depth: folders below the listed one that make a prefix.
        shards: of the run.
    """
    files = [dataclasses.asdict(file) | {"run_id": settings.run_id} for each in shards for file in each.files]
    committed = Snapshot(  # as the reader takes them; no published one has them yet
        number=0,
        run_ids=(settings.run_id,),
        files=tuple(files),
        class_names=settings.class_names,
        palette=settings.palette,
    )
    night = Night(settings, reference, prefix_depth=prefix_depth)
    for rows, _ in run_pieces(tables, "predictions", settings.run_id, committed, PREDICTION_COLUMNS):
        night.add_predictions(rows)
    for rows, _ in run_pieces(tables, "failures", settings.run_id, committed, ("uri",)):
        night.add_failures(rows["uri"].to_pylist())
    return night.by_prefix


def prefix_of(uri: str, images: str, *, depth: int) -> str:
    """The first `depth` folders of an image's URI below the listed one; "" for an image in it itself.

    Of an image that does not lie there (a manifest may name any), those below its bucket or root.
    """
    root = images.rstrip("/") + "/"
    below = uri.removeprefix(root) if uri.startswith(root) else uri.partition("://")[2].partition("/")[2] or uri
    return "/".join([part for part in below.split("/") if part][:-1][:depth])


def _values(rows: pa.Table, *, num_classes: int) -> NDArray[np.float64]:
    """One line per image: class fractions, then `QUANTITIES`; NaN where there is none."""
    fractions = rows["class_fraction"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    columns = [rows[name].to_numpy() for name in ("mean_confidence", "mean_entropy", "mean_brightness")]
    columns.append(rows["height"].to_numpy().astype(np.float64) * rows["width"].to_numpy())
    others = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return np.concatenate([fractions.reshape(-1, num_classes).astype(np.float64), others], axis=1)
