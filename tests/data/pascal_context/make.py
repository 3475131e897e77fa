"""Fake PASCAL Context: the converted PNGs in VOC 2010's tree, and the original MATLAB files beside it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.fake_files import every_value, write_image, write_label
from tests.data.voc.make import write_lists

HEIGHT, WIDTH = 24, 20
TRAIN, VAL = ("2008_000002", "2008_000007"), ("2008_000003",)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakePascalContext:
    """Where the folders lie; strings, as on a command line."""

    root: str
    annotations: str


def make_pascal_context(folder: Path) -> FakePascalContext:
    """Write `VOCdevkit/VOC2010` with PNGs of 0 to 59, and `context` with maps of 0 to 459."""
    devkit, annotations = folder / "VOCdevkit" / "VOC2010", folder / "context"
    (annotations / "trainval").mkdir(parents=True)
    for name in (*TRAIN, *VAL):
        write_image(devkit / "JPEGImages" / f"{name}.jpg", height=HEIGHT, width=WIDTH)
        labels_HW = every_value(range(60), height=HEIGHT, width=WIDTH).astype(np.uint8)
        write_label(devkit / "SegmentationClassContext" / f"{name}.png", labels_HW)
        numbers_HW = every_value(range(460), height=HEIGHT, width=WIDTH)
        savemat(annotations / "trainval" / f"{name}.mat", {"LabelMap": numbers_HW}, do_compression=True)
    for lists in ("SegmentationContext", "Main"):
        write_lists(devkit / "ImageSets" / lists, {"train": TRAIN, "val": VAL})
    return FakePascalContext(root=str(folder / "VOCdevkit"), annotations=str(annotations))
