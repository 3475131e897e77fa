"""CamVid as its authors publish it: 32 colours, 11 groups of them, and SegNet's lists."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import camvid
from pipelines.datasets.camvid_colours import CLASSES, CamVidColoursConfig, list_samples
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from tests.data.camvid_colours.make import COLOURS, FRAMES, make_camvid_colours
from tests.pipelines.datasets.listed_labels import lines_digest

NAMES = [line.split()[3] for line in COLOURS.splitlines()]


def test_table_is_that_of_label_colors_txt() -> None:
    # Of the published file: "64 128 64 Animal" and so on.
    lines = [f"{red} {green} {blue} {name}" for name, (red, green, blue), _ in CLASSES]
    assert lines_digest(lines) == "fbc129ddf5e557a1"
    assert [" ".join(line.split()) for line in COLOURS.splitlines()] == lines


def test_32_colours_are_31_classes_and_void_is_ignored(tmp_path: Path) -> None:
    listing = list_samples(CamVidColoursConfig(root=str(make_camvid_colours(tmp_path)), classes=32))
    assert listing.class_table.names == tuple(name for name in NAMES if name != "Void")
    image, label = listing.read(listing.samples[0])
    indices_HW = listing.class_table.class_indices(decode_labels(label))
    assert decode_image(image).pixels_HW3.shape == (*indices_HW.shape, 3) == (24, 32, 3)
    found = ["Void" if index == 255 else listing.class_table.names[index] for index in indices_HW.ravel()[:32].tolist()]
    assert found == NAMES


def test_groups_are_the_11_classes_of_the_other_edition_in_their_order(tmp_path: Path) -> None:
    listing = list_samples(CamVidColoursConfig(root=str(make_camvid_colours(tmp_path))))
    assert listing.class_table.names == tuple(name for name, _ in camvid.CLASSES)
    assert listing.class_table.palette == tuple(colour for _, colour in camvid.CLASSES)
    _, label = listing.read(listing.samples[0])
    found = listing.class_table.class_indices(decode_labels(label)).ravel()[:32].tolist()
    group_of = dict(zip(NAMES, found, strict=True))
    assert sorted(set(found)) == [*range(11), 255]
    assert [name for name, index in group_of.items() if index == 255] == ["Void"]
    car, road = listing.class_table.names.index("Car"), listing.class_table.names.index("Road")
    assert [name for name in NAMES if group_of[name] == car] == [
        "Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus",
    ]  # fmt: skip
    assert [name for name in NAMES if group_of[name] == road] == ["LaneMkgsDriv", "LaneMkgsNonDriv", "Road"]


def test_lists_of_names_paths_and_segnets_lines_give_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_camvid_colours(tmp_path / "raw")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text(
        f"/SegNet/CamVid/train/{FRAMES[0]}.png /SegNet/CamVid/trainannot/{FRAMES[0]}.png\n{FRAMES[1]}\n"
    )
    (lists / "test.txt").write_text(f"LabeledApproved_full/{FRAMES[2]}_L.png\n\nabsent\n")
    listing = list_samples(CamVidColoursConfig(root=str(tmp_path / "raw"), splits=str(lists)))
    assert {sample.image_id: sample.split for sample in listing.samples} == {
        FRAMES[0]: "train", FRAMES[1]: "train", FRAMES[2]: "test"
    }  # fmt: skip
    assert [(entry.image_id, entry.split) for entry in listing.unpaired] == [("absent", "test")]
    assert "left out 2 frames that are in no list" in caplog.text


def test_lists_that_contradict_themselves_or_name_nothing_are_refused(tmp_path: Path) -> None:
    root = str(make_camvid_colours(tmp_path))
    with pytest.raises(ValueError, match="holds no names in train.txt, val.txt or test.txt; check --splits"):
        list_samples(CamVidColoursConfig(root=root, splits=root))
    (tmp_path / "train.txt").write_text(f"{FRAMES[0]}\n")
    (tmp_path / "val.txt").write_text(f"{FRAMES[1]}\n{FRAMES[0]}\n")
    with pytest.raises(ValueError, match="val.txt, line 2: '0001TP_006690' is in train.txt too"):
        list_samples(CamVidColoursConfig(root=root, splits=root))
    with pytest.raises(ValueError, match="--val-fraction and --splits are both given"):
        CamVidColoursConfig(root=root, splits=root, val_fraction=0.2)


def test_a_colour_that_is_none_of_camvids_is_named_with_its_pixel(tmp_path: Path) -> None:
    make_camvid_colours(tmp_path)
    listing = list_samples(CamVidColoursConfig(root=str(tmp_path)))
    path = Path(listing.samples[0].label_uri)
    pixels_HW3 = np.array(Image.open(path))
    pixels_HW3[5, 6] = (127, 0, 0)
    Image.fromarray(pixels_HW3).save(path)
    with pytest.raises(ImageError, match=r"the colour \(127, 0, 0\) at row 5, column 6 is not among the 32 colours"):
        listing.read(listing.samples[0])


def test_other_tables_of_colours_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no folders; expected LabeledApproved_full in it; give the folder"):
        list_samples(CamVidColoursConfig(root=str(tmp_path)))
    make_camvid_colours(tmp_path)
    (tmp_path / "label_colors.txt").write_text(COLOURS.replace("64 192 0\tWall", "64 193 0\tWall"))
    with pytest.raises(ValueError, match=r"differ in \('Wall', 64, 192, 0\), \('Wall', 64, 193, 0\); use the importer"):
        list_samples(CamVidColoursConfig(root=str(tmp_path)))
    (tmp_path / "label_colors.txt").write_text("Wall 64 192 0\n")
    with pytest.raises(ValueError, match="label_colors.txt, line 1: found 'Wall 64 192 0', expected 'red green blue"):
        list_samples(CamVidColoursConfig(root=str(tmp_path)))
    (tmp_path / "label_colors.txt").unlink()
    assert len(list_samples(CamVidColoursConfig(root=str(tmp_path))).samples) == len(FRAMES)
