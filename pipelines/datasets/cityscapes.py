"""Cityscapes: 19 classes out of 34 label ids, the others ignored.

    leftImg8bit/{train,val,test}/<city>/<city>_<seq>_<frame>_leftImg8bit.png
    gtFine/{train,val,test}/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png

2,975 images to train, 500 to validate, 1,525 to test. Labels of the test images are not public: the files show the
car's own bonnet and the border of rectification alone, which are ignored, so that the split is left out unless asked
for. `*_labelTrainIds.png`, which cityscapesScripts makes on demand, are another coding of the same labels and are not
read. No label file holds 255: polygons of the id -1 (license plate) are not drawn.

Source: `pipelines.datasets.cityscapes_labels`; cityscapesScripts' README (layout, counts) and
`preparation/json2labelImg.py` (what is drawn).
"""

import dataclasses
from dataclasses import dataclass

from pipelines import storage
from pipelines.datasets.cityscapes_labels import label_id_table
from pipelines.datasets.files import read_files, require_folder
from pipelines.datasets.listing import DatasetListing
from pipelines.datasets.pairing import SplitFiles, find_folder, list_layer, pair

IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE_ENDING = "_leftImg8bit.png"
LABEL_ENDING = "_gtFine_labelIds.png"
TRAIN_ID_ENDING = "_gtFine_labelTrainIds.png"
REMEDY = "give the folder into which leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip were unpacked"


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesConfig:
    """Cityscapes, fine annotations: 2,975 images to train, 500 to validate; 19 classes."""

    root: str
    """Folder or URI that holds leftImg8bit and gtFine."""
    test: bool = False
    """Also the 1,525 test images. Every pixel of their public labels is ignored, so that nothing can be scored."""


def list_samples(config: CityscapesConfig) -> DatasetListing:
    """List Cityscapes.

    Raises:
        ValueError: a folder is missing, has other files, or nothing fits together.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the Cityscapes folder")
    root = find_folder(root, ("", "cityscapes"), holding=(IMAGES,), remedy=REMEDY)
    splits = []
    for split in ("train", "val", "test") if config.test else ("train", "val"):
        files = SplitFiles(
            split=split,
            images=list_layer(storage.join(root, IMAGES, split), IMAGE_ENDING),
            labels=list_layer(storage.join(root, LABELS, split), LABEL_ENDING),
        )
        if files.images.uris and not files.labels.uris:
            _refuse_train_ids(files.labels.folder)
        splits.append(files)
    samples, unpaired = pair(splits, remedy=REMEDY)
    return DatasetListing(
        name="cityscapes",
        config=dataclasses.asdict(config),
        class_table=label_id_table(),
        samples=samples,
        unpaired=unpaired,
        read=read_files,
    )


def _refuse_train_ids(folder: str) -> None:
    converted = list_layer(folder, TRAIN_ID_ENDING).uris
    if converted:
        raise ValueError(
            f"{folder!r} holds {len(converted)} files *{TRAIN_ID_ENDING} (train ids 0 to 18 and 255) and none that end "
            f"in {LABEL_ENDING} (label ids 0 to 33), which are expected; unpack gtFine_trainvaltest.zip there again"
        )
