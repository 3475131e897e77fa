"""What every importer of `DATASETS` owes to `prepare`, on its fake dataset."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import DATASETS, DatasetListing, list_dataset
from pipelines.datasets.ade20k import ADE20KConfig
from pipelines.datasets.camvid import CamVidConfig
from pipelines.datasets.camvid_colours import CamVidColoursConfig
from pipelines.datasets.cityscapes import CityscapesConfig
from pipelines.datasets.coco_json import CocoJsonConfig
from pipelines.datasets.coco_stuff import COCOStuffConfig
from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.hf_parquet import HfParquetConfig
from pipelines.datasets.kitti import KITTIConfig
from pipelines.datasets.mapillary import MapillaryConfig
from pipelines.datasets.pascal_context import PascalContextConfig
from pipelines.datasets.scenes import ScenesConfig
from pipelines.datasets.voc import VOCConfig
from pipelines.intake.images import decode_image
from segcore import IGNORE_INDEX
from tests.data.ade20k.make import make_ade20k
from tests.data.camvid.make import make_camvid
from tests.data.camvid_colours.make import make_camvid_colours
from tests.data.cityscapes.make import make_cityscapes
from tests.data.coco_json.make import make_coco
from tests.data.coco_stuff.make import make_coco_stuff
from tests.data.folder.make import COLOUR_CLASSES, COLOURS, make_folder
from tests.data.hf_parquet.make import make_hf_parquet
from tests.data.kitti.make import make_kitti
from tests.data.mapillary.make import make_mapillary
from tests.data.pascal_context.make import make_pascal_context
from tests.data.voc.make import make_voc
from tests.pipelines.datasets.listed_labels import class_indices, ids_of


def voc_trainaug(folder: Path) -> VOCConfig:
    fake = make_voc(folder)
    return VOCConfig(root=fake.root, sbd=fake.sbd)


def voc_png_trainaug(folder: Path) -> VOCConfig:
    fake = make_voc(folder)
    return VOCConfig(root=fake.root, sbd=fake.aug)


def context_files(folder: Path) -> PascalContextConfig:
    fake = make_pascal_context(folder)
    return PascalContextConfig(root=fake.root, annotations=fake.annotations, num_classes=60)


def own_folder(folder: Path) -> FolderConfig:
    return FolderConfig(**dataclasses.asdict(make_folder(folder, stems=("train/a", "train/b", "val/c"))))


def own_colours(folder: Path) -> FolderConfig:
    config = own_folder(folder)
    Path(config.classes).write_text(COLOUR_CLASSES)
    for label in Path(config.labels).rglob("*.png"):
        Image.fromarray(COLOURS[np.resize([0, 1, 2], (20, 30))]).save(label)
    return config


def camvid_groups(folder: Path) -> CamVidColoursConfig:
    return CamVidColoursConfig(root=str(make_camvid_colours(folder)), val_fraction=0.5)


def camvid_32(folder: Path) -> CamVidColoursConfig:
    return dataclasses.replace(camvid_groups(folder), classes=32)


def coco_objects(folder: Path) -> CocoJsonConfig:
    root = make_coco(folder)
    files = tuple(str(root / f"annotations/instances_{split}2017.json") for split in ("train", "val"))
    return CocoJsonConfig(
        annotations=files, images=(str(root / "train2017"), str(root / "val2017")), splits=("train", "val")
    )


def hub_rows(folder: Path) -> HfParquetConfig:
    root = make_hf_parquet(folder)
    return HfParquetConfig(root=str(root), classes=str(root / "classes.yaml"))


CONFIGS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "camvid": (lambda folder: CamVidConfig(root=str(make_camvid(folder))),),
    "voc": (lambda folder: VOCConfig(root=make_voc(folder).root), voc_trainaug, voc_png_trainaug),
    "pascal_context": (
        lambda folder: PascalContextConfig(root=make_pascal_context(folder).root, num_classes=59),
        context_files,
    ),
    "cityscapes": (lambda folder: CityscapesConfig(root=str(make_cityscapes(folder))),),
    "ade20k": (lambda folder: ADE20KConfig(root=str(make_ade20k(folder))),),
    "coco_stuff": (lambda folder: COCOStuffConfig(root=str(make_coco_stuff(folder))),),
    "camvid_colours": (camvid_groups, camvid_32),
    "kitti": (lambda folder: KITTIConfig(root=str(make_kitti(folder))),),
    "mapillary": (
        lambda folder: MapillaryConfig(root=str(make_mapillary(folder))),
        lambda folder: MapillaryConfig(root=str(make_mapillary(folder)), version="v2.0"),
        lambda folder: MapillaryConfig(root=str(make_mapillary(folder, with_versions=False, palette=False))),
    ),
    "coco_json": (coco_objects,),
    "hf_parquet": (hub_rows,),
    "folder": (own_folder, own_colours),
    "scenes": (lambda folder: ScenesConfig(num_train=6, num_val=2, height=120, width=160),),
}
"""Each importer with its fake dataset, once for every way in which it reads labels."""
WITHOUT_LABEL_FILES = {"class_folders", "label_crops", "mixed", "object_crops"}
CASES = [
    pytest.param(name, config_of, id=f"{name}-{index}")
    for name, kinds in CONFIGS.items()
    for index, config_of in enumerate(kinds)
]


def test_every_importer_of_label_files_has_a_fake_dataset_here() -> None:
    assert set(CONFIGS) == set(DATASETS) - WITHOUT_LABEL_FILES


@pytest.mark.parametrize(("name", "config_of"), CASES)
def test_every_class_of_the_table_comes_out_of_the_files_and_no_other_value(
    name: str, config_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    listing = list_dataset(config)
    assert isinstance(listing, DatasetListing)
    assert listing.name == name
    assert DATASETS[name].config_type is type(config)
    assert listing.unpaired == ()
    found: set[int] = set()
    for sample in listing.samples:
        labels_HW = class_indices(listing, sample.image_id)
        assert labels_HW.shape == decode_image(listing.read(sample)[0]).pixels_HW3.shape[:2]
        found |= {int(index) for index in np.unique(labels_HW)}
    assert found - {IGNORE_INDEX} == set(range(len(listing.class_table.names)))


@pytest.mark.parametrize(("name", "config_of"), CASES)
def test_listings_travel_to_tasks_and_into_manifests(
    name: str, config_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    listing = list_dataset(config_of(tmp_path))
    assert isinstance(listing, DatasetListing)
    assert ids_of(listing, "train")
    assert ids_of(listing, "val")
    assert json.loads(json.dumps(listing.config)).keys() == listing.config.keys()
    read = pickle.loads(pickle.dumps(listing.read))
    assert read(listing.samples[0]) == listing.read(listing.samples[0])
