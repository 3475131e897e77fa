"""KITTI semantics, and the labels of Cityscapes that it has."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.cityscapes_labels import LABELS, NOT_TRAINED, TRAINED, label_id_table
from pipelines.datasets.kitti import KITTIConfig, list_samples
from pipelines.intake.labels import decode_labels
from tests.data.kitti.make import make_kitti
from tests.pipelines.datasets.listed_labels import lines_digest


def test_labels_are_those_of_cityscapes_scripts() -> None:
    ids = [label.id for label in LABELS]
    assert ids == [*range(34), -1]
    assert [label.train_id for label in TRAINED] == list(range(19))
    # the ids of the 19 classes as every training script lists them
    assert [label.id for label in TRAINED] == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    # Of `labels.py` without lane lines: "unlabeled 0 255 0 0 0" and so on.
    lines = (f"{label.name} {label.id} {label.train_id} {' '.join(map(str, label.colour))}" for label in LABELS)
    assert lines_digest(lines) == "4724bfa3f8f21a0a"
    assert sum(label.train_id == NOT_TRAINED for label in LABELS) == 15
    assert len({label.colour for label in TRAINED}) == 19


def test_pairs_are_split_by_name_and_next_frames_and_other_labels_left_out(tmp_path: Path) -> None:
    listing = list_samples(KITTIConfig(root=str(make_kitti(tmp_path)), val_fraction=0.3))
    assert {sample.image_id for sample in listing.samples} == {f"{index:06d}_10" for index in range(20)}
    assert listing.unpaired == ()
    assert {sample.split for sample in listing.samples} == {"train", "val"}
    assert 2 <= sum(sample.split == "val" for sample in listing.samples) <= 10
    assert all("/training/semantic/" in sample.label_uri for sample in listing.samples)


def test_ids_become_the_19_classes_and_the_others_are_ignored(tmp_path: Path) -> None:
    listing = list_samples(KITTIConfig(root=str(make_kitti(tmp_path, num_images=2))))
    _, label = listing.read(listing.samples[0])
    values_HW = decode_labels(label)
    indices_HW = listing.class_table.class_indices(values_HW)
    expected = {label.id: label.train_id for label in LABELS}
    assert indices_HW.tolist() == [[expected[value] for value in row] for row in values_HW.tolist()]
    with pytest.raises(ValueError, match="label value 34 is outside the class table"):
        label_id_table().class_indices(np.array([[34]], np.uint8))


def test_missing_labels_and_images_are_reported_and_the_training_folder_itself_is_taken(tmp_path: Path) -> None:
    make_kitti(tmp_path)
    (tmp_path / "training/semantic/000003_10.png").unlink()
    (tmp_path / "training/image_2/000004_10.png").unlink()
    listing = list_samples(KITTIConfig(root=str(tmp_path / "training")))
    assert len(listing.samples) == 18
    assert {entry.image_id: entry.reason.split(";")[0] for entry in listing.unpaired} == {
        "000003_10": "the image has no label",
        "000004_10": "the label has no image",
    }


def test_folders_that_are_not_kittis_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent' does not exist"):
        list_samples(KITTIConfig(root=str(tmp_path / "absent")))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(
        ValueError, match="holds elsewhere; expected semantic in it; give the folder into which KITTI's"
    ):
        list_samples(KITTIConfig(root=str(tmp_path)))
    with pytest.raises(ValueError, match="--val-fraction is 1, expected at least 0 and below 1"):
        KITTIConfig(root="x", val_fraction=1)
