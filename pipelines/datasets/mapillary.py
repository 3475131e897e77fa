"""Mapillary Vistas v1.2 and v2.0: street images from everywhere; the class table comes with the data.

    training/images/*.jpg  validation/images/*.jpg         18,000 and 2,000; testing/ has no labels
    training/v1.2/labels/*.png    config_v1.2.json         as the download of v2.0 holds both
    training/v2.0/labels/*.png    config_v2.0.json
    training/labels/*.png         config.json              as the download of v1.x

A label is a palette PNG, or one of 8-bit indices: the index is the place of its class in the config file's `labels`.
Classes with `"evaluate": false` are ignored: of v1.2's 66 the last one, Unlabeled, which leaves 65.

Source: Neuhold, Ollmann, Rota Bulo and Kontschieder, "The Mapillary Vistas Dataset for Semantic Understanding of Street
Scenes", ICCV 2017; the README of each download; `demo.py` in it, which reads the config file so.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from pipelines import storage
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing
from pipelines.datasets.pairing import SplitFiles, find_folder, list_layer, pair

SPLITS = {"train": "training", "val": "validation"}
REMEDY = "give the folder into which a download of Mapillary Vistas was unpacked"


@dataclass(frozen=True, kw_only=True, slots=True)
class MapillaryConfig:
    """Mapillary Vistas: 18,000 training and 2,000 validation images; 65 classes (v1.2), or those of v2.0."""

    root: str
    """Folder or URI that holds training/, validation/ and the config file."""
    version: Literal["v1.2", "v2.0"] = "v1.2"
    """Which labels. v1.2: also those of a download of v1.x, whose folders name no version."""


def list_samples(config: MapillaryConfig) -> DatasetListing:
    """List the training and validation images, those of the two that are there.

    Raises:
        ValueError: a folder or the config file is missing or not understood, or no image of a split has a label.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the Mapillary folder")
    labels, table_uri = _place_of_labels(root, config.version)
    found = storage.list_folders(root)
    samples, unpaired = pair(
        (
            SplitFiles(
                split=split,
                images=list_layer(storage.join(root, folder, "images"), ".jpg"),
                labels=list_layer(storage.join(root, folder, labels), ".png"),
            )
            for split, folder in SPLITS.items()
            if folder in found
        ),
        remedy=REMEDY,
    )
    return DatasetListing(
        name="mapillary",
        config=dataclasses.asdict(config),
        class_table=read_class_table(table_uri),
        samples=samples,
        unpaired=unpaired,
        read=read_files,
    )


def read_class_table(uri: str) -> ClassTable:
    """The classes of a config file that are evaluated, the others ignored. Readable names, where they tell them apart.

    Raises:
        ValueError: it is not a config file of Mapillary Vistas.
    """
    content = storage.read_json(uri)
    try:
        labels: list[dict[str, Any]] = content["labels"]
        evaluated = [(value, label) for value, label in enumerate(labels) if label["evaluate"]]
        readable = Counter(label["readable"] for _, label in evaluated)
        return ClassTable(
            names=tuple(
                str(label["readable"] if readable[label["readable"]] == 1 else label["name"]) for _, label in evaluated
            ),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in (label["color"] for _, label in evaluated)),
            values=tuple(value for value, _ in evaluated),
            ignore_values=tuple(value for value, label in enumerate(labels) if not label["evaluate"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{uri} is no config file of Mapillary Vistas ({type(error).__name__}: {error}); expected `labels`, a list "
            "of classes with `readable`, `color` and `evaluate`"
        ) from error


def _place_of_labels(root: str, version: str) -> tuple[str, str]:
    """The labels' folder below that of a split, and the config file."""
    find_folder(root, ("",), holding=tuple(SPLITS.values()), remedy=REMEDY)
    named = storage.join(root, f"config_{version}.json")
    if storage.exists(named):
        return f"{version}/labels", named
    plain = storage.join(root, "config.json")
    if version == "v1.2" and storage.exists(plain):
        return "labels", plain
    others = [name for name in ("config.json", "config_v1.2.json", "config_v2.0.json") if _lies(root, name)]
    raise ValueError(
        f"{root!r} holds no {'config.json or ' if version == 'v1.2' else ''}config_{version}.json, which names the "
        f"classes of {version} (found: {', '.join(others) or 'no config file'}); {REMEDY}, or choose another --version"
    )


def _lies(root: str, name: str) -> bool:
    return storage.exists(storage.join(root, name))
