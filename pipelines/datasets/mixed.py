"""Several prepared datasets as one: their classes are mapped to a common table, and their images mixed.

A file says which class of which dataset becomes which class of the mixed one:

    names: [road, sky, car]
    palette: [[128, 64, 128], [70, 130, 180], [0, 0, 142]]      # optional
    datasets:
      city:
        data: data/cityscapes
        classes: {road: road, sidewalk: ignore, sky: sky, car: car, truck: car, ...}
      camvid:
        data: data/camvid
        splits: {train: train, test: train}                     # optional: its splits, and what they become
        classes: {Road: road, Sky: sky, ...}

Every class of each dataset is named, so that none is forgotten; `ignore` takes its pixels out of loss and score. Where
a dataset does not label one of `names`, its pixels lie under another class ("background", "other") and would be taught
as that: map that class to `ignore`.

Image bytes are those of the datasets, and ids get the dataset's name in front. The images of a split are interleaved
in proportion, each dataset in its own order, so that a shard reads few parts; `prepare` mixes the rows of a shard.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines import storage
from pipelines.datasets.listing import MAX_CLASSES, ClassTable, MappedImage, MixedListing, default_palette
from pipelines.shards import PreparedDataset, open_dataset, read_part
from segcore import IGNORE_INDEX

READING_THREADS = 4
IGNORE = "ignore"
DATASET_KEYS = {"data", "classes", "splits"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedConfig:
    """Several prepared datasets as one, their classes mapped to a common table."""

    mapping: str
    """YAML file: `names` and optional `palette` of the mixed dataset; `datasets`, by a name of your own: `data` (folder
    or URI of a prepared dataset), `classes` (a map from each of its classes to one of `names`, or to ignore), and
    optional `splits` (a map from its splits to those of the mixed dataset)."""


def list_samples(config: MixedConfig) -> MixedListing:
    """List the images of all datasets.

    Raises:
        ValueError: the mapping file or a dataset is missing, a class or split is not named or not known.
    """
    content = _read(config.mapping)
    table = _class_table(content, config.mapping)
    targets: dict[str, tuple[int, ...]] = {}
    by_split: dict[str, list[list[MappedImage]]] = {}
    digests: dict[str, str] = {}
    for name, entry in content["datasets"].items():
        dataset = open_dataset(storage.absolute(str(entry["data"])))
        targets[name] = _targets(name, entry["classes"], dataset, table)
        digests[name] = dataset.digest
        for split, mixed_split in _splits(name, entry.get("splits"), dataset).items():
            images = list(_images(name, dataset, split, mixed_split))
            by_split.setdefault(mixed_split, []).append(images)
    samples = [image for lists in by_split.values() for image in interleaved(lists)]
    return MixedListing(
        name="mixed",
        config=dataclasses.asdict(config) | {"dataset_digests": digests, "targets": targets},
        class_table=table,
        palette_given=bool(content.get("palette")),
        samples=tuple(samples),
        targets=targets,
    )


def _read(uri: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(storage.read_bytes(uri).decode())
    except FileNotFoundError:
        raise ValueError(f"the mapping {uri!r} does not exist; `{MixedConfig.__name__}` says what it holds") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the mapping {uri!r} is not YAML: {error}") from error
    known = {"names", "palette", "datasets"}
    if not isinstance(content, dict) or not {"names", "datasets"} <= set(content) <= known:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"the mapping {uri!r} holds {found}, expected `names`, `datasets` and, if wanted, `palette`")
    datasets = content["datasets"]
    if not isinstance(datasets, dict) or not datasets:
        raise ValueError(
            f"`datasets` in {uri!r} is {datasets!r}, expected a map from names of datasets to their settings"
        )
    for name, entry in datasets.items():
        right = isinstance(entry, dict) and {"data", "classes"} <= set(entry) <= DATASET_KEYS
        if not right or not isinstance(entry["classes"], dict) or not isinstance(entry.get("splits", {}), dict):
            raise ValueError(
                f"dataset {name!r} in {uri!r} is {entry!r}, expected `data`, a map `classes`, and, if wanted, a map "
                "`splits`"
            )
    return content | {"datasets": {str(name): entry for name, entry in datasets.items()}}


def _class_table(content: dict[str, Any], uri: str) -> ClassTable:
    names = content["names"]
    if not isinstance(names, list) or IGNORE in names:
        raise ValueError(f"`names` in {uri!r} is {names!r}, expected a list of class names without {IGNORE!r}")
    palette = content.get("palette") or default_palette(len(names))
    try:
        return ClassTable(
            names=tuple(map(str, names)),
            palette=tuple((int(red), int(green), int(blue)) for red, green, blue in palette),
            values=tuple(range(len(names))),
            ignore_values=(IGNORE_INDEX,),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"the class table in {uri!r} is not usable: {error}") from error


def _targets(name: str, classes: dict[Any, Any], dataset: PreparedDataset, table: ClassTable) -> tuple[int, ...]:
    """Class index in the mixed dataset, or `IGNORE_INDEX`, of each of the 256 values of a label map."""
    given = {str(source): IGNORE if target is None else str(target) for source, target in classes.items()}
    missing = [each for each in dataset.class_names if each not in given]
    unknown = [each for each in given if each not in dataset.class_names]
    if missing or unknown:
        raise ValueError(
            f"the mapping of dataset {name!r} names {len(given)} classes; not named: {', '.join(missing) or 'none'}; "
            f"not in the dataset: {', '.join(unknown) or 'none'}. Name each class once ({IGNORE} takes one out)"
        )
    wrong = sorted({target for target in given.values() if target != IGNORE and target not in table.names})
    if wrong:
        raise ValueError(
            f"the mapping of dataset {name!r} leads to {', '.join(wrong)}, which `names` does not have; it has "
            f"{', '.join(table.names)}, and {IGNORE}"
        )
    targets = [MAX_CLASSES] * 256  # no class has this index: the class table refuses it
    for index, each in enumerate(dataset.class_names):
        targets[index] = IGNORE_INDEX if given[each] == IGNORE else table.names.index(given[each])
    targets[IGNORE_INDEX] = IGNORE_INDEX
    return tuple(targets)


def _splits(name: str, given: dict[Any, Any] | None, dataset: PreparedDataset) -> dict[str, str]:
    if given is None:
        return {split: split for split in dataset.splits}
    for split in given:
        dataset.split(str(split))  # raises where there is no such split, and lists the others
    if any(not str(target) or "/" in str(target) for target in given.values()):
        raise ValueError(f"`splits` of dataset {name!r} is {given}; a split's name is a folder's, without slashes")
    return {str(split): str(target) for split, target in given.items()}


def _images(name: str, dataset: PreparedDataset, split: str, mixed_split: str) -> Iterator[MappedImage]:
    parts = dataset.splits[split].parts
    with ThreadPoolExecutor(READING_THREADS) as pool:
        tables = pool.map(lambda part: read_part(dataset, part, columns=("image_id",)), parts)
    for part, uri, table in zip(parts, dataset.part_uris(split), tables, strict=True):
        for row, image_id in enumerate(table["image_id"].to_pylist()):
            yield MappedImage(
                image_id=f"{name}/{image_id}",
                split=mixed_split,
                part_uri=uri,
                part_sha256=part.sha256,
                row=row,
                dataset=name,
            )


def interleaved(lists: list[list[MappedImage]]) -> list[MappedImage]:
    """All images, those of each list in their order and evenly spread over the whole."""
    places = [
        ((position + 0.5) / len(images), number, image)
        for number, images in enumerate(lists)
        for position, image in enumerate(images)
    ]
    return [image for _, _, image in sorted(places, key=lambda place: place[:2])]
