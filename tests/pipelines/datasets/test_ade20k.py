"""ADE20K of the scene parsing benchmark."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.ade20k import COLOUR_OF_NAME, ADE20KConfig, list_samples
from pipelines.intake.formats import ImageError
from segcore import IGNORE_INDEX
from tests.data.ade20k.make import make_ade20k
from tests.pipelines.datasets.listed_labels import class_indices, ids_of, lines_digest, stored_values

VAL = "ADE_val_00000001"
HEADER = "Idx\tRatio\tTrain\tVal\tName\n"


def test_other_objects_are_ignored_and_classes_begin_with_one(tmp_path: Path) -> None:
    listing = list_samples(ADE20KConfig(root=str(make_ade20k(tmp_path))))
    assert ids_of(listing, "train") == {"ADE_train_00000001", "ADE_train_00000002"}
    assert ids_of(listing, "val") == {VAL}
    stored_HW, indices_HW = stored_values(listing, VAL), class_indices(listing, VAL)
    assert np.array_equal(indices_HW, np.where(stored_HW == 0, IGNORE_INDEX, stored_HW.astype(int) - 1))


def test_names_and_colours_are_those_of_the_benchmark(tmp_path: Path) -> None:
    table = list_samples(ADE20KConfig(root=str(make_ade20k(tmp_path)))).class_table
    assert (len(table.names), table.names[0], table.names[12], table.names[149]) == (150, "wall", "person", "flag")
    assert (table.palette[0], table.palette[1], table.palette[149]) == ((120, 120, 120), (180, 120, 120), (92, 0, 255))
    # Of `objectInfo150.txt`, the first synonyms, and `color150.mat`: "wall 120 120 120" and so on.
    lines = (
        f"{name} {red} {green} {blue}" for name, (red, green, blue) in zip(table.names, table.palette, strict=True)
    )
    assert lines_digest(lines) == "a648d7ebdd57a1d8"
    alike = [name for name, colour in COLOUR_OF_NAME.items() if list(COLOUR_OF_NAME.values()).count(colour) > 1]
    assert alike == ["road", "skyscraper"]


def test_labels_that_were_shifted_before_are_found_out(tmp_path: Path) -> None:
    root = make_ade20k(tmp_path)
    shifted_HW = np.resize(np.array([0, 149, 255], dtype=np.uint8), (12, 16))
    Image.fromarray(shifted_HW).save(root / f"annotations/validation/{VAL}.png")
    listing = list_samples(ADE20KConfig(root=str(root)))
    with pytest.raises(
        ImageError, match="label value 255 is outside the class table, which knows 1..150 and ignores 0"
    ):
        class_indices(listing, VAL)


def test_the_releases_own_table_is_compared(tmp_path: Path) -> None:
    root = make_ade20k(tmp_path)
    lines = [f"{value} \t0.1\t9\t9\t{name}, synonym \n" for value, name in enumerate(COLOUR_OF_NAME, start=1)]
    (root / "objectInfo150.txt").write_text(HEADER + "".join(lines))
    assert len(list_samples(ADE20KConfig(root=str(tmp_path))).samples) == 3
    (root / "objectInfo150.txt").write_text(HEADER + "".join(lines[:-1]))
    with pytest.raises(ValueError, match="calls the value 150 None, expected 'flag'"):
        list_samples(ADE20KConfig(root=str(tmp_path)))
    lines[0], lines[1] = lines[1].replace("2", "1", 1), lines[0].replace("1", "2", 1)
    (root / "objectInfo150.txt").write_text(HEADER + "".join(lines))
    with pytest.raises(ValueError, match="calls the value 1 'building', expected 'wall'"):
        list_samples(ADE20KConfig(root=str(tmp_path)))


def test_images_without_label_and_the_full_dataset_are_reported(tmp_path: Path) -> None:
    root = make_ade20k(tmp_path)
    (root / "annotations/training/ADE_train_00000002.png").unlink()
    (entry,) = list_samples(ADE20KConfig(root=str(root))).unpaired
    assert entry.reason == f"the image has no label; expected {root}/annotations/training/ADE_train_00000002.png"
    (root / "annotations").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"expected annotations/training or .* .the full ADE20K with its files \*_seg.png"
    ):
        list_samples(ADE20KConfig(root=str(root)))
