"""Your own data: a folder of images, a folder of labels with the same names, and a small file with the classes."""

import dataclasses
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from pipelines import storage
from pipelines.datasets.class_table_files import read_label_coding
from pipelines.datasets.colour_labels import read_colour_files
from pipelines.datasets.files import check_val_fraction, hash_splits, read_files, require_folder
from pipelines.datasets.listing import DatasetListing, Sample, Unpaired
from pipelines.intake.images import IMAGE_SUFFIXES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderConfig:
    """Images and labels in two folders, matched by path without suffix: images/a/1.jpg belongs to labels/a/1.png."""

    images: str
    """Folder or URI of images. First-level folders train, val, test are taken for the splits, where there are such."""
    labels: str
    """Folder or URI of label files with the same sub-folders and stems: PNGs of one channel (or palette) of values; of
    colours, where the class table says `colours: rgb`."""
    classes: str
    """YAML or JSON file: `names` (a list, or a map from stored value to name), `palette` (optional list of [r, g, b]),
    `ignore` (optional list of stored values that mean 'no label'). With `colours: rgb` the palette's colours are what
    labels hold, and `ignore` lists colours."""
    val_fraction: float | None = None
    """Share of images that go to val, chosen by a hash of their path, where there are no split folders. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        check_val_fraction(self.val_fraction)


def list_samples(config: FolderConfig) -> DatasetListing:
    """List the two folders.

    Raises:
        ValueError: a path is missing, a folder is empty, nothing matches, or the class table is not understood.
    """
    coding = read_label_coding(config.classes)
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
        config=dataclasses.asdict(config) | coding.settings(),
        class_table=coding.class_table,
        palette_given=coding.palette_given,
        samples=tuple(samples),
        unpaired=tuple(_unpaired(images, labels, splits, config)),
        read=read_files if coding.colours is None else partial(read_colour_files, table=coding.colours),
    )


def _files_by_key(folder: str, *, what: str) -> dict[str, str]:
    """URIs of image files by their path below `folder` without suffix."""
    require_folder(folder, what=what)
    below = storage.absolute(folder).rstrip("/") + "/"
    found: dict[str, str] = {}
    for uri in storage.list_files(folder):
        key, suffix = posixpath.splitext(uri.removeprefix(below))
        if suffix.lower() not in IMAGE_SUFFIXES or posixpath.basename(key).startswith("."):
            continue
        if key in found:
            raise ValueError(f"{found[key]} and {uri} have one name; {what} needs one file per name: remove one")
        found[key] = uri
    if not found:
        raise ValueError(f"{what} {folder!r} holds no file that ends in {', '.join(IMAGE_SUFFIXES)}; check the path")
    return found


def _splits(keys: list[str], config: FolderConfig) -> dict[str, str]:
    in_folders = {key: key.split("/")[0] for key in keys if "/" in key and key.split("/")[0] in SPLITS}
    if not in_folders:
        return hash_splits(keys, config.val_fraction)
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
