"""PASCAL VOC 2012, alone and with SBD."""

import shutil
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipelines.datasets.voc import CLASSES, VOCConfig, list_samples
from pipelines.intake.labels import decode_labels
from pipelines.prepare_shard import Shard, ShardJob, prepare_shard, segmentation_rows
from tests.data.voc.make import TRAIN, VAL, colour_map, make_voc, sbd_structure, write_lists
from tests.pipelines.datasets.listed_labels import class_indices, ids_of, stored_values

DEVKIT = "VOCdevkit/VOC2012"
LISTS = f"{DEVKIT}/ImageSets/Segmentation"


def test_splits_are_the_lists_and_palette_files_are_read_as_indices(tmp_path: Path) -> None:
    listing = list_samples(VOCConfig(root=make_voc(tmp_path).root))
    assert (ids_of(listing, "train"), ids_of(listing, "val")) == (set(TRAIN), set(VAL))
    with Image.open(tmp_path / DEVKIT / "SegmentationClass" / f"{TRAIN[0]}.png") as file:
        assert file.mode == "P"
    assert set(np.unique(stored_values(listing, TRAIN[0]))) == {*range(21), 255}


def test_classes_and_colours_are_those_of_the_development_kit() -> None:
    assert (len(CLASSES), CLASSES[0], CLASSES[1], CLASSES[15], CLASSES[20]) == (
        21, "background", "aeroplane", "person", "tvmonitor"
    )  # fmt: skip


def test_the_palette_is_the_one_that_the_files_carry(tmp_path: Path) -> None:
    listing = list_samples(VOCConfig(root=make_voc(tmp_path).root))
    assert listing.class_table.palette == tuple(colour_map()[:21])


@pytest.mark.parametrize("start", ["", "VOCdevkit", DEVKIT])
def test_the_devkit_is_found_from_above(tmp_path: Path, start: str) -> None:
    make_voc(tmp_path)
    assert ids_of(list_samples(VOCConfig(root=str(tmp_path / start))), "train") == set(TRAIN)


@pytest.mark.parametrize("start", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset", "SegmentationClassAug"])
def test_trainaug_is_both_train_and_val_of_sbd_and_never_val_of_voc(tmp_path: Path, start: str) -> None:
    config = VOCConfig(root=make_voc(tmp_path).root, sbd=str(tmp_path / start))
    listing = list_samples(config)
    assert ids_of(listing, "train") == {"2007_000032", "2007_000039", "2008_000002", "2008_000004"}
    assert ids_of(listing, "val") == set(VAL)  # of which 2008_000003 is in SBD's train


def test_vocs_label_is_taken_where_both_have_one(tmp_path: Path) -> None:
    listing = list_samples(VOCConfig(root=make_voc(tmp_path).root, sbd=str(tmp_path / "benchmark_RELEASE")))
    both, sbd_alone = stored_values(listing, "2007_000032"), stored_values(listing, "2008_000002")
    assert set(np.unique(both)) == {*range(21), 255}  # SBD has no border
    assert np.array_equal(sbd_alone, np.where(both == 255, 0, (both.astype(int) + 1) % 21))
    (tmp_path / DEVKIT / "SegmentationClass/2007_000032.png").unlink()
    without = list_samples(VOCConfig(root=str(tmp_path), sbd=str(tmp_path / "benchmark_RELEASE")))
    assert np.array_equal(stored_values(without, "2007_000032"), sbd_alone)


def test_images_that_voc_lacks_come_from_sbd(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    (tmp_path / DEVKIT / "JPEGImages/2008_000002.jpg").unlink()
    listing = list_samples(VOCConfig(root=fake.root, sbd=fake.sbd))
    (sample,) = (sample for sample in listing.samples if sample.image_id == "2008_000002")
    assert sample.image_uri == f"{fake.sbd}/dataset/img/2008_000002.jpg"
    assert listing.unpaired == ()


def test_sbd_without_vocs_val_list_is_refused(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    (tmp_path / LISTS / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"has no val.txt, which tells the images that --sbd must not train on"):
        list_samples(VOCConfig(root=fake.root, sbd=fake.sbd))
    assert ids_of(list_samples(VOCConfig(root=fake.root)), "train") == set(TRAIN)


def test_lists_that_share_an_image_are_refused(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    write_lists(tmp_path / LISTS, {"train": (*TRAIN, VAL[0])}, line_end="\r\n")
    with pytest.raises(ValueError, match=r"1 images are in train.txt and in val.txt .* the first is '2007_000033'"):
        list_samples(VOCConfig(root=fake.root))


def test_a_listed_image_without_label_is_unpaired(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    (tmp_path / DEVKIT / f"SegmentationClass/{TRAIN[1]}.png").unlink()
    (entry,) = list_samples(VOCConfig(root=fake.root)).unpaired
    assert (entry.image_id, entry.split) == (TRAIN[1], "train")
    assert entry.reason == f"the image has no label; expected {tmp_path}/{DEVKIT}/SegmentationClass/{TRAIN[1]}.png"


def test_wrong_folders_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    with pytest.raises(ValueError, match="absent' does not exist; check the path"):
        list_samples(VOCConfig(root=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match="holds dataset; expected ImageSets/Segmentation in it; give the folder VOC20"):
        list_samples(VOCConfig(root=fake.sbd))
    with pytest.raises(ValueError, match="holds cls, img; expected ImageSets/Segmentation in it"):
        list_samples(VOCConfig(root=f"{fake.sbd}/dataset"))
    with pytest.raises(ValueError, match="expected cls in it; give SBD's folder benchmark_RELEASE"):
        list_samples(VOCConfig(root=fake.root, sbd=f"{tmp_path}/{LISTS}"))
    (Path(fake.sbd) / "dataset/val.txt").unlink()
    with pytest.raises(ValueError, match="val.txt is missing; give SBD's folder"):
        list_samples(VOCConfig(root=fake.root, sbd=fake.sbd))
    shutil.rmtree(tmp_path / LISTS)
    (tmp_path / LISTS).mkdir()
    with pytest.raises(ValueError, match="holds neither train.txt nor val.txt"):
        list_samples(VOCConfig(root=fake.root))


def test_a_matlab_file_that_cannot_be_used_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    fake = make_voc(tmp_path)
    cls = Path(fake.sbd) / "dataset/cls"
    (cls / "2008_000002.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    savemat(cls / "2008_000004.mat", sbd_structure(np.full((10, 14), 300, dtype=np.uint16)))
    listing = list_samples(VOCConfig(root=fake.root, sbd=fake.sbd))
    job = ShardJob(
        output=str(tmp_path / "out"),
        plan_digest="p",
        task="segmentation",
        num_classes=21,
        make_rows=partial(segmentation_rows, class_table=listing.class_table, read=listing.read),
        resume=False,
    )
    record = prepare_shard(Shard(split="train", index=0, samples=listing.samples), job)
    reasons = {Path(failure["source"]).name: (failure["stage"], failure["reason"]) for failure in record.failures}
    assert set(reasons) == {"2008_000002.mat", "2008_000004.mat"}
    assert reasons["2008_000002.mat"][0] == "decode"
    assert reasons["2008_000004.mat"] == (
        "validate", "label: label value 300 is outside the class table, which knows 0..20 and ignores 255"
    )  # fmt: skip
    assert record.num_rows == len(listing.samples) - 2


def test_an_object_store_is_read_as_a_folder_is(tmp_path: Path) -> None:
    make_voc(tmp_path)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/voc-test", recursive=True)
    try:
        listing = list_samples(VOCConfig(root="memory://voc-test", sbd="memory://voc-test/benchmark_RELEASE/"))
        assert len(listing.samples) == 6
        assert listing.samples[0].image_uri == f"memory://voc-test/{DEVKIT}/JPEGImages/2007_000032.jpg"
        for sample in listing.samples:
            assert decode_labels(listing.read(sample)[1]).shape == (10, 14)
        assert set(np.unique(class_indices(listing, "2008_000002"))) == set(range(21))
    finally:
        store.rm("/voc-test", recursive=True)
