"""A comparison takes each run's own figures, emphasises the best, and says when runs must not be compared."""

import csv
import dataclasses
import io
import logging
from pathlib import Path

import pytest

from pipelines import storage, tracking
from pipelines.checkpoints import load_model, read_card, save_model
from pipelines.compare import CompareConfig, CompareResult, compare
from pipelines.comparison.columns import COLUMNS
from pipelines.comparison.report import csv_bytes, terminal_tables
from pipelines.comparison.rows import group_rows
from pipelines.comparison.runs import differing_fields, unique_names, warnings
from pipelines.evaluate import SPLIT_TAG
from pipelines.manifests import MANIFEST
from pipelines.recipes import find_recipe, recipe_to_dict
from segcore.classifier import ClassifierConfig
from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import DUpsampleConfig, DUpsamplingConfig, build_model
from segcore.networks import build_network
from tests.pipelines.compared_runs import compared_run
from tests.pipelines.tiny_inputs import (
    CLASS_NAMES,
    random_pairs,
    save_tiny_model,
    write_dataset,
    write_label_pca,
    write_model,
)


def log_training(name: str, model: str, *, epochs: int = 3, network: str = "deeplab_v3plus", data: str = "gone") -> str:
    parameters = {"recipe": {"epochs": epochs, "model": {"network": network}}, "data": data, "dataset_digest": "d" * 64}
    tags = {tracking.MODEL_FOLDER_TAG: model}
    with tracking.tracked_run(experiment="street", name=name, job="train", parameters=parameters, tags=tags) as run:
        run.log_metrics({"train/seconds": 90.0, "model/parameters": 1.0})
    return run.run_id


def log_evaluation(model: str, mean_iou: float, *, split: str = "val", dataset_digest: str = "e" * 64) -> None:
    _, digest = read_card(model)
    tags = {tracking.MODEL_DIGEST_TAG: digest, SPLIT_TAG: split, tracking.DATASET_DIGEST_TAG: dataset_digest}
    with tracking.tracked_run(experiment="street", name="e", job="evaluate", parameters={}, tags=tags) as run:
        prefix = f"eval/{split}/"
        run.log_metrics({f"{prefix}mean_iou": mean_iou, f"{prefix}iou/sky": 0.9, f"{prefix}iou/tree (tall)": 0.25})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished trainings, one failed; evaluations of both models on two splits."""
    folder = tmp_path_factory.mktemp("compare")
    data = write_dataset(folder / "data", random_pairs(5, seed=2), images_per_part=2)
    narrow, wide = write_model(folder / "narrow"), write_model(folder / "wide", seed=1, width=32)
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    log_training("narrow", narrow, data=data)
    log_training("wide", wide, network="dupsampling", data=data)
    with (
        pytest.raises(RuntimeError),
        tracking.tracked_run(experiment="street", name="broken", job="train", parameters={}, tags={}),
    ):
        raise RuntimeError("died")
    log_evaluation(narrow, 0.1)
    log_evaluation(narrow, 0.5)
    log_evaluation(wide, 0.75)
    log_evaluation(wide, 0.99, split="test")
    return folder


def config(folder: Path, **changes: object) -> CompareConfig:
    base = CompareConfig(
        experiment="street",
        output=str(folder / "out"),
        data=str(folder / "data"),
        num_images=3,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # names of fields


@pytest.fixture(scope="module")
def compared(folder: Path) -> CompareResult:
    return compare(config(folder))


def rows_of(output: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read_bytes(f"{output}/comparison.csv").decode())))


def test_table_holds_newest_evaluation_on_the_split_and_measured_cost(folder: Path, compared: CompareResult) -> None:
    rows = rows_of(compared.output)
    assert [row["run"] for row in rows] == ["wide", "narrow"], "best first; the failed run is left out"
    assert [float(row["mean_iou"]) for row in rows] == [0.75, 0.5]
    assert [row["iou/tree (tall)"] for row in rows] == ["0.25", "0.25"]
    assert [row["iou/never"] for row in rows] == ["", ""]
    model = load_model(str(folder / "wide")).model
    assert int(rows[0]["parameters"]) == count_parameters(model).total
    assert int(rows[0]["multiply_adds"]) == count_multiply_adds(model, 48, 64)
    assert float(rows[0]["images_per_second"]) > 0
    assert float(rows[0]["train_seconds"]) == 90.0


def test_page_shows_the_same_images_by_each_model(compared: CompareResult) -> None:
    page = storage.read_bytes(compared.page).decode()
    assert page.count("data:image/jpeg") == 3 * (2 + 2), "image, truth and two models, three times"
    for image_id in ("scene/000", "scene/002", "scene/004"):
        assert page.count(f"<figcaption>{image_id}</figcaption>") == 1
    assert page.count("<figcaption>wide, mIoU of this image") == 3


def test_closing_line_holds_the_table_and_the_page(compared: CompareResult) -> None:
    lines = compared.closing_line.splitlines()
    assert lines[-1] == f"compared 2 run(s); page {compared.page}"
    assert any("wide" in line and "75.00" in line for line in lines)
    assert any("tree (tall)" in line and "25.0" in line for line in lines)


def test_runs_can_be_chosen_by_name(folder: Path) -> None:
    result = compare(config(folder, runs=("narrow",), output=str(folder / "one"), num_images=0))
    assert [row["run"] for row in rows_of(result.output)] == ["narrow"]
    assert "data:image/jpeg" not in storage.read_bytes(result.page).decode()


def test_default_dataset_is_the_newest_runs_and_may_be_gone(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compare(config(folder, data=None, output=str(tmp_path / "found")))
        assert "no pictures" not in caplog.text
        moved = (folder / "data").rename(folder / "moved")
        try:
            result = compare(config(folder, data=None, output=str(tmp_path / "gone")))
        finally:
            moved.rename(folder / "data")
    assert "no pictures and no speeds" in caplog.text
    assert rows_of(result.output)[0]["images_per_second"] == ""


def test_missing_experiment_lists_those_that_exist(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no experiment 'nowhere'; it has: .*street"):
        compare(config(folder, experiment="nowhere"))


def test_unknown_run_lists_those_that_exist(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no finished training run 'broken'; .*broken \(failed\).*narrow \(finished\)"
    ):
        compare(config(folder, runs=("broken",)))


def test_experiment_without_a_finished_run_says_what_there_is(folder: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        tracking.tracked_run(experiment="started", name="first", job="train", parameters={}, tags={}),
    ):
        raise RuntimeError("died")
    with pytest.raises(ValueError, match=r"no finished training run to compare; its training runs: first \(failed\)"):
        compare(config(folder, experiment="started"))


def test_run_whose_model_is_gone_is_left_out_with_a_note(folder: Path, tmp_path: Path) -> None:
    (folder / "wide").rename(folder / "elsewhere")
    try:
        result = compare(config(folder, output=str(tmp_path / "out"), num_images=0))
        with pytest.raises(ValueError, match=r"Run 'wide' is left out.*holds no manifest\.json"):
            compare(config(folder, output=str(tmp_path / "none"), runs=("wide",)))
    finally:
        (folder / "elsewhere").rename(folder / "wide")
    assert [row["run"] for row in rows_of(result.output)] == ["narrow"]
    assert "Run &#39;wide&#39; is left out" in storage.read_bytes(result.page).decode()


def test_missing_split_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no split 'night'"):
        compare(config(folder, split="night"))


def test_runs_that_differ_in_the_network_alone_need_no_warning() -> None:
    runs = [
        compared_run("a"),
        compared_run("b", settings={"epochs": "3", "model.network": "deeplab_v3plus", "model.decoder": "1"}),
    ]
    assert warnings(runs) == []
    assert differing_fields(runs) == {"model.decoder": ["-", "1"], "model.network": ["dupsampling", "deeplab_v3plus"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"epochs": "9", "model.network": "dupsampling"}}, "differ in more than the network: epochs"),
        ({"scored_digest": "f" * 64}, "measured on different data"),
        ({"scored_by": "training's validation"}, "measured in different ways"),
        ({"class_names": ("a", "b")}, "different class tables"),
    ],
)
def test_warnings_name_what_makes_runs_incomparable(changes: dict[str, object], message: str) -> None:
    notes = warnings([compared_run("a"), compared_run("b", **changes)])
    assert len(notes) == 1
    assert message in notes[0]


def test_best_is_highest_score_and_lowest_cost_but_never_a_tie() -> None:
    columns = {column.csv_name: column for column in COLUMNS}
    runs = [
        compared_run("a", scores={"mean_iou": 0.4}, parameters=5e6),
        compared_run("b", scores={"mean_iou": 0.6}, parameters=9e6),
    ]
    assert columns["mean_iou"].best(runs) == {1}
    assert columns["parameters"].best(runs) == {0}
    assert columns["multiply_adds"].best(runs) == set()
    assert columns["images_per_second"].best(runs) == set()
    close = [compared_run("a", images_per_second=13.41), compared_run("b", images_per_second=13.38)]
    assert columns["images_per_second"].best(close) == set(), "both are shown as 13.4"


def test_equal_names_are_told_apart() -> None:
    names = [
        each.name
        for each in unique_names([compared_run("a"), compared_run("b"), compared_run("a", run_id="fedcba9876")])
    ]
    assert names == ["a (a-0123)", "b", "a (fedcba)"]


def test_names_with_markup_and_commas_survive() -> None:
    nasty = compared_run('[red]a, "b"[/red]')
    assert "[red]a" in terminal_tables(group_rows([nasty]))
    assert next(csv.DictReader(io.StringIO(csv_bytes([nasty]).decode())))["run"] == nasty.name


def log_row(recipe_name: str, model: str, *, name: str, **parameters: object) -> None:
    """The run of a recipe of the paper's table, as `train` logs it."""
    tags = {tracking.MODEL_FOLDER_TAG: model}
    recipe = recipe_to_dict(find_recipe(recipe_name))
    with tracking.tracked_run(
        experiment="rows", name=name, job="train", parameters={"recipe": recipe, **parameters}, tags=tags
    ):
        pass


@pytest.mark.slow
def test_runs_are_laid_beside_a_paper_s_table(tmp_path: Path) -> None:
    """A bilinear and a data-dependent network, and one whose label PCA is gone."""
    pairs = random_pairs(5, seed=2)
    data = write_dataset(tmp_path / "data", pairs, images_per_part=2)
    pca = write_label_pca(tmp_path / "pca", pairs, block_side=16, num_components=6)
    coded = DUpsamplingConfig(
        backbone="mobilenet_v3_small",
        output_stride=16,
        features=(),
        dupsample=DUpsampleConfig(num_components=6),
        aspp_channels=16,
    )
    network = build_model(coded, len(CLASS_NAMES), label_pca=pca.code)
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    log_row("camvid.table3_resnet50_vanilla_4", write_model(tmp_path / "vanilla"), name="vanilla", data=data)
    for name, uri in (("coded", pca.uri), ("gone", "nowhere/pca")):
        model = save_tiny_model(tmp_path / name, coded, network)
        digest = pca.digest if name == "coded" else "1" * 64
        log_row("camvid.table2_none", model, name=name, data=data, label_pca=uri, label_pca_digest=digest)
    asked = config(tmp_path, experiment="rows", table="dupsampling", num_images=0, num_bound_images=3)
    result = compare(asked)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{result.output}/dupsampling.csv").decode())))
    ours = {(row["row"], row["runs"]): row for row in rows if row["runs"]}
    assert set(ours) == {
        ("table1_dupsampling_os16", "coded"),
        ("table1_dupsampling_os16", "gone"),
        ("table2_none", "coded"),
        ("table2_none", "gone"),
        ("table3_resnet50_vanilla_4", "vanilla"),
        ("table3_xception65_vanilla_4", "vanilla"),
    }
    assert ours["table2_none", "gone"]["bound"] == "" != ours["table2_none", "gone"]["bound_note"]
    assert 0 < float(ours["table2_none", "coded"]["bound"]) < 1
    assert ours["table2_none", "coded"]["bound_images"] == "3"
    assert float(ours["table2_none", "coded"]["mean_iou"]) == 0.25, "training's validation, as there is no evaluation"
    page = storage.read_bytes(result.page).decode()
    assert "Beside the paper" in page and "No mIoU* of gone" in page and "of 3 images of split" in page
    assert "Beside Tian et al." in result.closing_line and "camvid (table2_none)" in result.closing_line
    assert "dupsampling.csv" in storage.read_json(f"{result.output}/{MANIFEST}")["files"]


def test_an_unknown_table_is_refused_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown --table 'fcn'; known: dupsampling"):
        config(folder, table="fcn")
    with pytest.raises(ValueError, match="--num-bound-images is 0"):
        config(folder, num_bound_images=0)
    with pytest.raises(ValueError, match=r"no run started from a recipe of table 'dupsampling': .*wide"):
        compare(config(folder, table="dupsampling"))


def test_a_classifier_of_the_experiment_is_left_out_and_pictures_are_of_the_other_runs_data(
    folder: Path, tmp_path: Path
) -> None:
    """The backbone was pre-trained first, on other data."""
    network = ClassifierConfig(backbone="mobilenet_v3_small")
    card = dataclasses.replace(load_model(str(folder / "narrow")).card, model_config=network, palette=())
    save_model(str(tmp_path / "classifier"), build_network(network, card.num_classes), card)
    for name, model, data in (("pre", tmp_path / "classifier", tmp_path), ("net", folder / "narrow", folder / "data")):
        tags = {tracking.MODEL_FOLDER_TAG: str(model)}
        with tracking.tracked_run(
            experiment="pre-training", name=name, job="train", parameters={"data": str(data)}, tags=tags
        ):
            pass
    result = compare(config(folder, experiment="pre-training", data=None, output=str(tmp_path / "out")))
    assert result.num_runs == 1
    page = storage.read_bytes(result.page).decode()
    assert "Run &#39;pre&#39; is left out" in page and "holds an image classifier" in page
    assert "mIoU of this image" in page
