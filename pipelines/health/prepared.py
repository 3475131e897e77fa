"""A prepared dataset as the doctor lists it: its rows as pairs of files, whose label values are class indices."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import manifests, storage
from pipelines.cluster import spread
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, Unpaired
from pipelines.shards import KIND, PreparedDataset, open_dataset, parse_part
from segcore import IGNORE_INDEX

FILE_COLUMNS = ("image", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedConfig:
    """A dataset that jobs/prepare.py wrote."""

    data: str
    """Folder or URI of the prepared dataset; for segmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """One part: where it is, and what its bytes must be."""

    uri: str
    split: str
    sha256: str


def list_prepared(config: PreparedConfig) -> tuple[DatasetListing, tuple[Unpaired, ...]]:
    """The rows of a prepared dataset as samples, and the pairs that `prepare` left out.

    Raises:
        ValueError: there is no finished dataset for segmentation, or a part is missing or has changed.
    """
    dataset = open_dataset(storage.absolute(config.data))
    parts = [
        _Rows(uri=storage.join(dataset.uri, part.path), split=split.name, sha256=part.sha256)
        for split in dataset.splits.values()
        for part in split.parts
    ]
    samples = tuple(sample for found in spread(_samples, parts, in_tasks=False) for sample in found)
    listing = DatasetListing(
        name="prepared",
        config={"data": dataset.uri, "dataset_digest": dataset.digest},
        class_table=ClassTable(
            names=dataset.class_names,
            palette=dataset.palette,
            values=tuple(range(dataset.num_classes)),
            ignore_values=(IGNORE_INDEX,),
        ),
        samples=samples,
        read=read_row,
        palette_given=True,
    )
    return listing, _left_out(dataset)


def read_row(sample: Sample) -> tuple[bytes, bytes]:
    """Encoded image and label of a row of a part.

    Raises:
        OSError: the part cannot be read.
        ValueError: it has changed.
    """
    address, _, place = sample.image_uri.rpartition("#row=")
    table = _part(address, sample.label_uri.rpartition("#sha256=")[2])
    image, label = (table[name][int(place)].as_py() for name in FILE_COLUMNS)
    return image, label


@lru_cache(maxsize=1)  # the samples of a slice lie one behind the other in a part or two
def _part(uri: str, sha256: str) -> pa.Table:
    return parse_part(storage.read_bytes(uri), name=uri, sha256=sha256, columns=FILE_COLUMNS)


def _samples(rows: _Rows) -> list[Sample]:
    table = parse_part(storage.read_bytes(rows.uri), name=rows.uri, sha256=rows.sha256, columns=("image_id",))
    return [
        Sample(
            image_id=image_id,
            split=rows.split,
            image_uri=f"{rows.uri}#row={index}",
            label_uri=f"{rows.uri}#sha256={rows.sha256}",
        )
        for index, image_id in enumerate(table["image_id"].to_pylist())
    ]


def _left_out(dataset: PreparedDataset) -> tuple[Unpaired, ...]:
    path: str = manifests.read_manifest(dataset.uri, kind=KIND)["failures"]["path"]
    rows: list[dict[str, Any]] = pq.read_table(
        pa.BufferReader(storage.read_bytes(storage.join(dataset.uri, path)))
    ).to_pylist()
    return tuple(
        Unpaired(image_id=row["image_id"], split=row["split"], uri=row["source"], reason=row["reason"]) for row in rows
    )
