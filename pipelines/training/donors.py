"""Copy-paste within a training: crops with pixels of rare classes from images that every worker keeps at hand.

Which donor, which crop of it, and whether at all, come from the generator of the image's own augmentation: a crop is
the same whichever worker draws it, after a resume too.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines import storage
from pipelines.shards import PreparedDataset
from pipelines.training.batches import Pair, Row, decoded
from segcore.augment import augment
from segcore.augment_config import AugmentConfig
from segcore.copy_paste import CopyPasteConfig, paste_classes

Draw = Callable[[Row, torch.Generator], Pair]
ATTEMPTS = 4
"""Crops of a donor that are drawn until one shows a pixel of the classes; DAFormer draws up to 10."""


def pasting(
    draw: Draw,
    donors: str,
    config: CopyPasteConfig,
    *,
    dataset: PreparedDataset,
    augmentation: AugmentConfig,
    fill: tuple[int, int, int],
) -> Draw:
    """A way to draw augmented pairs that also pastes.

    Args:
        draw: of a pair without pasting.
        donors: URI of the file that `pipelines.training.balance` wrote.
        config: classes and probability.
        dataset: whose class names `config` uses.
        augmentation, fill: of a donor's crops; see `segcore.augment.augment`.
    """
    rows = pq.read_table(pa.BufferReader(storage.read_bytes(donors)), columns=["image", "label"]).to_pylist()
    classes = torch.tensor([dataset.class_names.index(name) for name in config.classes], dtype=torch.uint8)

    def draw_and_paste(row: Row, generator: torch.Generator) -> Pair:
        pair = draw(row, generator)
        chance, choice = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if chance >= config.probability:
            return pair
        donor = decoded(rows[int(choice * len(rows))])
        for _ in range(ATTEMPTS):
            donor_3HW, labels_HW = augment(*donor, augmentation, generator, fill=fill)
            if torch.isin(labels_HW, classes).any():
                return paste_classes(*pair, donor_3HW, labels_HW, classes=classes)
        return pair

    return draw_and_paste
