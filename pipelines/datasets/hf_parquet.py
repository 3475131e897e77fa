"""Datasets in Parquet as on the Hugging Face Hub: encoded images and labels in columns, some rows to a row group.

    data/train-00000-of-00012.parquet         or train/0000.parquet, as the Hub's own conversion names them
    data/validation-00000-of-00002.parquet

    image: struct<bytes: binary, path: string>        or plain binary
    label: struct<bytes: binary, path: string>        or called annotation

A sample is a row, by its place in a file. Workers read row groups, keep the last two, and are handed the rows of one
row group one after the other; the footers alone are read where the dataset is listed.

The files do not say what a label value means: its class table is given as for the importer `folder`. Labels of a Hub
dataset may count from 1, with 0 for what a model's `id2label.json` does not name: list the values as they are stored.

Source: huggingface.co/docs/datasets, "Image" feature, and "File names and splits" in the Hub's documentation.
"""

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.datasets.class_table_files import read_label_coding
from pipelines.datasets.colour_labels import ColourTable, colour_label_png
from pipelines.datasets.files import check_val_fraction, hash_splits, require_folder
from pipelines.datasets.listing import DatasetListing, Sample

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
LABEL_COLUMNS = ("label", "annotation")
MAX_ROW_GROUP_BYTES = 2**30
"""Decompressed; two are held by each worker."""
LISTING_THREADS = 16
CACHED_GROUPS = 2
_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?:[-_.].*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class HfParquetConfig:
    """Parquet files as on the Hugging Face Hub, with columns of encoded images and labels."""

    root: str
    """Folder or URI of the files, or what holds it. Their names, or those of their folders, begin with the split:
    train, validation, test."""
    classes: str
    """YAML or JSON file with the class table, as for the importer `folder`."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str | None = None
    """Column of the labels. None: `label` or `annotation`, whichever is there."""
    val_fraction: float | None = None
    """Share of rows that go to val, chosen by a hash of their place, where all files are of train. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        check_val_fraction(self.val_fraction)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSample(Sample):
    """A row of a Parquet file.

    Attributes:
        file_uri: of the file.
        row_group: in the file.
        row: in the row group.
    """

    file_uri: str
    row_group: int
    row: int


def list_samples(config: HfParquetConfig) -> DatasetListing:
    """Read the footers of all files and list their rows.

    Raises:
        ValueError: there is no file, one names no split, lacks a column or holds too large row groups, or the class
            table is not understood.
    """
    coding = read_label_coding(config.classes)
    root = storage.absolute(config.root)
    require_folder(root, what="the folder of Parquet files")
    uris = [uri for uri in storage.list_files(root) if uri.endswith(".parquet")]
    if not uris:
        raise ValueError(f"{config.root!r} holds no file that ends in .parquet; check the path")
    splits = {uri: _split_of(uri, root) for uri in uris}
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        footers = dict(zip(uris, pool.map(_footer, uris), strict=True))
    label_column = _label_column(footers[uris[0]].schema.to_arrow_schema(), config, uris[0])
    samples: list[RowSample] = []
    for uri in uris:
        _check_columns(footers[uri].schema.to_arrow_schema(), (config.image_column, label_column), uri)
        samples += _rows(footers[uri], uri, root, splits[uri], config.image_column, label_column)
    if not samples:
        raise ValueError(f"the {len(uris)} Parquet files below {config.root!r} hold no row")
    if set(splits.values()) == {"train"}:
        drawn = hash_splits((sample.image_id for sample in samples), config.val_fraction)
        samples = [dataclasses.replace(sample, split=drawn[sample.image_id]) for sample in samples]
    elif config.val_fraction is not None:
        found = ", ".join(sorted(set(splits.values())))
        raise ValueError(f"--val-fraction is given, but the files below {config.root!r} are of {found}; leave it out")
    return DatasetListing(
        name="hf_parquet",
        config=dataclasses.asdict(config) | {"label_column": label_column} | coding.settings(),
        class_table=coding.class_table,
        palette_given=coding.palette_given,
        samples=tuple(samples),
        read=partial(read_row, image_column=config.image_column, label_column=label_column, colours=coding.colours),
        together=row_group_of,
    )


def row_group_of(sample: Sample) -> str:
    """What is read at once for a sample."""
    assert isinstance(sample, RowSample)
    return f"{sample.file_uri}#{sample.row_group}"


def read_row(
    sample: Sample, *, image_column: str, label_column: str, colours: ColourTable | None
) -> tuple[bytes, bytes]:
    """The bytes of a row's image and label; of a label in colours, a PNG of their values.

    Raises:
        OSError: the file cannot be read or has changed, or the row holds a path instead of bytes.
        ImageError: a label's colours are not in the table.
    """
    assert isinstance(sample, RowSample)
    rows = _row_group(sample.file_uri, sample.row_group, (image_column, label_column))
    if sample.row >= rows.num_rows:
        raise _changed(sample.file_uri)
    image = _content(rows[image_column][sample.row].as_py(), sample.image_uri)
    label = _content(rows[label_column][sample.row].as_py(), sample.label_uri)
    return image, label if colours is None else colour_label_png(label, colours)


@lru_cache(maxsize=CACHED_GROUPS)
def _row_group(uri: str, group: int, columns: tuple[str, str]) -> pa.Table:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            if group >= parquet.num_row_groups:
                raise _changed(uri)
            return parquet.read_row_group(group, columns=list(columns), use_threads=False)
    except pa.ArrowInvalid as error:
        raise OSError(f"{uri} is no Parquet file any more: {error}") from error


def _changed(uri: str) -> OSError:
    return OSError(f"{uri} has changed since it was listed; run the job again")


def _content(value: object, uri: str) -> bytes:
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
    else:
        path = None
    if isinstance(value, bytes):
        return value
    told = f"the path {path!r} alone" if path else "nothing"
    raise OSError(f"{uri} holds {told}; embed the files' bytes (datasets: `embed_external_files`) and write it again")


def _split_of(uri: str, root: str) -> str:
    """From the file's name, or from the folder in which it lies."""
    parts = PurePosixPath(uri[len(root) + 1 :]).parts
    for name in (parts[-1], *parts[-2:-1]):
        if match := _SPLIT.fullmatch(name):
            return SPLITS[match[1]]
    raise ValueError(
        f"the name of {uri} tells no split; expected files like train-00000-of-00001.parquet or folders like "
        f"validation/, with one of {', '.join(SPLITS)}"
    )


def _footer(uri: str) -> pq.FileMetaData:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path, "rb") as file:
            return pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri} is no Parquet file ({error}); fetch it again") from error


def _label_column(schema: pa.Schema, config: HfParquetConfig, uri: str) -> str:
    if config.label_column is not None:
        return config.label_column
    found = [name for name in LABEL_COLUMNS if name in schema.names]
    if len(found) != 1:
        raise ValueError(
            f"{uri} has the columns {', '.join(schema.names)}, expected one of {' and '.join(LABEL_COLUMNS)}; "
            "name the column of the labels with --label-column"
        )
    return found[0]


def _check_columns(schema: pa.Schema, columns: tuple[str, str], uri: str) -> None:
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"{uri} has the columns {', '.join(schema.names)}, expected {name!r} among them")
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
            raise ValueError(
                f"the column {name!r} of {uri} is {schema.field(name).type}, expected struct<bytes: binary, path: "
                "string> or binary: encoded image files, as the feature `Image` of datasets stores them"
            )


def _rows(
    footer: pq.FileMetaData, uri: str, root: str, split: str, image_column: str, label_column: str
) -> list[RowSample]:
    """The file's rows; an image's id is its file and its row."""
    key = uri[len(root) + 1 :].removesuffix(".parquet")
    samples: list[RowSample] = []
    for group in range(footer.num_row_groups):
        metadata = footer.row_group(group)
        if metadata.total_byte_size > MAX_ROW_GROUP_BYTES:
            raise ValueError(
                f"row group {group} of {uri} takes {metadata.total_byte_size} bytes, more than {MAX_ROW_GROUP_BYTES}; "
                "write the file again with row_group_size=100, as the Hub does"
            )
        first = len(samples)
        for row in range(metadata.num_rows):
            place = f"{uri}#row={first + row}&column="
            samples.append(
                RowSample(
                    image_id=f"{key}/{first + row:06d}",
                    split=split,
                    image_uri=place + image_column,
                    label_uri=place + label_column,
                    file_uri=uri,
                    row_group=group,
                    row=row,
                )
            )
    return samples
