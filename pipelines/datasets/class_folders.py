"""Images for classification in one folder per class: the layout of ImageNet and of torchvision's `ImageFolder`.

    <root>/train/<class>/*.JPEG
    <root>/val/<class>/*

ImageNet's own validation archive is flat; sort it into class folders first (the script `valprep.sh` of many training
repositories does). Its class folders are WordNet ids, whose alphabetical order is the usual order of its 1000 classes.

Source: Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 2015, arXiv 1409.0575.
"""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.datasets.files import DEFAULT_VAL_FRACTION, check_val_fraction, hash_fraction, require_folder
from pipelines.datasets.listing import ClassificationListing, ClassifiedImage, ImageClasses
from pipelines.intake.images import IMAGE_SUFFIXES

SPLITS = ("train", "val")
LISTING_THREADS = 16  # of a bucket's listing, which comes in pages of 1000 names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFoldersConfig:
    """Image classification: one folder of images per class, below train/ and val/ where there are such (ImageNet)."""

    root: str
    """Folder or URI that holds train/<class>/ and val/<class>/, or <class>/. Folders' names are the classes' names."""
    val_fraction: float | None = None
    """Share of images that go to val, chosen by a hash of their path, where there are no split folders. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        check_val_fraction(self.val_fraction)


def list_samples(config: ClassFoldersConfig) -> ClassificationListing:
    """List the class folders; an image's id is its path below the root without suffix.

    Raises:
        ValueError: the root is missing, a split has no class folders, a class has no images, or the splits' classes
            differ.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the root of the class folders")
    folders = _class_folders(root, config)
    classes = _class_names(folders, config)
    index_of = {name: index for index, name in enumerate(classes)}
    fraction = DEFAULT_VAL_FRACTION if config.val_fraction is None else config.val_fraction
    samples: list[ClassifiedImage] = []
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        wanted = [(split, name) for split, names in folders.items() for name in names]
        uris = pool.map(_images_below, (storage.join(root, split, name) for split, name in wanted))
        for (split, name), (keys, found) in zip(wanted, uris, strict=True):
            for key, uri in zip(keys, found, strict=True):
                image_id = "/".join(part for part in (split, name, key) if part)
                own_split = split or ("val" if hash_fraction(image_id) < fraction else "train")
                samples.append(
                    ClassifiedImage(image_id=image_id, split=own_split, image_uri=uri, class_index=index_of[name])
                )
    return ClassificationListing(
        name="class_folders",
        config=dataclasses.asdict(config),
        class_table=ImageClasses(names=tuple(classes)),
        samples=tuple(samples),
    )


def _class_folders(root: str, config: ClassFoldersConfig) -> dict[str, list[str]]:
    """Class folders by split; the split is "" where classes lie directly below the root."""
    top = _folders(root)
    by_split = {split: _folders(storage.join(root, split)) for split in SPLITS if split in top}
    if not any(by_split.values()):
        if not top:
            raise ValueError(
                f"{config.root!r} holds no folders; expected train/<class>/ and val/<class>/ (ImageNet), or <class>/"
            )
        return {"": top}
    for split, names in by_split.items():
        if not names:
            raise ValueError(
                f"{storage.join(config.root, split)!r} holds no class folders, as {config.root!r} otherwise has; move "
                "its images into one folder per class (ImageNet's val archive is flat: valprep.sh sorts it)"
            )
    if config.val_fraction is not None:
        raise ValueError(
            f"--val-fraction is given, but {config.root!r} has the splits {sorted(by_split)} as folders; leave it out"
        )
    if others := [name for name in top if name not in by_split]:
        logger.warning("left out, since they are neither train nor val: %s", ", ".join(others))
    return by_split


def _folders(uri: str) -> list[str]:
    return [name for name in storage.list_folders(uri) if not name.startswith(".")]


def _class_names(folders: dict[str, list[str]], config: ClassFoldersConfig) -> list[str]:
    """The first split's classes, sorted; another split may lack some but has no others."""
    first, *others = folders
    for split in others:
        if unknown := sorted(set(folders[split]) - set(folders[first])):
            raise ValueError(
                f"{len(unknown)} classes of {config.root!r} are in {split} and not in {first}: "
                f"{', '.join(map(repr, unknown[:3]))}{', ...' if len(unknown) > 3 else ''}; "
                "both need the same class folders"
            )
    return sorted(folders[first])


def _images_below(folder: str) -> tuple[list[str], list[str]]:
    """Paths below a class folder without suffix, and URIs, of its image files."""
    keys, found = [], []
    for uri in storage.list_files(folder):
        path = PurePosixPath(uri[len(folder) + 1 :])
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            keys.append(str(path.with_suffix("")))
            found.append(uri)
    if not found:
        raise ValueError(
            f"the class folder {folder!r} holds no file that ends in {', '.join(IMAGE_SUFFIXES)}; "
            "remove the folder or put its images there"
        )
    return keys, found
