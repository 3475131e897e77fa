"""A user's own folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.folder import FolderConfig, list_samples, read_class_table
from tests.data.folder.make import make_folder


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


def test_class_table_from_yaml_and_json_with_values_palette_and_ignore(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: {7: road, 0: sky}\npalette: [[1, 2, 3], [4, 5, 6]]\nignore: [255, 9]\n")
    table = read_class_table(str(tmp_path / "c.yaml"))
    assert (table.names, table.values, table.palette) == (("sky", "road"), (0, 7), ((1, 2, 3), (4, 5, 6)))
    assert table.class_indices(np.array([[0, 7, 9, 255]], dtype=np.uint8)).tolist() == [[0, 1, 255, 255]]
    (tmp_path / "c.json").write_text(json.dumps({"names": ["sky", "road"]}))
    plain = read_class_table(str(tmp_path / "c.json"))
    assert plain.palette == ((128, 0, 0), (0, 128, 0))  # PASCAL VOC's classes 1 and 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sky, road]", "holds list, expected `names`"),
        ("names: [a]\ncolours: [[0, 0, 0]]", r"holds \['colours', 'names'\], expected `names`"),
        ("names: a", "`names` is a str, expected a list"),
        ("names: [a, a]", "has the name a twice"),
        ("names: [a, b]\npalette: [[0, 0, 0]]", "2 names, 1 colours"),
        ("names: [a]\npalette: [[0, 0, 256]]", "a level outside 0..255"),
        ("names: [a, b]\nignore: [1]", "the label value 1 twice"),
        ("names: [a, '']", "an empty name"),
        ("names: []", "0 classes, expected 1 to 254"),
        ("names: {-1: a}", "outside 0..65535"),
        ("names: [", "neither YAML nor JSON"),
    ],
)
def test_broken_class_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_table(str(tmp_path / "c.yaml"))


def test_missing_class_table_shows_an_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; write one, for example\nnames: \[sky, road, car\]"):
        read_class_table(str(tmp_path / "absent.yaml"))
