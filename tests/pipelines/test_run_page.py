"""A run's page is drawn from the tables alone, and shows this run only."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import storage
from pipelines.pictures import png_bytes
from pipelines.run_page import summarise_run, write_run_page
from pipelines.tables import SCHEMAS, Footer, masks_table, parquet_bytes, rows_table
from segcore.run_lengths import encode
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, random_pairs

NOW = datetime.datetime(2026, 11, 20, 3, 0, 0)
DEFAULTS: dict[str, Any] = {"string": "x", "int64": 7, "int32": 1, "float": 0.5, "bool": False, "timestamp[us]": NOW}


def filled(table: str, **values: Any) -> dict[str, Any]:
    """A row with every column of the schema, the given ones as given."""
    row = {field.name: DEFAULTS.get(str(field.type), []) for field in SCHEMAS[table]}
    assert set(values) <= set(row)
    return row | values


def write_part(
    tables: Path, run_id: str, shard: int, images: list[tuple[str, np.ndarray, float]], failed: list[str]
) -> None:
    """Part files of one shard: images as (uri, mask, mean confidence), and uris that failed."""
    footer = Footer(class_names=CLASS_NAMES, palette=PALETTE, model_digest="m" * 64, run_id=run_id)
    predictions = [
        filled(
            "predictions",
            work_id=f"{run_id}-{uri}",
            uri=uri,
            run_id=run_id,
            height=mask_HW.shape[0],
            width=mask_HW.shape[1],
            source_mode="RGB",
            orientation=6 if index == 1 else 1,
            mean_confidence=confidence,
            class_pixels=np.bincount(mask_HW.ravel(), minlength=4)[:4].tolist(),
            decode_ms=2.0,
            notes=["turned upright"] if index == 1 else [],
            model_uri="models:/street/3",
        )
        for index, (uri, mask_HW, confidence) in enumerate(images)
    ]
    failures = [
        filled("failures", work_id=uri, uri=uri, stage="decode", message="<b>truncated</b>", run_id=run_id)
        for uri in failed
    ]
    masks = masks_table(
        [row["work_id"] for row in predictions],
        [mask_HW.shape for _, mask_HW, _ in images],
        [encode(mask_HW) for _, mask_HW, _ in images],
    )
    content = {
        "predictions": rows_table("predictions", predictions),
        "masks": masks,
        "failures": rows_table("failures", failures),
    }
    for name, table in content.items():
        path = tables / name / "run_date=2026-11-20" / f"part-{run_id}-{shard:05d}.parquet"
        storage.write_atomic(str(path), parquet_bytes(name, table, footer))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `r1` of two shards with five images and two failures; run `r10`, whose name begins alike."""
    folder = tmp_path_factory.mktemp("night")
    pairs = random_pairs(6, seed=4)
    images = []
    for index, (pixels_HW3, labels_HW) in enumerate(pairs):
        uri = str(folder / "images" / f"camera-{index}.png")
        storage.write_atomic(uri, png_bytes(pixels_HW3))
        images.append((uri, np.minimum(labels_HW, 3), [0.9, 0.2, 0.8, 0.7, 0.6, 0.5][index]))
    write_part(folder, "r1", 0, images[:3], ["bucket/broken.jpg"])
    write_part(folder, "r1", 1, images[3:5], ["bucket/empty.jpg"])
    write_part(folder, "r10", 0, images[5:], [])
    return folder


def test_summary_adds_up_all_parts_of_this_run_alone(tables: Path) -> None:
    summary = summarise_run(str(tables), "r1", num_spread=4, num_uncertain=2)
    masks = [np.minimum(labels_HW, 3) for _, labels_HW in random_pairs(6, seed=4)[:5]]
    assert summary.num_images == 5
    assert summary.num_pixels == 5 * 48 * 64
    np.testing.assert_array_equal(summary.class_pixels_C, sum(np.bincount(mask.ravel(), minlength=4) for mask in masks))
    assert summary.confidence_sum == pytest.approx(3.2, abs=1e-6)
    assert summary.milliseconds["decode"] == pytest.approx(10.0)
    assert dict(summary.kinds) == {"RGB": 3, "RGB, EXIF orientation 6": 2}
    assert [round(row["mean_confidence"], 3) for row in summary.uncertain] == [0.2, 0.6]
    assert len(summary.spread) == 4


def test_page_shows_counts_failures_and_pictures(tables: Path, tmp_path: Path) -> None:
    write_run_page(str(tables), "r1", str(tmp_path / "page.html"), num_spread=3, num_uncertain=1)
    page = (tmp_path / "page.html").read_text()
    assert "<dt>images segmented</dt><dd>5</dd>" in page
    assert "<dt>images that failed</dt><dd>2</dd>" in page
    assert "broken.jpg" in page
    assert "empty.jpg" in page
    assert "&lt;b&gt;truncated&lt;/b&gt;" in page
    assert page.count("data:image/jpeg") == 4
    assert "turned upright" in page
    assert "models:/street/3" in page
    assert "camera-5.png" not in page, "another run's image"


def test_image_that_is_gone_leaves_a_line_and_the_page(tables: Path, tmp_path: Path) -> None:
    image = tables / "images" / "camera-1.png"
    data = image.read_bytes()
    image.unlink()
    try:
        write_run_page(str(tables), "r1", str(tmp_path / "page.html"), num_spread=5, num_uncertain=0)
    finally:
        image.write_bytes(data)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert "camera-1.png: " in page


def test_run_of_failures_alone_has_a_page(tmp_path: Path) -> None:
    write_part(tmp_path, "bad", 0, [], ["bucket/a.jpg"])
    write_run_page(str(tmp_path), "bad", str(tmp_path / "page.html"))
    assert "a.jpg" in (tmp_path / "page.html").read_text()


def test_unknown_run_is_refused(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hold no image of run 'r2'"):
        write_run_page(str(tables), "r2", str(tmp_path / "page.html"))
