"""PASCAL VOC 2012 segmentation, alone or with the labels of SBD: 21 classes, 255 = border or difficult.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000032.png          palette; the indices are the labels
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt     1,464 and 1,449 names

    benchmark_RELEASE/dataset/img/2008_000002.jpg                SBD: 11,355 images of VOC 2011
    benchmark_RELEASE/dataset/cls/2008_000002.mat                GTcls.Segmentation: 0 to 20, no border
    benchmark_RELEASE/dataset/{train,val}.txt                    8,498 and 2,857 names

SBD's own split is not VOC's: images of VOC's val are in SBD's train. `trainaug` is what either trains or validates on
minus VOC's val: 10,582 images. VOC's label, which has borders, is taken where both have one.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010; classes and colour map from
its development kit (`VOClabelcolormap.m`). Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011, and
its download page, which warns of the splits. The count of trainaug, and a folder `SegmentationClassAug`, as in
mmsegmentation's `tools/dataset_converters/voc_aug.py`.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines import storage
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, default_palette
from pipelines.datasets.mat_files import SUFFIX, read_label_map
from pipelines.datasets.pairing import Layer, SplitFiles, find_folder, list_layer, pair, read_id_list
from pipelines.intake.formats import ImageError
from pipelines.intake.labels import encode_labels_png

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255
BLACK = (0, 0, 0)

LISTS = "ImageSets/Segmentation"
DEVKIT_STARTS = ("", "VOC2012", "VOCdevkit/VOC2012")
REMEDY = "give the folder VOC2012 of PASCAL's development kit, or VOCdevkit"
SBD_REMEDY = (
    "give SBD's folder benchmark_RELEASE, or a folder SegmentationClassAug of PNGs with the stored values 0 to 20"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VOCConfig:
    """PASCAL VOC 2012: 1,464 training images, or with SBD's labels 10,582 (trainaug); 1,449 for validation."""

    root: str
    """Folder or URI `VOC2012`, or `VOCdevkit`, or what holds that. The splits are its train.txt and val.txt; the test
    images have no labels and are left out."""
    sbd: str | None = None
    """SBD's labels: its folder `benchmark_RELEASE`, or a folder `SegmentationClassAug` of PNGs. The split train is then
    trainaug, which never holds an image of val. None: VOC's own train."""


def list_samples(config: VOCConfig) -> DatasetListing:
    """List VOC 2012, and SBD where it is given.

    Raises:
        ValueError: a folder or list is missing or not understood, or nothing fits together.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the VOC folder")
    devkit = find_folder(root, DEVKIT_STARTS, holding=(LISTS,), remedy=REMEDY)
    ids = read_image_sets(storage.join(devkit, LISTS))
    images = list_layer(storage.join(devkit, "JPEGImages"), ".jpg")
    labels = list_layer(storage.join(devkit, "SegmentationClass"), ".png")
    splits = [SplitFiles(split=split, images=images, labels=labels, keys=keys) for split, keys in ids.items()]
    if config.sbd is not None:
        if "val" not in ids:
            raise ValueError(
                f"{storage.join(devkit, LISTS)} has no val.txt, which tells the images that --sbd must not train on; "
                "put it there"
            )
        sbd_ids, sbd_images, sbd_labels = _sbd(config.sbd)
        trainaug = SplitFiles(
            split="train",
            images=images.completed_by(sbd_images),
            labels=labels.completed_by(sbd_labels),
            keys=sorted({*sbd_ids, *ids.get("train", ())} - set(ids["val"])),
        )
        splits = [trainaug, *(files for files in splits if files.split == "val")]
    samples, unpaired = pair(splits, remedy=REMEDY)
    return DatasetListing(
        name="voc",
        config=dataclasses.asdict(config),
        class_table=ClassTable(
            names=CLASSES,
            palette=(BLACK, *default_palette(len(CLASSES) - 1)),
            values=tuple(range(len(CLASSES))),
            ignore_values=(BORDER,),
        ),
        samples=samples,
        unpaired=unpaired,
        read=read_pair,
    )


def read_image_sets(folder: str) -> dict[str, tuple[str, ...]]:
    """The names in train.txt and val.txt, so far as they are there.

    Raises:
        ValueError: neither is, one is not understood, or a name is in both.
    """
    uris = {split: storage.join(folder, f"{split}.txt") for split in ("train", "val")}
    ids = {split: read_id_list(uri) for split, uri in uris.items() if storage.exists(uri)}
    if not ids:
        raise ValueError(f"{folder!r} holds neither train.txt nor val.txt; {REMEDY}")
    if both := sorted(set(ids.get("train", ())) & set(ids.get("val", ()))):
        raise ValueError(
            f"{len(both)} images are in train.txt and in val.txt of {folder!r}, the first is {both[0]!r}; "
            "put back the published lists"
        )
    return ids


def read_pair(sample: Sample) -> tuple[bytes, bytes]:
    """The bytes of an image and of its label, which is turned into a PNG where it is one of SBD's MATLAB files.

    Raises:
        OSError: a file cannot be read.
        ImageError: the MATLAB file is broken, or its values do not fit 8 bits.
    """
    image, label = read_files(sample)
    if not sample.label_uri.endswith(SUFFIX):
        return image, label
    values_HW = read_label_map(label, variable="GTcls", field="Segmentation")
    if values_HW.max() > np.iinfo(np.uint8).max:
        raise ImageError(
            f"label value {values_HW.max()} is outside the class table, which knows 0..20 and ignores {BORDER}",
            "validate",
        )
    return image, encode_labels_png(values_HW.astype(np.uint8))


def _sbd(uri: str) -> tuple[list[str], Layer, Layer]:
    """Names, images and labels of SBD, or of PNGs made from it; those have no images of their own."""
    root = storage.absolute(uri)
    require_folder(root, what="the SBD folder")
    try:
        dataset = find_folder(root, ("", "dataset", "benchmark_RELEASE/dataset"), holding=("cls",), remedy=SBD_REMEDY)
    except ValueError:
        pngs = list_layer(root, ".png")
        if not pngs.uris:
            raise
        return sorted(pngs.uris), Layer(folder=root, ending=".jpg", uris={}), pngs
    images = list_layer(storage.join(dataset, "img"), ".jpg")
    return list(_sbd_ids(dataset)), images, list_layer(storage.join(dataset, "cls"), SUFFIX)


def _sbd_ids(dataset: str) -> Iterator[str]:
    lists = [storage.join(dataset, f"{split}.txt") for split in ("train", "val")]
    if missing := [uri for uri in lists if not storage.exists(uri)]:
        raise ValueError(f"{', '.join(missing)} is missing; {SBD_REMEDY}")
    for uri in lists:
        yield from read_id_list(uri)
