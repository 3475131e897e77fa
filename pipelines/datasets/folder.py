"""Your own data: a folder of images, a folder of labels with the same names, and a small file with the classes."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipelines import storage
from pipelines.datasets.files import DEFAULT_VAL_FRACTION, hash_fraction, read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, Unpaired, default_palette
from pipelines.intake.images import IMAGE_SUFFIXES

SPLITS = ("train", "val", "test")
EXAMPLE = "names: [sky, road, car]\npalette: [[70, 130, 180], [128, 64, 128], [0, 0, 142]]\nignore: [255]"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderConfig:
    """Images and labels in two folders, matched by path without suffix: images/a/1.jpg belongs to labels/a/1.png."""

    images: str
    """Folder or URI of images. First-level folders train, val, test are taken for the splits, where there are such."""
    labels: str
    """Folder or URI of label files with the same sub-folders and stems: one channel (or palette) of values, PNG."""
    classes: str
    """YAML or JSON file: `names` (a list, or a map from stored value to name), `palette` (optional list of [r, g, b]),
    `ignore` (optional list of stored values that mean 'no label')."""
    val_fraction: float | None = None
    """Share of images that go to val, chosen by a hash of their path, where there are no split folders. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}, expected at least 0 and below 1")


def list_samples(config: FolderConfig) -> DatasetListing:
    """List the two folders.

    Raises:
        ValueError: a path is missing, a folder is empty, nothing matches, or the class table is not understood.
    """
    class_table = read_class_table(config.classes)
    images = _files_by_key(config.images, what="the image folder")
    labels = _files_by_key(config.labels, what="the label folder")
    common = sorted(images.keys() & labels.keys())
    if not common:
        raise ValueError(
            f"none of the {len(images)} images below {config.images!r} has a label below {config.labels!r}: "
            f"images are called {_some(images)}, labels {_some(labels)}; "
            "a label needs its image's sub-folder and name, apart from the suffix"
        )
    splits = _splits(sorted(images.keys() | labels.keys()), config)
    samples = (Sample(image_id=key, split=splits[key], image_uri=images[key], label_uri=labels[key]) for key in common)
    return DatasetListing(
        name="folder",
        config=dataclasses.asdict(config),
        class_table=class_table,
        samples=tuple(samples),
        unpaired=tuple(_unpaired(images, labels, splits, config)),
        read=read_files,
    )


def read_class_table(uri: str) -> ClassTable:
    """Parse a class table file.

    Raises:
        ValueError: it is missing, or says something else than `names`, `palette` and `ignore`.
    """
    try:
        text = storage.read_bytes(uri).decode()
        content = json.loads(text) if uri.endswith(".json") else yaml.safe_load(text)
    except FileNotFoundError:
        raise ValueError(f"the class table {uri!r} does not exist; write one, for example\n{EXAMPLE}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the class table {uri!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict) or "names" not in content or set(content) - {"names", "palette", "ignore"}:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"the class table {uri!r} holds {found}, expected `names` and, if wanted, `palette` and `ignore`, "
            f"for example\n{EXAMPLE}"
        )
    try:
        return _class_table(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the class table {uri!r} is not usable: {error}; an example:\n{EXAMPLE}") from error


def _class_table(content: dict[str, Any]) -> ClassTable:
    names = content["names"]
    if isinstance(names, dict):
        by_value = sorted((int(value), str(name)) for value, name in names.items())
    elif isinstance(names, list):
        by_value = list(enumerate(map(str, names)))
    else:
        raise TypeError(f"`names` is a {type(names).__name__}, expected a list, or a map from stored value to name")
    palette = content.get("palette")
    colours = (
        default_palette(len(by_value))
        if palette is None
        else tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    )
    return ClassTable(
        names=tuple(name for _, name in by_value),
        palette=colours,
        values=tuple(value for value, _ in by_value),
        ignore_values=tuple(int(value) for value in content.get("ignore") or ()),
    )


def _files_by_key(folder: str, *, what: str) -> dict[str, str]:
    """URIs of image files by their path below `folder` without suffix."""
    require_folder(folder, what=what)
    _, root = storage.filesystem(folder)
    found: dict[str, str] = {}
    for uri in storage.list_files(folder):
        path = PurePosixPath(storage.filesystem(uri)[1]).relative_to(PurePosixPath(root))
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        key = str(path.with_suffix(""))
        if key in found:
            raise ValueError(f"{found[key]} and {uri} have one name; {what} needs one file per name: remove one")
        found[key] = uri
    if not found:
        raise ValueError(f"{what} {folder!r} holds no file that ends in {', '.join(IMAGE_SUFFIXES)}; check the path")
    return found


def _splits(keys: list[str], config: FolderConfig) -> dict[str, str]:
    in_folders = {key: key.split("/")[0] for key in keys if "/" in key and key.split("/")[0] in SPLITS}
    if not in_folders:
        fraction = DEFAULT_VAL_FRACTION if config.val_fraction is None else config.val_fraction
        return {key: "val" if hash_fraction(key) < fraction else "train" for key in keys}
    found = sorted(set(in_folders.values()))
    if config.val_fraction is not None:
        raise ValueError(
            f"--val-fraction is given, but {config.images!r} has the splits {found} as folders; "
            "leave it out, or move the images out of them"
        )
    outside = [key for key in keys if key not in in_folders]
    if outside:
        raise ValueError(
            f"{config.images!r} has the splits {found} as folders, but {len(outside)} files lie outside "
            f"them ({_some(outside)}); move them into one"
        )
    return in_folders


def _unpaired(
    images: dict[str, str], labels: dict[str, str], splits: dict[str, str], config: FolderConfig
) -> Iterable[Unpaired]:
    for key in sorted(images.keys() ^ labels.keys()):
        if key in images:
            uri, reason = images[key], f"the image has no label; expected {storage.join(config.labels, key)}.png"
        else:
            uri, reason = (
                labels[key],
                f"the label has no image; expected one like {storage.join(config.images, key)}.jpg",
            )
        yield Unpaired(image_id=key, split=splits[key], uri=uri, reason=reason)


def _some(names: Iterable[str]) -> str:
    chosen = sorted(names)
    return ", ".join(map(repr, chosen[:3])) + (", ..." if len(chosen) > 3 else "")
