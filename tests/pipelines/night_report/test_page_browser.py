"""A run's page as a browser shows it: on a desk and on a phone, with its slider moved."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.night_report.page import write_run_page
from pipelines.night_report.page_samples import SampleCounts
from tests.pipelines.browser import Browser, browser_program
from tests.pipelines.tiny_inputs import random_pairs
from tests.pipelines.written_nights import Failed, Nights, reference_of, stored_shot, summary_of, write_model_reference

pytestmark = pytest.mark.slow

OPACITY = "getComputedStyle(document.querySelector('.layers img + img')).opacity"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights of three cameras with long names, failures with long messages, and everything that a page may have."""
    browser_program()
    folder = tmp_path_factory.mktemp("night")
    images = folder / "images"
    shots = [
        stored_shot(
            images / f"camera-{'north-east-gate-' * 3}{index % 3}",
            f"2026-11-20T03-00-{index:02d}-a-rather-long-file-name-as-cameras-write-them.png",
            pixels_HW3,
            np.minimum(labels_HW, 3),
            confidence=0.5 + 0.02 * index,
        )
        for index, (pixels_HW3, labels_HW) in enumerate(random_pairs(24, seed=4))
    ]
    nights = Nights(tables=str(folder / "tables"), images=str(images))
    nights.model_folder = write_model_reference(folder / "model", reference_of(shots[:12]))
    nights.add(shots[:12], run_date="2026-11-19")
    failed = [Failed(uri=f"bucket/{index}-{'x' * 80}.jpg", message=f"broken {'y' * 300}") for index in range(5)]
    nights.add(shots[12:], failed)
    summary_of(nights, "000002")
    write_run_page(nights.tables, "000002", str(folder / "page.html"), counts=SampleCounts(random=4))
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "height", "mobile"), [(1440, 900, False), (390, 844, True), (320, 640, True)])
def test_the_page_fits_its_window_and_needs_nothing_else(
    page: Path, browser: Browser, width: int, height: int, mobile: bool
) -> None:
    browser.resize(width=width, height=height, mobile=mobile)
    browser.open(page)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert browser.requests() == [page.as_uri()]
    assert browser.problems() == []
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert browser.evaluate("document.images.length") > 10 and browser.evaluate(broken) == 0


def test_the_slider_sets_the_opacity_of_every_mask(page: Path, browser: Browser) -> None:
    browser.resize(width=1440, height=900)
    browser.open(page)
    assert float(browser.evaluate(OPACITY)) == 0.5
    browser.click(".slider input", across=0.9)
    moved = float(browser.evaluate(OPACITY))
    assert 0.85 < moved < 0.95
    every = (
        "new Set([...document.querySelectorAll('.layers img + img')].map(one => getComputedStyle(one).opacity)).size"
    )
    assert browser.evaluate(every) == 1
    sliders = browser.evaluate("[...document.querySelectorAll('.slider input')].map(slider => Number(slider.value))")
    assert len(sliders) > 1 and {value / 100 for value in sliders} == {moved}
    browser.click(".slider input", across=0.001)
    assert float(browser.evaluate(OPACITY)) < 0.05
    assert browser.problems() == []


def test_a_click_takes_a_mask_away_and_brings_it_back(page: Path, browser: Browser) -> None:
    browser.open(page)
    visibility = "[...document.querySelectorAll('.layers img + img')].map(one => getComputedStyle(one).visibility)"
    for expected in ("hidden", "visible"):
        browser.click(".layers")
        found = browser.evaluate(visibility)
        assert found[0] == expected and set(found[1:]) == {"visible"}


def test_a_mask_lies_exactly_on_its_image(page: Path, browser: Browser) -> None:
    browser.open(page)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.layers')].map(one => [...one.querySelectorAll('img')].map(image => {"
        " const box = image.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; }))"
    )
    assert boxes
    for image, mask in boxes:
        assert mask == pytest.approx(image, abs=0.5) and image[2] > 50


def test_a_click_on_a_head_sorts_the_table(page: Path, browser: Browser) -> None:
    browser.open(page)
    table = "document.querySelector('h2 ~ .scroll table')"
    browser.evaluate(f"{table}.id = 'first'")
    browser.click("#first th.number")
    column = browser.evaluate("document.querySelector('#first th.number').cellIndex")
    values = browser.evaluate(f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[{column}].dataset.order))")
    assert values == sorted(values, reverse=True)
