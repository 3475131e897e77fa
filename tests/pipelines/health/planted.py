"""A clean dataset of generated scenes in folders, and one way to break it for each finding."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.scenes import CLASSES, draw_scene
from pipelines.intake.labels import encode_labels_png
from segcore import IGNORE_INDEX

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 96, 128
NAMES = tuple(name for name, _ in CLASSES)
SKY, ROAD = NAMES.index("sky"), NAMES.index("road")
NEW_CLASS = len(NAMES)
BAND = slice(20, 40)


@dataclass(kw_only=True)
class Files:
    """A dataset before it is written: encoded files by `split/stem`, and the class table."""

    images: dict[str, bytes]
    labels: dict[str, bytes]
    names: dict[int, str] = field(default_factory=lambda: dict(enumerate(NAMES)))
    ignore: tuple[int, ...] = (IGNORE_INDEX,)

    def pixels(self, key: str) -> Pixels:
        return np.array(Image.open(io.BytesIO(self.images[key])))

    def values(self, key: str) -> Pixels:
        return np.array(Image.open(io.BytesIO(self.labels[key])))

    def change_labels(self, change: Callable[[Pixels], Pixels], keys: tuple[str, ...] = ()) -> None:
        for key in keys or tuple(self.labels):
            self.labels[key] = encode_labels_png(change(self.values(key)))

    def copy(self, key: str, new: str) -> None:
        self.images[new], self.labels[new] = self.images[key], self.labels[key]

    def write(self, root: Path) -> FolderConfig:
        for folder, files, suffix in (("images", self.images, ".jpg"), ("labels", self.labels, ".png")):
            for key, data in files.items():
                path = root / folder / f"{key}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        names = ", ".join(f"{value}: {name}" for value, name in self.names.items())
        (root / "classes.yaml").write_text(f"names: {{{names}}}\nignore: {list(self.ignore)}\n")
        return FolderConfig(
            images=str(root / "images"), labels=str(root / "labels"), classes=str(root / "classes.yaml")
        )


def jpeg(pixels: Pixels, *, quality: int = 92, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0, exif=exif)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@cache
def _scenes() -> tuple[tuple[str, bytes, bytes], ...]:
    drawn = []
    for index in range(32):
        pixels, labels = draw_scene(1000 + index, height=HEIGHT, width=WIDTH)
        split = "train" if index < 24 else "val"
        drawn.append((f"{split}/{index:02d}", jpeg(pixels), encode_labels_png(labels)))
    return tuple(drawn)


def clean() -> Files:
    """24 scenes in train, 8 in val."""
    return Files(images={key: image for key, image, _ in _scenes()}, labels={key: label for key, _, label in _scenes()})


def _unpaired(files: Files) -> None:
    del files.labels["train/03"]


def _other_size(files: Files) -> None:
    files.change_labels(lambda values: values[1:], ("train/03",))


def _truncated_image(files: Files) -> None:
    files.images["train/03"] = files.images["train/03"][:1000]


def _truncated_label(files: Files) -> None:
    files.labels["train/03"] = files.labels["train/03"][:200]


def _value_outside(files: Files) -> None:
    files.change_labels(lambda values: np.where(values == ROAD, 37, values).astype(np.uint8), ("train/03",))


def _black_and_white(files: Files) -> None:
    files.change_labels(lambda values: np.where(values == ROAD, 255, 0).astype(np.uint8))


def _black_and_white_once(files: Files) -> None:
    files.ignore = (200,)
    files.change_labels(lambda values: np.where(values == 255, 200, values).astype(np.uint8))
    files.change_labels(lambda values: np.where(values == ROAD, 255, 0).astype(np.uint8), ("train/03",))


def _colours(files: Files) -> None:
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(CLASSES)] = [colour for _, colour in CLASSES]
    files.labels["train/03"] = png(Image.fromarray(palette[files.values("train/03")]))


def _lossy(files: Files) -> None:
    files.labels["train/03"] = jpeg(files.values("train/03"))


def _from_one(files: Files) -> None:
    files.change_labels(lambda values: np.where(values == 255, 255, values + 1).astype(np.uint8))


def _from_zero(files: Files) -> None:
    files.names = {value + 1: name for value, name in files.names.items()}


def _zero_reduced(files: Files) -> None:
    _from_zero(files)
    files.ignore = (0, 255)


def _turned_image(files: Files) -> None:
    files.images["train/03"] = jpeg(files.pixels("train/03"), orientation=6)


def _upside_down_image(files: Files) -> None:
    files.images["train/03"] = jpeg(files.pixels("train/03"), orientation=3)


def _twice(files: Files) -> None:
    files.copy("train/03", "train/99")


def _twice_across(files: Files) -> None:
    files.copy("train/03", "val/99")


def _brighter_copy(files: Files, new: str) -> None:
    files.copy("train/03", new)
    brighter = np.clip(files.pixels("train/03") * 1.1 + 5, 0, 255).astype(np.uint8)
    files.images[new] = jpeg(brighter, quality=60)


def _alike(files: Files) -> None:
    _brighter_copy(files, "train/99")


def _alike_across(files: Files) -> None:
    _brighter_copy(files, "val/99")


def _much_void(files: Files) -> None:
    void = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 2 == 0
    files.change_labels(lambda values: np.where(void, 255, values).astype(np.uint8))


def _void_image(files: Files) -> None:
    def empty(values: Pixels) -> Pixels:
        values[5:] = 255
        return values

    files.change_labels(empty, ("train/03",))


def _new_class(files: Files, *keys: str) -> None:
    def paint(values: Pixels) -> Pixels:
        values[BAND, BAND] = NEW_CLASS
        return values

    files.names[NEW_CLASS] = "boat"
    if keys:
        files.change_labels(paint, keys)


def _class_of_train_alone(files: Files) -> None:
    _new_class(files, *(f"train/{index:02d}" for index in range(10)))


def _picture(files: Files, change: Callable[[Pixels], Pixels]) -> None:
    files.images["train/03"] = jpeg(change(files.pixels("train/03")))


def _small(files: Files) -> None:
    _picture(files, lambda pixels: pixels[::8, ::8])
    files.change_labels(lambda values: values[::8, ::8], ("train/03",))


def _sixteen_bits(files: Files) -> None:
    deep = files.pixels("train/03")[..., ::-1].astype(np.uint16) * 257
    files.images["train/03"] = cv2.imencode(".png", deep)[1].tobytes()


def _transparent(files: Files) -> None:
    files.images["train/03"] = png(Image.fromarray(files.pixels("train/03")).convert("RGBA"))


def _turned_with_label(files: Files) -> None:
    stored = np.ascontiguousarray(np.rot90(files.pixels("train/03")))  # turned by a quarter, and back by orientation 6
    files.images["train/03"] = jpeg(stored, orientation=6)


Plant = Callable[[Files], None]

PLANTS: dict[str, tuple[str, str, Plant]] = {
    # name: code and severity of the only finding, how to break the clean dataset
    "a label is gone": ("unpaired_files", "error", _unpaired),
    "a label lacks a row": ("size_differs", "error", _other_size),
    "an image ends early": ("image_unreadable", "error", _truncated_image),
    "a label ends early": ("label_unreadable", "error", _truncated_label),
    "a value outside the table": ("label_value_outside_table", "error", _value_outside),
    "black and white masks": ("binary_mask", "error", _black_and_white),
    "one black and white mask": ("binary_mask", "error", _black_and_white_once),
    "a label in colours": ("label_in_colours", "error", _colours),
    "a label as JPEG": ("label_lossy", "error", _lossy),
    "labels from 1, table from 0": ("labels_one_off", "error", _from_one),
    "labels from 0, table from 1": ("labels_one_off", "error", _from_zero),
    "labels from 0, table from 1, 0 ignored": ("labels_one_off", "warning", _zero_reduced),
    "EXIF turns the image alone": ("orientation_not_on_label", "error", _turned_image),
    "EXIF turns the image alone by a half": ("orientation_doubtful", "warning", _upside_down_image),
    "an image twice": ("duplicates", "warning", _twice),
    "an image in two splits": ("duplicates_across_splits", "error", _twice_across),
    "a brighter copy": ("near_duplicates_within_split", "note", _alike),
    "a brighter copy in another split": ("near_duplicates_across_splits", "warning", _alike_across),
    "half of the pixels void": ("void_share_high", "warning", _much_void),
    "an image nearly void": ("images_mostly_void", "warning", _void_image),
    "a class nowhere": ("class_absent", "warning", _new_class),
    "a class in one image": ("class_rare", "warning", lambda files: _new_class(files, "train/03", "val/30")),
    "a class not in train": ("class_not_in_train", "warning", lambda files: _new_class(files, "val/30")),
    "a class not in val": ("class_absent_from_split", "note", _class_of_train_alone),
    "a dark image": (
        "brightness_outlier", "warning", lambda files: _picture(files, lambda pixels: (pixels * 0.06).astype(np.uint8))
    ),
    "a blown-out image": (
        "brightness_outlier",
        "warning",
        lambda files: _picture(files, lambda pixels: (255 - (255 - pixels) * 0.06).astype(np.uint8)),
    ),
    "a blank image": ("image_flat", "warning", lambda files: _picture(files, lambda pixels: np.full_like(pixels, 99))),
    "a thumbnail": ("size_outlier", "warning", _small),
    "a label of one value": (
        "label_constant", "note", lambda files: files.change_labels(lambda values: values * 0, ("train/03",))
    ),
    "an image without colour": (
        "images_gray", "note", lambda files: _picture(files, lambda pixels: pixels[..., :1].repeat(3, axis=2))
    ),
    "an image of 16 bits": ("images_16_bit", "note", _sixteen_bits),
    "a transparent image": ("images_with_alpha", "note", _transparent),
    "EXIF turns the image, and the label is upright": ("images_with_orientation", "note", _turned_with_label),
}  # fmt: skip
