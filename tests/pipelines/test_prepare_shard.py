"""One shard: what is checked, what a row holds, and when an earlier run's part is believed."""

import dataclasses
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines import storage
from pipelines.datasets.files import read_files
from pipelines.datasets.folder import FolderConfig, list_samples
from pipelines.datasets.listing import ClassTable
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels, encode_labels_png
from pipelines.prepare_shard import Shard, ShardJob, Statistics, prepare_shard, segmentation_rows
from pipelines.shards import SHARD_SCHEMA, parse_part
from segcore import IGNORE_INDEX
from tests.data.folder.make import make_folder

PART = "train/part-00000.parquet"


@pytest.fixture
def work(tmp_path: Path) -> tuple[Shard, ShardJob]:
    """Three good pairs a, b, c of 20 x 30 pixels, classes 0 to 2, 255 ignored; all in one shard of train."""
    fake = make_folder(tmp_path / "raw", stems=("a", "b", "c"))
    listing = list_samples(FolderConfig(**dataclasses.asdict(fake), val_fraction=0))
    job = ShardJob(
        output=str(tmp_path / "out"),
        plan_digest="p",
        task="segmentation",
        num_classes=3,
        make_rows=partial(segmentation_rows, class_table=listing.class_table, read=listing.read),
        resume=False,
    )
    return Shard(split="train", index=0, samples=listing.samples), job


def table_of(job: ShardJob) -> ClassTable:
    assert isinstance(job.make_rows, partial)
    table: ClassTable = job.make_rows.keywords["class_table"]
    return table


def with_table(job: ShardJob, class_table: ClassTable) -> ShardJob:
    return dataclasses.replace(job, make_rows=partial(segmentation_rows, class_table=class_table, read=read_files))


def save(array: NDArray[np.uint8], path: Path, *, exif: Image.Exif | None = None) -> None:
    Image.fromarray(array).save(path, exif=exif or Image.Exif())


def no_label(raw: Path) -> None:
    (raw / "labels/b.png").unlink()


def text_for_image(raw: Path) -> None:
    (raw / "images/b.jpg").write_text("<html>not found</html>")


def half_an_image(raw: Path) -> None:
    path = raw / "images/b.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_a_label(raw: Path) -> None:
    path = raw / "labels/b.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def smaller_label(raw: Path) -> None:
    save(np.zeros((10, 15), dtype=np.uint8), raw / "labels/b.png")


def value_outside(raw: Path) -> None:
    save(np.full((20, 30), 37, dtype=np.uint8), raw / "labels/b.png")


def black_and_white(raw: Path) -> None:
    save((np.arange(600).reshape(20, 30) % 2 * 255).astype(np.uint8), raw / "labels/b.png")


def colours(raw: Path) -> None:
    save(np.zeros((20, 30, 3), dtype=np.uint8), raw / "labels/b.png")


def turned_image(raw: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(np.zeros((20, 30, 3), dtype=np.uint8), raw / "images/b.jpg", exif=exif)


@pytest.mark.parametrize(
    ("spoil", "stage", "source", "reason"),
    [
        (no_label, "fetch", "labels/b.png", "cannot be read: FileNotFoundError"),
        (text_for_image, "sniff", "images/b.jpg", "image: the file is an HTML page"),
        (half_an_image, "decode", "images/b.jpg", "image: the JPEG file is truncated or broken"),
        (half_a_label, "decode", "labels/b.png", "label: the PNG file is truncated or broken"),
        (smaller_label, "validate", "labels/b.png", "its size is 10 x 15, the image's 20 x 30 (height x width)"),
        (value_outside, "validate", "labels/b.png", "label value 37 is outside the class table, which knows 0..2"),
        (colours, "validate", "labels/b.png", "mode RGB, expected one channel of class indices"),
        (turned_image, "validate", "labels/b.png", "EXIF orientation 6: the label was drawn on the image as stored"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_used_becomes_a_failure_and_the_others_stay(
    work: tuple[Shard, ShardJob], tmp_path: Path, spoil: Callable[[Path], None], stage: str, source: str, reason: str
) -> None:
    spoil(tmp_path / "raw")
    record = prepare_shard(*work)
    (failure,) = record.failures
    assert (failure["image_id"], failure["split"], failure["stage"]) == ("b", "train", stage)
    assert failure["source"].endswith(source)
    assert reason in failure["reason"]
    table = parse_part((tmp_path / "out" / PART).read_bytes(), name=PART, sha256=record.sha256)
    assert table["image_id"].to_pylist() == ["a", "c"]
    assert sum(record.statistics.class_pixels_C) == record.statistics.num_pixels == 2 * 600


def test_black_and_white_masks_are_explained_where_255_is_not_declared(
    work: tuple[Shard, ShardJob], tmp_path: Path
) -> None:
    shard, job = work
    black_and_white(tmp_path / "raw")
    strict = with_table(job, dataclasses.replace(table_of(job), ignore_values=()))
    (failure,) = prepare_shard(shard, strict).failures
    assert "the values [0, 255] alone, as a black and white mask does" in failure["reason"]
    assert "list 255 under `ignore`" in failure["reason"]
    assert prepare_shard(shard, job).failures == ()  # the table of this fixture declares it


def test_rows_hold_files_as_found_and_labels_as_indices(work: tuple[Shard, ShardJob], tmp_path: Path) -> None:
    shard, job = work
    record = prepare_shard(shard, with_table(job, dataclasses.replace(table_of(job), values=(2, 0, 1))))
    table = parse_part((tmp_path / "out" / PART).read_bytes(), name=PART, sha256=record.sha256)
    assert table.schema.equals(SHARD_SCHEMA)
    row = table.to_pylist()[0]
    raw = (tmp_path / "raw/images/a.jpg").read_bytes()
    assert (row["image_id"], row["image"], row["image_sha256"]) == ("a", raw, storage.sha256(raw))
    assert (row["height"], row["width"], row["source"]) == (20, 30, str(tmp_path / "raw/images/a.jpg"))
    stored = np.asarray(Image.open(tmp_path / "raw/labels/a.png"))
    labels_HW = decode_labels(row["label"])
    assert np.array_equal(labels_HW, np.array([1, 2, 0])[stored])
    assert row["class_pixels"] == [int((labels_HW == label).sum()) for label in range(3)]
    assert Image.open(io.BytesIO(row["label"])).mode == "L"


def test_a_label_file_that_holds_the_indices_and_nothing_else_is_kept(
    work: tuple[Shard, ShardJob], tmp_path: Path
) -> None:
    labels_HW = np.full((20, 30), 2, dtype=np.uint8)
    labels_HW[:4] = IGNORE_INDEX
    commented, plain, indexed = PngInfo(), tmp_path / "raw/labels/a.png", Image.fromarray(labels_HW)
    indexed.save(plain, compress_level=9)
    commented.add_text("Comment", "of the annotator")
    indexed.save(tmp_path / "raw/labels/b.png", pnginfo=commented)
    indexed = indexed.copy()
    indexed.putpalette(range(60))
    indexed.save(tmp_path / "raw/labels/c.png")
    shard, job = work
    record = prepare_shard(shard, job)
    table = parse_part((tmp_path / "out" / PART).read_bytes(), name=PART, sha256=record.sha256)
    labels = table["label"].to_pylist()
    assert labels[0] == plain.read_bytes()
    assert labels[1] == labels[2] == encode_labels_png(labels_HW) != labels[0]


def test_an_upright_label_of_a_turned_image_is_accepted_and_noted(work: tuple[Shard, ShardJob], tmp_path: Path) -> None:
    turned_image(tmp_path / "raw")
    save(np.zeros((30, 20), dtype=np.uint8), tmp_path / "raw/labels/b.png")
    record = prepare_shard(*work)
    assert record.failures == ()
    assert record.statistics.notes == {"EXIF orientation 6 was applied": 1}


def test_an_intact_part_of_an_earlier_run_is_not_written_again(work: tuple[Shard, ShardJob], tmp_path: Path) -> None:
    shard, job = work
    again = dataclasses.replace(job, resume=True)
    first = prepare_shard(shard, again)
    before = (tmp_path / "out" / PART).stat().st_mtime_ns
    assert prepare_shard(shard, again) == first
    assert (tmp_path / "out" / PART).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["changed", "removed", "other plan"])
def test_a_damaged_part_of_an_earlier_run_is_written_again(
    work: tuple[Shard, ShardJob], tmp_path: Path, damage: str
) -> None:
    shard, job = work
    first, path = prepare_shard(shard, job), tmp_path / "out" / PART
    whole, before = path.read_bytes(), path.stat().st_mtime_ns
    if damage == "changed":
        path.write_bytes(whole[:-1])
    elif damage == "removed":
        path.unlink()
    digest = "another" if damage == "other plan" else job.plan_digest
    assert prepare_shard(shard, dataclasses.replace(job, resume=True, plan_digest=digest)) == first
    assert path.read_bytes() == whole
    assert path.stat().st_mtime_ns != before


def test_a_shard_with_failures_is_done_again_because_files_may_have_been_mended(
    work: tuple[Shard, ShardJob], tmp_path: Path
) -> None:
    shard, job = work
    label = tmp_path / "raw/labels/b.png"
    whole = label.read_bytes()
    label.write_bytes(b"")
    assert len(prepare_shard(shard, job).failures) == 1
    label.write_bytes(whole)
    assert prepare_shard(shard, dataclasses.replace(job, resume=True)).failures == ()


def test_a_shard_without_one_usable_pair_leaves_no_part(work: tuple[Shard, ShardJob], tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"raw/images/{name}.jpg").write_bytes(b"")
    record = prepare_shard(*work)
    assert (record.num_rows, len(record.failures)) == (0, 3)
    assert not (tmp_path / "out" / PART).exists()


def test_statistics_equal_numpy_and_merge_in_any_order() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for size in ((5, 7), (30, 20), (1, 1)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
        labels = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), size)
        pairs.append((decode_image(file.getvalue()), labels))
    states = []
    for pair in pairs:
        states.append(Statistics.zero(3))
        states[-1].update(*pair)
    forwards, backwards = Statistics.zero(3), Statistics.zero(3)
    for state in states:
        forwards.merge(state)
    for state in reversed(states):
        backwards.merge(state)
    assert forwards == backwards
    pixels = np.concatenate([image.pixels_HW3.reshape(-1, 3) for image, _ in pairs]) / 255
    mean, std = forwards.mean_and_std()
    assert mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=0), rel=1e-12)
    labels_all = np.concatenate([labels.ravel() for _, labels in pairs])
    assert forwards.class_pixels_C == [int((labels_all == label).sum()) for label in range(3)]
    assert forwards.class_images_C == [sum(int((labels == label).any()) for _, labels in pairs) for label in range(3)]
    assert forwards.num_pixels == labels_all.size
