"""A JSON file in COCO's format, parsed and grouped by image; see `coco_json` for what it holds."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipelines import storage
from segcore.coco_polygons import MIN_COORDINATES

KEYS = ("images", "annotations", "categories")

logger = logging.getLogger(__name__)

Number = int | str


class Annotation(NamedTuple):
    """What an annotation is packed into while the file is parsed: lists of numbers would take several times the space.

    Attributes:
        segmentation: as JSON; empty where there is none.
        num_degenerate: its polygons of fewer than three points.
    """

    annotation_id: int
    image_id: Number
    category_id: int
    segmentation: str
    num_degenerate: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """An image and what is on it.

    Attributes:
        file_name: below the folder of images.
        annotations: those with a segmentation, as they stand in the file.
        without_mask: ids of the others, which have a box alone.
    """

    image_id: Number
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    without_mask: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoFile:
    """A parsed file.

    Attributes:
        categories: names by id, in the order of the ids.
        images: as they stand in the file.
    """

    uri: str
    categories: dict[int, str]
    images: tuple[CocoImage, ...]


def read_coco_file(uri: str) -> CocoFile:
    """Parse a file, and make sure that its parts belong together.

    Raises:
        ValueError: it is missing, not JSON, lacks something, or names an image or category that it does not list.
    """
    try:
        content = json.loads(storage.read_bytes(uri), object_hook=_packed)
    except FileNotFoundError:
        raise ValueError(f"the annotations {uri!r} do not exist; check the path") from None
    except ValueError as error:
        raise ValueError(f"{uri!r} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{uri!r} holds {found}, expected COCO's lists {', '.join(KEYS)}")
    categories = _categories(content["categories"], uri)
    by_image: dict[Number, list[Annotation]] = defaultdict(list)
    for annotation in _annotations(content["annotations"], categories, uri):
        by_image[annotation.image_id].append(annotation)
    images: dict[Number, CocoImage] = {}
    for entry in content["images"]:
        image = _image(entry, by_image, uri)
        if image.image_id in images:
            raise ValueError(f"{uri!r} has the image id {image.image_id!r} twice; each may stand there once")
        images[image.image_id] = image
    if by_image:  # the images took theirs out
        number, (annotation, *_) = next(iter(by_image.items()))
        raise ValueError(
            f"{uri!r}: annotation {annotation.annotation_id} belongs to the image {number!r}, which is not among its "
            f"{len(images)} images; mend the file"
        )
    return CocoFile(uri=uri, categories=categories, images=tuple(images.values()))


def _packed(entry: dict[str, Any]) -> Any:
    """Called by the parser for every JSON object, inner ones first."""
    if not {"id", "image_id", "category_id"} <= entry.keys() or not isinstance(entry["image_id"], Number):
        return entry
    segmentation = entry.get("segmentation")
    polygons = segmentation if isinstance(segmentation, list) else []
    degenerate = sum(isinstance(polygon, list) and len(polygon) < MIN_COORDINATES for polygon in polygons)
    packed = json.dumps(segmentation, separators=(",", ":")) if segmentation else ""
    return Annotation(entry["id"], entry["image_id"], entry["category_id"], packed, degenerate)


def _categories(entries: Iterable[dict[str, Any]], uri: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in entries:
        try:
            number, name = int(entry["id"]), str(entry["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{uri!r}: the category {entry!r} has no usable `id` and `name`") from error
        if number in found:
            raise ValueError(f"{uri!r} has the category id {number} twice; each may stand there once")
        found[number] = name
    return dict(sorted(found.items()))


def _annotations(entries: list[Any], categories: dict[int, str], uri: str) -> list[Annotation]:
    degenerate = 0
    for entry in entries:
        if not isinstance(entry, Annotation):
            raise ValueError(
                f"{uri!r}: an annotation has no usable id, image_id and category_id: {str(entry)[:150]}; COCO's files "
                "of instances have them, those of captions or panoptic labels cannot be drawn"
            )
        if entry.category_id not in categories:
            raise ValueError(
                f"{uri!r}: annotation {entry.annotation_id} has the category {entry.category_id!r}, which is not among "
                f"the file's {len(categories)}; mend the file"
            )
        degenerate += entry.num_degenerate
    if degenerate:
        logger.warning("%s: %d polygons of fewer than three points enclose nothing; not drawn", uri, degenerate)
    return entries


def _image(entry: Any, by_image: dict[Number, list[Annotation]], uri: str) -> CocoImage:
    try:
        number, name, height, width = entry["id"], entry["file_name"], int(entry["height"]), int(entry["width"])
        usable = isinstance(number, Number) and isinstance(name, str) and min(height, width) >= 1
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(f"{uri!r}: the image {str(entry)[:150]} has no usable id, file_name, height and width")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(
            f"{uri!r}: the image {number!r} has the file_name {name!r}, expected a path below the folder of images"
        )
    own = by_image.pop(number, [])
    return CocoImage(
        image_id=number,
        file_name=name,
        height=height,
        width=width,
        annotations=tuple(each for each in own if each.segmentation),
        without_mask=tuple(each.annotation_id for each in own if not each.segmentation),
    )
