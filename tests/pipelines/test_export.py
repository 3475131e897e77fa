"""Exports: exact pixels where they are promised, the same bytes twice, nothing overwritten."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines import storage
from pipelines.export import (
    FORMATS,
    CocoConfig,
    ExportResult,
    GeojsonConfig,
    PngConfig,
    SelectionConfig,
    export,
    file_names,
)
from pipelines.intake.labels import decode_labels
from pipelines.maintain import MaintainConfig, maintain
from tests.pipelines.night_tables import CLASS_NAMES, PALETTE, Mask, blocky_masks, publish_night

CONFIDENCE = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.3, "e": 0.7}


@pytest.fixture(scope="module")
def masks() -> dict[str, Mask]:
    return dict(zip(CONFIDENCE, blocky_masks(5, seed=0), strict=True))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, masks: dict[str, Mask]) -> str:
    """Five images of two nights; b is turned by EXIF."""
    folder = str(tmp_path_factory.mktemp("tables"))
    columns: dict[str, dict[str, Any]] = {
        work_id: {"mean_confidence": value, "uri": f"s3://cams/front/{work_id}.jpg"}
        for work_id, value in CONFIDENCE.items()
    }
    columns["e"]["uri"] = "s3://cams/rear/a.jpg"
    columns["b"]["orientation"] = 6
    for run_id, day, ids in (("000001", "2026-11-20", "abc"), ("000002", "2026-11-21", "de")):
        night = {work_id: masks[work_id] for work_id in ids}
        publish_night(folder, run_id, night, failed=[f"x{run_id}"], run_date=day, columns=columns)
    return folder


def _selection(tables: str, output: Path, **options: Any) -> SelectionConfig:
    return SelectionConfig(tables=tables, output=str(output), **options)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _images_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_pngs_hold_class_indices_and_the_palette(tables: str, masks: dict[str, Mask], tmp_path: Path) -> None:
    selection = _selection(tables, tmp_path / "out", where="mean_confidence < 0.8", order_by="mean_confidence", limit=3)
    result = export(PngConfig(selection=selection))
    assert result == ExportResult(output=str(tmp_path / "out"), num_images=3, num_without_mask=0)
    lines = _images_csv(tmp_path / "out")
    assert [(line["file"], line["work_id"], line["mean_confidence"]) for line in lines] == [
        ("b.png", "b", "0.20000000298023224"),
        ("d.png", "d", "0.30000001192092896"),
        ("c.png", "c", "0.5"),
    ]
    for line in lines:
        path = tmp_path / "out" / line["file"]
        np.testing.assert_array_equal(decode_labels(path.read_bytes()), masks[line["work_id"]])
        image = Image.open(path)
        assert image.mode == "P" and tuple(image.getpalette() or ())[:12] == tuple(sum(PALETTE, ()))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["format"], manifest["snapshot"]) == ("export", "png", 2)
    assert manifest["class_names"] == list(CLASS_NAMES)


def test_files_are_named_after_their_images(tables: str, tmp_path: Path) -> None:
    export(PngConfig(selection=_selection(tables, tmp_path)))
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert names == {"front/a.png", "front/b.png", "front/c.png", "front/d.png", "rear/a.png"}


@pytest.mark.parametrize(
    "uris, expected",
    [
        (["s3://b/x/1.jpg", "s3://b/y/1.jpg"], ["x/1", "y/1"]),
        (["s3://b/x/1.jpg", "s3://b/x/1.png"], ["1-id0000000000", "1-id1000000000"]),
        (["/data/1.jpg"], ["1"]),
        (["/data/1.jpg", "/data/deep/1.jpg"], ["1", "deep/1"]),
        (["photo.jpg", "s3://b/q.v2.jpg"], ["photo", "b/q.v2"]),
        ([], []),
    ],
)
def test_names_are_paths_below_the_common_folder_and_unique(uris: list[str], expected: list[str]) -> None:
    assert file_names([{"uri": uri, "work_id": f"id{n}0000000000000"} for n, uri in enumerate(uris)]) == expected


def test_pycocotools_decodes_the_same_pixels(tables: str, masks: dict[str, Mask], tmp_path: Path) -> None:
    export(CocoConfig(selection=_selection(tables, tmp_path / "out", order_by="mean_confidence")))
    found = COCO(str(tmp_path / "out" / "coco.json"))
    assert [found.imgs[number]["work_id"] for number in sorted(found.imgs)] == ["b", "d", "c", "e", "a"]
    assert [each["name"] for each in found.loadCats(found.getCatIds())] == list(CLASS_NAMES)
    for number, image in found.imgs.items():
        mask_HW = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in found.loadAnns(found.getAnnIds(imgIds=[number])):
            inside_HW = found.annToMask(annotation) == 1
            assert (mask_HW[inside_HW] == 255).all() and annotation["area"] == inside_HW.sum()
            mask_HW[inside_HW] = annotation["category_id"] - 1
        np.testing.assert_array_equal(mask_HW, masks[image["work_id"]])


def test_polygons_of_every_mask_are_written(tables: str, masks: dict[str, Mask], tmp_path: Path) -> None:
    config = GeojsonConfig(
        selection=_selection(tables, tmp_path, where="work_id IN ('a', 'c')"),
        simplify_px=0,
        affine=(2.0, 0.0, 10.0, 0.0, -2.0, 50.0),
    )
    assert export(config).num_images == 2
    for work_id in "ac":
        features = json.loads((tmp_path / f"{work_id}.geojson").read_text())["features"]
        assert [each["properties"]["class_index"] for each in features] == np.unique(masks[work_id]).tolist()
        points = np.concatenate(
            [np.array(ring) for each in features for rings in each["geometry"]["coordinates"] for ring in rings]
        )
        assert (points.min(axis=0).tolist(), points.max(axis=0).tolist()) == ([10, 26], [46, 50])


def test_world_files_are_taken_from_beside_the_images(tables: str, tmp_path: Path) -> None:
    selection = _selection(tables, tmp_path / "out", where="work_id = 'b'")
    with pytest.raises(ValueError, match="b.jpg is turned by its EXIF orientation 6, .* leave it out with --where"):
        export(GeojsonConfig(selection=selection, world_files=True))
    with pytest.raises(ValueError, match="--affine and --world-files both give coordinates"):
        GeojsonConfig(selection=selection, world_files=True, affine=(1, 0, 0, 0, 1, 0))


@pytest.mark.parametrize("kind", [PngConfig, CocoConfig, GeojsonConfig])
def test_the_same_command_gives_the_same_bytes_and_finishes_a_broken_export(
    tables: str, tmp_path: Path, kind: type[PngConfig]
) -> None:
    for name in ("once", "twice"):
        export(kind(selection=_selection(tables, tmp_path / name)))
    first = _bytes(tmp_path / "once")
    assert first == _bytes(tmp_path / "twice") and len(first) >= 3
    for path in sorted((tmp_path / "twice").rglob("*"))[::2]:
        if path.is_file():
            path.unlink()
    (tmp_path / "twice" / "manifest.json").unlink(missing_ok=True)
    export(kind(selection=_selection(tables, tmp_path / "twice")))
    assert _bytes(tmp_path / "twice") == first
    assert export(kind(selection=_selection(tables, tmp_path / "twice"))).num_images == 5


def test_nothing_is_overwritten(tables: str, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "a.png").write_bytes(b"a photo")
    with pytest.raises(ValueError, match="front/a.png is there already and differs: .* give an empty --output"):
        export(PngConfig(selection=_selection(tables, tmp_path)))
    assert (tmp_path / "front" / "a.png").read_bytes() == b"a photo"
    export(PngConfig(selection=_selection(tables, tmp_path / "new")))
    with pytest.raises(ValueError, match="holds a finished export with another config; give another --output"):
        export(PngConfig(selection=_selection(tables, tmp_path / "new", limit=1)))


def test_images_whose_masks_were_dropped_are_listed_without_a_file(tmp_path: Path) -> None:
    tables = str(tmp_path / "tables")
    masks = blocky_masks(4, seed=2)
    publish_night(tables, "000001", {"a": masks[0], "b": masks[1]}, run_date="2020-01-01")
    publish_night(tables, "000002", {"c": masks[2], "d": masks[3]}, run_date="2100-01-01")
    maintain(MaintainConfig(tables=tables, drop_masks_older_than_days=0, apply=True))
    result = export(PngConfig(selection=_selection(tables, tmp_path / "out")))
    assert result.closing_line.startswith("exported the masks of 2 images to ")
    assert result.closing_line.endswith("; 2 more have no mask any longer")
    assert [line["file"] for line in _images_csv(tmp_path / "out")] == ["", "", "c.png", "d.png"]


def test_an_export_of_nothing_is_empty(tables: str, tmp_path: Path) -> None:
    for name, kind in FORMATS.items():
        result = export(kind(selection=_selection(tables, tmp_path / name, where="false")))
        assert result.num_images == 0 and (tmp_path / name / "manifest.json").exists()


def test_wrong_paths_are_refused(tables: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' holds no published tables"):
        export(PngConfig(selection=_selection(str(tmp_path / "nowhere"), tmp_path / "out")))
    with pytest.raises(ValueError, match="has no snapshot 9"):
        export(PngConfig(selection=_selection(tables, tmp_path / "out", snapshot=9)))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot write below .*file"):
        export(PngConfig(selection=_selection(tables, tmp_path / "file" / "out")))
    with pytest.raises(ValueError, match="--limit is 0; give 1 or more"):
        _selection(tables, tmp_path, limit=0)


def test_exports_go_to_an_object_store(tables: str, masks: dict[str, Mask]) -> None:
    export(PngConfig(selection=SelectionConfig(tables=tables, output="memory://exports/one", where="work_id = 'c'")))
    np.testing.assert_array_equal(decode_labels(storage.read_bytes("memory://exports/one/c.png")), masks["c"])
    storage.remove_tree("memory://exports")


def test_the_command_line_has_a_subcommand_per_format(
    tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.export import parse

    words = f"jobs/export.py geojson --tables {tables} --output {tmp_path} --limit 2 --affine 1 0 0 0 -1 9".split()
    monkeypatch.setattr(sys, "argv", [*words, "--where", "mean_confidence < 0.6"])
    assert parse() == GeojsonConfig(
        selection=_selection(tables, tmp_path, limit=2, where="mean_confidence < 0.6"), affine=(1, 0, 0, 0, -1, 9)
    )
