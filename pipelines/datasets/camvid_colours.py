"""CamVid as its authors publish it: 701 frames of 720 x 960, labels as colours, 32 of them.

    701_StillsRaw_full/0001TP_006690.png
    LabeledApproved_full/0001TP_006690_L.png
    label_colors.txt                                "64 128 64  Animal", one per line; where it is there, it is checked

Void is ignored, which leaves 31 classes. The 11 classes that most papers report are groups of them; SegNet's authors
publish labels that are grouped already (importer `camvid`), and we know of no list of theirs; taken is MathWorks' list,
which in its words follows "the original SegNet training methodology". Others differ in what becomes of traffic cones
and lights, animals, motorcycles and lane markings off the road: say which one a score is of.

There is no split of its authors'. Frames are one second apart, so that a split by hash has neighbours of each
validation frame in train: give SegNet's lists for figures that anybody can compare.

Source: mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid; the two papers named in `camvid.py`. Grouping: MathWorks,
"Semantic Segmentation Using Deep Learning", function `camvidPixelLabelIDs`.
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from pipelines import storage
from pipelines.datasets import camvid
from pipelines.datasets.colour_labels import Colour, ColourTable, read_colour_files
from pipelines.datasets.files import check_val_fraction, hash_splits, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing
from pipelines.datasets.pairing import SplitFiles, find_folder, list_layer, pair
from segcore import IGNORE_INDEX

IMAGES, LABELS, COLOURS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"
LABEL_ENDING = "_L"
REMEDY = f"give the folder that holds {IMAGES} and {LABELS}, as their archives unpack"

VOID = "Void"
# name, colour, and its group of the 11 (None: not in one)
CLASSES: tuple[tuple[str, Colour, str | None], ...] = (
    ("Animal", (64, 128, 64), "Pedestrian"),
    ("Archway", (192, 0, 128), "Building"),
    ("Bicyclist", (0, 128, 192), "Bicyclist"),
    ("Bridge", (0, 128, 64), "Building"),
    ("Building", (128, 0, 0), "Building"),
    ("Car", (64, 0, 128), "Car"),
    ("CartLuggagePram", (64, 0, 192), "Pedestrian"),
    ("Child", (192, 128, 64), "Pedestrian"),
    ("Column_Pole", (192, 192, 128), "Pole"),
    ("Fence", (64, 64, 128), "Fence"),
    ("LaneMkgsDriv", (128, 0, 192), "Road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "Road"),
    ("Misc_Text", (128, 128, 64), "SignSymbol"),
    ("MotorcycleScooter", (192, 0, 192), "Bicyclist"),
    ("OtherMoving", (128, 64, 64), "Car"),
    ("ParkingBlock", (64, 192, 128), "Pavement"),
    ("Pedestrian", (64, 64, 0), "Pedestrian"),
    ("Road", (128, 64, 128), "Road"),
    ("RoadShoulder", (128, 128, 192), "Pavement"),
    ("Sidewalk", (0, 0, 192), "Pavement"),
    ("SignSymbol", (192, 128, 128), "SignSymbol"),
    ("Sky", (128, 128, 128), "Sky"),
    ("SUVPickupTruck", (64, 128, 192), "Car"),
    ("TrafficCone", (0, 0, 64), "Pole"),
    ("TrafficLight", (0, 64, 64), "SignSymbol"),
    ("Train", (192, 64, 128), "Car"),
    ("Tree", (128, 128, 0), "Tree"),
    ("Truck_Bus", (192, 128, 192), "Car"),
    ("Tunnel", (64, 0, 64), "Building"),
    ("VegetationMisc", (192, 192, 0), "Tree"),
    (VOID, (0, 0, 0), None),
    ("Wall", (64, 192, 0), "Building"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CamVidColoursConfig:
    """CamVid as its authors publish it: 701 frames of 720 x 960, labels in 32 colours."""

    root: str
    """Folder or URI that holds 701_StillsRaw_full and LabeledApproved_full."""
    classes: Literal[11, 32] = 11
    """11: groups, in the order of the importer `camvid`. 32: every colour by itself, Void ignored (31 classes)."""
    splits: str | None = None
    """Folder or URI of train.txt, val.txt, test.txt (those that exist): frames, one per line, as a name or a path;
    SegNet's lists too. Frames in no list are left out. None: train and val by a hash of the names."""
    val_fraction: float | None = None
    """Share of frames that go to val where there are no lists. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none, or one beside lists."""
        check_val_fraction(self.val_fraction)
        if self.splits is not None and self.val_fraction is not None:
            raise ValueError("--val-fraction and --splits are both given; leave one out")


def list_samples(config: CamVidColoursConfig) -> DatasetListing:
    """List the frames.

    Raises:
        ValueError: a folder or list is missing or not understood, or label_colors.txt names other colours.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the CamVid folder")
    find_folder(root, ("",), holding=(LABELS,), remedy=REMEDY)
    _check_colours(storage.join(root, COLOURS))
    images = list_layer(storage.join(root, IMAGES), ".png")
    labels = list_layer(storage.join(root, LABELS), f"{LABEL_ENDING}.png")
    frames = images.uris.keys() | labels.uris.keys()
    if config.splits is None:
        by_frame = hash_splits(frames, config.val_fraction)
    else:
        by_frame = _read_splits(storage.absolute(config.splits))
        if left := frames - by_frame.keys():
            logger.warning("left out %d frames that are in no list of %s", len(left), config.splits)
    samples, unpaired = pair(
        (
            SplitFiles(
                split=split,
                images=images,
                labels=labels,
                keys=sorted(key for key in by_frame if by_frame[key] == split),
            )
            for split in camvid.SPLITS
        ),
        remedy=REMEDY,
    )
    class_table, colours = coding(config.classes)
    return DatasetListing(
        name="camvid_colours",
        config=dataclasses.asdict(config),
        class_table=class_table,
        samples=samples,
        unpaired=unpaired,
        read=partial(read_colour_files, table=colours),
    )


def coding(num_classes: Literal[11, 32]) -> tuple[ClassTable, ColourTable]:
    """The class table, and the class index of each of the 32 colours."""
    if num_classes == 11:
        named = camvid.CLASSES
        group_of = {name: group for name, _, group in CLASSES}
    else:
        named = tuple((name, colour) for name, colour, _ in CLASSES if name != VOID)
        group_of = {name: None if name == VOID else name for name, _, _ in CLASSES}
    index_of = {name: index for index, (name, _) in enumerate(named)}
    class_table = ClassTable(
        names=tuple(index_of),
        palette=tuple(colour for _, colour in named),
        values=tuple(index_of.values()),
        ignore_values=(IGNORE_INDEX,),
    )
    groups = ((colour, group_of[name]) for name, colour, _ in CLASSES)
    return class_table, ColourTable(
        tuple((colour, IGNORE_INDEX if group is None else index_of[group]) for colour, group in groups)
    )


def _read_splits(folder: str) -> dict[str, str]:
    """Split by frame."""
    found: dict[str, str] = {}
    for split in camvid.SPLITS:
        uri = storage.join(folder, f"{split}.txt")
        if not storage.exists(uri):
            continue
        for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            frame = PurePosixPath(line.split()[0]).name.removesuffix(".png").removesuffix(LABEL_ENDING)
            other = found.setdefault(frame, split)
            if other != split:
                raise ValueError(f"{uri}, line {number}: {frame!r} is in {other}.txt too; a frame belongs to one split")
    if not found:
        raise ValueError(
            f"{folder!r} holds no names in train.txt, val.txt or test.txt; check --splits, or leave it out"
        )
    return found


def _check_colours(uri: str) -> None:
    """Make sure that the colours that lie beside the data are the ones known here."""
    if not storage.exists(uri):
        return
    known = {(name, *colour) for name, colour, _ in CLASSES}
    found = set()
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 4 or not all(word.isdigit() for word in words[:3]):
            raise ValueError(f"{uri}, line {number}: found {line!r}, expected 'red green blue name'")
        found.add((words[3], int(words[0]), int(words[1]), int(words[2])))
    if different := sorted(found ^ known):
        raise ValueError(
            f"{uri} and the {len(known)} colours of CamVid differ in {', '.join(map(str, different[:4]))}"
            f"{', ...' if len(different) > 4 else ''}; use the importer `folder` with `colours: rgb` for other colours"
        )
