"""COCO-Stuff, all 164 thousand images of COCO 2017 as pixel maps: 171 classes out of 182 labels, 255 = unlabelled.

    images/{train2017,val2017}/000000000139.jpg
    annotations/{train2017,val2017}/000000000139.png      0 to 181 = label - 1, and 255

`annotations` is where its README unpacks stuffthingmaps_trainval2017.zip; a folder `stuffthingmaps` is found as well.
118,287 images to train, 5,000 to validate. 11 of COCO's 91 things were removed before anything was drawn, so that their
values occur nowhere: a file that holds one, or 182, was not shifted by one, and is refused. `*_labelTrainIds.png`,
which mmsegmentation's converter puts beside the labels, are not read. Nor is the older COCO-Stuff 10K, which comes as
MATLAB files.

No colours are published with the maps: they are VOC's colour map.

Source: Caesar, Uijlings and Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018, arXiv 1612.03716;
github.com/nightrome/cocostuff: README.md (folders, shift by one, 255), `labels.txt` and `labels.md` (names, what was
removed). The 171 and their order as in mmsegmentation's `tools/dataset_converters/coco_stuff164k.py`.
"""

import dataclasses
from dataclasses import dataclass

from pipelines import storage
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import ClassTable, DatasetListing, default_palette
from pipelines.datasets.pairing import Layer, SplitFiles, find_folder, list_layer, pair

LABELS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "hat", "backpack", "umbrella", "shoe", "eye glasses", "handbag", "tie",
    "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "plate", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "mirror", "dining table", "window", "desk", "toilet", "door", "tv", "laptop", "mouse",
    "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "blender", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "hair brush", "banner", "blanket", "branch",
    "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other", "ceiling-tile",
    "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence",
    "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other", "fruit",
    "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves", "light", "mat", "metal",
    "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic",
    "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea",
    "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw", "structural-other", "table",
    "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel",
    "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
"""Names of the labels 1 to 182; 92 and above are stuff."""

REMOVED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Labels that COCO has no objects of."""

UNLABELLED = 255
SPLITS = {"train": "train2017", "val": "val2017"}
CONVERTED = "_labelTrainIds"
REMEDY = (
    "unpack COCO's train2017.zip and val2017.zip into <root>/images, stuffthingmaps_trainval2017.zip into "
    "<root>/annotations"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class COCOStuffConfig:
    """COCO-Stuff on COCO 2017: 118,287 images to train, 5,000 to validate; 171 classes."""

    root: str
    """Folder or URI that holds images/train2017 and annotations/train2017 or stuffthingmaps/train2017, and val2017."""


def list_samples(config: COCOStuffConfig) -> DatasetListing:
    """List COCO-Stuff.

    Raises:
        ValueError: a folder is missing, holds converted labels alone, or nothing fits together.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the COCO folder")
    folders = tuple(SPLITS.values())
    images = find_folder(root, ("images", ""), holding=folders, remedy=REMEDY)
    labels = find_folder(root, ("annotations", "stuffthingmaps"), holding=folders, remedy=REMEDY)
    samples, unpaired = pair(
        (
            SplitFiles(
                split=split,
                images=list_layer(storage.join(images, folder), ".jpg"),
                labels=_labels(storage.join(labels, folder)),
            )
            for split, folder in SPLITS.items()
        ),
        remedy=REMEDY,
    )
    return DatasetListing(
        name="coco_stuff",
        config=dataclasses.asdict(config),
        class_table=class_table(),
        samples=samples,
        unpaired=unpaired,
        read=read_files,
    )


def class_table() -> ClassTable:
    """The 171 labels that occur, stored as label - 1."""
    kept = [label for label in range(1, len(LABELS) + 1) if label not in REMOVED]
    return ClassTable(
        names=tuple(LABELS[label - 1] for label in kept),
        palette=default_palette(len(kept)),
        values=tuple(label - 1 for label in kept),
        ignore_values=(UNLABELLED,),
    )


def _labels(folder: str) -> Layer:
    found = list_layer(folder, ".png")
    published = {key: uri for key, uri in found.uris.items() if not key.endswith(CONVERTED)}
    if found.uris and not published:
        raise ValueError(
            f"{folder!r} holds {len(found.uris)} files *{CONVERTED}.png (0 to 170) and no other labels, expected the "
            f"published ones (0 to 181); {REMEDY}"
        )
    return dataclasses.replace(found, uris=published)
