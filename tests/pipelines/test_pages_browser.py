"""Every kind of page that the jobs write, as a browser shows it on a desk and on a phone.

PAGE_PICTURES=<folder> in the environment keeps a screenshot of each, to be looked at.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import tracking
from pipelines.checkpoints import load_model, save_model
from pipelines.compare import CompareConfig, compare
from pipelines.datasets.scenes import ScenesConfig
from pipelines.demo import DemoResult, _home_page
from pipelines.doctor import DoctorConfig, examine_dataset
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.health.prepared import PreparedConfig
from pipelines.night_report.page import write_quiet_page, write_run_page
from pipelines.night_report.page_samples import SampleCounts
from pipelines.prepare import PrepareConfig, prepare
from pipelines.shards import open_dataset
from pipelines.tables import commits
from segcore.models import build_model
from tests.pipelines.browser import Browser, browser_program
from tests.pipelines.health.planted import PLANTS, clean
from tests.pipelines.tiny_inputs import NETWORK, random_pairs, write_model
from tests.pipelines.written_nights import Failed, Nights, stored_shot, summary_of

pytestmark = pytest.mark.slow

PAGES = ("doctor", "prepared", "label-pca", "evaluation", "comparison", "night", "quiet-night", "demo")
PLANTED = (
    *("an image in two splits", "a class not in train", "a brighter copy in another split", "a dark image"),
    *("a thumbnail", "a label in colours"),
)
WINDOWS = {"desk": (1280, 900, False), "phone": (390, 844, True)}
NETWORKS = ("a network with a long name", "another")


def write_network(folder: Path, data: str, *, seed: int) -> str:
    """A model folder with random weights for a prepared dataset's class table."""
    dataset = open_dataset(data)
    card = dataclasses.replace(
        load_model(write_model(folder / "other")).card, class_names=dataset.class_names, palette=dataset.palette
    )
    torch.manual_seed(seed)
    model = build_model(NETWORK, dataset.num_classes)
    with torch.no_grad():
        model.get_submodule("head.classifier").weight.normal_()
    save_model(str(folder / "model"), model, dataclasses.replace(card, model_config=NETWORK))
    return str(folder / "model")


def write_trained(folder: Path, data: str, *, store: str) -> None:
    """Two networks as a training leaves them, with evaluations of each, and their comparison."""
    for seed, name in enumerate(NETWORKS):
        model = write_network(folder / name, data, seed=seed)
        tracking.connect(store)
        tags = {tracking.MODEL_FOLDER_TAG: model, tracking.MODEL_DIGEST_TAG: load_model(model).digest}
        parameters = {"data": data, "recipe": {"epochs": 30, "weight_decay": 0.01 * seed}}
        with tracking.tracked_run(
            experiment="street", name=name, job="train", parameters=parameters, tags=tags
        ) as training:
            for epoch in range(30):
                training.log_metrics(
                    {
                        "train/loss": 2.4 * 0.93**epoch + 0.1 * seed,
                        "val/mean_iou": 0.6 - 0.55 * 0.9**epoch,
                        "train/learning_rate": 0.1 * (1 - epoch / 30) ** 0.9,
                    },
                    step=epoch,
                )
        config = EvaluateConfig(
            model=model,
            data=data,
            output=str(folder / "scores" / name),
            workers=1,
            num_examples=1,
            protocols=("single", "multi_scale_flip"),
            group_by="folder",
            experiment="street",
            tracking_uri=store,
        )
        evaluate(config)
    compare(
        CompareConfig(
            experiment="street", output=str(folder / "comparison"), data=data, num_images=2, tracking_uri=store
        )
    )


def write_night(folder: Path) -> Nights:
    """Two nights with failures, the page of the second, and that of a night without anything new."""
    shots = [
        stored_shot(
            folder / "images" / f"camera-{'north-gate-' * 3}{index % 3}",
            f"2026-11-20T03-00-{index:02d}-a-rather-long-file-name.png",
            pixels_HW3,
            np.minimum(labels_HW, 3),
            confidence=0.5 + 0.02 * index,
        )
        for index, (pixels_HW3, labels_HW) in enumerate(random_pairs(16, seed=4))
    ]
    nights = Nights(tables=str(folder / "tables"), images=str(folder / "images"))
    nights.add(shots[:8], run_date="2026-11-19")
    nights.add(shots[8:], [Failed(uri=f"bucket/{'x' * 90}.jpg", message=f"broken {'y' * 300}")])
    summary_of(nights, "000002")
    write_run_page(nights.tables, "000002", str(folder / "night.html"), counts=SampleCounts(random=4))
    write_quiet_page(nights.tables, str(folder / "quiet.html"), images="s3://cams/2026-11-21/", num_present=16)
    return nights


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, Path]:
    """Each kind of page, written by its own job."""
    browser_program()
    folder = tmp_path_factory.mktemp("pages")
    data, store = str(folder / "data"), f"sqlite:///{folder}/mlflow.db"
    scenes = ScenesConfig(num_train=16, num_val=6, height=128, width=192)
    prepare(PrepareConfig(dataset=scenes, output=data, images_per_part=8, workers=2))
    files = clean()
    for name in PLANTED:
        PLANTS[name][2](files)
    raw = DoctorConfig(dataset=files.write(folder / "raw"), output=str(folder / "doctor"), workers=2)
    examine_dataset(dataclasses.replace(raw, recovery_images=4))
    own = PreparedConfig(data=data)
    examine_dataset(DoctorConfig(dataset=own, output=str(folder / "prepared"), workers=2, recovery_images=4))
    fit_label_pca(
        FitLabelPCAConfig(
            data=data,
            output=str(folder / "label-pca"),
            block_side=8,
            num_components=16,
            report_block_sides=(16,),
            workers=2,
        )
    )
    write_trained(folder, data, store=store)
    nights = write_night(folder)
    result = DemoResult(
        output=str(folder),
        num_images=16,
        num_failures=1,
        mean_iou=dict.fromkeys(NETWORKS, 0.5),
        seconds={"prepare": 3.2, "train a network": 120.0},
        commands=("open page", f"duckdb -c \"SELECT uri FROM '{folder}/tables/*.parquet'\"", "mlflow ui"),
    )
    home = _home_page(result, commits.newest_snapshot(nights.tables), list(NETWORKS))
    (folder / "demo.html").write_bytes(home)
    places = {
        "evaluation": f"scores/{NETWORKS[0]}/index.html",
        "night": "night.html",
        "quiet-night": "quiet.html",
        "demo": "demo.html",
    }
    return {name: folder / places.get(name, f"{name}/index.html") for name in PAGES}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_needs_nothing_else(
    pages: dict[str, Path], browser: Browser, name: str, window: str
) -> None:
    width, height, mobile = WINDOWS[window]
    browser.resize(width=width, height=height, mobile=mobile)
    browser.open(pages[name])
    if folder := os.environ.get("PAGE_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder, f"{name}-{window}.png"), whole=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.problems() == []
    assert browser.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert browser.evaluate("document.images.length") > 0
    outside = (
        "[...document.querySelectorAll('p, dd, figure, li, pre, h1, h2')].filter(one => one.getBoundingClientRect()"
    )
    assert browser.evaluate(f"{outside}.right > innerWidth + 1).length") == 0, "cut off at the right"


@pytest.mark.parametrize("name", PAGES)
def test_text_can_be_read_on_a_phone(pages: dict[str, Path], browser: Browser, name: str) -> None:
    browser.resize(width=390, height=844, mobile=True)
    browser.open(pages[name])
    sizes = (
        "[...document.querySelectorAll('p, td, th, li, dd, dt, figcaption')].filter(one => one.textContent.trim())"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(browser.evaluate(sizes)) >= 12


def test_tables_of_sentences_are_cards_on_a_phone_and_rows_on_a_desk(pages: dict[str, Path], browser: Browser) -> None:
    shown = "getComputedStyle(document.querySelector('table.cards tbody tr')).display"
    hidden = "(frame => frame.scrollWidth - frame.clientWidth)(document.querySelector('table.cards').parentElement)"
    for window, expected in (("desk", "table-row"), ("phone", "block")):
        width, height, mobile = WINDOWS[window]
        browser.resize(width=width, height=height, mobile=mobile)
        browser.open(pages["doctor"])
        assert browser.evaluate(shown) == expected
        assert browser.evaluate(hidden) <= 1, "no column is out of sight"
    cells = "[...document.querySelector('table.cards tbody tr').cells]"
    heads = browser.evaluate(f"{cells}.map(cell => getComputedStyle(cell, '::before').content)")
    assert heads[:3] == ['"severity"', '"finding"', '"count"']


def test_a_tap_enlarges_a_chart_within_its_frame_on_a_phone(pages: dict[str, Path], browser: Browser) -> None:
    browser.resize(width=390, height=844, mobile=True)
    browser.open(pages["evaluation"])
    width = "document.querySelector('figure.card img').getBoundingClientRect().width"
    fitted = browser.evaluate(width)
    assert fitted < 390
    browser.click("figure.card img")
    assert browser.evaluate(width) > 1.8 * fitted
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390, "the page scrolls sideways"
    browser.click("figure.card figcaption, figure.card")
    assert browser.evaluate(width) == fitted
    browser.resize(width=1280, height=900)
    desk = browser.evaluate(width)
    browser.click("figure.card img")
    assert browser.evaluate(width) == desk, "nothing to enlarge on a desk"


def test_names_of_rows_stay_in_sight_while_a_table_is_panned(pages: dict[str, Path], browser: Browser) -> None:
    browser.resize(width=390, height=844, mobile=True)
    browser.open(pages["evaluation"])
    browser.evaluate(
        "(frame => { frame.id = 'panned'; frame.scrollLeft = 200; })"
        "([...document.querySelectorAll('.scroll')].find(one => one.scrollWidth > one.clientWidth + 200))"
    )
    box = "document.querySelector('#panned td').getBoundingClientRect()"
    frame = "document.querySelector('#panned').getBoundingClientRect()"
    assert browser.evaluate("document.querySelector('#panned').scrollLeft") == 200
    assert abs(browser.evaluate(f"{box}.left - {frame}.left")) < 1
    widths = "[...document.querySelectorAll('table:not(.cards) td.text:first-child')].map(one => one.offsetWidth)"
    assert min(browser.evaluate(widths)) > 60, "a name is not squeezed into a column of single letters"
