"""Fake COCO: annotations/instances_{train,val}2017.json and their images; ids of categories with gaps, as COCO's."""

import json
from pathlib import Path
from typing import Any

from tests.data.fake_files import write_image

CATEGORIES = [
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
]
HEIGHT, WIDTH = 24, 32


def polygon_box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """A rectangle as COCO's polygon."""
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number: int, image_id: int, category_id: int, segmentation: Any, *, iscrowd: int = 0) -> dict[str, Any]:
    """One entry of `annotations`; its `area` and `bbox` are not used, and wrong on purpose."""
    return {
        "id": number, "image_id": image_id, "category_id": category_id, "iscrowd": iscrowd,
        "segmentation": segmentation, "area": 1.0, "bbox": [0, 0, 1, 1],
    }  # fmt: skip


def make_coco(root: Path, *, num_train: int = 3, num_val: int = 2) -> Path:
    """Each image: a person with a smaller dog in it, a crowd in run lengths, a toothbrush. Returns `root`."""
    (root / "annotations").mkdir(parents=True)
    for split, count, first in (("train2017", num_train, 1), ("val2017", num_val, 1001)):
        images, annotations = [], []
        for number in range(first, first + count):
            name = f"{number:012d}.jpg"
            write_image(root / split / name, height=HEIGHT, width=WIDTH)
            images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1})
            # twenty columns, all rows
            crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 20 * HEIGHT, 12 * HEIGHT]}
            annotations += [
                annotation(10 * number, number, 18, [polygon_box(6, 6, 10, 10)]),
                annotation(10 * number + 1, number, 1, [polygon_box(4, 4, 14, 16)]),
                annotation(10 * number + 2, number, 90, [polygon_box(24, 2, 28, 6)]),
                annotation(900_000_000_000 + number, number, 1, crowd, iscrowd=1),
            ]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
