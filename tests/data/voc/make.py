"""Fake PASCAL VOC 2012 and SBD in their layouts, with the overlap of their splits that the real ones have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.data.fake_files import every_value, write_image, write_label

HEIGHT, WIDTH = 10, 14
VALUES = (*range(21), 255)
"""Of VOC's labels; SBD's have no border, 255."""
TRAIN = ("2007_000032", "2007_000039")
VAL = ("2007_000033", "2008_000003")
SBD_TRAIN = ("2008_000002", "2008_000003", "2007_000032")
"""The second is in VOC's val, the third in VOC's train."""
SBD_VAL = ("2008_000004",)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeVOC:
    """Where the folders lie; strings, as on a command line."""

    root: str
    sbd: str
    aug: str


def make_voc(folder: Path) -> FakeVOC:
    """Write `VOCdevkit`, `benchmark_RELEASE`, and the PNGs that people make of SBD. SBD's labels are one class more."""
    devkit = folder / "VOCdevkit" / "VOC2012"
    for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        write_image(devkit / "JPEGImages" / f"{name}.jpg", height=HEIGHT, width=WIDTH)
    labels_HW = every_value(VALUES, height=HEIGHT, width=WIDTH).astype(np.uint8)
    for name in (*TRAIN, *VAL):
        write_label(devkit / "SegmentationClass" / f"{name}.png", labels_HW, palette=colour_map())
    write_lists(devkit / "ImageSets" / "Segmentation", {"train": TRAIN, "val": VAL, "trainval": (*TRAIN, *VAL)})

    dataset, aug = folder / "benchmark_RELEASE" / "dataset", folder / "SegmentationClassAug"
    sbd_labels_HW = np.where(labels_HW == 255, 0, (labels_HW + 1) % 21).astype(np.uint8)
    (dataset / "cls").mkdir(parents=True)
    for name in (*SBD_TRAIN, *SBD_VAL):
        write_image(dataset / "img" / f"{name}.jpg", height=HEIGHT, width=WIDTH)
        savemat(dataset / "cls" / f"{name}.mat", sbd_structure(sbd_labels_HW), do_compression=True)
        write_label(aug / f"{name}.png", sbd_labels_HW)
    write_lists(dataset, {"train": SBD_TRAIN, "val": SBD_VAL})
    return FakeVOC(root=str(folder / "VOCdevkit"), sbd=str(folder / "benchmark_RELEASE"), aug=str(aug))


def sbd_structure(labels_HW: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a file of SBD's `cls` holds."""
    boundaries = np.empty((20, 1), dtype=object)
    boundaries[:, 0] = [np.zeros((HEIGHT, WIDTH), dtype=np.uint8)] * 20
    present = np.unique(labels_HW[labels_HW > 0]).astype(np.uint8)[:, None]
    return {"GTcls": {"Boundaries": boundaries, "Segmentation": labels_HW, "CategoriesPresent": present}}


def write_lists(folder: Path, lists: dict[str, tuple[str, ...]], *, line_end: str = "\n") -> None:
    """Write `<name>.txt` with one image name per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_bytes("".join(image_id + line_end for image_id in ids).encode())


def colour_map() -> list[tuple[int, int, int]]:
    """The 256 colours of VOC's development kit: of each number three bits at a time, for red, green and blue."""
    colours = []
    for number in range(256):
        levels = [0, 0, 0]
        for shift in range(8):
            for channel in range(3):
                levels[channel] |= (number >> (3 * shift + channel) & 1) << (7 - shift)
        colours.append((levels[0], levels[1], levels[2]))
    return colours
