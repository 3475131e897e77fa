"""A run's page: what it shows, which images it chooses, and that nothing that is missing stops it."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.night_report import statistics as night_statistics
from pipelines.night_report.page import write_quiet_page, write_run_page
from pipelines.night_report.page_rows import read_failures, read_predictions
from pipelines.night_report.page_samples import SampleChooser, SampleCounts
from pipelines.night_report.summary import STAGES
from pipelines.tables import commits
from tests.pipelines.tiny_inputs import random_pairs
from tests.pipelines.written_nights import (
    Failed,
    Nights,
    reference_of,
    stored_shot,
    summary_of,
    write_model_reference,
)

CONFIDENCES = [0.9, 0.2, 0.8, 0.7, 0.6]
COUNTS = SampleCounts(random=3, uncertain=2, changed=2)


def _night_of_five(folder: Path) -> Nights:
    """A night of other images of the same cameras, then one of five images of two cameras and three failures."""
    nights = Nights(tables=str(folder / "tables"), images=str(folder / "images"))
    pairs = random_pairs(9, seed=4)
    shots = [
        stored_shot(
            folder / "images" / f"cam-{index % 2}",
            f"image-{index}.png",
            pixels_HW3,
            np.minimum(labels_HW, 3),
            confidence=[*CONFIDENCES, *[0.5] * 4][index],
        )
        for index, (pixels_HW3, labels_HW) in enumerate(pairs)
    ]
    nights.model_folder = write_model_reference(folder / "model", reference_of(shots[5:]))
    nights.add(shots[5:], run_date="2026-11-19")
    failed = [
        Failed(uri="bucket/broken.jpg", message="<b>truncated</b> after 17 of 99 bytes in 'broken.jpg'"),
        Failed(uri="bucket/halved.jpg", message="<b>truncated</b> after 50 of 80 bytes in 'halved.jpg'"),
        Failed(uri="bucket/empty.jpg", stage="sniff", message="the file is empty", retryable=True),
    ]
    nights.add(shots[:5], failed)
    return nights


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return _night_of_five(tmp_path_factory.mktemp("night"))


def _page(nights: Nights, path: Path, run_id: str = "000002", *, seed: int = 0) -> str:
    write_run_page(nights.tables, run_id, str(path), counts=COUNTS, seed=seed)
    return path.read_text()


def _captions(page: str, title: str) -> list[str]:
    section = page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]
    return re.findall(r"<figcaption>(.*?)</figcaption>", section)


def test_sums_are_of_this_run_alone(nights: Nights) -> None:
    snapshot = commits.newest_snapshot(nights.tables)
    totals = read_predictions(nights.tables, "000002", snapshot)
    masks = [np.minimum(labels_HW, 3) for _, labels_HW in random_pairs(9, seed=4)[:5]]
    assert (totals.num_images, totals.num_pixels) == (5, 5 * 48 * 64)
    np.testing.assert_array_equal(totals.class_pixels_C, sum(np.bincount(mask.ravel(), minlength=4) for mask in masks))
    assert totals.confidence_sum == pytest.approx(3.2, abs=1e-6)
    assert totals.milliseconds["decode"] == pytest.approx(10.0)
    assert dict(totals.kinds) == {"RGB": 5}
    reasons = read_failures(nights.tables, "000002", snapshot)
    assert [(reason.stage, reason.count, reason.num_retryable) for reason in reasons] == [
        ("decode", 2, 0), ("sniff", 1, 1)
    ]  # fmt: skip
    assert [row["uri"] for row in reasons[0].samples] == ["bucket/broken.jpg", "bucket/halved.jpg"]


def test_large_files_are_read_piece_by_piece_to_the_same_end(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = commits.newest_snapshot(nights.tables)

    def seen() -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        totals = read_predictions(
            nights.tables,
            "000002",
            snapshot,
            also=(lambda piece, path: rows.extend((work_id, path) for work_id in piece["work_id"].to_pylist()),),
        )
        assert totals.num_images == len(rows) == 5
        return rows

    whole = seen()
    monkeypatch.setattr(night_statistics, "MAX_ROWS_AT_ONCE", 2)
    assert seen() == whole
    assert len({path for _, path in whole}) == 2


def test_the_page_says_what_ran_what_failed_and_what_it_took(nights: Nights, tmp_path: Path) -> None:
    summary_of(nights, "000002")
    page = _page(nights, tmp_path / "page.html")
    assert "<dt>images segmented</dt><dd>5</dd>" in page
    assert "<dt>images that failed</dt><dd>3 (37.5 %)</dd>" in page
    assert "<dt>images per second</dt><dd>12.5</dd>" in page
    cost, predicted = re.findall(r"<dt>(?:cost per million images|predicted, without start-up)</dt><dd>([\d.,]+)", page)
    assert float(predicted.replace(",", "")) == pytest.approx(40 / 3600 * 3.6 / 8 * 1e6)
    assert float(cost.replace(",", "")) == pytest.approx(78 / 3600 * 3.6 / 8 * 1e6, rel=0.2)
    for text in ("broken.jpg (7 bytes, begins ffd8ff)", "models:/street/3", "c" * 64, "abc", nights.images):
        assert text in page
    assert "&lt;b&gt;truncated&lt;/b&gt; after 17" in page and "after 50" not in page, "one example per reason"
    assert "<h2>Drift</h2>" in page and "of split &#39;val&#39;" in page
    assert all(f'data-order="{place}.0"' in page for place in range(len(STAGES)))
    total = re.findall(r"the stages add up to ([\d.]+) s", page)
    wall = re.findall(r"([\d.]+) s from the start of the job", page)
    assert float(total[0]) == pytest.approx(float(wall[0]), rel=0.05)


def test_sheets_show_the_images_that_they_say(nights: Nights, tmp_path: Path) -> None:
    page = _page(nights, tmp_path / "page.html")
    least = _captions(page, "Least confident")
    assert [caption.split(";")[0] for caption in least] == ["cam-1/image-1.png", "cam-0/image-4.png"]
    assert "confidence 20 %" in least[0]
    assert len(_captions(page, "Random images")) == 3
    changed = _captions(page, "Biggest change of class areas")
    assert len(changed) == 2
    moved = [float(re.findall(r"(\d+) % moved", caption)[0]) for caption in changed]
    assert moved == sorted(moved, reverse=True) and moved[0] > 0
    covering = _captions(page, "Every class")
    shown = {name for caption in covering for name in re.findall(r"for (.*)", caption)[0].split(", ")}
    assert shown == {"sky", "road", "tree (tall)", "never"}, "ignored pixels of the labels are class 3 here"
    assert page.count("data:image/jpeg") == 3 + 2 + 2 + len(covering)
    assert page.count('class="layers"') == page.count("data:image/jpeg")
    assert "image-5.png" not in page, "another run's image"


def _chooser(nights: Nights, *, limit: int, seed: int = 0) -> SampleChooser:
    counts = SampleCounts(random=limit, uncertain=limit, changed=0)
    chooser = SampleChooser(counts, seed=seed, images=nights.images, prefix_depth=1, earlier={})
    read_predictions(nights.tables, "000002", commits.newest_snapshot(nights.tables), also=(chooser.visit,))
    return chooser


def test_what_is_chosen_depends_on_the_seed_and_not_on_how_rows_are_cut(nights: Nights) -> None:
    one, all_five = _chooser(nights, limit=1), _chooser(nights, limit=5)
    assert one.random.chosen() == all_five.random.chosen()[:1]
    assert one.uncertain.chosen() == all_five.uncertain.chosen()[:1]
    assert [round(row["mean_confidence"], 3) for row in all_five.uncertain.chosen()] == sorted(CONFIDENCES)
    orders = {tuple(row["uri"] for row in _chooser(nights, limit=5, seed=seed).random.chosen()) for seed in range(6)}
    assert len(orders) > 1 and all(len(set(order)) == 5 for order in orders)


def test_the_same_run_gives_the_same_page_but_for_the_time_it_took(nights: Nights, tmp_path: Path) -> None:
    timed = r"<h2>Where the time went</h2>.*?</section>|<dl class=\"facts\">.*?</dl>"
    pages = [re.sub(timed, "", _page(nights, tmp_path / name), flags=re.DOTALL) for name in ("1.html", "2.html")]
    assert pages[0] == pages[1]


def test_an_image_that_is_gone_or_has_changed_leaves_a_line(tmp_path: Path) -> None:
    nights = _night_of_five(tmp_path)
    Path(nights.images, "cam-1", "image-1.png").unlink()
    other, _ = random_pairs(1, seed=9, sizes=((32, 32),))[0]
    stored_shot(Path(nights.images), "cam-0/image-4.png", other, np.zeros((32, 32), np.uint8))
    page = _page(nights, tmp_path / "page.html")
    assert _captions(page, "Least confident") == []
    assert re.search(r"image-1\.png: .*No such file", page)
    assert "image-4.png: it had 48 x 64 pixels when it was segmented and has 32 x 32 now" in page


def test_nights_without_images_have_pages(tmp_path: Path) -> None:
    nights = Nights(tables=str(tmp_path / "tables"), images="bucket", model_folder=str(tmp_path / "none"))
    nights.add([], [Failed(uri="bucket/a.jpg")])
    page = _page(nights, tmp_path / "page.html", "000001")
    assert "a.jpg" in page and "Not one image was segmented" in page
    write_quiet_page(nights.tables, str(tmp_path / "quiet.html"), images="bucket", num_present=1234)
    quiet = (tmp_path / "quiet.html").read_text()
    assert "Nothing new" in quiet and "1,234" in quiet


def test_a_quiet_night_shows_the_trend(nights: Nights, tmp_path: Path) -> None:
    write_quiet_page(nights.tables, str(tmp_path / "quiet.html"), images=nights.images, num_present=9)
    assert "Night by night" in (tmp_path / "quiet.html").read_text()


def test_a_run_that_is_not_published_is_refused(nights: Nights, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no published run '000009'"):
        write_run_page(nights.tables, "000009", str(tmp_path / "page.html"))
    assert not storage.exists(str(tmp_path / "page.html"))
