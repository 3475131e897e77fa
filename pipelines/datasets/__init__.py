"""Importers of public layouts, one file each. An importer lists samples; `pipelines.prepare` reads and checks them.

To add one: a frozen config whose docstrings are the help text, `list_samples(config) -> DatasetListing`, an entry in
`DATASETS` and in the subcommands of `pipelines.prepare.PrepareConfig`, and a generator of fake data in the real layout
(`tests/data/<name>/make.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.datasets import camvid, folder, scenes
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, Unpaired

__all__ = [
    "DATASETS",
    "ClassTable",
    "DatasetConfig",
    "DatasetListing",
    "Importer",
    "Sample",
    "Unpaired",
    "list_dataset",
]

DatasetConfig = camvid.CamVidConfig | folder.FolderConfig | scenes.ScenesConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Importer:
    """A public layout: its config and the function that lists it."""

    config_type: type[DatasetConfig]
    list_samples: Callable[[Any], DatasetListing]


DATASETS: dict[str, Importer] = {
    "camvid": Importer(config_type=camvid.CamVidConfig, list_samples=camvid.list_samples),
    "folder": Importer(config_type=folder.FolderConfig, list_samples=folder.list_samples),
    "scenes": Importer(config_type=scenes.ScenesConfig, list_samples=scenes.list_samples),
}


def list_dataset(config: DatasetConfig) -> DatasetListing:
    """List the dataset that a config describes.

    Raises:
        ValueError: what the importer found wrong.
    """
    (importer,) = (importer for importer in DATASETS.values() if importer.config_type is type(config))
    return importer.list_samples(config)
