"""The prepared dataset: Parquet shards per split, a manifest, and what a row holds.

    <uri>/manifest.json                    written last; its presence means that the dataset is complete
    <uri>/<split>/part-00000.parquet       rows of SCHEMAS[task], in an order shuffled once by `prepare`
    <uri>/failures.parquet                 images or pairs that could not be used, with their reason

Parts are plain Parquet (zstd), readable without this package. Equal rows give equal bytes with one version of pyarrow;
its version stands in the footer of each part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import manifests, storage
from segcore import IGNORE_INDEX, Task

KIND = "prepared_dataset"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 knew segmentation alone: its manifests have no `task`. The rows are the same."""
ENCODED_COLUMNS = ("image", "label")
"""Whole image files."""
ROWS_PER_ROW_GROUP = 16  # a reader that streams holds about 2 MB of street photos at a time

SHARD_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # unique within the dataset
        pa.field("image", pa.binary(), nullable=False),  # the image file's bytes as found
        pa.field("label", pa.binary(), nullable=False),  # PNG, one channel, class indices, 255 = ignore
        pa.field("height", pa.int32(), nullable=False),  # of image and label, EXIF orientation applied
        pa.field("width", pa.int32(), nullable=False),
        pa.field("class_pixels", pa.list_(pa.int64()), nullable=False),  # length C, ignored pixels not counted
        pa.field("source", pa.string(), nullable=False),  # URI of the image file
        pa.field("image_sha256", pa.string(), nullable=False),  # of the column `image`
    ]
)
CLASSIFICATION_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # as above
        pa.field("image", pa.binary(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),  # of the whole image: 0 to C - 1
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=False),
    ]
)
SCHEMAS: dict[Task, pa.Schema] = {"segmentation": SHARD_SCHEMA, "classification": CLASSIFICATION_SCHEMA}
"""Rows of a part, by what the dataset is for."""
TRAINING_COLUMNS: dict[Task, tuple[str, ...]] = {
    "segmentation": ("image_id", "image", "label"),
    "classification": ("image_id", "image", "class_index"),
}
"""The columns of them that a training reads."""
SHARD_FAILURES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # URI of the file that is at fault
        pa.field("stage", pa.string(), nullable=False),  # list | fetch | sniff | validate | decode
        pa.field("reason", pa.string(), nullable=False),
    ]
)
_ROWS_SAY: dict[Task, str] = {"segmentation": "a label map per image", "classification": "one class per image"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One shard file; `path` is relative to the dataset's folder."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split.

    Attributes:
        class_pixels: pixels of each class, ignored ones left out; empty in a classification dataset.
        class_images: images of each class; empty in a segmentation dataset.
    """

    name: str
    num_images: int
    class_pixels: tuple[int, ...]
    parts: tuple[Part, ...]
    class_images: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedDataset:
    """A complete prepared dataset, as its manifest tells it.

    To other processes it travels as its address and digest: the manifest of a large one has megabytes, which would go
    with every task. Who gets it reads the manifest, once per process.

    Attributes:
        uri: its folder.
        digest: SHA-256 of `manifest.json`, which holds the SHA-256 of every part: it names the data exactly.
        class_names, palette: by class index; colours are 8-bit RGB, and a classification dataset has none.
        channel_mean, channel_std: of the train split's pixels (of all splits where there is no train), R G B, 0 to 1.
        splits: by name.
        task: what its rows say of an image.
    """

    uri: str
    digest: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]
    splits: dict[str, Split]
    task: Task = "segmentation"

    def __reduce__(self) -> tuple[Callable[[str, str, Task], "PreparedDataset"], tuple[str, str, Task]]:
        return reopen_dataset, (self.uri, self.digest, self.task)

    @property
    def num_classes(self) -> int:
        """C, without the ignored value."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            ValueError: there is none; the message lists those that there are.
        """
        if name not in self.splits:
            raise ValueError(
                f"{self.uri!r} has no split {name!r}; it has {', '.join(map(repr, self.splits))}: choose one of them"
            )
        return self.splits[name]

    def part_uris(self, split: str) -> list[str]:
        """URIs of a split's parts, in order.

        Raises:
            ValueError: there is no such split.
        """
        return [storage.join(self.uri, part.path) for part in self.split(split).parts]


def open_dataset(uri: str, *, task: Task = "segmentation") -> PreparedDataset:
    """Open the prepared dataset in a folder, which must be one for `task`.

    Raises:
        ValueError: no manifest lies there (the dataset is unfinished, or the path is wrong), it is not one that this
            version reads, or it is for another task.
    """
    manifest = manifests.read_manifest(uri, kind=KIND)
    if manifest.get("format_version") not in READABLE_VERSIONS or manifest.get("ignore_index") != IGNORE_INDEX:
        raise ValueError(
            f"{uri!r} is a prepared dataset of format {manifest.get('format_version')!r} with ignore index "
            f"{manifest.get('ignore_index')!r}, this version reads formats {READABLE_VERSIONS} with {IGNORE_INDEX}; "
            "run jobs/prepare.py again into a new folder"
        )
    found: Task = manifest.get("task", "segmentation")
    if found != task:
        raise ValueError(
            f"{uri!r} is a dataset for {found} ({_ROWS_SAY[found]}), and what reads it here needs one for {task} "
            f"({_ROWS_SAY[task]}); give another dataset, or a recipe for {found}"
        )
    return PreparedDataset(
        uri=uri,
        digest=manifests.digest(manifest),
        class_names=tuple(manifest["class_names"]),
        palette=tuple((red, green, blue) for red, green, blue in manifest["palette"]),
        channel_mean=_three(manifest["channel_mean"]),
        channel_std=_three(manifest["channel_std"]),
        splits={split["name"]: _parse_split(split) for split in manifest["splits"]},
        task=found,
    )


@lru_cache(maxsize=4)
def reopen_dataset(uri: str, digest: str, task: Task) -> PreparedDataset:
    """The dataset that another process opened, as it was then.

    Raises:
        ValueError: it is another one by now, or gone.
    """
    dataset = open_dataset(uri, task=task)
    if dataset.digest != digest:
        raise ValueError(
            f"the dataset {uri!r} was replaced while a job was reading it: its digest is {dataset.digest}, expected "
            f"{digest}; start the job again"
        )
    return dataset


def read_part(dataset: PreparedDataset, part: Part, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one part, whose SHA-256 is verified first; all columns, or those named.

    Raises:
        ValueError: the part is missing or its bytes have changed.
    """
    uri = storage.join(dataset.uri, part.path)
    return parse_part(fetch_part(uri), name=uri, sha256=part.sha256, columns=columns)


def fetch_part(uri: str) -> bytes:
    """The bytes of one part, whatever they are.

    Raises:
        ValueError: it is missing.
    """
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise ValueError(
            f"shard {uri} is missing though the manifest lists it; restore it, or run jobs/prepare.py again"
        ) from None


def spread_rows(
    dataset: PreparedDataset, split: str, *, count: int, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """At most `count` rows at even distances over a whole split, in order: the same ones at each call.

    Raises:
        ValueError: there is no such split, or a part is missing or has changed.
    """
    num_images = dataset.split(split).num_images
    wanted = np.unique(np.linspace(0, num_images - 1, min(count, num_images)).round().astype(int))
    offset = 0
    for part in dataset.split(split).parts:
        here = wanted[(wanted >= offset) & (wanted < offset + part.num_rows)] - offset
        offset += part.num_rows
        if len(here):
            yield from read_part(dataset, part, columns=columns).take(here).to_pylist()


def parse_part(data: bytes, *, name: str, sha256: str, columns: Sequence[str] | None = None) -> pa.Table:
    """`read_part` for bytes that were fetched already; `name` is for the message.

    Raises:
        ValueError: the bytes are not the ones that `prepare` wrote.
    """
    found = storage.sha256(data)
    if found != sha256:
        raise ValueError(
            f"shard {name} is corrupt or was changed: its {len(data)} bytes have SHA-256 {found}, the manifest says "
            f"{sha256}; restore it from a copy, or remove the dataset's folder and run jobs/prepare.py again"
        )
    # Not `read_table`, which scans datasets of many files; nor Arrow's threads, where other parts are read meanwhile.
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def part_path(split: str, index: int) -> str:
    """Path of a part below the dataset's folder."""
    return f"{split}/part-{index:05d}.parquet"


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A Parquet file of `rows`: equal rows give equal bytes.

    Image files are stored as they are: Zstandard takes longer over a JPEG than all else here, for one percent.
    """
    table = pa.Table.from_pylist(rows, schema=schema)
    codecs = {name: "none" if name in ENCODED_COLUMNS else "zstd" for name in schema.names}
    sink = pa.BufferOutputStream()  # half the time of a file of Python's
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_PER_ROW_GROUP,
        compression=codecs,
        compression_level={name: 3 for name, codec in codecs.items() if codec == "zstd"},
        use_dictionary=False,
        write_statistics=[name for name in ("image_id", "height", "width") if name in schema.names],  # not of blobs
        version="2.6",
        store_schema=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _parse_split(split: dict[str, Any]) -> Split:
    return Split(
        name=split["name"],
        num_images=split["num_images"],
        class_pixels=tuple(split.get("class_pixels", ())),
        parts=tuple(Part(**part) for part in split["parts"]),
        class_images=tuple(split.get("class_images", ())),
    )


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
