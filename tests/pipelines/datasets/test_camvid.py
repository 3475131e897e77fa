"""CamVid in SegNet's layout."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.camvid import CamVidConfig, list_samples
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from tests.data.camvid.make import PREFIX, make_camvid


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_relative_and_original_paths_of_both_formats_are_read(tmp_path: Path, prefix: str, suffix: str) -> None:
    listing = list_samples(CamVidConfig(root=str(make_camvid(tmp_path, prefix=prefix, suffix=suffix))))
    assert [sample.split for sample in listing.samples] == ["train"] * 6 + ["val"] * 3
    first = listing.samples[0]
    assert first.image_id == "0001TP_train000"
    assert first.image_uri == str(tmp_path / "train" / f"0001TP_train000{suffix}")
    image, label = listing.read(first)
    assert decode_image(image).pixels_HW3.shape == (30, 40, 3)
    assert decode_labels(label).shape == (30, 40)


def test_lists_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    (tmp_path / "val.txt").unlink()
    listing = list_samples(CamVidConfig(root=str(tmp_path)))
    assert {sample.split for sample in listing.samples} == {"train"}


def test_unlabelled_becomes_ignored_and_255_is_not_known(tmp_path: Path) -> None:
    table = list_samples(CamVidConfig(root=str(make_camvid(tmp_path)))).class_table
    assert len(table.names) == 11
    assert table.class_indices(np.array([[0, 10, 11]], dtype=np.uint8)).tolist() == [[0, 10, 255]]
    with pytest.raises(
        ValueError, match=r"label value 12, 255 is outside the class table, which knows 0..10 and ignores 11"
    ):
        table.class_indices(np.array([[0, 12, 255]], dtype=np.uint8))


def test_missing_and_foreign_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent' does not exist; check the path"):
        list_samples(CamVidConfig(root=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match="holds none of train.txt, val.txt, test.txt; give the folder `CamVid`"):
        list_samples(CamVidConfig(root=str(tmp_path)))


def test_empty_lists_and_broken_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="train.txt are empty"):
        list_samples(CamVidConfig(root=str(tmp_path)))
    (tmp_path / "train.txt").write_text("train/a.png trainannot/a.png\ntrain/b.png\n")
    with pytest.raises(ValueError, match="line 2: found 'train/b.png', expected two paths"):
        list_samples(CamVidConfig(root=str(tmp_path)))
    (tmp_path / "train.txt").write_text("/elsewhere/a.png /SegNet/CamVid/trainannot/a.png\n")
    with pytest.raises(ValueError, match="line 1: '/elsewhere/a.png' is absolute; expected a path relative"):
        list_samples(CamVidConfig(root=str(tmp_path)))


def test_an_image_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    (tmp_path / "val.txt").write_text((tmp_path / "train.txt").read_text())
    with pytest.raises(ValueError, match=r"two images of 'camvid' have the id '0001TP_train000'.*\(train\).*\(val\)"):
        list_samples(CamVidConfig(root=str(tmp_path)))


def test_real_camvid_is_listed(camvid_source: Path) -> None:
    listing = list_samples(CamVidConfig(root=str(camvid_source)))
    assert sum(sample.split == "train" for sample in listing.samples) == 367
    assert sum(sample.split == "val" for sample in listing.samples) == 101
    image, label = listing.read(listing.samples[0])
    labels_HW = listing.class_table.class_indices(decode_labels(label))
    assert decode_image(image).pixels_HW3.shape == (*labels_HW.shape, 3) == (360, 480, 3)
