"""Objects in COCO's JSON format, drawn into label maps: COCO's own files, and those of annotation tools.

    {"images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
     "categories": [{"id": 18, "name": "dog"}],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "iscrowd": 0, "segmentation": ...}]}

    segmentation                                        what
    [[x, y, x, y, ...], ...]                            polygons; an object is their union
    {"size": [height, width], "counts": [3, 2, ...]}    run lengths down the columns
    {"size": [height, width], "counts": "aUh2b0X..."}   the same, packed

Objects of an image are drawn by falling area, in pixels as drawn, so that small ones lie on top; of equal ones the
greater annotation id does. Crowds are drawn as their category. Polygons are rasterised as pycocotools does, pixel by
pixel. Classes are the categories, sorted by id (COCO's ids have gaps: 90 is the 80th), behind `background`.

The file is parsed once, where the dataset is listed: 450 MB for COCO's 118,287 training images. Each sample carries its
own annotations as JSON text, about 4 kB in COCO, so that no task reads the file.

Source: cocodataset.org, "Data format"; pycocotools' `coco.py` (`annToRLE`) and `maskApi.c`. Data: Lin et al.,
"Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.datasets.coco_files import CocoFile, CocoImage, read_coco_file
from pipelines.datasets.files import check_val_fraction, hash_splits
from pipelines.datasets.listing import ClassTable, DatasetListing, Sample, Unpaired, default_palette
from pipelines.intake.formats import ImageError
from pipelines.intake.labels import encode_labels_png
from segcore import IGNORE_INDEX
from segcore.coco_polygons import MIN_COORDINATES, polygon_spans
from segcore.coco_runs import Spans, counts_to_spans, paint_spans, spans_area, union_of_spans, unpack_counts

BACKGROUND = "background"
BLACK = (0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoJsonConfig:
    """Objects in COCO's JSON format: polygons and run lengths, drawn into label maps."""

    annotations: tuple[str, ...]
    """JSON files, one per split: instances_train2017.json instances_val2017.json."""
    images: tuple[str, ...]
    """The folder or URI of each file's images, to which its `file_name`s are relative: train2017 val2017."""
    splits: tuple[str, ...] = ()
    """The split of each file: train val. May be left out for one file, whose images then go to train and val."""
    val_fraction: float | None = None
    """Share of images that go to val, chosen by a hash of their names, where --splits is left out. None: 0.1."""
    background: Literal["class", "ignore"] = "class"
    """What lies in no object: a class, the first one; or ignored, where objects cover all that matters."""

    def __post_init__(self) -> None:
        """Refuse lists that do not fit together."""
        check_val_fraction(self.val_fraction)
        if not self.annotations or len(self.annotations) != len(self.images):
            raise ValueError(
                f"--annotations names {len(self.annotations)} files and --images {len(self.images)} folders; "
                "give one or more, and a folder for each file"
            )
        if not self.splits and len(self.annotations) > 1:
            raise ValueError("--annotations names several files; say with --splits which split each is: train val")
        if self.splits and (len(set(self.splits)), len(self.splits)) != (len(self.annotations),) * 2:
            raise ValueError(
                f"--splits is {' '.join(self.splits)}, expected {len(self.annotations)} different names, one for each "
                "of --annotations"
            )
        if self.splits and self.val_fraction is not None:
            raise ValueError("--val-fraction and --splits are both given; leave one out")


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnSample(Sample):
    """An image whose label map is drawn when it is read.

    Attributes:
        height, width: of the label map, in pixels, as the JSON file says.
        objects: JSON list of [class index, annotation id, segmentation].
    """

    height: int
    width: int
    objects: str


def list_samples(config: CocoJsonConfig) -> DatasetListing:
    """Parse the files and group the annotations by image.

    Raises:
        ValueError: a file is missing, not COCO's format or contradicts itself, or the files' categories differ.
    """
    files = [read_coco_file(storage.absolute(uri)) for uri in config.annotations]
    categories = files[0].categories
    for file in files[1:]:
        if differing := sorted(categories.items() ^ file.categories.items()):
            raise ValueError(
                f"{file.uri!r} and {files[0].uri!r} have other categories ({', '.join(map(str, differing[:4]))}); "
                "splits of one dataset share ids and names"
            )
    first = 1 if config.background == "class" else 0
    if first and BACKGROUND in categories.values():
        raise ValueError(
            f"{files[0].uri!r} has a category {BACKGROUND!r} itself, beside the class for what lies in no object; "
            "rename it, or choose --background ignore"
        )
    index_of = {number: index for index, number in enumerate(categories, start=first)}
    samples: list[DrawnSample] = []
    unpaired: list[Unpaired] = []
    for position, file in enumerate(files):
        folder = storage.absolute(config.images[position])
        for image_id, split, image in _named_images(file, config, position):
            uri = storage.join(folder, image.file_name)
            if image.without_mask:
                reason = (
                    f"annotation {image.without_mask[0]} of this image has a box and no segmentation, "
                    "so that its pixels are not known; leave the image out of the file, or outline the object"
                )
                unpaired.append(Unpaired(image_id=image_id, split=split, uri=uri, reason=reason))
                continue
            objects = ",".join(
                f"[{index_of[each.category_id]},{each.annotation_id},{each.segmentation}]" for each in image.annotations
            )
            samples.append(
                DrawnSample(
                    image_id=image_id,
                    split=split,
                    image_uri=uri,
                    label_uri=f"{file.uri}#image={image.image_id}",
                    height=image.height,
                    width=image.width,
                    objects=f"[{objects}]",
                )
            )
    names = ((BACKGROUND,) if first else ()) + tuple(categories.values())
    return DatasetListing(
        name="coco_json",
        config=dataclasses.asdict(config),
        class_table=ClassTable(
            names=names,
            palette=((BLACK,) if first else ()) + default_palette(len(categories)),
            values=tuple(range(len(names))),
            ignore_values=(IGNORE_INDEX,),
        ),
        samples=tuple(samples),
        unpaired=tuple(unpaired),
        read=partial(read_drawn, background=0 if first else IGNORE_INDEX),
    )


def read_drawn(sample: Sample, *, background: int) -> tuple[bytes, bytes]:
    """The bytes of an image, and its objects drawn into a label map as PNG.

    Raises:
        OSError: the image cannot be read.
        ImageError: an object cannot be drawn; the message names its annotation.
    """
    assert isinstance(sample, DrawnSample)
    image = storage.read_bytes(sample.image_uri)
    objects = json.loads(sample.objects)
    labels_HW = draw(objects, height=sample.height, width=sample.width, background=background)
    return image, encode_labels_png(labels_HW)


def draw(objects: list[tuple[int, int, Any]], *, height: int, width: int, background: int) -> NDArray[np.uint8]:
    """A label map (height, width) of objects (class index, annotation id, segmentation), small ones on top.

    Raises:
        ImageError: a segmentation cannot be drawn.
    """
    drawn = []
    for class_index, annotation_id, segmentation in objects:
        try:
            spans = segmentation_spans(segmentation, height=height, width=width)
        except (ValueError, TypeError, KeyError) as error:
            raise ImageError(f"annotation {annotation_id} cannot be drawn: {error}", "validate") from error
        drawn.append((spans_area(spans), annotation_id, class_index, spans))
    labels_WH = np.full((width, height), background, np.uint8)
    for _, _, class_index, spans in sorted(drawn, key=lambda each: (-each[0], each[1])):
        paint_spans(labels_WH, spans, class_index)
    return np.ascontiguousarray(labels_WH.T)


def segmentation_spans(segmentation: Any, *, height: int, width: int) -> Spans:
    """Spans of an annotation's `segmentation`: a list of polygons, or run lengths, packed or not.

    Raises:
        ValueError, TypeError, KeyError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, list):
        polygons = [each for each in segmentation if len(each) >= MIN_COORDINATES]
        return union_of_spans([polygon_spans(polygon, height=height, width=width) for polygon in polygons])
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's [{height}, {width}] (height, width)")
    counts = segmentation["counts"]
    return counts_to_spans(unpack_counts(counts) if isinstance(counts, str) else counts, height=height, width=width)


def _named_images(file: CocoFile, config: CocoJsonConfig, position: int) -> list[tuple[str, str, CocoImage]]:
    """Id, split and image: the split is part of the id where it is given, as names may return in the next one."""
    names = {image.image_id: str(PurePosixPath(image.file_name).with_suffix("")) for image in file.images}
    if config.splits:
        split = config.splits[position]
        return [(f"{split}/{names[image.image_id]}", split, image) for image in file.images]
    splits = hash_splits(names.values(), config.val_fraction)
    return [(names[image.image_id], splits[names[image.image_id]], image) for image in file.images]
