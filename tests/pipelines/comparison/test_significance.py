"""Pairs of rows on the same images: identical ones do not differ, better ones are named, others are left out aloud."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipelines import tracking
from pipelines.comparison.rows import ComparedRow, group_rows
from pipelines.comparison.significance import ImageScores, load_image_scores, row_pairs
from pipelines.evaluation.scoring import IMAGES_SCHEMA, image_record
from segcore.metrics import confusion_matrix, scores_of_counts
from tests.pipelines.compared_runs import compared_run

NUM_IMAGES = 60


def images_table(accuracy: float, *, seed: int, num_images: int = NUM_IMAGES) -> pa.Table:
    """What an evaluation of a network that is right with this probability keeps of each image."""
    labels_rng, rng = np.random.default_rng(0), np.random.default_rng(seed)
    records = []
    for index in range(num_images):
        labels_HW = labels_rng.integers(0, 4, (8, 9)).astype(np.uint8)
        guesses_HW = rng.integers(0, 4, labels_HW.shape).astype(np.uint8)
        masks_HW = np.where(rng.random(labels_HW.shape) < accuracy, labels_HW, guesses_HW)
        place: dict[str, Any] = {"part": 0, "row": index, "image_id": f"image {index}"}
        confusion_CC = confusion_matrix(labels_HW, masks_HW, num_classes=4)
        records.append(image_record(place, labels_HW, confusion_CC, network_ms=1.0))
    return pa.Table.from_pylist(records, schema=IMAGES_SCHEMA)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ComparedRow], dict[str, ImageScores]]:
    """Two seeds of a good and of a bad network, one run equal to a good one's, one older, one not evaluated."""
    tables = {
        "good-1": images_table(0.8, seed=1),
        "good-2": images_table(0.8, seed=2),
        "bad-1": images_table(0.5, seed=3),
        "bad-2": images_table(0.5, seed=4),
        "again": images_table(0.8, seed=1),
        "other": images_table(0.8, seed=5, num_images=7),
        "older": images_table(0.8, seed=6).drop_columns(["truth_C"]),
    }
    monkeypatch.setattr(tracking, "read_artifact", lambda run_id, name: parquet(tables[run_id]))
    runs = []
    for name in (*tables, "unscored"):
        known = image_scores(tables[name]) if name in tables and name != "older" else 0.1
        words = name.split("-")
        runs.append(
            compared_run(
                name,
                evaluation_id=name if name in tables else "",
                scores={"mean_iou": known},
                settings={"network": words[0], "seed": words[-1] if len(words) > 1 else "1"},
            )
        )
    images, notes = load_image_scores(runs)
    assert len(notes) == 2
    assert "older, which is therefore in no pair" in notes[0] and "without truth_C; evaluate again" in notes[0]
    assert notes[1].startswith("No scores by image of unscored: there is no evaluation.")
    return group_rows(runs), images


def image_scores(table: pa.Table) -> float:
    counts = [sum_of(table, name) for name in ("intersection_C", "truth_C", "prediction_C")]
    return scores_of_counts(np.stack(counts)).mean_iou


def sum_of(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(np.sum(table[name].to_pylist(), axis=0), dtype=np.int64)


def test_pairs_name_the_better_network_and_find_none_where_there_is_none(
    rows: tuple[list[ComparedRow], dict[str, ImageScores]],
) -> None:
    pairs, notes = row_pairs(*rows)
    found = {frozenset((pair.first.name, pair.second.name)): pair for pair in pairs}
    assert set(found) == {frozenset(names) for names in (("good", "bad"), ("good", "again"), ("again", "bad"))}
    clear = found[frozenset(("good", "bad"))]
    assert (clear.second.name, clear.verdict, clear.seeds) == ("good", "good is better", "apart")
    assert clear.difference.mean_iou == pytest.approx((clear.second.mean_iou or 0) - (clear.first.mean_iou or 0))
    assert clear.difference.mean_iou_p < clear.adjusted_p < 0.01, "held to Holm's levels"
    close = found[frozenset(("good", "again"))]
    assert (close.verdict, close.seeds) == ("no difference shown", "one seed")
    assert len(notes) == 3 and all("other" in note and "different images" in note for note in notes)


def test_identical_runs_do_not_differ(rows: tuple[list[ComparedRow], dict[str, ImageScores]]) -> None:
    ordered, images = rows
    runs = {run.name: run for row in ordered for run in row.runs}
    apart = group_rows([runs["good-1"], runs["again"]], seeds_together=False)
    ((pair,), notes) = row_pairs(apart, images)
    assert notes == []
    assert (pair.verdict, pair.difference.mean_iou, pair.adjusted_p) == ("no difference", 0.0, 1.0)


def test_a_clear_difference_between_seeds_that_overlap_says_so(
    rows: tuple[list[ComparedRow], dict[str, ImageScores]],
) -> None:
    ordered, images = rows
    good, bad = (next(row for row in ordered if row.name == name) for name in ("good", "bad"))
    mixed = ComparedRow(name="mixed", runs=(good.runs[0], bad.runs[0]))
    ((pair,), _) = row_pairs(sorted([mixed, good], key=lambda row: -(row.mean_iou or 0)), images)
    assert (pair.seeds, pair.verdict) == ("overlap", "good is better, but seeds overlap")
