"""Pairs of truth and prediction as large as wanted, for benchmarks of scores."""

import cv2
import numpy as np
from numpy.typing import NDArray

from segcore import IGNORE_INDEX

Labels = NDArray[np.uint8]


def label_pair(*, height: int, width: int, num_classes: int, cell_px: int = 48) -> tuple[Labels, Labels]:
    """Areas with curved borders; the prediction has them a little shifted and some of them wrong; 3 % are ignored."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(height // cell_px + 2, width // cell_px + 2, num_classes)).astype(np.float32)
    maps = []
    for shift in (0.0, 0.35):
        noise = shift * rng.normal(size=coarse.shape).astype(np.float32)
        planes = [
            cv2.resize((coarse + noise)[:, :, index], (width, height), interpolation=cv2.INTER_CUBIC)
            for index in range(num_classes)
        ]
        maps.append(np.argmax(np.stack(planes), axis=0).astype(np.uint8))
    labels_HW, predictions_HW = maps
    void = cv2.resize(rng.random((height // 16, width // 16)).astype(np.float32), (width, height))
    labels_HW[void > np.quantile(void, 0.97)] = IGNORE_INDEX
    return labels_HW, predictions_HW
