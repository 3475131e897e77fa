"""Importers of public layouts, one file each. An importer lists samples; `pipelines.prepare` reads and checks them.

To add one: a file with a frozen config whose docstrings are the help text, and `list_samples(config) -> DatasetListing`
(or `ClassificationListing`: one class per image, to pre-train backbones on; `CropListing`: pieces of images that were
prepared before; `MixedListing`: such images with other classes); its line in `DATASETS`; and a generator of fake data
in the real layout (`tests/data/<name>/make.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from pipelines.datasets import (
    ade20k,
    camvid,
    camvid_colours,
    cityscapes,
    class_folders,
    coco_json,
    coco_stuff,
    folder,
    hf_parquet,
    kitti,
    label_crops,
    mapillary,
    mixed,
    object_crops,
    pascal_context,
    scenes,
    voc,
)
from pipelines.datasets.listing import (
    ClassificationListing,
    ClassifiedImage,
    ClassTable,
    CropListing,
    DatasetListing,
    MixedListing,
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
    "MixedListing",
    "Sample",
    "Unpaired",
    "list_dataset",
]

Listing = DatasetListing | ClassificationListing | CropListing | MixedListing


@dataclass(frozen=True, slots=True)
class Importer:
    """A public layout: its config, whose fields are the subcommand's options, and the function that lists it."""

    config_type: type[Any]
    list_samples: Callable[[Any], Listing]


DATASETS: dict[str, Importer] = {
    "camvid": Importer(camvid.CamVidConfig, camvid.list_samples),
    "voc": Importer(voc.VOCConfig, voc.list_samples),
    "pascal_context": Importer(pascal_context.PascalContextConfig, pascal_context.list_samples),
    "cityscapes": Importer(cityscapes.CityscapesConfig, cityscapes.list_samples),
    "ade20k": Importer(ade20k.ADE20KConfig, ade20k.list_samples),
    "coco_stuff": Importer(coco_stuff.COCOStuffConfig, coco_stuff.list_samples),
    "camvid_colours": Importer(camvid_colours.CamVidColoursConfig, camvid_colours.list_samples),
    "kitti": Importer(kitti.KITTIConfig, kitti.list_samples),
    "mapillary": Importer(mapillary.MapillaryConfig, mapillary.list_samples),
    "coco_json": Importer(coco_json.CocoJsonConfig, coco_json.list_samples),
    "hf_parquet": Importer(hf_parquet.HfParquetConfig, hf_parquet.list_samples),
    "folder": Importer(folder.FolderConfig, folder.list_samples),
    "scenes": Importer(scenes.ScenesConfig, scenes.list_samples),
    "class_folders": Importer(class_folders.ClassFoldersConfig, class_folders.list_samples),
    "label_crops": Importer(label_crops.LabelCropsConfig, label_crops.list_samples),
    "object_crops": Importer(object_crops.ObjectCropsConfig, object_crops.list_samples),
    "mixed": Importer(mixed.MixedConfig, mixed.list_samples),
}

if TYPE_CHECKING:
    DatasetConfig = Any  # one of the configs
else:  # subcommands of a job that reads one
    DatasetConfig = Union[  # noqa: UP007  made of the table
        tuple(Annotated[each.config_type, tyro.conf.subcommand(name)] for name, each in DATASETS.items())
    ]


def list_dataset(config: DatasetConfig) -> Listing:
    """List the dataset that a config describes.

    Raises:
        ValueError: what the importer found wrong.
    """
    (importer,) = (importer for importer in DATASETS.values() if importer.config_type is type(config))
    return importer.list_samples(config)
