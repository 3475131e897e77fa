"""Two networks that were scored on the same images: who wins, what moved, and where MLflow has it all."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from pipelines import storage, tracking
from pipelines.checkpoints import load_model, read_card
from pipelines.compare import JOB, CompareConfig, CompareResult, compare
from pipelines.ensembles import member_of
from pipelines.evaluate import SPLIT_TAG
from pipelines.evaluation.scoring import IMAGES_SCHEMA, class_maps, decode_pair, image_counts, image_record
from pipelines.evaluation.tables import parquet_of
from pipelines.manifests import read_manifest
from pipelines.shards import PreparedDataset, open_dataset, spread_rows
from segcore.inference import InferenceConfig
from segcore.metrics import confusion_matrix, scores_of_counts
from tests.pipelines.tiny_inputs import random_pairs, write_dataset, write_model

NUM_IMAGES = 6


def log_scored(name: str, model: str, dataset: PreparedDataset, *, seed: int) -> None:
    """A training, and the evaluation of its model on every image."""
    recipe = {"epochs": 3, "seed": seed, "model": {"network": "wide" if "wide" in name else "narrow"}}
    tags = {tracking.MODEL_FOLDER_TAG: model}
    parameters = {"recipe": recipe, "data": dataset.uri}
    with tracking.tracked_run(experiment="images", name=name, job="train", parameters=parameters, tags=tags):
        pass
    member = member_of(load_model(model), InferenceConfig())
    records = []
    for index, row in enumerate(spread_rows(dataset, "val", count=NUM_IMAGES, columns=("image_id", "image", "label"))):
        image_3HW, labels_HW = decode_pair(row)
        masks_HW = class_maps([member], image_3HW[None])[0]
        confusion_CC = confusion_matrix(labels_HW, masks_HW, num_classes=dataset.num_classes)
        place = {"part": 0, "row": index, "image_id": row["image_id"]}
        records.append(image_record(place, labels_HW, confusion_CC, network_ms=1.0))
    table = pa.Table.from_pylist(records, schema=IMAGES_SCHEMA)
    total = scores_of_counts(image_counts(table).sum(axis=0))
    tags = {
        tracking.MODEL_DIGEST_TAG: read_card(model)[1],
        SPLIT_TAG: "val",
        tracking.DATASET_DIGEST_TAG: dataset.digest,
    }
    with tracking.tracked_run(experiment="images", name="e", job="evaluate", parameters={}, tags=tags) as run:
        run.log_bytes("images.parquet", parquet_of(table))
        named = {f"eval/val/iou/{one}": iou for one, iou in zip(dataset.class_names, total.iou_C, strict=True)}
        run.log_metrics(named | {"eval/val/mean_iou": total.mean_iou})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow network of two seeds, a wide one, and the narrow one's first seed trained again."""
    folder = tmp_path_factory.mktemp("images")
    dataset = open_dataset(write_dataset(folder / "data", random_pairs(NUM_IMAGES, seed=2), images_per_part=4))
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    for name, seed in (("narrow-1", 1), ("narrow-2", 2), ("again", 1), ("wide", 1)):
        width, weights = (32, 5) if name == "wide" else (16, seed)
        model = write_model(folder / name, seed=weights, width=width)
        log_scored(name, model, dataset, seed=seed)
    return folder


def compared(folder: Path, output: str, **changes: object) -> CompareResult:
    base: dict[str, object] = {"experiment": "images", "num_images": 1, "output": str(folder / output)}
    uri = f"sqlite:///{folder}/mlflow.db"
    return compare(CompareConfig(**(base | {"tracking_uri": uri} | changes)))  # type: ignore[arg-type]  # names of fields


def table_of(result: CompareResult, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read_bytes(f"{result.output}/{name}").decode())))


@pytest.fixture(scope="module")
def all_runs(folder: Path) -> CompareResult:
    return compared(folder, "all", pair=("narrow-1", "wide"), num_moved=2)


def test_seeds_are_one_row_and_a_repeated_seed_another(all_runs: CompareResult) -> None:
    rows = {row["row"]: row for row in table_of(all_runs, "rows.csv")}
    assert {name: row["seeds"] for name, row in rows.items()} == {"narrow": "1 2", "again": "1", "wide": "1"}
    runs = {row["run"]: float(row["mean_iou"]) for row in table_of(all_runs, "comparison.csv")}
    narrow = [runs["narrow-1"], runs["narrow-2"]]
    assert float(rows["narrow"]["mean_iou"]) == pytest.approx(np.mean(narrow))
    assert float(rows["narrow"]["mean_iou_deviation"]) == pytest.approx(np.std(narrow, ddof=1))
    assert rows["wide"]["mean_iou_deviation"] == ""
    assert len(table_of(all_runs, "pairs.csv")) == 3


def test_two_identical_runs_chosen_by_a_filter_compare_as_no_difference(folder: Path) -> None:
    condition = "params.`recipe.model.network` = 'narrow' AND params.`recipe.seed` = '1'"
    result = compared(folder, "twice", filter=condition, num_images=0)
    assert {row["run"] for row in table_of(result, "comparison.csv")} == {"narrow-1", "again"}
    (pair,) = table_of(result, "pairs.csv")
    assert (pair["verdict"], float(pair["difference"]), float(pair["p"])) == ("no difference", 0.0, 1.0)
    assert table_of(result, "images_moved.csv") == []
    page = storage.read_bytes(result.page).decode()
    assert "no difference" in page and "Images that moved" not in page


def test_images_that_moved_most_are_shown_with_truth_both_masks_and_difference(all_runs: CompareResult) -> None:
    moved = table_of(all_runs, "images_moved.csv")
    differences = [abs(float(row["difference"])) for row in moved]
    assert len(moved) == 2 and differences == sorted(differences, reverse=True) and differences[0] > 0
    page = storage.read_bytes(all_runs.page).decode()
    for row in moved:
        assert page.count(f"<figcaption>{row['image_id']}: truth</figcaption>") == 1
        assert f"difference, {100 * float(row['difference']):+.1f} points" in page
    assert page.count("data:image/jpeg") == 2 * 4 + (2 + 3), "and an image, its truth and the best run of three rows"
    classes = table_of(all_runs, "classes_moved.csv")
    assert {row["class"] for row in classes} == {"sky", "road", "tree (tall)", "never"}
    first = classes[0]
    assert float(first["difference"]) == pytest.approx(float(first["second"]) - float(first["first"]))


def test_the_page_shows_what_is_worth_its_cost(all_runs: CompareResult) -> None:
    assert "Worth its cost" in storage.read_bytes(all_runs.page).decode()


def test_words_and_tables_are_there_as_markdown(all_runs: CompareResult) -> None:
    text = storage.read_bytes(f"{all_runs.output}/comparison.md").decode()
    assert text.startswith("# Comparison: images\n")
    assert "## Is the difference real?" in text and "| narrow | 2 |" in text
    assert "Images that moved" not in text, "pictures alone"


def test_every_file_is_an_artifact_of_a_run_of_its_own(all_runs: CompareResult) -> None:
    (record,) = (run for run in tracking.find_runs(experiment="images", job=JOB) if run.run_id == all_runs.run_id)
    assert record.status == "FINISHED" and record.parameters["compared"].count(",") == 3
    files = read_manifest(all_runs.output, kind="comparison")["files"]
    logged = {file.path: file for file in MlflowClient().list_artifacts(record.run_id)}
    assert set(logged) == set(files)
    assert {"index.html", "comparison.md", "comparison.csv", "rows.csv", "pairs.csv"} <= set(files)
    assert storage.sha256(tracking.read_artifact(record.run_id, "index.html")) == files["index.html"]


def test_a_filter_that_leaves_nothing_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no finished training run to compare .*recipe\.seed` = '7'"):
        compared(folder, "none", filter="params.`recipe.seed` = '7'")


def test_a_pair_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="--pair names 'tall'"):
        compared(folder, "refused", pair=("wide", "tall"))


@pytest.mark.slow
def test_pictures_of_another_dataset_are_not_drawn(folder: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", random_pairs(3, seed=9), images_per_part=4)
    result = compared(folder, "elsewhere", data=other, num_images=0, runs=("wide", "again"))
    assert "they were scored on dataset" in storage.read_bytes(result.page).decode()
    assert table_of(result, "images_moved.csv") != []
