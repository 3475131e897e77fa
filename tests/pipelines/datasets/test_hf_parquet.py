"""Parquet as on the Hugging Face Hub: rows, their splits, and how often a row group is read."""

import pickle
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.datasets import hf_parquet
from pipelines.datasets.hf_parquet import HfParquetConfig, list_samples, row_group_of
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.prepare import PrepareConfig, cut_into_shards
from tests.data.folder.make import COLOUR_CLASSES
from tests.data.hf_parquet.make import FILE, encoded, make_hf_parquet


def config_of(root: Path, **settings: Any) -> HfParquetConfig:
    return HfParquetConfig(root=str(root / "data"), classes=str(root / "classes.yaml"), **settings)


@pytest.mark.parametrize("label_column", ["label", "annotation"])
def test_every_row_is_read_at_its_place(tmp_path: Path, label_column: str) -> None:
    listing = list_samples(config_of(make_hf_parquet(tmp_path, label_column=label_column)))
    assert [sample.split for sample in listing.samples] == ["train"] * 7 + ["val"] * 3
    assert listing.samples[3].image_id == "train-00000-of-00001/000003"
    assert listing.samples[3].image_uri.endswith("data/train-00000-of-00001.parquet#row=3&column=image")
    read = pickle.loads(pickle.dumps(listing.read))
    for index, sample in enumerate(listing.samples):
        image, label = read(sample)
        assert decode_image(image).pixels_HW3[0, 0, 0] == (index if index < 7 else index - 7)
        indices_HW = listing.class_table.class_indices(decode_labels(label))
        assert indices_HW.ravel()[:4].tolist() == [255, 0, 1, 255]


def test_neighbours_stay_together_so_that_a_row_group_is_read_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hf_parquet(tmp_path, rows=(("train", 60), ("validation", 9)), row_group_size=5)
    config = config_of(tmp_path)
    listing = list_samples(config)
    shards = list(cut_into_shards(listing, PrepareConfig(dataset=config, output="x", images_per_part=12)))
    reads: Counter[tuple[str, int]] = Counter()
    read_group = hf_parquet._row_group.__wrapped__

    def counted(uri: str, group: int, columns: tuple[str, str]) -> pa.Table:
        reads[uri, group] += 1
        return read_group(uri, group, columns)

    monkeypatch.setattr(hf_parquet, "_row_group", lru_cache(maxsize=hf_parquet.CACHED_GROUPS)(counted))
    order = []
    for shard in shards:
        for sample in shard.samples:
            order.append(row_group_of(sample))  # type: ignore[arg-type]
            listing.read(sample)  # type: ignore[arg-type]
    assert set(reads.values()) == {1}
    assert len(reads) == 12 + 2
    assert order != sorted(order)  # the row groups are mixed
    assert sorted(sample.image_id for shard in shards for sample in shard.samples) == sorted(
        sample.image_id for sample in listing.samples
    )


def test_labels_may_hold_colours(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path)
    (tmp_path / "classes.yaml").write_text(COLOUR_CLASSES)
    sky = np.full((12, 16, 3), (70, 130, 180), np.uint8)
    other = np.full((12, 16, 3), 9, np.uint8)
    files = [{"bytes": encoded(pixels), "path": None} for pixels in (sky, other)]
    table = pa.table([files, files], schema=pa.schema([("image", FILE), ("label", FILE)]))
    for path in (tmp_path / "data").iterdir():
        pq.write_table(table, path)
    listing = list_samples(config_of(tmp_path))
    _, label = listing.read(listing.samples[0])
    assert np.unique(listing.class_table.class_indices(decode_labels(label))).tolist() == [0]
    with pytest.raises(ImageError, match=r"the colour \(9, 9, 9\) at row 0, column 0"):
        listing.read(listing.samples[1])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test-00003-of-00012.parquet", "test"),
        ("validation.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("val_0.parquet", "val"),
    ],
)
def test_splits_come_from_the_names_of_files_or_folders(tmp_path: Path, name: str, split: str) -> None:
    made = make_hf_parquet(tmp_path, rows=(("train", 2),)) / "data" / "train-00000-of-00001.parquet"
    (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
    made.rename(tmp_path / "data" / name)
    listing = list_samples(config_of(tmp_path))
    assert {sample.split for sample in listing.samples} == {split}


def test_rows_are_split_by_a_hash_of_their_place_where_all_are_of_train(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path, rows=(("train", 60),), row_group_size=20)
    listing = list_samples(config_of(tmp_path, val_fraction=0.5))
    assert 15 <= sum(sample.split == "val" for sample in listing.samples) <= 45
    make_hf_parquet(tmp_path / "both", rows=(("train", 2), ("test", 2)))
    assert {sample.split for sample in list_samples(config_of(tmp_path / "both")).samples} == {"train", "test"}
    with pytest.raises(ValueError, match="--val-fraction is given, but the files below .* are of test, train; leave"):
        list_samples(config_of(tmp_path / "both", val_fraction=0.5))


def test_files_whose_names_tell_no_split_are_refused(tmp_path: Path) -> None:
    made = make_hf_parquet(tmp_path, rows=(("train", 2),)) / "data" / "train-00000-of-00001.parquet"
    made.rename(tmp_path / "data" / "training_data.parquet")
    with pytest.raises(ValueError, match="training_data.parquet tells no split; expected files like train-00000"):
        list_samples(config_of(tmp_path))


def write(root: Path, table: pa.Table) -> None:
    pq.write_table(table, root / "data" / "train-00000-of-00001.parquet")


def test_columns_that_hold_no_files_are_refused(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path)
    write(tmp_path, pa.table({"image": [b"x"], "text": ["x"]}))
    with pytest.raises(ValueError, match="has the columns image, text, expected one of label and annotation; name the"):
        list_samples(config_of(tmp_path))
    with pytest.raises(ValueError, match="the column 'text' of .* is string, expected struct<bytes: binary, path"):
        list_samples(config_of(tmp_path, label_column="text"))
    with pytest.raises(ValueError, match="has the columns image, text, expected 'mask' among them"):
        list_samples(config_of(tmp_path, label_column="mask"))
    write(tmp_path, pa.table({"image": [b"x"], "label": [b"x"], "annotation": [b"x"]}))
    with pytest.raises(ValueError, match="expected one of label and annotation"):
        list_samples(config_of(tmp_path))


def test_rows_that_hold_a_path_instead_of_bytes_are_named(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path, rows=(("train", 1),))
    there = {"bytes": b"x", "path": None}
    files = pa.array([{"bytes": None, "path": "a.png"}, there], FILE)
    write(tmp_path, pa.table({"image": files, "label": files.take(pa.array([1, 0]))}))
    first, second = list_samples(config_of(tmp_path)).samples
    read = list_samples(config_of(tmp_path)).read
    with pytest.raises(OSError, match=r"#row=0&column=image holds the path 'a.png' alone; embed the files' bytes"):
        read(first)
    with pytest.raises(OSError, match=r"#row=1&column=label holds the path 'a.png' alone"):
        read(second)


def test_plain_binary_columns_are_read(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path, rows=(("train", 1),))
    labels_HW = np.ones((12, 16), np.uint8)
    write(tmp_path, pa.table({"image": [encoded(np.dstack([labels_HW] * 3))], "label": [encoded(labels_HW)]}))
    listing = list_samples(config_of(tmp_path))
    assert decode_labels(listing.read(listing.samples[0])[1]).tolist() == labels_HW.tolist()


def test_row_groups_too_large_for_a_worker_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_parquet, "MAX_ROW_GROUP_BYTES", 100)
    with pytest.raises(ValueError, match=r"row group 0 of .* bytes, more than 100; .* with row_group_size=100"):
        list_samples(config_of(make_hf_parquet(tmp_path)))


def test_missing_broken_and_changed_files_are_told_apart(tmp_path: Path) -> None:
    make_hf_parquet(tmp_path, rows=(("train", 4),))
    listing = list_samples(config_of(tmp_path))
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 1), file)
    with pytest.raises(OSError, match="has changed since it was listed; run the job again"):
        listing.read(listing.samples[1])
    hf_parquet._row_group.cache_clear()
    pq.write_table(table.slice(0, 2), file)
    with pytest.raises(OSError, match="has changed since it was listed"):
        listing.read(listing.samples[2])
    file.write_bytes(b"no Parquet")
    with pytest.raises(OSError, match="is no Parquet file any more"):
        listing.read(listing.samples[2])
    with pytest.raises(ValueError, match="is no Parquet file .*; fetch it again"):
        list_samples(config_of(tmp_path))
    file.unlink()
    with pytest.raises(ValueError, match="holds no file that ends in .parquet"):
        list_samples(config_of(tmp_path))
    with pytest.raises(ValueError, match="absent' does not exist"):
        list_samples(HfParquetConfig(root=str(tmp_path / "absent"), classes=str(tmp_path / "classes.yaml")))
