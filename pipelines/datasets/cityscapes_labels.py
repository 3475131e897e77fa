"""The labels of Cityscapes: names, stored ids, ids of the 19 classes that are trained and scored, and colours.

Source: github.com/mcordts/cityscapesScripts, `cityscapesscripts/helpers/labels.py`. Its lane lines (ids 34 to 45) are
left out: they came later and are in no published label file. Data: Cordts et al., "The Cityscapes Dataset for Semantic
Urban Scene Understanding", CVPR 2016, arXiv 1604.01685. KITTI's semantic labels are the same.
"""

from typing import NamedTuple

from pipelines.datasets.listing import ClassTable

NOT_TRAINED = 255
"""The `train_id` of a label that is ignored in training and evaluation."""


class CityscapesLabel(NamedTuple):
    """One label.

    Attributes:
        id: value in `*_labelIds.png`; -1: never drawn.
        train_id: 0 to 18, in the order in which scores are published; `NOT_TRAINED`; -1 as for `id`.
        colour: 8-bit RGB; several labels that are not trained share black, pole and polegroup gray.
    """

    name: str
    id: int
    train_id: int
    colour: tuple[int, int, int]


LABELS: tuple[CityscapesLabel, ...] = (
    CityscapesLabel("unlabeled", 0, NOT_TRAINED, (0, 0, 0)),
    CityscapesLabel("ego vehicle", 1, NOT_TRAINED, (0, 0, 0)),
    CityscapesLabel("rectification border", 2, NOT_TRAINED, (0, 0, 0)),
    CityscapesLabel("out of roi", 3, NOT_TRAINED, (0, 0, 0)),
    CityscapesLabel("static", 4, NOT_TRAINED, (0, 0, 0)),
    CityscapesLabel("dynamic", 5, NOT_TRAINED, (111, 74, 0)),
    CityscapesLabel("ground", 6, NOT_TRAINED, (81, 0, 81)),
    CityscapesLabel("road", 7, 0, (128, 64, 128)),
    CityscapesLabel("sidewalk", 8, 1, (244, 35, 232)),
    CityscapesLabel("parking", 9, NOT_TRAINED, (250, 170, 160)),
    CityscapesLabel("rail track", 10, NOT_TRAINED, (230, 150, 140)),
    CityscapesLabel("building", 11, 2, (70, 70, 70)),
    CityscapesLabel("wall", 12, 3, (102, 102, 156)),
    CityscapesLabel("fence", 13, 4, (190, 153, 153)),
    CityscapesLabel("guard rail", 14, NOT_TRAINED, (180, 165, 180)),
    CityscapesLabel("bridge", 15, NOT_TRAINED, (150, 100, 100)),
    CityscapesLabel("tunnel", 16, NOT_TRAINED, (150, 120, 90)),
    CityscapesLabel("pole", 17, 5, (153, 153, 153)),
    CityscapesLabel("polegroup", 18, NOT_TRAINED, (153, 153, 153)),
    CityscapesLabel("traffic light", 19, 6, (250, 170, 30)),
    CityscapesLabel("traffic sign", 20, 7, (220, 220, 0)),
    CityscapesLabel("vegetation", 21, 8, (107, 142, 35)),
    CityscapesLabel("terrain", 22, 9, (152, 251, 152)),
    CityscapesLabel("sky", 23, 10, (70, 130, 180)),
    CityscapesLabel("person", 24, 11, (220, 20, 60)),
    CityscapesLabel("rider", 25, 12, (255, 0, 0)),
    CityscapesLabel("car", 26, 13, (0, 0, 142)),
    CityscapesLabel("truck", 27, 14, (0, 0, 70)),
    CityscapesLabel("bus", 28, 15, (0, 60, 100)),
    CityscapesLabel("caravan", 29, NOT_TRAINED, (0, 0, 90)),
    CityscapesLabel("trailer", 30, NOT_TRAINED, (0, 0, 110)),
    CityscapesLabel("train", 31, 16, (0, 80, 100)),
    CityscapesLabel("motorcycle", 32, 17, (0, 0, 230)),
    CityscapesLabel("bicycle", 33, 18, (119, 11, 32)),
    CityscapesLabel("license plate", -1, -1, (0, 0, 142)),
)

TRAINED: tuple[CityscapesLabel, ...] = tuple(
    sorted((label for label in LABELS if 0 <= label.train_id < NOT_TRAINED), key=lambda label: label.train_id)
)
"""The 19 classes in the order of their `train_id`."""


def label_id_table() -> ClassTable:
    """The 19 classes as they are stored by `id`; the other 15 ids are ignored."""
    return ClassTable(
        names=tuple(label.name for label in TRAINED),
        palette=tuple(label.colour for label in TRAINED),
        values=tuple(label.id for label in TRAINED),
        ignore_values=tuple(label.id for label in LABELS if label.train_id == NOT_TRAINED),
    )
