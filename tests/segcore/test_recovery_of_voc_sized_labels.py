"""The bound that the paper prints as mIoU*: blocks of 16 x 16 pixels, 21 classes, 64 components, maps of 513 x 513."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.label_blocks import BlockStatistics
from segcore.label_code import project, reconstruct
from segcore.label_pca import LabelPCA, solve
from segcore.label_recovery import Recovery
from segcore.metrics import scores

R, C, P, SIZE = 16, 21, 64, 513


def object_map(seed: int) -> NDArray[np.uint8]:
    """One large ellipse on the background, of each class in turn: most images of VOC show one object."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    (row, column), (a, b), angle = rng.uniform(100, 410, 2), rng.uniform(90, 200, 2), rng.uniform(0, np.pi)
    along = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
    across = (columns - column) * np.cos(angle) - (rows - row) * np.sin(angle)
    return np.where((along / a) ** 2 + (across / b) ** 2 < 1, 1 + seed % (C - 1), 0).astype(np.uint8)


@pytest.fixture(scope="module")
def pca() -> LabelPCA:
    statistics = BlockStatistics.zero(R, C)
    for seed in range(160):
        statistics.update(object_map(seed))
    return solve(statistics, num_components=P)


def test_labels_that_were_not_fitted_come_back_better_than_by_enlarging_them(pca: LabelPCA) -> None:
    recovery = Recovery.zero(C)
    for seed in range(1000, 1020):
        recovery.update(pca, object_map(seed))
    bound = {method: scores(confusion_CC).mean_iou for method, confusion_CC in recovery.confusion.items()}
    assert bound["basis"] >= 0.99
    assert bound["basis"] > bound["bilinear"] > bound["nearest"]


def test_a_map_of_513_rows_has_33_blocks_and_528_rows_of_scores(pca: LabelPCA) -> None:
    codes_Phw = project(pca, object_map(0)).astype(np.float32)
    assert codes_Phw.shape == (P, 33, 33)
    assert reconstruct(pca, codes_Phw).shape == (C, 528, 528)
