"""What comes back of true labels, against torch's interpolation and hand-made maps."""

import numpy as np
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import LabelPCA, solve
from segcore.label_recovery import (
    METHODS,
    Recovery,
    basis_prediction,
    bilinear_prediction,
    bilinear_weights,
    class_shares,
    highest_class,
    mixed_pixels,
    predictions,
)
from segcore.metrics import confusion_matrix

R, C = 8, 4


def disc_map(*, seed: int, height: int = 44, width: int = 61) -> NDArray[np.uint8]:
    """Discs of three classes on a fourth, an ignored frame."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels_HW = np.zeros((height, width), np.uint8)
    for c in (1, 2, 3):
        row, column, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(4, 15)
        labels_HW[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = c
    labels_HW[0] = labels_HW[:, -1] = IGNORE_INDEX
    return labels_HW


def fitted(maps: list[NDArray[np.uint8]], components: int) -> LabelPCA:
    statistics = BlockStatistics.zero(R, C)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return solve(statistics, num_components=components)


def test_a_full_basis_recovers_every_label_and_fewer_components_fewer() -> None:
    maps = [disc_map(seed=s) for s in range(8)]
    right = []
    for components in (1, 6, 30, C * R * R):
        pca, recovery = fitted(maps, components), Recovery.zero(C)
        for labels_HW in maps:
            recovery.update(pca, labels_HW)
        right.append(int(np.trace(recovery.confusion["basis"])))
    assert right == sorted(right)
    assert right[0] < right[1] < right[2]
    assert right[3] == sum((labels_HW != IGNORE_INDEX).sum() for labels_HW in maps)


def test_ignored_pixels_are_not_scored_and_states_add_up() -> None:
    maps = [disc_map(seed=s) for s in range(4)]
    pca = fitted(maps, 12)
    whole, first, second = (Recovery.zero(C) for _ in range(3))
    for index, labels_HW in enumerate(maps):
        whole.update(pca, labels_HW)
        (first if index % 2 else second).update(pca, labels_HW)
    first.merge(second)
    valid = sum(int((labels_HW != IGNORE_INDEX).sum()) for labels_HW in maps)
    for method in METHODS:
        np.testing.assert_array_equal(first.confusion[method], whole.confusion[method])
        np.testing.assert_array_equal(first.mixed_confusion[method], whole.mixed_confusion[method])
        assert whole.confusion[method].sum() == valid
        assert 0 < whole.mixed_confusion[method].sum() < valid


def test_each_method_can_be_had_alone() -> None:
    labels_HW = disc_map(seed=9)
    pca = fitted([labels_HW], 5)
    together = predictions(pca, labels_HW)
    np.testing.assert_array_equal(basis_prediction(pca, labels_HW), together["basis"])
    np.testing.assert_array_equal(bilinear_prediction(labels_HW, block_side=R, num_classes=C), together["bilinear"])


def test_confusions_are_those_of_the_cropped_predictions() -> None:
    labels_HW = disc_map(seed=9)
    pca = fitted([labels_HW], 5)
    recovery = Recovery.zero(C)
    recovery.update(pca, labels_HW)
    given_back = predictions(pca, labels_HW)
    for method in METHODS:
        assert given_back[method].shape == (48, 64)
        expected_CC = confusion_matrix(labels_HW, given_back[method][:44, :61], num_classes=C)
        np.testing.assert_array_equal(recovery.confusion[method], expected_CC)


def test_bilinear_is_torchs_area_pooling_and_interpolation() -> None:
    labels_HW = disc_map(seed=1, height=48, width=64)
    shares_Chw = class_shares(labels_HW, block_side=R, num_classes=C)
    planes = torch.from_numpy((labels_HW[None] == np.arange(C)[:, None, None]).astype(np.float32))
    pooled = torch.nn.functional.avg_pool2d(planes, R)
    np.testing.assert_array_equal(shares_Chw, pooled.numpy())
    enlarged = torch.nn.functional.interpolate(pooled[None], scale_factor=R, mode="bilinear", align_corners=False)[0]
    rows_Hh, columns_Ww = bilinear_weights(6, R), bilinear_weights(8, R)
    np.testing.assert_allclose(np.stack([rows_Hh @ share @ columns_Ww.T for share in shares_Chw]), enlarged, atol=1e-6)
    given_back_HW = predictions(fitted([labels_HW], 4), labels_HW)["bilinear"]
    best, second = torch.topk(enlarged, 2, dim=0).values
    decided = (best - second > 1e-5).numpy()
    np.testing.assert_array_equal(given_back_HW[decided], enlarged.argmax(dim=0).numpy()[decided])
    assert decided.mean() > 0.9


def test_bilinear_weights_of_a_single_row_repeat_it() -> None:
    np.testing.assert_array_equal(bilinear_weights(1, 4), np.ones((4, 1)))


def test_nearest_repeats_the_central_pixel_or_the_commonest_class() -> None:
    labels_HW = np.zeros((8, 16), np.uint8)
    labels_HW[4, 4] = 3  # the centre of the first block
    labels_HW[:, 8:] = 2
    labels_HW[:2, 8:] = 1
    labels_HW[4, 12] = IGNORE_INDEX  # the centre of the second
    given_back_HW = predictions(fitted([labels_HW], 4), labels_HW)["nearest"]
    assert (given_back_HW[:, :8] == 3).all()
    assert (given_back_HW[:, 8:] == 2).all()


def test_mixed_blocks_hold_two_values_whatever_the_padding() -> None:
    labels_HW = np.zeros((12, 20), np.uint8)  # 2 x 3 blocks, the last ones cut
    labels_HW[0, 0] = 1
    labels_HW[11, 19] = IGNORE_INDEX
    mixed_HW = mixed_pixels(labels_HW, R)
    expected_HW = np.zeros((12, 20), bool)
    expected_HW[:8, :8] = True
    expected_HW[8:, 16:] = True
    np.testing.assert_array_equal(mixed_HW, expected_HW)


def test_the_highest_class_is_argmax_with_ties_to_the_first() -> None:
    scores_CHW = np.random.default_rng(0).integers(0, 4, (6, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(highest_class(scores_CHW), scores_CHW.argmax(axis=0))
