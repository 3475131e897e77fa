"""Images chosen in SQL, which can compute and nothing else."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.tables.reader import open_snapshot
from pipelines.tables.selection import select_images
from tests.pipelines.night_tables import blocky_masks, publish_night

CONFIDENCE = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.2}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four images of two nights."""
    folder = str(tmp_path_factory.mktemp("tables"))
    masks = dict(zip("abcd", blocky_masks(4, seed=0), strict=True))
    columns = {work_id: {"mean_confidence": value} for work_id, value in CONFIDENCE.items()}
    for number, ids in enumerate(("ab", "cd")):
        night = {work_id: masks[work_id] for work_id in ids}
        publish_night(folder, f"{number + 1:06d}", night, run_date=f"2026-11-{20 + number}", columns=columns)
    return folder


def _select(tables: str, **options: Any) -> list[str]:
    return [row["work_id"] for row in select_images(tables, open_snapshot(tables), **options)]


def test_rows_come_by_condition_order_and_number(tables: str) -> None:
    assert _select(tables) == ["a", "b", "c", "d"]
    assert _select(tables, where="mean_confidence < 0.6") == ["b", "c", "d"]
    assert _select(tables, where="mean_confidence < 0.6 AND run_date = '2026-11-20'") == ["b"]
    assert _select(tables, order_by="mean_confidence", limit=3) == ["b", "d", "c"]
    assert _select(tables, order_by="Mean_Confidence DESC, work_id DESC") == ["a", "c", "d", "b"]
    assert _select(tables, where="list_sum(class_pixels) > 1e9") == []
    assert _select(tables, where="mean_confidence > (SELECT avg(mean_confidence) FROM predictions)") == ["a", "c"]
    assert _select(tables, where="mean_confidence < 0.6 -- least sure", order_by="uri DESC -- last") == ["d", "c", "b"]


def test_rows_hold_what_exporters_need_and_what_is_mentioned(tables: str) -> None:
    (row,) = select_images(tables, open_snapshot(tables), where="mean_confidence = 0.5")
    assert row == {
        "work_id": "c",
        "uri": "s3://cams/c.jpg",
        "run_id": "000002",
        "orientation": 1,
        "height": 12,
        "width": 18,
        "mean_confidence": 0.5,
        "run_date": datetime.date(2026, 11, 21),
    }


def test_the_newest_row_of_a_work_id_counts(tmp_path: Path) -> None:
    masks = blocky_masks(3, seed=1)
    publish_night(str(tmp_path), "000001", {"b": masks[0], "a": masks[1]}, columns={"a": {"mean_confidence": 0.1}})
    publish_night(str(tmp_path), "000002", {"a": masks[2]}, columns={"a": {"mean_confidence": 0.8}})
    assert _select(str(tmp_path)) == ["a", "b"]
    assert _select(str(tmp_path), where="mean_confidence < 0.3") == []
    assert _select(str(tmp_path), where="run_id = '000002'") == ["a"]


@pytest.mark.parametrize(
    "where, message",
    [
        ("confidence < 0.5", "predictions has the columns work_id, uri,"),
        ("mean_confidence <", "--where 'mean_confidence <'"),
        ("true); DROP VIEW predictions; SELECT (1", "are parts of one SELECT; leave out the semicolon"),
        ("uri IN (SELECT content FROM read_text('{file}'))", "disabled"),
        ("uri IN (SELECT * FROM '{file}')", "--where"),
        ("true) ORDER BY 1; SET enable_external_access = true; SELECT 1 WHERE (true", "leave out the semicolon"),
    ],
)
def test_wrong_and_reaching_conditions_are_refused(tables: str, tmp_path: Path, where: str, message: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\nb\n")
    with pytest.raises(ValueError, match=message):
        _select(tables, where=where.replace("{file}", str(file)))
