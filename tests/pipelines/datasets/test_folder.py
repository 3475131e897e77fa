"""A user's own folders."""

import dataclasses
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.camvid import CamVidConfig
from pipelines.datasets.camvid import list_samples as list_camvid
from pipelines.datasets.colour_labels import ColourTable, colour_values
from pipelines.datasets.folder import FolderConfig, list_samples
from pipelines.intake.labels import decode_labels
from pipelines.prepare_shard import Shard, ShardJob, prepare_shard, segmentation_rows
from tests.data.folder.make import COLOUR_CLASSES, COLOURS, make_folder


def config_of(root: Path, *, stems: tuple[str, ...], val_fraction: float | None = None) -> FolderConfig:
    return FolderConfig(**dataclasses.asdict(make_folder(root, stems=stems)), val_fraction=val_fraction)


def test_images_and_labels_are_matched_by_path_without_suffix(tmp_path: Path) -> None:
    listing = list_samples(config_of(tmp_path, stems=("a", "sub/b", "sub.v2/b")))
    assert [sample.image_id for sample in listing.samples] == ["a", "sub.v2/b", "sub/b"]
    assert listing.samples[2].label_uri == str(tmp_path / "labels" / "sub" / "b.png")
    assert listing.unpaired == ()


def test_split_folders_become_splits(tmp_path: Path) -> None:
    listing = list_samples(config_of(tmp_path, stems=("train/a", "train/x/b", "val/c", "test/d")))
    assert {sample.image_id: sample.split for sample in listing.samples} == {
        "train/a": "train", "train/x/b": "train", "val/c": "val", "test/d": "test"
    }  # fmt: skip


def test_val_fraction_is_about_kept_and_an_image_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    few, many = tuple(f"i{n}" for n in range(40)), tuple(f"i{n}" for n in range(80))
    before = list_samples(config_of(tmp_path / "few", stems=few, val_fraction=0.25))
    after = {
        s.image_id: s.split for s in list_samples(config_of(tmp_path / "many", stems=many, val_fraction=0.25)).samples
    }
    assert all(after[sample.image_id] == sample.split for sample in before.samples)
    assert 10 <= sum(split == "val" for split in after.values()) <= 30


def test_val_fraction_beside_split_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--val-fraction is given, but .* has the splits \['train', 'val'\] as folders"
    ):
        list_samples(config_of(tmp_path, stems=("train/a", "val/b"), val_fraction=0.5))
    with pytest.raises(ValueError, match="--val-fraction is 1.5, expected at least 0 and below 1"):
        FolderConfig(images="i", labels="l", classes="c", val_fraction=1.5)


def test_files_outside_split_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"as folders, but 1 files lie outside them \('b'\); move them"):
        list_samples(config_of(tmp_path, stems=("train/a", "b")))


def test_images_without_labels_and_labels_without_images_are_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path, stems=("a", "b", "c"))
    (tmp_path / "labels" / "b.png").unlink()
    (tmp_path / "images" / "c.jpg").unlink()
    listing = list_samples(config)
    assert [sample.image_id for sample in listing.samples] == ["a"]
    assert [(entry.image_id, entry.reason.split(";")[0]) for entry in listing.unpaired] == [
        ("b", "the image has no label"),
        ("c", "the label has no image"),
    ]


def test_folders_that_do_not_match_at_all_are_refused_with_examples(tmp_path: Path) -> None:
    config = config_of(tmp_path, stems=("a",))
    (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / "a_mask.png")
    with pytest.raises(
        ValueError, match="none of the 1 images .* images are called 'a', labels 'a_mask'; a label needs"
    ):
        list_samples(config)


def test_missing_empty_and_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, stems=("a",))
    with pytest.raises(ValueError, match="the label folder '.*absent' does not exist"):
        list_samples(dataclasses.replace(config, labels=str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the image folder '.*empty' holds no file that ends in .jpg"):
        list_samples(dataclasses.replace(config, images=str(tmp_path / "empty")))
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.jpg and .*a.png have one name; .* remove one"):
        list_samples(config)


def in_colours(root: Path, labels_HW: NDArray[np.uint8]) -> FolderConfig:
    """Images a and b of 20 x 30; the label of a has sky and void, that of b is given."""
    config = config_of(root, stems=("a", "b"), val_fraction=0)
    Path(config.classes).write_text(COLOUR_CLASSES)
    void = np.zeros((20, 30), np.uint8)
    void[:5] = 2
    Image.fromarray(COLOURS[void]).save(root / "labels" / "a.png")
    Image.fromarray(COLOURS[labels_HW]).save(root / "labels" / "b.png")
    return config


def test_labels_in_the_palettes_colours_become_class_indices(tmp_path: Path) -> None:
    labels_HW = (np.arange(600).reshape(20, 30) % 3).astype(np.uint8)
    listing = list_samples(in_colours(tmp_path, labels_HW))
    assert listing.config["colour_values"] == (((70, 130, 180), 0), ((128, 64, 128), 1), ((0, 0, 0), 255))
    _, label = pickle.loads(pickle.dumps(listing.read))(listing.samples[1])
    found_HW = listing.class_table.class_indices(decode_labels(label))
    assert found_HW.tolist() == np.where(labels_HW == 2, 255, labels_HW).tolist()


def test_real_camvid_drawn_in_its_colours_comes_back(camvid_source: Path) -> None:
    listing = list_camvid(CamVidConfig(root=str(camvid_source)))
    palette = np.array([*listing.class_table.palette, (0, 0, 0)], np.uint8)
    colours = ColourTable(tuple((tuple(colour), value) for value, colour in enumerate(palette.tolist())))
    for sample in listing.samples[::90]:
        values_HW = decode_labels(listing.read(sample)[1])
        assert (colour_values(palette[values_HW], colours) == values_HW).all()


def test_an_unknown_colour_costs_its_pair_alone(tmp_path: Path) -> None:
    labels_HW = np.zeros((20, 30), np.uint8)
    labels_HW[19, 29] = 3
    listing = list_samples(in_colours(tmp_path, labels_HW))
    job = ShardJob(
        output=str(tmp_path / "out"),
        plan_digest="p",
        task="segmentation",
        num_classes=2,
        make_rows=partial(segmentation_rows, class_table=listing.class_table, read=listing.read),
        resume=False,
    )
    record = prepare_shard(Shard(split="train", index=0, samples=listing.samples), job)
    assert record.num_rows == 1
    assert record.statistics.class_pixels_C == [15 * 30, 0]
    (failure,) = record.failures
    assert (failure["image_id"], failure["stage"], failure["source"]) == (
        "b", "validate", str(tmp_path / "labels" / "b.png"),
    )  # fmt: skip
    assert failure["reason"].startswith("label: the colour (1, 2, 3) at row 19, column 29 is not among the 3 colours")
