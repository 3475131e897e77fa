"""Masks by work id, without reading the others.

A file's footer says from which to which work id each of its row groups reaches. Files that `maintain` has merged are
sorted by work id, so that one row group alone can hold a mask; a row group is small (`pipelines.tables.schemas`). In a
shard's own file ids are in no order, and its few row groups are each looked into, one column first.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.tables.commits import STORE_THREADS
from pipelines.tables.reader import check_version, open_snapshot, table_files
from pipelines.tables.runs import Snapshot
from segcore.run_lengths import decode


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mask:
    """One row of `masks`: run lengths as `segcore.run_lengths` has them."""

    work_id: str
    height: int
    width: int
    values: NDArray[np.uint8]
    lengths: NDArray[np.int32]

    def pixels(self) -> NDArray[np.uint8]:
        """Class indices (height, width)."""
        return decode(self.values, self.lengths, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskFile:
    """A file of masks and its footer; `first_ids` and `last_ids` are the smallest and largest of each row group."""

    path: str
    metadata: pq.FileMetaData
    first_ids: tuple[str, ...]
    last_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskIndex:
    """The footers of a snapshot's mask files, newest first: make it once, fetch many masks with it."""

    filesystem: pa.fs.FileSystem
    files: tuple[MaskFile, ...]


def mask_index(
    tables_uri: str, *, snapshot: Snapshot | None = None, run_dates: Collection[str] | None = None
) -> MaskIndex:
    """Read the footers of the mask files.

    Args:
        tables_uri: what `segment` wrote to.
        snapshot: None: the newest.
        run_dates: "2026-11-20": only files of these nights. None: of all.

    Raises:
        ValueError: there are no tables, or a file is of a newer version.
    """
    snapshot = snapshot or open_snapshot(tables_uri)
    filesystem, root = storage.arrow_filesystem(tables_uri)
    paths = [file["path"] for file in reversed(table_files(snapshot, "masks")) if file["num_rows"]]
    if run_dates is not None:
        folders = {f"run_date={day}" for day in run_dates}
        paths = [path for path in paths if path.split("/")[-2] in folders]
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        files = pool.map(lambda path: _read_footer(filesystem, storage.join(root, path)), paths)
        return MaskIndex(filesystem=filesystem, files=tuple(files))


def find_masks(index: MaskIndex, work_ids: Collection[str]) -> Iterator[Mask]:
    """The masks of some images, in the files' order; a row group that holds several is read once.

    Ids without a mask are left out. Where an image was segmented again under the same id, its newest mask is given.
    """
    wanted = set(work_ids)
    for file in index.files:
        if not wanted:
            return
        with index.filesystem.open_input_file(file.path) as source:
            parquet = pq.ParquetFile(source, metadata=file.metadata)
            for group in range(file.metadata.num_row_groups):
                for mask in _masks_of_group(parquet, group, file, wanted):
                    wanted.remove(mask.work_id)
                    yield mask


def read_mask(tables_uri: str, work_id: str, *, snapshot: Snapshot | None = None) -> Mask:
    """One mask. For many, make a `mask_index` once and call `find_masks`.

    Raises:
        KeyError: no mask of that id; the image failed, or its mask was dropped (`jobs/maintain.py`).
        ValueError: there are no tables.
    """
    for mask in find_masks(mask_index(tables_uri, snapshot=snapshot), [work_id]):
        return mask
    raise KeyError(f"{tables_uri!r} holds no mask of work id {work_id!r}: its image failed, or its mask was dropped")


def _read_footer(filesystem: pa.fs.FileSystem, path: str) -> MaskFile:
    with filesystem.open_input_file(path) as source:
        metadata = pq.read_metadata(source)
    check_version(metadata.metadata or {}, path)
    statistics = [metadata.row_group(group).column(0).statistics for group in range(metadata.num_row_groups)]
    assert all(each is not None and each.has_min_max for each in statistics), f"{path} has no statistics of work_id"
    return MaskFile(
        path=path,
        metadata=metadata,
        first_ids=tuple(each.min for each in statistics),
        last_ids=tuple(each.max for each in statistics),
    )


def _masks_of_group(parquet: pq.ParquetFile, group: int, file: MaskFile, wanted: set[str]) -> Iterator[Mask]:
    first, last = file.first_ids[group], file.last_ids[group]
    candidates = [work_id for work_id in wanted if first <= work_id <= last]
    if not candidates:
        return
    ids = parquet.read_row_group(group, columns=["work_id"])["work_id"]
    rows = np.flatnonzero(pc.is_in(ids, value_set=pa.array(candidates, pa.string())).to_numpy())
    if not rows.size:
        return
    row_of_id = {ids[int(row)].as_py(): int(row) for row in rows}  # of equal ids the last, which is the newest
    masks = parquet.read_row_group(group, columns=["height", "width", "values", "lengths"])
    for work_id, row in sorted(row_of_id.items(), key=lambda pair: pair[1]):
        yield Mask(
            work_id=work_id,
            height=masks["height"][row].as_py(),
            width=masks["width"][row].as_py(),
            values=masks["values"][row].values.to_numpy(),
            lengths=masks["lengths"][row].values.to_numpy(),
        )
