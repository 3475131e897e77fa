"""Class folders in ImageNet's layout: what is listed, what a prepared dataset of them holds, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.datasets.class_folders import ClassFoldersConfig, list_samples
from pipelines.datasets.listing import ClassifiedImage, ImageClasses
from pipelines.manifests import read_manifest
from pipelines.prepare import PrepareConfig, make_plan, prepare
from pipelines.shards import CLASSIFICATION_SCHEMA, KIND, open_dataset, read_part
from tests.data.class_folders.make import CLASSES, make_class_folders


def config_of(root: Path) -> ClassFoldersConfig:
    return ClassFoldersConfig(root=str(root))


def test_the_folders_names_are_the_classes_in_alphabetical_order(tmp_path: Path) -> None:
    listing = list_samples(config_of(make_class_folders(tmp_path, classes=("zebra", "ant", "Ant"))))
    assert listing.class_table.names == ("Ant", "ant", "zebra") and listing.class_table.palette == ()
    assert (listing.task, len(listing.samples)) == ("classification", 3 * (4 + 2))
    sample = next(each for each in listing.samples if each.image_id == "train/zebra/zebra_1")
    path = str(tmp_path / "train/zebra/zebra_1.JPEG")
    assert sample == ClassifiedImage(image_id=sample.image_id, split="train", image_uri=path, class_index=2)


def test_without_split_folders_an_image_s_name_decides_its_split(tmp_path: Path) -> None:
    make_class_folders(tmp_path, num_train=60)
    listing = list_samples(ClassFoldersConfig(root=str(tmp_path / "train"), val_fraction=0.25))
    assert listing.class_table.names == CLASSES
    assert 25 <= sum(sample.split == "val" for sample in listing.samples) <= 65
    for path in (tmp_path / "train").rglob("*_1*.JPEG"):
        path.unlink()
    fewer = list_samples(ClassFoldersConfig(root=str(tmp_path / "train"), val_fraction=0.25))
    before = {sample.image_id: sample.split for sample in listing.samples}
    assert all(before[sample.image_id] == sample.split for sample in fewer.samples)


def test_other_files_and_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path)
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench")
    (root / "train" / ".cache").mkdir()
    (root / "train" / CLASSES[0] / "notes.txt").write_text("")
    (root / "train" / CLASSES[0] / "more").mkdir()
    (root / "val" / CLASSES[1] / "ILSVRC2012_val_00000003.JPEG").rename(root / "train" / CLASSES[0] / "more" / "x.JPEG")
    listing = list_samples(config_of(root))
    assert listing.class_table.names == CLASSES
    assert f"train/{CLASSES[0]}/more/x" in {sample.image_id for sample in listing.samples}  # as torchvision walks


def test_class_folders_may_lie_behind_any_fsspec_uri(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path)
    for path in root.rglob("*.JPEG"):
        storage.write_atomic(f"memory://imagenet/{path.relative_to(root)}", path.read_bytes())
    remote = list_samples(ClassFoldersConfig(root="memory://imagenet"))
    assert [each.image_id for each in remote.samples] == [
        each.image_id for each in list_samples(config_of(root)).samples
    ]
    assert storage.read_bytes(remote.samples[0].image_uri)


@pytest.mark.usefixtures("ray_session")
def test_a_prepared_dataset_holds_one_integer_class_per_image(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "raw")
    (root / "train" / CLASSES[2] / "broken.JPEG").write_bytes(b"")
    config = PrepareConfig(
        dataset=config_of(root), output=str(tmp_path / "one"), images_per_part=5, workers=1, max_failures=0.1
    )
    result = prepare(config)
    assert "1 images left out" in result.closing_line and prepare(config).already_complete
    dataset = open_dataset(result.uri, task="classification")
    assert (dataset.task, dataset.class_names, dataset.palette) == ("classification", CLASSES, ())
    train = dataset.split("train")
    assert (train.num_images, train.class_images, train.class_pixels) == (12, (4, 4, 4), ())
    assert 0.3 < dataset.channel_mean[0] < 0.6
    rows = [row for part in train.parts for row in read_part(dataset, part).to_pylist()]
    for row in rows:
        assert CLASSES[row["class_index"]] in row["source"]
        assert row["image"] == Path(row["source"]).read_bytes()
    assert {(row["height"], row["width"]) for row in rows} == {(40, 56), (48, 36)}
    assert pq.read_schema(tmp_path / "one" / train.parts[0].path).equals(CLASSIFICATION_SCHEMA)
    prepare(dataclasses.replace(config, output=str(tmp_path / "three"), workers=3))
    assert read_manifest(str(tmp_path / "three"), kind=KIND) == read_manifest(str(tmp_path / "one"), kind=KIND)


@pytest.mark.usefixtures("ray_session")
def test_a_classification_dataset_may_have_more_classes_than_a_label_map(tmp_path: Path) -> None:
    classes = tuple(f"class {n:04d}" for n in range(1000))
    root = make_class_folders(tmp_path / "raw", num_train=1, num_val=0, classes=classes, sizes=((2, 2),))
    shutil.rmtree(root / "val")
    result = prepare(PrepareConfig(dataset=config_of(root), output=str(tmp_path / "out"), images_per_part=500))
    dataset = open_dataset(result.uri, task="classification")
    assert dataset.num_classes == 1000 and dataset.split("train").class_images == (1,) * 1000


def test_the_plan_names_every_image_and_its_class(tmp_path: Path) -> None:
    config = PrepareConfig(dataset=config_of(make_class_folders(tmp_path)), output="out")
    listing = list_samples(config_of(tmp_path))
    moved = (dataclasses.replace(listing.samples[0], class_index=1), *listing.samples[1:])
    plans = [make_plan(each, config) for each in (listing, dataclasses.replace(listing, samples=moved))]
    assert plans[0]["pairs_sha256"] != plans[1]["pairs_sha256"]
    assert plans[0]["num_pairs"] == len(listing.samples)


def test_a_missing_or_empty_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the root of the class folders '.*absent' does not exist"):
        list_samples(config_of(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"holds no folders; expected train/<class>/ and val/<class>/"):
        list_samples(config_of(tmp_path))


def test_the_flat_validation_archive_of_imagenet_is_refused(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path)
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    for name in CLASSES:
        (root / "val" / name).rmdir()
    with pytest.raises(ValueError, match=r"val' holds no class folders, .*one folder per class .*valprep.sh"):
        list_samples(config_of(root))


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path)
    (root / "train" / "n99999999").mkdir()
    with pytest.raises(ValueError, match=r"class folder '.*n99999999' holds no file that ends in .jpg"):
        list_samples(config_of(root))


def test_a_class_that_only_val_has_is_refused(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path)
    (root / "val" / CLASSES[0]).rename(root / "val" / "n00000001")
    with pytest.raises(ValueError, match=r"1 classes of .* are in val and not in train: 'n00000001'; both need"):
        list_samples(config_of(root))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = make_class_folders(tmp_path) / "train" / CLASSES[0]
    shutil.copy(folder / f"{CLASSES[0]}_0.JPEG", folder / f"{CLASSES[0]}_0.jpg")
    with pytest.raises(ValueError, match=r"two images of 'class_folders' have the id 'train/n01440764/n01440764_0'"):
        list_samples(config_of(tmp_path))


def test_a_share_for_val_beside_split_folders_is_refused(tmp_path: Path) -> None:
    make_class_folders(tmp_path)
    with pytest.raises(ValueError, match=r"--val-fraction is given, but .* has the splits \['train', 'val'\]"):
        list_samples(ClassFoldersConfig(root=str(tmp_path), val_fraction=0.1))
    with pytest.raises(ValueError, match="--val-fraction is 1, expected at least 0 and below 1"):
        ClassFoldersConfig(root="x", val_fraction=1)


def test_class_tables_without_classes_or_with_one_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 0 classes of images, expected 1 to 65536"):
        ImageClasses(names=())
    with pytest.raises(ValueError, match="a class of images stands twice"):
        ImageClasses(names=("a", "b", "a"))
