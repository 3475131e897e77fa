"""KITTI's semantic benchmark (2018): 200 street images with Cityscapes' labels; no split for validation is published.

    training/image_2/000000_10.png
    training/semantic/000000_10.png        Cityscapes ids, 8 bits

Beside them lie `semantic_rgb` and `instance`, which are not read, and `testing/image_2`, which has no labels. The
images are those of the stereo benchmark of 2015, whose download holds the next frame of each too (`000000_11.png`):
frames without a label that end in `_11` are left out.

Source: www.cvlibs.net/datasets/kitti/eval_semseg.php?benchmark=semantics2015 and its development kit. Data: Alhaija,
Mustikovela, Mescheder, Geiger and Rother, "Augmented Reality Meets Computer Vision", IJCV 2018, arXiv 1708.01566.
"""

import dataclasses
import logging
from dataclasses import dataclass

from pipelines import storage
from pipelines.datasets.cityscapes_labels import label_id_table
from pipelines.datasets.files import check_val_fraction, hash_splits, keys_of_split, read_files, require_folder
from pipelines.datasets.listing import DatasetListing
from pipelines.datasets.pairing import SplitFiles, find_folder, list_layer, pair

IMAGES, LABELS = "image_2", "semantic"
NEXT_FRAME = "_11"
REMEDY = "give the folder into which KITTI's data_semantics.zip was unpacked"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class KITTIConfig:
    """KITTI semantics: 200 images of about 375 x 1242, 19 classes of Cityscapes; split by a hash of the names."""

    root: str
    """Folder or URI that holds training/image_2 and training/semantic."""
    val_fraction: float | None = None
    """Share of images that go to val, chosen by a hash of their name. None: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        check_val_fraction(self.val_fraction)


def list_samples(config: KITTIConfig) -> DatasetListing:
    """List KITTI.

    Raises:
        ValueError: a folder is missing, or no image has a label.
    """
    root = storage.absolute(config.root)
    require_folder(root, what="the KITTI folder")
    training = find_folder(root, ("training", ""), holding=(LABELS,), remedy=REMEDY)
    images = list_layer(storage.join(training, IMAGES), ".png")
    labels = list_layer(storage.join(training, LABELS), ".png")
    next_frames = {key for key in images.uris if key.endswith(NEXT_FRAME) and key not in labels.uris}
    if next_frames:
        logger.info("left out %d images of the next frame (%s.png), which have no labels", len(next_frames), NEXT_FRAME)
    splits = hash_splits((images.uris.keys() | labels.uris.keys()) - next_frames, config.val_fraction)
    samples, unpaired = pair(
        (
            SplitFiles(split=split, images=images, labels=labels, keys=keys_of_split(splits, split))
            for split in ("train", "val")
        ),
        remedy=REMEDY,
    )
    return DatasetListing(
        name="kitti",
        config=dataclasses.asdict(config),
        class_table=label_id_table(),
        samples=samples,
        unpaired=unpaired,
        read=read_files,
    )
