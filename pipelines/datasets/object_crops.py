"""Crops around the objects of a prepared segmentation dataset: the two training sets of DeconvNet.

Source: Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", arXiv 1505.04366, section 4.2 and
5.1. An object is a connected region of one class (8 neighbours), as label maps know no instances.

- Stage 1: one crop per object, its tight box with sides times 1.2. The crop's labels keep the class of that object, and
  every other labelled pixel is background.
- Stage 2: boxes that were proposed from the image alone (`segcore.proposals`) and share at least half of their union
  with an object's tight box, enlarged likewise. All classes are labelled.

Ignored pixels stay ignored. Crops are resized to 250 x 250, so that a training may draw windows of 224 x 224: images
bilinearly (over all pixels that fall into one, when made smaller), labels by the nearest pixel.

Objects of rare classes are repeated in train: as often as the median number of objects per class divided by that of
their own, rounded, at most `max_repeats` times. The paper repeats, too, and does not say how often.

Differences from the paper: its regions are annotated instances; it bounds neither their size nor their number.
"""

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from pipelines.datasets.listing import ClassTable, Crop, CropListing, PreparedImage
from pipelines.intake.labels import decode_labels, encode_labels_png
from pipelines.shards import Part, PreparedDataset, open_dataset, read_part
from segcore import IGNORE_INDEX
from segcore.proposals import Box, Boxes, ProposalConfig, box_ious, enlarge_box, propose

BACKGROUND = "background"
BACKGROUND_COLOUR = (0, 0, 0)
BALANCED_SPLIT = "train"
READING_THREADS = 4
JPEG_QUALITY = 95
NO_OBJECT = "no object is large enough, so the image gives no crop"
NO_PROPOSAL = "no box was proposed, so the whole image was taken for one"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectCropsConfig:
    """DeconvNet's training sets: crops around the objects of a prepared segmentation dataset, with their label maps."""

    data: str
    """Prepared segmentation dataset; every split of it gives crops."""
    stage: Literal[1, 2]
    """1: tight boxes of objects, only the class of that object is kept. 2: proposed boxes, all classes are labelled."""
    background_class: str = BACKGROUND
    """Class of what is no object in stage 1. Where the dataset has no class of this name, one is put before the others,
    in both stages, so that one network trains on both: a class of index i has then index i + 1."""
    object_classes: tuple[str, ...] = ()
    """Classes whose regions are objects. Empty: all but the background."""
    min_object_px: int = 400
    """Smaller regions, in pixels of the image, are no objects: many are what something in front left visible, and all
    are a blur at the size of a crop."""
    min_iou: float = 0.5
    """Intersection over union that a proposed box must have with the tight box of an object, in stage 2."""
    proposals: ProposalConfig = field(default_factory=partial(ProposalConfig, best=2000))
    """The proposed boxes of stage 2; `enlarge` holds in stage 1 too."""
    max_per_image: int = 32
    """Crops of an image, at most, before any is repeated: the largest objects, or the best proposals. The paper's 2.7
    million crops of stage 2 are about 200 an image."""
    max_repeats: int = 4
    """How often a crop may be in train, for an object of a rare class; 1 repeats none."""
    crop_px: int = 250
    """Side of a crop, in pixels."""
    png: bool = False
    """Keep crops without loss, which takes four times the space of JPEG (quality 95, full colour)."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not self.background_class.strip():
            raise ValueError("--background-class is empty; give the name of a class, or leave it out")
        if self.min_object_px < 1:
            raise ValueError(f"--min-object-px is {self.min_object_px}, expected 1 or more")
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"--min-iou is {self.min_iou}, expected above 0 and at most 1")
        if self.max_per_image < 1 or self.max_repeats < 1:
            raise ValueError(
                f"--max-per-image is {self.max_per_image} and --max-repeats {self.max_repeats}, expected 1 or more"
            )
        if self.crop_px < 2:
            raise ValueError(f"--crop-px is {self.crop_px}, expected 2 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectClasses:
    """Which classes of the source are what in the crops.

    Attributes:
        object_indices: classes of the source whose regions are objects.
        background_index: of the background, in the crops.
        shift: what is added to a class index of the source: 1 where the background is new, otherwise 0.
    """

    object_indices: tuple[int, ...]
    background_index: int
    shift: int


class ObjectRegion(NamedTuple):
    """A connected region of one class: class index in the source, tight box, and number of pixels."""

    class_index: int
    box: Box
    num_pixels: int


class _Placed(NamedTuple):
    """A crop before it is cut."""

    name: str
    box: Box
    class_index: int


def list_samples(config: ObjectCropsConfig) -> CropListing:
    """List the images of the prepared dataset; their crops are cut when they are read.

    Raises:
        ValueError: the dataset is missing or not for segmentation, a part of it is missing or has changed, it has no
            class of a given name, or it has too many classes for one more.
    """
    dataset = open_dataset(storage.absolute(config.data))
    classes = _classes(dataset, config)
    class_table = _class_table(dataset, classes, config)
    images, objects_C = _images_and_objects(dataset, classes, config)
    repeats = _repeats(objects_C, classes, config)
    return CropListing(
        name="object_crops",
        config=dataclasses.asdict(config) | {"dataset_digest": dataset.digest, "repeats": repeats},
        class_table=class_table,
        samples=tuple(images),
        cut=CutObjects(config=config, classes=classes, repeats=tuple(repeats)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CutObjects:
    """Cuts the crops of an image. Runs in a Ray task.

    Attributes:
        config: sizes and limits.
        classes: which are objects.
        repeats: by class index of the source, how often a crop of an object of that class is in train.
    """

    config: ObjectCropsConfig
    classes: ObjectClasses
    repeats: tuple[int, ...]

    def __call__(
        self, pixels_HW3: NDArray[np.uint8], labels_HW: NDArray[np.uint8], *, image_id: str, split: str
    ) -> tuple[list[Crop], list[str]]:
        """The crops, each as often as its class asks for, and a note where there is none or no proposal."""
        cv2.setNumThreads(1)  # the task has one logical CPU; OpenCV would take all cores
        objects = object_regions(labels_HW, self.classes, min_object_px=self.config.min_object_px)
        if not objects:
            return [], [NO_OBJECT]
        notes: list[str] = []
        if self.config.stage == 1:
            placed = _around_objects(objects, self.config)
        else:
            placed, notes = _proposed(pixels_HW3, objects, self.config)
        crops: list[Crop] = []
        for name, box, class_index in placed:
            crop = self._crop(pixels_HW3, labels_HW, box, class_index, image_id=f"{image_id}/{name}")
            copies = self.repeats[class_index] if split == BALANCED_SPLIT else 1
            crops += [crop, *(crop._replace(image_id=f"{crop.image_id}-copy{n}") for n in range(1, copies))]
        return crops, notes

    def _crop(
        self,
        pixels_HW3: NDArray[np.uint8],
        labels_HW: NDArray[np.uint8],
        box: Box,
        class_index: int,
        *,
        image_id: str,
    ) -> Crop:
        height, width = labels_HW.shape
        top, left, bottom, right = enlarge_box(box, self.config.proposals.enlarge, height, width)
        kept = class_index if self.config.stage == 1 else None
        window = (slice(top, bottom), slice(left, right))
        return Crop(
            image_id=image_id,
            window=(left, top, right - left, bottom - top),
            image=_encoded(pixels_HW3[window], side_px=self.config.crop_px, png=self.config.png),
            label=encode_labels_png(_resized_labels(crop_labels(labels_HW[window], self.classes, kept), self.config)),
        )


def object_regions(labels_HW: NDArray[np.uint8], classes: ObjectClasses, *, min_object_px: int) -> list[ObjectRegion]:
    """The objects of a label map, by class and then from top to bottom."""
    regions = []
    for class_index in classes.object_indices:
        own_HW = (labels_HW == class_index).astype(np.uint8)
        if np.count_nonzero(own_HW) < min_object_px:
            continue
        _, _, statistics, _ = cv2.connectedComponentsWithStats(own_HW, connectivity=8)
        for left, top, width, height, num_pixels in statistics[1:].tolist():  # 0 is all the rest
            if num_pixels >= min_object_px:
                regions.append(ObjectRegion(class_index, (top, left, top + height, left + width), num_pixels))
    return sorted(regions)


def crop_labels(labels_HW: NDArray[np.uint8], classes: ObjectClasses, kept: int | None) -> NDArray[np.uint8]:
    """Labels of a window in the class indices of the crops.

    Args:
        labels_HW: of the window, in those of the source.
        classes: how the two belong together.
        kept: stage 1: the class of the source that is kept, where the others become background; None keeps all.
    """
    table = np.full(256, classes.background_index, np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    if kept is None:
        indices = np.arange(IGNORE_INDEX - classes.shift, dtype=np.uint8)
        table[indices] = indices + np.uint8(classes.shift)
    else:
        table[kept] = kept + classes.shift
    mapped_HW: NDArray[np.uint8] = table[labels_HW]
    return mapped_HW


def _around_objects(objects: Sequence[ObjectRegion], config: ObjectCropsConfig) -> list[_Placed]:
    largest = sorted(range(len(objects)), key=lambda number: (-objects[number].num_pixels, number))
    return [
        _Placed(f"object{number:03d}", objects[number].box, objects[number].class_index)
        for number in sorted(largest[: config.max_per_image])
    ]


def _proposed(
    pixels_HW3: NDArray[np.uint8], objects: Sequence[ObjectRegion], config: ObjectCropsConfig
) -> tuple[list[_Placed], list[str]]:
    """The best proposals that overlap an object enough, each with the class of the one that it overlaps most."""
    boxes_K4: Boxes = propose(pixels_HW3, config.proposals).boxes_K4
    notes = [] if len(boxes_K4) else [NO_PROPOSAL]
    if not len(boxes_K4):
        boxes_K4 = np.array([[0, 0, *pixels_HW3.shape[:2]]], np.int32)
    ious_KM = box_ious(boxes_K4, np.array([region.box for region in objects], np.int32))
    enough = np.flatnonzero(ious_KM.max(axis=1) >= config.min_iou)[: config.max_per_image]
    placed = []
    for number in enough.tolist():
        top, left, bottom, right = boxes_K4[number].tolist()
        nearest = objects[int(ious_KM[number].argmax())]
        placed.append(_Placed(f"proposal{number:04d}", (top, left, bottom, right), nearest.class_index))
    return placed, notes


def _encoded(pixels_hw3: NDArray[np.uint8], *, side_px: int, png: bool) -> bytes:
    resized = Image.fromarray(np.ascontiguousarray(pixels_hw3)).resize((side_px, side_px), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    if png:
        resized.save(file, "PNG")
    else:
        resized.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _resized_labels(labels_hw: NDArray[np.uint8], config: ObjectCropsConfig) -> NDArray[np.uint8]:
    size = (config.crop_px, config.crop_px)
    return np.asarray(Image.fromarray(np.ascontiguousarray(labels_hw)).resize(size, Image.Resampling.NEAREST))


def _classes(dataset: PreparedDataset, config: ObjectCropsConfig) -> ObjectClasses:
    names = dataset.class_names
    unknown = [name for name in config.object_classes if name not in names]
    if unknown:
        raise ValueError(
            f"--object-classes names {', '.join(unknown)}, which {config.data!r} does not have; "
            f"its classes are {', '.join(names)}"
        )
    if config.background_class in config.object_classes:
        raise ValueError(
            f"{config.background_class!r} is the background and among --object-classes; give another --background-class"
        )
    is_new = config.background_class not in names
    wanted = config.object_classes or tuple(name for name in names if name != config.background_class)
    if not wanted:
        raise ValueError(f"{config.data!r} has no class but {config.background_class!r}, so there are no objects")
    return ObjectClasses(
        object_indices=tuple(index for index, name in enumerate(names) if name in wanted),
        background_index=0 if is_new else names.index(config.background_class),
        shift=int(is_new),
    )


def _class_table(dataset: PreparedDataset, classes: ObjectClasses, config: ObjectCropsConfig) -> ClassTable:
    added = classes.shift
    names = (config.background_class,) * added + dataset.class_names
    try:
        return ClassTable(
            names=names,
            palette=(BACKGROUND_COLOUR,) * added + dataset.palette,
            values=tuple(range(len(names))),
            ignore_values=(IGNORE_INDEX,),
        )
    except ValueError as error:
        hint = f"; of them {config.background_class!r} is new, and --background-class may name a class that there is"
        raise ValueError(f"crops of {config.data!r}: {error}{hint if added else ''}") from error


def _repeats(objects_C: NDArray[np.int64], classes: ObjectClasses, config: ObjectCropsConfig) -> list[int]:
    """How often a crop of each class of the source is in train; 1 for classes that are no objects or never seen."""
    present = [index for index in classes.object_indices if objects_C[index]]
    median = float(np.median(objects_C[present])) if present else 0.0
    repeats = [1] * len(objects_C)
    for index in present:
        repeats[index] = min(max(int(median / int(objects_C[index]) + 0.5), 1), config.max_repeats)
    return repeats


def _images_and_objects(
    dataset: PreparedDataset, classes: ObjectClasses, config: ObjectCropsConfig
) -> tuple[list[PreparedImage], NDArray[np.int64]]:
    """Every image, and the objects of each class of the source in train: zeros where nobody asks for repeats."""

    def of_part(place: tuple[str, Part]) -> tuple[list[PreparedImage], NDArray[np.int64]]:
        split, part = place
        counted = config.max_repeats > 1 and split == BALANCED_SPLIT
        table = read_part(dataset, part, columns=("image_id", "label") if counted else ("image_id",))
        uri = storage.join(dataset.uri, part.path)
        images = [
            PreparedImage(image_id=image_id, split=split, part_uri=uri, part_sha256=part.sha256, row=row)
            for row, image_id in enumerate(table["image_id"].to_pylist())
        ]
        objects_C = np.zeros(dataset.num_classes, np.int64)
        for label in table["label"].to_pylist() if counted else ():
            labels_HW = decode_labels(label).astype(np.uint8)
            for region in object_regions(labels_HW, classes, min_object_px=config.min_object_px):
                objects_C[region.class_index] += 1
        return images, objects_C

    places = [(split.name, part) for split in dataset.splits.values() for part in split.parts]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = list(pool.map(of_part, places))
    total_C = np.zeros(dataset.num_classes, np.int64)
    for _, objects_C in found:
        total_C += objects_C
    return [image for images, _ in found for image in images], total_C
