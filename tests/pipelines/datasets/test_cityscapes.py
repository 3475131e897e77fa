"""Cityscapes in its own layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.cityscapes import CityscapesConfig, list_samples
from pipelines.intake.formats import ImageError
from segcore import IGNORE_INDEX
from tests.data.cityscapes.make import make_cityscapes
from tests.pipelines.datasets.listed_labels import class_indices, ids_of, stored_values

VAL = "frankfurt_000000_000294"
TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids in the order of their train ids, as cityscapesScripts lists them."""


def test_label_ids_become_train_ids_and_the_other_15_are_ignored(tmp_path: Path) -> None:
    listing = list_samples(CityscapesConfig(root=str(make_cityscapes(tmp_path))))
    stored_HW, indices_HW = stored_values(listing, VAL), class_indices(listing, VAL)
    expected = np.full(34, IGNORE_INDEX)
    expected[list(TRAINED)] = np.arange(19)
    assert set(np.unique(stored_HW)) == set(range(34))
    assert np.array_equal(indices_HW, expected[stored_HW])
    table = listing.class_table
    assert (table.names[0], table.names[10], table.names[13], table.names[18]) == ("road", "sky", "car", "bicycle")
    assert table.palette[0] == (128, 64, 128)


def test_cities_are_joined_and_the_test_split_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    root = str(make_cityscapes(tmp_path))
    listing = list_samples(CityscapesConfig(root=root))
    assert ids_of(listing, "train") == {"aachen_000000_000019", "bochum_000000_000313"}
    assert ids_of(listing, "test") == set()
    with_test = list_samples(CityscapesConfig(root=root, test=True))
    assert ids_of(with_test, "test") == {"berlin_000000_000019"}
    assert set(np.unique(class_indices(with_test, "berlin_000000_000019"))) == {IGNORE_INDEX}


def test_train_ids_instead_of_label_ids_are_refused(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    for path in sorted((root / "gtFine").rglob("*_gtFine_labelIds.png")):
        path.rename(str(path).replace("labelIds", "labelTrainIds"))
    with pytest.raises(
        ValueError, match=r"holds 2 files \*_gtFine_labelTrainIds.png .* and none that end in _gtFine_l"
    ):
        list_samples(CityscapesConfig(root=str(root)))


def test_train_ids_beside_label_ids_are_not_read_and_under_their_name_are_found_out(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    label = root / f"gtFine/val/frankfurt/{VAL}_gtFine_labelIds.png"
    train_ids = Image.fromarray(np.resize(np.array([0, 18, 255], dtype=np.uint8), (8, 16)))
    train_ids.save(str(label).replace("labelIds", "labelTrainIds"))
    listing = list_samples(CityscapesConfig(root=str(root)))
    assert (len(listing.samples), listing.unpaired) == (3, ())
    train_ids.save(label)
    with pytest.raises(ImageError, match="label value 255 is outside the class table"):
        class_indices(listing, VAL)


def test_images_without_label_and_wrong_folders_are_reported(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path / "cityscapes")
    (root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    (entry,) = list_samples(CityscapesConfig(root=str(tmp_path))).unpaired
    assert (entry.image_id, entry.split) == ("aachen_000000_000019", "train")
    with pytest.raises(ValueError, match=r"holds test, train, val; expected leftImg8bit in it; give the folder into"):
        list_samples(CityscapesConfig(root=str(root / "leftImg8bit")))
    (root / "gtFine").rename(root / "gtCoarse")
    with pytest.raises(
        ValueError, match=r"none of the 2 names of train .* expected at .*_gtFine_labelIds.png; give the"
    ):
        list_samples(CityscapesConfig(root=str(root)))
