"""Importers of public layouts, one file each. An importer lists samples; `pipelines.prepare` reads and checks them.

To add one: a frozen config whose docstrings are the help text, `list_samples(config) -> DatasetListing` (or
`ClassificationListing`: one class per image, to pre-train backbones on; `CropListing`: pieces of images that were
prepared before), an entry in `DATASETS` and in the subcommands
of `pipelines.prepare.PrepareConfig`, and a generator of fake data in the real layout (`tests/data/<name>/make.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.datasets import camvid, class_folders, folder, label_crops, object_crops, scenes
from pipelines.datasets.listing import (
    ClassificationListing,
    ClassifiedImage,
    ClassTable,
    CropListing,
    DatasetListing,
    Sample,
    Unpaired,
)

__all__ = [
    "DATASETS",
    "ClassTable",
    "ClassificationListing",
    "ClassifiedImage",
    "CropListing",
    "DatasetConfig",
    "DatasetListing",
    "Importer",
    "Listing",
    "Sample",
    "Unpaired",
    "list_dataset",
]

DatasetConfig = (
    camvid.CamVidConfig
    | folder.FolderConfig
    | scenes.ScenesConfig
    | class_folders.ClassFoldersConfig
    | label_crops.LabelCropsConfig
    | object_crops.ObjectCropsConfig
)
Listing = DatasetListing | ClassificationListing | CropListing


@dataclass(frozen=True, kw_only=True, slots=True)
class Importer:
    """A public layout: its config and the function that lists it."""

    config_type: type[DatasetConfig]
    list_samples: Callable[[Any], Listing]


DATASETS: dict[str, Importer] = {
    "camvid": Importer(config_type=camvid.CamVidConfig, list_samples=camvid.list_samples),
    "folder": Importer(config_type=folder.FolderConfig, list_samples=folder.list_samples),
    "scenes": Importer(config_type=scenes.ScenesConfig, list_samples=scenes.list_samples),
    "class_folders": Importer(config_type=class_folders.ClassFoldersConfig, list_samples=class_folders.list_samples),
    "label_crops": Importer(config_type=label_crops.LabelCropsConfig, list_samples=label_crops.list_samples),
    "object_crops": Importer(config_type=object_crops.ObjectCropsConfig, list_samples=object_crops.list_samples),
}


def list_dataset(config: DatasetConfig) -> Listing:
    """List the dataset that a config describes.

    Raises:
        ValueError: what the importer found wrong.
    """
    (importer,) = (importer for importer in DATASETS.values() if importer.config_type is type(config))
    return importer.list_samples(config)
