"""The tables of an evaluation against its counts, from results that were not measured but made."""

import math

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.evaluation.groups import ImageGroup
from pipelines.evaluation.page import group_sections, overview, protocol_section
from pipelines.evaluation.scoring import IMAGES_SCHEMA, SplitScores, image_counts
from pipelines.evaluation.tables import (
    calibration_table,
    class_table,
    group_table,
    protocol_table,
    scores_by_name,
    summarise,
    trimap_table,
)
from pipelines.pages import Cell, Facts, Table
from segcore.boundaries import BoundaryConfig
from segcore.metrics import class_counts, scores
from segcore.segmentation_counts import SegmentationCounts

NAMES = ("road", "sky", "never")


def made(
    num_images: int = 6, *, accuracy: float = 0.8, seconds: float = 2.0
) -> tuple[SplitScores, list[NDArray[np.int64]]]:
    """A result, and the confusion of each image."""
    rng = np.random.default_rng(0)
    counts = SegmentationCounts.zero(3, BoundaryConfig())
    rows, confusions = [], []
    for index in range(num_images):
        labels = np.repeat(rng.integers(0, 2, (20, 3)).astype(np.uint8), 10, axis=1)
        confidence = rng.random(labels.shape).astype(np.float32)
        predictions = np.where(confidence < accuracy, labels, 1 - labels).astype(np.uint8)
        image_CC = counts.update(labels, predictions, confidence)
        triple = class_counts(image_CC).tolist()
        confusions.append(image_CC)
        rows.append(
            {
                **{"image_id": str(index), "height": 20, "width": 30, "valid_pixels": 600, "network_ms": 1.0},
                **{"mean_iou": scores(image_CC).mean_iou, "pixel_accuracy": scores(image_CC).pixel_accuracy},
                **{"intersection": triple[0], "union": triple[0]},
                **dict(zip(("intersection_C", "truth_C", "prediction_C"), triple, strict=True)),
            }
        )
    result = SplitScores(
        counts=counts,
        images=pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA),
        places=[(0, index) for index in range(num_images)],
        network_seconds=seconds,
        network_images=num_images,
        network_inputs=3 * num_images,
        busy_seconds=5.0,
    )
    return result, confusions


def test_scores_have_names_and_what_is_undefined_is_left_out() -> None:
    result, _ = made()
    summary = summarise(result)
    named = scores_by_name(summary, NAMES)
    assert named["mean_iou_low"] < named["mean_iou"] < named["mean_iou_high"]
    assert named["boundary_iou"] == pytest.approx(np.nanmean(summary.boundary_iou_C))
    assert {"iou/road", "boundary_iou/sky", "trimap_mean_iou/1px", "calibration_error", "overconfidence"} <= set(named)
    assert not {name for name in named if "never" in name} and not any(map(math.isnan, named.values()))


def test_one_image_has_no_interval() -> None:
    result, _ = made(1)
    named = scores_by_name(summarise(result), NAMES)
    assert "mean_iou" in named and "mean_iou_low" not in named
    facts = overview(summarise(result), 1, {}).blocks[0]
    assert isinstance(facts, Facts) and facts.facts[0][0] == "mean IoU"


def test_tables_hold_nulls_for_what_is_undefined() -> None:
    result, _ = made()
    summary = summarise(result)
    classes = class_table(result.confusion_CC, summary, NAMES).to_pylist()
    assert classes[0]["iou_low"] <= classes[0]["iou"] <= classes[0]["iou_high"]
    assert [classes[2][name] for name in ("iou", "iou_low", "iou_high", "boundary_iou")] == [None] * 4
    trimaps = trimap_table(summary).to_pylist()
    assert [row["within_px"] for row in trimaps] == [1, 2, 4, 8, 16, 32]
    assert trimaps[-1]["mean_iou"] == pytest.approx(summary.total.mean_iou), "no pixel is 32 px away from a border here"
    bins = calibration_table(summary.calibration).to_pylist()
    assert sum(row["pixels"] for row in bins) == 6 * 600 and bins[-1]["confidence_to"] == 1.0


def test_a_group_s_scores_are_those_of_its_images_alone() -> None:
    result, confusions = made()
    groups = [ImageGroup(kind="folder", name="odd", indices=(1, 3, 5)), ImageGroup(kind="size", name="x", indices=(2,))]
    odd, single = group_table(image_counts(result.images), groups).to_pylist()
    expected = scores(confusions[1] + confusions[3] + confusions[5])
    assert (odd["mean_iou"], odd["pixel_accuracy"]) == (expected.mean_iou, expected.pixel_accuracy)
    assert odd["mean_iou_low"] <= odd["mean_iou"] <= odd["mean_iou_high"] and odd["num_images"] == 3
    assert single["mean_iou"] == scores(confusions[2]).mean_iou and single["mean_iou_low"] is None
    assert np.array_equal(
        [odd[name] for name in ("intersection_C", "truth_C", "prediction_C")],
        class_counts(confusions[1] + confusions[3] + confusions[5]),
    )


def test_a_size_that_all_images_have_is_no_section() -> None:
    result, _ = made()
    table = group_table(image_counts(result.images), [ImageGroup(kind="size", name="x", indices=tuple(range(6)))])
    assert group_sections(table) == []


def test_protocols_stand_beside_each_other_with_cost_and_paired_difference() -> None:
    results = {
        "crf": made(accuracy=0.9, seconds=6.0)[0],
        "single": made(accuracy=0.8)[0],
        "again": made(accuracy=0.9)[0],
    }
    summaries = {name: summarise(result) for name, result in results.items()}
    crf, single, again = protocol_table(results, summaries).to_pylist()
    assert (crf["seconds_per_image"], crf["relative_cost"], crf["inputs_per_image"]) == (1.0, 3.0, 3.0)
    assert single["relative_cost"] == 1 and crf["difference"] is None
    expected = summaries["single"].total.mean_iou - summaries["crf"].total.mean_iou
    assert (
        single["difference"] == pytest.approx(expected)
        and single["difference_high"] < 0
        and single["difference_p"] < 0.01
    )
    assert (again["difference"], again["difference_low"], again["difference_p"]) == (0.0, 0.0, 1.0)
    section = protocol_section(protocol_table(results, summaries), {"protocols.png": b"\x89PNG\r\n\x1a\n"})
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.columns[3] == "minus crf, points" and table.rows[0][3] == Cell(text="-", order=table.rows[0][3].order)


def test_a_protocol_that_was_not_timed_has_no_cost() -> None:
    result, _ = made()
    untimed = SplitScores(
        counts=result.counts,
        images=result.images,
        places=result.places,
        network_seconds=0.0,
        network_images=0,
        network_inputs=6,
        busy_seconds=1.0,
    )
    results = {"single": untimed, "crf": result}
    rows = protocol_table(results, {name: summarise(each) for name, each in results.items()}).to_pylist()
    assert [row["relative_cost"] for row in rows] == [None, None] and rows[0]["seconds_per_image"] is None
