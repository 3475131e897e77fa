"""What moved: images and classes in the order of their change, and colours that say who is right."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.comparison.moved import (
    BOTH_WRONG,
    GAINED,
    LOST,
    ImageMove,
    class_moves,
    difference_picture,
    draw_moves,
    find_movement,
    image_moves,
)
from pipelines.comparison.rows import ComparedRow
from pipelines.comparison.significance import ImageScores
from pipelines.shards import open_dataset
from segcore import IGNORE_INDEX
from segcore.bootstrap import PairedDifference
from tests.pipelines.compared_runs import compared_run
from tests.pipelines.tiny_inputs import random_pairs, write_dataset, write_model

CLASSES = ("sky", "road", "tree (tall)", "never")


def of_images(*mean_iou: float) -> ImageScores:
    """Images of one pixel of class 0, which is right or not."""
    counts = [
        np.array([[round(value), 0], [1, 0], [round(value), 1 - round(value)]]) for value in np.nan_to_num(mean_iou)
    ]
    names = tuple(f"scene/{index:03d}" for index in range(len(mean_iou)))
    return ImageScores(image_ids=names, counts_N3C=np.stack(counts), mean_iou_N=np.array(mean_iou))


def test_images_come_in_the_order_of_their_change_and_unmoved_ones_not_at_all() -> None:
    first, second = of_images(0.5, 0.9, 0.3, math.nan, 0.2), of_images(0.6, 0.4, 0.3, 0.8, 0.21)
    moves = image_moves(first, second, count=9)
    assert [move.image_id for move in moves] == ["scene/001", "scene/000", "scene/004"]
    assert moves[0].difference == pytest.approx(-0.5)
    assert len(image_moves(first, second, count=1)) == 1


def test_classes_come_in_the_order_of_their_change_and_undefined_ones_last() -> None:
    rows = [
        ComparedRow(name=name, runs=tuple(compared_run(f"{name}{seed}", scores=dict(scores)) for seed in (1, 2)))
        for name, scores in (
            ("a", {"iou/sky": 0.5, "iou/road": 0.7}),
            ("b", {"iou/sky": 0.6, "iou/road": 0.4, "iou/tree (tall)": 0.1}),
        )
    ]
    nothing = np.full(4, math.nan)
    difference = PairedDifference(
        mean_iou=0.0,
        mean_iou_interval=(0.0, 0.0),
        mean_iou_p=1.0,
        iou_C=np.array([0.1, -0.3, math.nan, math.nan]),
        iou_C2=np.stack([nothing, nothing], axis=1),
        iou_p_C=nothing,
    )
    moves = class_moves(rows[0], rows[1], difference, CLASSES)
    assert [move.name for move in moves] == ["road", "sky", "tree (tall)", "never"]
    assert (moves[0].first, moves[0].second, moves[0].difference) == (0.7, 0.4, -0.3)
    assert math.isnan(moves[2].first) and moves[2].second == 0.1


def test_rows_without_scores_by_image_have_no_movement() -> None:
    row = ComparedRow(name="a", runs=(compared_run("a"),))
    with pytest.raises(ValueError, match="no scores by image of a"):
        find_movement(row, row, {}, count=5)


def test_colours_of_the_difference_say_who_is_right() -> None:
    labels = np.array([[0, 0, 0, 0, IGNORE_INDEX]], np.uint8)
    first, second = np.array([[0, 0, 1, 1, 0]], np.uint8), np.array([[0, 1, 0, 2, 1]], np.uint8)
    shown = difference_picture(np.full((1, 5, 3), 90, np.uint8), labels, first, second)
    assert [tuple(pixel) for pixel in shown[0, 1:4].tolist()] == [LOST, GAINED, BOTH_WRONG]
    assert len(set(shown[0, 0].tolist())) == 1, "grey where the masks agree"
    assert set(shown[0, 4].tolist()) <= {0, 96}, "ignored"


def test_moved_images_are_drawn_in_their_order_by_both_models(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "data", random_pairs(5, seed=2), images_per_part=2))
    runs = [
        compared_run(name, model_folder=write_model(tmp_path / name, seed=seed)) for seed, name in enumerate(("a", "b"))
    ]
    moves = [ImageMove(image_id=f"scene/{index}", first=0.25, second=0.5) for index in ("004", "gone", "001")]
    drawn = draw_moves(moves, runs[0], runs[1], dataset, split="val")
    assert [image.move.image_id for image in drawn] == ["scene/004", "scene/001"]
    captions = [caption for caption, _ in drawn[0].panels]
    assert captions == ["scene/004: truth", "a, 25.0 %", "b, 50.0 %", "difference, +25.0 points"]
    assert len({data for _, data in drawn[0].panels}) == 4
    assert all(data.startswith(b"\xff\xd8\xff") for _, data in drawn[0].panels)
