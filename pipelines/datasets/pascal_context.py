"""PASCAL Context on the images of VOC 2010: 59 classes, or 60 with a background; from PNGs or from MATLAB files.

As PNGs, made with the Detail API or by hand (mmsegmentation, PyTorch-Encoding), 0 = background:

    VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg
    VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png
    VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt      4,998 and 5,105 names

As first published, 459 labels, of which the 59 commonest are used and the rest is background:

    <annotations>/trainval/2008_000002.mat                               LabelMap, 1 to 459
    <annotations>/labels.txt, <annotations>/59_labels.txt                "2: aeroplane"
    VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt                     the same names

Class indices are in the order of 59_labels.txt either way, so that models fit both. The PNGs count otherwise: their
makers sort the 59 by their number among the 459, which is the alphabet, and early class tables of mmsegmentation named
those values in the order of 59_labels.txt (its issues 1940 and 3021). `png_order` says what the values mean.

59_labels.txt writes diningtable, bedcloth and clothes for what the 459 call table, bedclothes and cloth; the names here
are those of the 459. No colours are published: they are VOC's colour map.

Source: Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014;
labels and the three names from shelhamer/fcn.berkeleyvision.org, `data/pascal-context` and `pascalcontext_layers.py`;
order of the PNGs from mmsegmentation's `tools/dataset_converters/pascal_context.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines import storage
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, default_palette
from pipelines.datasets.mat_files import SUFFIX, read_label_map
from pipelines.datasets.pairing import SplitFiles, find_folder, list_layer, pair
from pipelines.datasets.voc import BLACK, read_image_sets
from pipelines.intake.formats import ImageError
from pipelines.intake.labels import encode_labels_png

NUMBER_OF_NAME: dict[str, int] = {
    "aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34, "bus": 45, "car": 59, "cat": 65, "chair": 72,
    "cow": 98, "table": 397, "dog": 113, "horse": 207, "motorbike": 258, "person": 284, "pottedplant": 308,
    "sheep": 347, "sofa": 368, "train": 416, "tvmonitor": 427, "bag": 9, "bed": 18, "bench": 22, "book": 33,
    "building": 44, "cabinet": 46, "ceiling": 68, "cloth": 80, "computer": 85, "cup": 104, "door": 115, "fence": 144,
    "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "keyboard": 220, "light": 232,
    "mountain": 259, "mouse": 260, "curtain": 105, "platform": 296, "sign": 355, "plate": 295, "road": 324, "rock": 326,
    "shelves": 349, "sidewalk": 354, "sky": 360, "snow": 366, "bedclothes": 19, "track": 415, "tree": 420, "truck": 424,
    "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
"""The 59 classes in the order of 59_labels.txt, with their number among the 459."""

NUM_LABELS = 459
BACKGROUND = "background"
SYNONYMS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Names in 59_labels.txt, and what labels.txt calls the same."""

INDEX_OF_NUMBER = np.zeros(NUM_LABELS + 1, dtype=np.uint8)  # 0: background
INDEX_OF_NUMBER[list(NUMBER_OF_NAME.values())] = np.arange(1, len(NUMBER_OF_NAME) + 1)

DEVKIT_STARTS = ("", "VOC2010", "VOCdevkit/VOC2010")
LISTS = ("ImageSets/SegmentationContext", "ImageSets/Main")
REMEDY = "give the folder VOC2010 of PASCAL's development kit, or VOCdevkit"
PNG_REMEDY = (
    "labels are PNGs in SegmentationClassContext, or --annotations names the original release's folder, which "
    "holds trainval/*.mat"
)

PngOrder = Literal["alphabetical", "listed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PascalContextConfig:
    """PASCAL Context: 4,998 images of VOC 2010 to train, 5,105 to validate; scores need the number of classes."""

    root: str
    """Folder or URI `VOC2010`, or `VOCdevkit`, or what holds that."""
    num_classes: Literal[59, 60]
    """60: what is none of the 59 classes is the class background. 59: it is ignored. Scores differ by about a point."""
    annotations: str | None = None
    """Folder or URI of the original release, with trainval/*.mat. None: PNGs in VOC2010/SegmentationClassContext."""
    png_order: PngOrder | None = None
    """What the PNGs' values 1 to 59 count: the classes in `alphabetical` order, as the Detail API's and
    mmsegmentation's converters write them, or as `listed` in 59_labels.txt. None: alphabetical."""

    def __post_init__(self) -> None:
        """Refuse another number of classes, and a setting that would be ignored."""
        if self.num_classes not in (59, 60):
            raise ValueError(f"--num-classes is {self.num_classes}, expected 59, or 60 with the background")
        if self.annotations is not None and self.png_order is not None:
            raise ValueError(
                "--png-order is given beside --annotations, whose MATLAB files need none; leave one of them out"
            )


def list_samples(config: PascalContextConfig) -> DatasetListing:
    """List PASCAL Context.

    Raises:
        ValueError: a folder or list is missing or not understood, nothing fits together, or the release's label lists
            are not those that the class table was made from.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the VOC folder")
    devkit = find_folder(root, DEVKIT_STARTS, holding=LISTS, remedy=REMEDY)
    lists = find_folder(devkit, LISTS, holding=("train.txt", "val.txt"), remedy=REMEDY)
    images = list_layer(storage.join(devkit, "JPEGImages"), ".jpg")
    if config.annotations is None:
        labels = list_layer(storage.join(devkit, "SegmentationClassContext"), ".png")
    else:
        annotations = storage.absolute(config.annotations)
        require_folder(annotations, what="the folder of PASCAL Context's annotations")
        _check_label_lists(annotations)
        labels = list_layer(storage.join(annotations, "trainval"), SUFFIX)
    samples, unpaired = pair(
        (
            SplitFiles(split=split, images=images, labels=labels, keys=keys)
            for split, keys in read_image_sets(lists).items()
        ),
        remedy=PNG_REMEDY,
    )
    order = "listed" if config.annotations is not None else config.png_order or "alphabetical"
    return DatasetListing(
        name="pascal_context",
        config=dataclasses.asdict(config),
        class_table=class_table(config.num_classes, order),
        samples=samples,
        unpaired=unpaired,
        read=read_pair,
    )


def class_table(num_classes: Literal[59, 60], order: PngOrder) -> ClassTable:
    """The classes as listed in 59_labels.txt, the background before them where it is one, and their stored values."""
    names = tuple(NUMBER_OF_NAME)
    counted = sorted(names, key=NUMBER_OF_NAME.__getitem__) if order == "alphabetical" else names
    values = tuple(counted.index(name) + 1 for name in names)
    palette = default_palette(len(names))
    if num_classes == 59:
        return ClassTable(names=names, palette=palette, values=values, ignore_values=(0,))
    return ClassTable(names=(BACKGROUND, *names), palette=(BLACK, *palette), values=(0, *values))


def read_pair(sample: Sample) -> tuple[bytes, bytes]:
    """The bytes of an image and of its label; of a MATLAB file a PNG of 0 = background and 1 to 59 as listed.

    Raises:
        OSError: a file cannot be read.
        ImageError: the MATLAB file is broken, or has a value beyond 459.
    """
    image, label = read_files(sample)
    if not sample.label_uri.endswith(SUFFIX):
        return image, label
    numbers_HW = read_label_map(label, variable="LabelMap")
    if numbers_HW.max() > NUM_LABELS:
        raise ImageError(
            f"LabelMap has the value {numbers_HW.max()}, expected 0 to {NUM_LABELS}; restore the file", "validate"
        )
    return image, encode_labels_png(INDEX_OF_NUMBER[numbers_HW])


def _check_label_lists(annotations: str) -> None:
    """Where the release's own lists lie beside its files, they must say what the table above does."""
    for name, expected in (
        ("labels.txt", {number: name for name, number in NUMBER_OF_NAME.items()}),
        ("59_labels.txt", dict(enumerate(NUMBER_OF_NAME, start=1))),
    ):
        uri = storage.join(annotations, name)
        if not storage.exists(uri):
            continue
        found = dict(_numbered(uri))
        for number, label in expected.items():
            if found.get(number) != label:
                raise ValueError(
                    f"{uri} calls label {number} {found.get(number)!r}, expected {label!r}; put back the published "
                    "file, since the MATLAB files are read by these numbers"
                )


def _numbered(uri: str) -> list[tuple[int, str]]:
    """Lines `2: aeroplane` as (2, "aeroplane"), by the names of the 459, without blanks."""
    entries = []
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        index, colon, name = line.partition(":")
        if not colon or not index.strip().isdigit():
            raise ValueError(f"{uri}, line {number}: found {line!r}, expected a number and a name: '2: aeroplane'")
        name = name.replace(" ", "")
        entries.append((int(index), SYNONYMS.get(name, name)))
    return entries
