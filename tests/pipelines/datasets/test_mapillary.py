"""Mapillary Vistas in the layouts of its downloads; the class table comes from the config file."""

import json
from pathlib import Path

import pytest

from pipelines.datasets.mapillary import MapillaryConfig, list_samples
from pipelines.intake.labels import decode_labels
from tests.data.mapillary.make import LABELS, make_mapillary


@pytest.mark.parametrize("palette", [True, False], ids=["palette", "indices"])
@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_both_versions_are_read_and_what_is_not_evaluated_is_ignored(
    tmp_path: Path, version: str, palette: bool
) -> None:
    config = MapillaryConfig(root=str(make_mapillary(tmp_path, palette=palette)), version=version)  # type: ignore[arg-type]
    listing = list_samples(config)
    assert [sample.split for sample in listing.samples] == ["train"] * 3 + ["val"] * 2
    assert listing.samples[0].image_id == "tr00_abcdefghijklmnop-_"
    assert f"/training/{version}/labels/" in listing.samples[0].label_uri
    evaluated = [index for index, (_, _, _, evaluate) in enumerate(LABELS[version]) if evaluate]
    assert listing.class_table.values == tuple(evaluated)
    assert listing.class_table.palette == tuple(LABELS[version][index][2] for index in evaluated)
    _, label = listing.read(listing.samples[0])
    indices = listing.class_table.class_indices(decode_labels(label)).ravel()[: len(LABELS[version])].tolist()
    expected = [evaluated.index(index) if index in evaluated else 255 for index in range(len(LABELS[version]))]
    assert indices == expected


def test_names_are_the_readable_ones_unless_two_classes_share_one(tmp_path: Path) -> None:
    root = str(make_mapillary(tmp_path))
    assert list_samples(MapillaryConfig(root=root)).class_table.names == ("Bird", "Road", "Sky")
    assert list_samples(MapillaryConfig(root=root, version="v2.0")).class_table.names == (
        "Bird", "construction--flat--road", "construction--flat--road-shoulder", "Sky",
    )  # fmt: skip


def test_the_download_of_v1_has_its_labels_and_config_file_elsewhere(tmp_path: Path) -> None:
    root = str(make_mapillary(tmp_path, with_versions=False))
    listing = list_samples(MapillaryConfig(root=root))
    assert "/training/labels/" in listing.samples[0].label_uri
    assert listing.class_table.names == ("Bird", "Road", "Sky")
    with pytest.raises(ValueError, match=r"holds no config_v2.0.json, .* \(found: config.json\); .* another --version"):
        list_samples(MapillaryConfig(root=root, version="v2.0"))


def test_a_split_that_was_not_fetched_is_left_out_and_missing_labels_are_reported(tmp_path: Path) -> None:
    make_mapillary(tmp_path)
    for path in sorted((tmp_path / "validation").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "validation").rmdir()
    (tmp_path / "training/v1.2/labels/tr01_abcdefghijklmnop-_.png").unlink()
    listing = list_samples(MapillaryConfig(root=str(tmp_path)))
    assert [sample.split for sample in listing.samples] == ["train", "train"]
    assert [(entry.image_id[:4], entry.reason.split(";")[0]) for entry in listing.unpaired] == [
        ("tr01", "the image has no label")
    ]


def test_foreign_folders_and_config_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="holds images; expected training or validation in it; give the folder into"):
        list_samples(MapillaryConfig(root=str(tmp_path)))
    make_mapillary(tmp_path)
    (tmp_path / "config_v1.2.json").write_text(json.dumps({"labels": [{"readable": "Bird"}]}))
    with pytest.raises(ValueError, match=r"is no config file of Mapillary Vistas \(KeyError: 'evaluate'\); expected"):
        list_samples(MapillaryConfig(root=str(tmp_path)))
    (tmp_path / "config_v1.2.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config.json or config_v1.2.json, .* \(found: config_v2.0.json\)"):
        list_samples(MapillaryConfig(root=str(tmp_path)))
