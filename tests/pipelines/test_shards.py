"""The prepared dataset's files, read as a stranger would and through this package."""

import dataclasses
import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import manifests, storage
from pipelines.shards import (
    FORMAT_VERSION,
    KIND,
    ROWS_PER_ROW_GROUP,
    SHARD_SCHEMA,
    open_dataset,
    parquet_bytes,
    parse_part,
    part_path,
    read_part,
    reopen_dataset,
    spread_rows,
)


def rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "image_id": f"id{n}",
            "image": bytes([n % 256]) * 50,
            "label": b"png",
            "height": 3,
            "width": 4,
            "class_pixels": [n, 12 - n % 12],
            "source": f"file{n}.png",
            "image_sha256": "0" * 64,
        }
        for n in range(count)
    ]


def write_dataset(folder: Path, counts: dict[str, list[int]]) -> str:
    splits = []
    for split, parts in counts.items():
        entries = []
        for index, count in enumerate(parts):
            data = parquet_bytes(rows(count), SHARD_SCHEMA)
            storage.write_atomic(str(folder / part_path(split, index)), data)
            entries.append(
                {
                    "path": part_path(split, index),
                    "num_rows": count,
                    "num_bytes": len(data),
                    "sha256": storage.sha256(data),
                }
            )
        splits.append({"name": split, "num_images": sum(parts), "class_pixels": [1, 2], "parts": entries})
    content = {
        "format_version": FORMAT_VERSION,
        "ignore_index": 255,
        "class_names": ["a", "b"],
        "palette": [[1, 2, 3], [4, 5, 6]],
        "channel_mean": [0.1, 0.2, 0.3],
        "channel_std": [0.4, 0.5, 0.6],
        "splits": splits,
    }
    manifests.write_manifest(str(folder), kind=KIND, content=content)
    return str(folder)


def test_a_dataset_is_opened_and_its_parts_are_read(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [3, 2], "val": [1]}))
    assert (dataset.class_names, dataset.num_classes) == (("a", "b"), 2)
    assert dataset.palette == ((1, 2, 3), (4, 5, 6))
    assert dataset.channel_std == (0.4, 0.5, 0.6)
    assert dataset.split("train").num_images == 5
    assert dataset.part_uris("train") == [str(tmp_path / "train" / f"part-0000{n}.parquet") for n in (0, 1)]
    table = read_part(dataset, dataset.split("train").parts[0])
    assert table.schema.equals(SHARD_SCHEMA)
    assert table.to_pylist() == rows(3)
    assert read_part(dataset, dataset.split("val").parts[0], columns=["label"]).column_names == ["label"]


def test_the_digest_is_that_of_the_manifest_file(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [1]}))
    assert dataset.digest == storage.sha256((tmp_path / "manifest.json").read_bytes())


def test_a_missing_split_lists_those_that_there_are(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [1], "val": [1]}))
    with pytest.raises(ValueError, match="has no split 'test'; it has 'train', 'val': choose one"):
        dataset.part_uris("test")


def test_a_changed_byte_in_a_part_is_found_and_the_part_named(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [3]}))
    part = dataset.split("train").parts[0]
    path = tmp_path / part.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"train/part-00000.parquet is corrupt or was changed: .* run jobs/prepare.py again"
    ):
        read_part(dataset, part)
    path.unlink()
    with pytest.raises(ValueError, match=r"train/part-00000.parquet is missing though the manifest lists it; restore"):
        read_part(dataset, part)


def test_bytes_that_were_fetched_already_are_verified_too() -> None:
    data = parquet_bytes(rows(2), SHARD_SCHEMA)
    assert parse_part(data, name="x", sha256=storage.sha256(data)).num_rows == 2
    with pytest.raises(ValueError, match="shard x is corrupt"):
        parse_part(data + b"\0", name="x", sha256=storage.sha256(data))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [1]})
    manifest = manifests.read_manifest(str(tmp_path), kind=KIND) | {"format_version": 99}
    manifests.write_manifest(str(tmp_path), kind=KIND, content=manifest)
    with pytest.raises(
        ValueError, match="of format 99 .*this version reads formats .1, 2. with 255; run jobs/prepare.py again"
    ):
        open_dataset(str(tmp_path))
    with pytest.raises(ValueError, match="holds no manifest.json, so it is not a finished prepared_dataset"):
        open_dataset(str(tmp_path / "absent"))


def test_a_dataset_of_before_there_were_tasks_still_opens(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"train": [1]})
    manifest = manifests.read_manifest(folder, kind=KIND) | {"format_version": 1}
    assert "task" not in manifest
    manifests.write_manifest(folder, kind=KIND, content=manifest)
    assert open_dataset(folder).task == "segmentation"


def test_a_dataset_for_another_task_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"train": [1]})
    with pytest.raises(
        ValueError, match=r"is a dataset for segmentation \(a label map per image\).*needs one for class"
    ):
        open_dataset(folder, task="classification")
    manifest = manifests.read_manifest(folder, kind=KIND) | {"task": "classification"}
    manifests.write_manifest(folder, kind=KIND, content=manifest)
    assert open_dataset(folder, task="classification").task == "classification"
    with pytest.raises(ValueError, match="is a dataset for classification .*or a recipe for classification"):
        open_dataset(folder)


def test_equal_rows_give_equal_bytes_in_small_row_groups() -> None:
    data = parquet_bytes(rows(40), SHARD_SCHEMA)
    assert data == parquet_bytes(rows(40), SHARD_SCHEMA)
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROWS_PER_ROW_GROUP, ROWS_PER_ROW_GROUP, 8]
    codecs = {name: groups[0].column(number).compression for number, name in enumerate(SHARD_SCHEMA.names[:3])}
    assert codecs == {"image_id": "ZSTD", "image": "UNCOMPRESSED", "label": "UNCOMPRESSED"}
    assert not groups[0].column(1).is_stats_set  # min and max of a blob would copy images into the footer
    assert groups[0].column(0).statistics.min == "id0"


def test_no_rows_make_a_readable_file() -> None:
    table = pq.read_table(io.BytesIO(parquet_bytes([], SHARD_SCHEMA)))
    assert (table.num_rows, table.schema.equals(SHARD_SCHEMA)) == (0, True)


def test_rows_that_lack_a_column_are_refused() -> None:
    incomplete = [{key: value for key, value in row.items() if key != "label"} for row in rows(1)]
    with pytest.raises((pa.ArrowInvalid, ValueError), match="label|non-nullable|null"):
        parquet_bytes(incomplete, SHARD_SCHEMA)


def test_configuration_is_frozen(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [1]}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.uri = "elsewhere"  # type: ignore[misc]


def test_spread_rows_are_the_same_at_even_distances_over_all_parts(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path, {"train": [1], "val": [4, 0, 5]}))
    found = [row["class_pixels"][0] for row in spread_rows(dataset, "val", count=3, columns=("class_pixels",))]
    assert found == [0, 0, 4], "the first of 9 rows, the fifth (the first of its part), and the last"
    assert len(list(spread_rows(dataset, "val", count=100, columns=("height",)))) == 9
    with pytest.raises(ValueError, match="no split 'test'"):
        list(spread_rows(dataset, "test", count=1, columns=("height",)))


def test_a_dataset_travels_as_its_address_and_digest(tmp_path: Path) -> None:
    """Its parts would go with every task otherwise: megabytes where there are tens of thousands."""
    dataset = open_dataset(write_dataset(tmp_path, {"train": [1] * 50}))
    packed = pickle.dumps(dataset)
    assert pickle.loads(packed) == dataset
    assert len(packed) < 500 and b"part-00001" not in packed
    write_dataset(tmp_path, {"train": [1] * 49})
    reopen_dataset.cache_clear()
    with pytest.raises(ValueError, match="was replaced while a job was reading it"):
        pickle.loads(packed)
