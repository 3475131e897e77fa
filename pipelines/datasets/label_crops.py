"""Image classification out of a segmentation dataset: square crops, named by the class that most of their pixels have.

The stand-in for ImageNet where only label maps exist: a backbone is pre-trained on the crops of a dataset and then
trained on its label maps. The crops are written once as class folders of PNG files, which anybody can look at, and are
then read as `class_folders` are.

1. Windows lie on a grid with steps of half their side. A window has a class if at least half of its pixels are labelled
   and at least `min_share` of those have that class.
2. Of each class and split the `max_per_class` windows with the smallest hash of (image id, row, column) are kept: the
   same ones in whatever order the parts are read. Classes without a window in train are left out.
3. Their pixels are cut out of the images, undistorted, and written; `manifest.json` last.
"""

import dataclasses
import hashlib
import heapq
import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import manifests, storage
from pipelines.datasets.class_folders import SPLITS, ClassFoldersConfig
from pipelines.datasets.class_folders import list_samples as list_class_folders
from pipelines.datasets.listing import ClassificationListing
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.shards import Part, PreparedDataset, open_dataset, read_part
from segcore import IGNORE_INDEX

KIND = "label_crops"
SETTINGS_FILE = "settings.json"
MIN_LABELLED = 0.5
"""Share of a window that must be labelled: a few pixels at the border of the ignored area tell nothing."""
READING_THREADS = 4
WRITING_THREADS = 8  # a small file waits for its disk or its bucket, not for a core

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCropsConfig:
    """Image classification out of a prepared segmentation dataset: square crops of one class each."""

    data: str
    """Prepared segmentation dataset; its splits train and val are used."""
    crops: str
    """Folder or URI for the crops as class folders of PNG files: new, empty, or begun by the same command."""
    crop_px: int = 64
    """Side of a crop, in pixels of the image."""
    min_share: float = 0.6
    """Share of a crop's labelled pixels that must have its class: above 0.5."""
    max_per_class: int = 1000
    """Crops of a class, at most, in each split."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.crop_px < 2:
            raise ValueError(f"--crop-px is {self.crop_px}, expected 2 or more")
        if not 0.5 < self.min_share <= 1:
            raise ValueError(f"--min-share is {self.min_share}, expected above 0.5 (a majority) and at most 1")
        if self.max_per_class < 1:
            raise ValueError(f"--max-per-class is {self.max_per_class}, expected 1 or more")


class Window(NamedTuple):
    """A crop before it is cut; windows sort by `order`, a hash of the rest.

    Attributes:
        image_row: of the image in its part.
        row, column: of the upper left pixel in the image.
    """

    order: str
    class_index: int
    part: int
    image_row: int
    image_id: str
    row: int
    column: int


def list_samples(config: LabelCropsConfig) -> ClassificationListing:
    """Cut the crops, where that has not been done, and list them.

    Raises:
        ValueError: the dataset is missing or not for segmentation, no window has a class, or the folder for the crops
            holds something else.
    """
    dataset = open_dataset(storage.absolute(config.data))
    crops = storage.absolute(config.crops)
    settings = {"dataset_digest": dataset.digest, "crop_px": config.crop_px, "min_share": config.min_share}
    settings |= {"max_per_class": config.max_per_class}
    if not _begun(crops, settings):
        _cut(dataset, crops, config)
        manifests.write_manifest(crops, kind=KIND, content={"settings": settings})
    listing = list_class_folders(ClassFoldersConfig(root=crops))
    return dataclasses.replace(listing, name="label_crops", config=dataclasses.asdict(config) | settings)


def windows_of(labels_HW: NDArray[np.uint8], *, crop_px: int, min_share: float) -> Iterator[tuple[int, int, int]]:
    """Row, column and class of every window of a label map that has a class."""
    step = max(1, crop_px // 2)
    height, width = labels_HW.shape
    for row in range(0, height - crop_px + 1, step):
        for column in range(0, width - crop_px + 1, step):
            counts = np.bincount(labels_HW[row : row + crop_px, column : column + crop_px].ravel(), minlength=256)
            labelled = crop_px**2 - int(counts[IGNORE_INDEX])
            counts[IGNORE_INDEX] = 0
            class_index = int(counts.argmax())
            if labelled >= MIN_LABELLED * crop_px**2 and counts[class_index] >= min_share * labelled:
                yield row, column, class_index


def _begun(crops: str, settings: dict[str, object]) -> bool:
    """Claim the folder for these settings; True where its crops are complete."""
    storage.check_writable(crops)
    uri = storage.join(crops, SETTINGS_FILE)
    if not storage.exists(uri) and (strangers := storage.list_files(crops)):
        raise ValueError(f"{crops!r} holds other files ({strangers[0]}, ...); give --crops a new or empty folder")
    if not storage.create_exclusive(uri, storage.json_bytes(settings)) and storage.read_json(uri) != settings:
        raise ValueError(
            f"{crops!r} holds crops of another dataset or settings ({storage.read_json(uri)}, now {settings}); "
            "give another --crops, or remove that folder"
        )
    return storage.exists(storage.join(crops, manifests.MANIFEST))


def _cut(dataset: PreparedDataset, crops: str, config: LabelCropsConfig) -> None:
    chosen = {split: _chosen(dataset, split, config) for split in SPLITS if split in dataset.splits}
    classes = {window.class_index for window in chosen.get("train", ())}
    if not classes:
        raise ValueError(
            f"no window of {config.crop_px} x {config.crop_px} px in the train split of {config.data!r} has one class "
            f"for {config.min_share:.0%} of its labelled pixels; give a smaller --crop-px or --min-share"
        )
    absent = [name for index, name in enumerate(dataset.class_names) if index not in classes]
    if absent:
        logger.warning("no crop of train shows mostly %s: left out of the classes", ", ".join(absent))
    with ThreadPoolExecutor(WRITING_THREADS) as pool:
        for split, windows in chosen.items():
            kept = [window for window in windows if window.class_index in classes]
            logger.info("cutting %d crops of %s into %s", len(kept), split, crops)
            for number, part in enumerate(dataset.splits[split].parts):
                files = _crops(dataset, split, part, [each for each in kept if each.part == number], config.crop_px)
                list(pool.map(lambda file: storage.write_atomic(storage.join(crops, file[0]), file[1]), files))


def _chosen(dataset: PreparedDataset, split: str, config: LabelCropsConfig) -> list[Window]:
    """The windows to keep, of each class those with the smallest hashes."""

    def smallest(windows: list[Window]) -> list[Window]:
        by_class: dict[int, list[Window]] = {}
        for window in windows:
            by_class.setdefault(window.class_index, []).append(window)
        return [kept for own in by_class.values() for kept in heapq.nsmallest(config.max_per_class, own)]

    def of_part(number: int) -> list[Window]:
        return smallest(list(_windows_of_part(dataset, dataset.splits[split].parts[number], number, config)))

    with ThreadPoolExecutor(READING_THREADS) as pool:
        return smallest(list(chain.from_iterable(pool.map(of_part, range(len(dataset.splits[split].parts))))))


def _windows_of_part(dataset: PreparedDataset, part: Part, number: int, config: LabelCropsConfig) -> Iterator[Window]:
    rows = read_part(dataset, part, columns=("image_id", "label")).to_pylist()
    for image_row, entry in enumerate(rows):
        labels_HW = decode_labels(entry["label"]).astype(np.uint8)
        for row, column, class_index in windows_of(labels_HW, crop_px=config.crop_px, min_share=config.min_share):
            order = hashlib.sha256(f"{entry['image_id']}/{row}/{column}".encode()).hexdigest()
            yield Window(order, class_index, number, image_row, entry["image_id"], row, column)


def _crops(
    dataset: PreparedDataset, split: str, part: Part, windows: list[Window], crop_px: int
) -> Iterator[tuple[str, bytes]]:
    """Path below the folder of crops, and PNG bytes."""
    if not windows:
        return
    images = read_part(dataset, part, columns=("image",))["image"]
    by_image: dict[int, list[Window]] = {}
    for window in windows:
        by_image.setdefault(window.image_row, []).append(window)
    for image_row, own in sorted(by_image.items()):
        pixels_HW3 = decode_image(images[image_row].as_py()).pixels_HW3
        for _, class_index, _, _, image_id, row, column in own:
            file = io.BytesIO()
            cut_HW3 = np.ascontiguousarray(pixels_HW3[row : row + crop_px, column : column + crop_px])
            Image.fromarray(cut_HW3).save(file, "PNG")
            folder = quote(dataset.class_names[class_index], safe=" ()")
            yield f"{split}/{folder}/{quote(image_id, safe='')}-{row}-{column}.png", file.getvalue()
