"""COCO-Stuff as pixel maps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.coco_stuff import LABELS, REMOVED, COCOStuffConfig, list_samples
from pipelines.intake.formats import ImageError
from segcore import IGNORE_INDEX
from tests.data.coco_stuff.make import ABSENT, VALUES, make_coco_stuff
from tests.pipelines.datasets.listed_labels import class_indices, ids_of, lines_digest, stored_values

VAL = "000000000139"


def put(root: Path, values: tuple[int, ...], name: str = VAL) -> None:
    labels_HW = np.resize(np.array(values, dtype=np.uint8), (12, 16))
    Image.fromarray(labels_HW).save(root / f"annotations/val2017/{name}.png")


def test_182_values_become_171_classes_without_gaps(tmp_path: Path) -> None:
    listing = list_samples(COCOStuffConfig(root=str(make_coco_stuff(tmp_path))))
    assert (ids_of(listing, "train"), ids_of(listing, "val")) == ({"000000000009", "000000000025"}, {VAL})
    stored_HW, indices_HW = stored_values(listing, VAL), class_indices(listing, VAL)
    expected = np.full(256, IGNORE_INDEX)
    expected[list(VALUES[:-1])] = np.arange(171)  # the last is 255
    assert np.array_equal(indices_HW, expected[stored_HW])
    assert set(np.unique(stored_HW)) == set(VALUES)


def test_names_follow_the_published_numbers_and_what_was_removed_is_no_class(tmp_path: Path) -> None:
    table = list_samples(COCOStuffConfig(root=str(make_coco_stuff(tmp_path)))).class_table
    assert (len(LABELS), len(set(LABELS)), len(table.names)) == (182, 182, 171)
    assert lines_digest(LABELS) == "56bbb9bd51d6ad35"  # of the names in `labels.txt`, from 1 on
    names = dict(zip(table.values, table.names, strict=True))
    assert (names[0], names[12], names[89], names[91], names[181]) == (
        "person", "stop sign", "toothbrush", "banner", "wood"
    )  # fmt: skip
    assert [LABELS[label - 1] for label in REMOVED] == [
        "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender",
        "hair brush",
    ]  # fmt: skip
    assert tuple(label - 1 for label in REMOVED) == ABSENT
    assert len(set(table.palette)) == 171


@pytest.mark.parametrize(("values", "named"), [((0, 11), "11"), ((1, 182), "182"), ((5, 90), "90")])
def test_values_that_occur_nowhere_are_refused(tmp_path: Path, values: tuple[int, ...], named: str) -> None:
    root = make_coco_stuff(tmp_path)
    put(root, values)
    with pytest.raises(ImageError, match=f"label value {named} is outside the class table"):
        class_indices(list_samples(COCOStuffConfig(root=str(root))), VAL)


def test_the_archives_own_folder_and_images_beside_it_are_found(tmp_path: Path) -> None:
    root = make_coco_stuff(tmp_path, labels="stuffthingmaps")
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text("{}")  # COCO's own annotations lie there
    assert len(list_samples(COCOStuffConfig(root=str(root))).samples) == 3
    for split in ("train2017", "val2017"):
        (root / "images" / split).rename(root / split)
    assert len(list_samples(COCOStuffConfig(root=str(root))).samples) == 3


def test_converted_labels_are_left_aside_and_refused_where_there_are_no_others(tmp_path: Path) -> None:
    root = make_coco_stuff(tmp_path)
    put(root, (0, 170), name=f"{VAL}_labelTrainIds")
    listing = list_samples(COCOStuffConfig(root=str(root)))
    assert (len(listing.samples), listing.unpaired) == (3, ())
    (root / f"annotations/val2017/{VAL}.png").unlink()
    with pytest.raises(ValueError, match=r"holds 1 files \*_labelTrainIds.png \(0 to 170\) and no other labels"):
        list_samples(COCOStuffConfig(root=str(root)))


def test_one_split_is_enough_and_missing_files_and_folders_are_reported(tmp_path: Path) -> None:
    root = make_coco_stuff(tmp_path)
    (root / "annotations/train2017/000000000009.png").unlink()
    (entry,) = list_samples(COCOStuffConfig(root=str(root))).unpaired
    assert (entry.image_id, entry.split) == ("000000000009", "train")
    shutil.rmtree(root / "images/train2017")
    shutil.rmtree(root / "annotations/train2017")
    assert ids_of(list_samples(COCOStuffConfig(root=str(root))), "val") == {VAL}
    shutil.rmtree(root / "annotations")
    with pytest.raises(ValueError, match=r"holds images; expected train2017 or val2017 in it; unpack COCO's"):
        list_samples(COCOStuffConfig(root=str(root)))
