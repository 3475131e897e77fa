"""An evaluation equals a plain loop over the images, for any number of workers, and refuses what it cannot compare."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage, tracking
from pipelines.checkpoints import load_model
from pipelines.ensembles import MemberModel, ensemble_digest, find_members, load_member
from pipelines.evaluate import EvaluateConfig, EvaluateResult, evaluate
from pipelines.evaluation.report import choose_examples
from pipelines.evaluation.scoring import IMAGES_SCHEMA, Scorer, ScoringConfig, image_counts
from pipelines.evaluation.slices import cut_slices, read_rows
from pipelines.manifests import read_manifest
from pipelines.shards import open_dataset
from segcore import IGNORE_INDEX
from segcore.boundaries import BoundaryConfig
from segcore.dense_crf import DenseCRFConfig, refine
from segcore.inference import InferenceConfig, predict_ensemble
from segcore.metrics import class_counts, scores_of_counts
from segcore.segmentation_counts import SegmentationCounts
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, random_pairs, write_dataset, write_model

PAIRS = random_pairs(7, seed=1, sizes=((48, 64), (48, 64), (40, 70)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset and model for the tests of this module."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_dataset(folder / "data", PAIRS, images_per_part=4)
    write_model(folder / "run" / "model")
    return folder


def config(folder: Path, **changes: object) -> EvaluateConfig:
    base = EvaluateConfig(
        model=str(folder / "run" / "model"),
        data=str(folder / "data"),
        output=str(folder / "one"),
        workers=1,
        num_examples=2,
        experiment="evaluations",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # names of fields


@pytest.fixture(scope="module")
def evaluated(folder: Path, ray_session: None) -> EvaluateResult:
    """One worker, after a training run that left the model; see the tests below."""
    tracking.connect(f"sqlite:///{folder}/mlflow.db")
    tags = {tracking.MODEL_FOLDER_TAG: str(folder / "run" / "model")}
    with tracking.tracked_run(experiment="evaluations", name="street", job="train", parameters={}, tags=tags):
        pass
    return evaluate(config(folder))


def confusion_of(output: str) -> NDArray[np.int64]:
    pixels = pq.read_table(f"{output}/confusion.parquet")["pixels"].to_numpy()
    return np.asarray(pixels, dtype=np.int64).reshape(len(CLASS_NAMES), len(CLASS_NAMES))


def counted_in_a_loop(folder: Path) -> list[NDArray[np.int64]]:
    """Confusion of each image by the plainest code."""
    bundle = load_model(str(folder / "run" / "model"))
    mean, std = (np.array(values, dtype=np.float32) * 255 for values in (bundle.card.mean, bundle.card.std))
    confusions = []
    for pixels_HW3, labels_HW in PAIRS:
        image = torch.from_numpy((pixels_HW3.astype(np.float32) - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():
            guess_HW = bundle.model(image).logits_NCHW[0].argmax(0).numpy()
        confusion_CC = np.zeros((4, 4), dtype=np.int64)
        valid = labels_HW != IGNORE_INDEX
        np.add.at(confusion_CC, (labels_HW[valid], guess_HW[valid]), 1)
        confusions.append(confusion_CC)
    return confusions


def test_confusion_and_images_equal_a_plain_loop(folder: Path, evaluated: EvaluateResult) -> None:
    expected = counted_in_a_loop(folder)
    # a pixel or two may round to another class: the loop runs on another number of threads
    assert np.abs(confusion_of(evaluated.output) - sum(expected)).sum() <= 4
    images = pq.read_table(f"{evaluated.output}/images.parquet")
    assert images.schema.equals(IMAGES_SCHEMA)
    assert images["image_id"].to_pylist() == [f"scene/{index:03d}" for index in range(7)]
    assert images["valid_pixels"].to_pylist() == [int(each.sum()) for each in expected]
    np.testing.assert_allclose(images["intersection"].to_pylist(), [np.diag(each) for each in expected], atol=2)
    for mean_iou, each in zip(images["mean_iou"].to_pylist(), expected, strict=True):
        union_C = each.sum(0) + each.sum(1) - np.diag(each)
        assert mean_iou == pytest.approx(np.mean(np.diag(each)[union_C > 0] / union_C[union_C > 0]), abs=1e-3)


def test_scores_follow_from_the_confusion_and_never_average_averages(evaluated: EvaluateResult) -> None:
    total = confusion_of(evaluated.output)
    union_C = total.sum(0) + total.sum(1) - np.diag(total)
    saved = storage.read_json(f"{evaluated.output}/scores.json")
    assert saved["pixel_accuracy"] == pytest.approx(np.trace(total) / total.sum())
    assert saved["mean_iou"] == pytest.approx(np.mean((np.diag(total) / union_C)[union_C > 0]))
    assert saved["iou/road"] == pytest.approx(total[1, 1] / union_C[1])
    assert saved["mean_iou"] == evaluated.scores["mean_iou"]
    assert f"mIoU {100 * saved['mean_iou']:.2f} %" in evaluated.closing_line


def test_counts_of_the_images_give_the_scores_of_the_split_and_of_groups(evaluated: EvaluateResult) -> None:
    images = pq.read_table(f"{evaluated.output}/images.parquet")
    counts_N3C = image_counts(images)
    total = confusion_of(evaluated.output)
    assert counts_N3C.dtype == np.int64 and np.array_equal(counts_N3C.sum(axis=0), class_counts(total))
    assert scores_of_counts(counts_N3C.sum(axis=0)).mean_iou == evaluated.scores["mean_iou"]
    assert images["intersection_C"].equals(images["intersection"])
    assert evaluated.scores["mean_iou_low"] <= evaluated.scores["mean_iou"] <= evaluated.scores["mean_iou_high"]
    small, large = pq.read_table(f"{evaluated.output}/groups.parquet").to_pylist()
    assert (small["group"], small["num_images"]) == ("2,800 pixels", 2)
    assert (large["group"], large["num_images"]) == ("3,072 pixels", 5)
    expected = scores_of_counts(counts_N3C[[2, 5]].sum(axis=0))
    assert (small["mean_iou"], small["pixel_accuracy"]) == (expected.mean_iou, expected.pixel_accuracy)


def test_borders_and_confidence_are_those_of_a_plain_loop(folder: Path, evaluated: EvaluateResult) -> None:
    loaded = load_member(member(folder / "run" / "model"))
    state = SegmentationCounts.zero(4, BoundaryConfig())
    for pixels_HW3, labels_HW in PAIRS:
        image = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None]
        found = predict_ensemble([loaded], image, with_confidence=True)
        assert found.confidence_NHW is not None
        state.update(labels_HW, found.predictions_NHW[0], found.confidence_NHW[0])
    bins = pq.read_table(f"{evaluated.output}/calibration.parquet")
    assert sum(bins["pixels"].to_pylist()) == state.confusion_CC.sum()
    expected = state.calibration.calibration()
    assert evaluated.scores["calibration_error"] == pytest.approx(expected.expected_error, abs=1e-3)
    for (width, within), row in zip(
        state.boundaries.trimaps(), pq.read_table(f"{evaluated.output}/trimaps.parquet").to_pylist(), strict=True
    ):
        assert row["within_px"] == width and row["mean_iou"] == pytest.approx(within.mean_iou, abs=2e-3)
    boundary = pq.read_table(f"{evaluated.output}/classes.parquet")["boundary_iou"].to_pylist()
    np.testing.assert_allclose(
        np.array(boundary, dtype=np.float64), state.boundaries.boundary_iou_C(), atol=2e-3, equal_nan=True
    )


@pytest.mark.slow
def test_protocols_and_groups_are_those_of_evaluations_of_their_own(folder: Path, evaluated: EvaluateResult) -> None:
    table = folder / "groups.csv"
    table.write_text("image_id,group\n" + "".join(f"scene/{n:03d},{'night' if n % 3 else 'day'}\n" for n in range(7)))
    asked = config(
        folder,
        output=str(folder / "protocols"),
        protocols=("multi_scale_flip", "single", "sliding", "crf"),
        inference=InferenceConfig(window_px=32, crf=DenseCRFConfig(iterations=2, method="lattice")),
        groups=str(table),
        group_by="folder",
        workers=2,
    )
    result = evaluate(asked)
    rows = {row["protocol"]: row for row in pq.read_table(f"{result.output}/protocols.parquet").to_pylist()}
    assert rows["single"]["mean_iou"] == evaluated.scores["mean_iou"]
    assert rows["multi_scale_flip"]["mean_iou"] == result.scores["mean_iou"] != evaluated.scores["mean_iou"]
    for name, inputs, inference in (
        ("multi_scale_flip", 12.0, InferenceConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, window_px=32)),
        ("sliding", None, InferenceConfig(mode="sliding", window_px=32)),
    ):
        alone = evaluate(config(folder, output=str(folder / name), inference=inference))
        assert rows[name]["mean_iou"] == pytest.approx(alone.scores["mean_iou"], abs=1e-12)
        assert rows[name]["inputs_per_image"] > 5 if inputs is None else rows[name]["inputs_per_image"] == inputs
    assert rows["single"]["relative_cost"] == 1 and rows["multi_scale_flip"]["relative_cost"] > 2
    assert image_counts(pq.read_table(f"{result.output}/images-crf.parquet")).shape == (7, 3, 4)
    groups = {(row["kind"], row["group"]): row for row in pq.read_table(f"{result.output}/groups.parquet").to_pylist()}
    assert groups["table", "day"]["num_images"] == 3 and groups["table", "night"]["num_images"] == 4
    assert groups["folder", "scene"]["mean_iou"] == result.scores["mean_iou"]
    page = storage.read_bytes(result.page).decode()
    assert all(text in page for text in ("Protocols", "By folder", "By group", "By size", "night", "multi_scale_flip"))
    assert evaluate(asked) == result
    with pytest.raises(ValueError, match=r"holds the evaluation of another .*protocols"):
        evaluate(dataclasses.replace(asked, protocols=("multi_scale_flip", "single", "sliding", "crf", "given")))
    table.write_text("image_id,group\nscene/000,day\n")
    with pytest.raises(ValueError, match=r"holds the evaluation of another groups"):
        evaluate(asked)


def test_number_of_workers_does_not_change_the_result(folder: Path, evaluated: EvaluateResult) -> None:
    other = evaluate(config(folder, workers=2, output=str(folder / "two"), num_examples=0))
    assert (confusion_of(other.output) == confusion_of(evaluated.output)).all()
    tables = [pq.read_table(f"{each.output}/images.parquet").drop_columns("network_ms") for each in (evaluated, other)]
    assert tables[0].equals(tables[1])
    assert other.scores == evaluated.scores


@pytest.mark.slow
def test_a_crf_scores_what_it_makes_of_the_network_s_probabilities(folder: Path, evaluated: EvaluateResult) -> None:
    crf = DenseCRFConfig(iterations=5, theta_alpha=10.0, theta_beta=20.0, method="lattice")
    output = str(folder / "crf")
    with_crf = evaluate(config(folder, output=output, inference=InferenceConfig(crf=crf)))
    bundle = load_model(str(folder / "run" / "model"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.card.mean, bundle.card.std))
    expected = np.zeros((4, 4), dtype=np.int64)
    for pixels_HW3, labels_HW in PAIRS:
        image_3HW = torch.from_numpy(pixels_HW3).permute(2, 0, 1)
        with torch.inference_mode():
            p_NCHW = bundle.model(((image_3HW / 255 - mean) / std)[None]).logits_NCHW.softmax(dim=1)
            guess_HW = refine(p_NCHW, image_3HW[None], crf)[0].argmax(dim=0).numpy()
        valid = labels_HW != IGNORE_INDEX
        np.add.at(expected, (labels_HW[valid], guess_HW[valid]), 1)
    assert np.abs(confusion_of(output) - expected).sum() <= 0.01 * expected.sum()
    assert (confusion_of(output) != confusion_of(evaluated.output)).any()
    assert read_manifest(output, kind="evaluation")["identity"]["inference"]["crf"]["iterations"] == 5
    assert "crf" not in read_manifest(evaluated.output, kind="evaluation")["identity"]["inference"]
    (run,) = (run for run in tracking.find_runs(experiment="evaluations", job=None) if run.run_id == with_crf.run_id)
    assert run.parameters["inference.crf.theta_alpha"] == "10.0"


def test_every_file_is_listed_in_the_manifest_with_its_digest(folder: Path, evaluated: EvaluateResult) -> None:
    manifest = read_manifest(evaluated.output, kind="evaluation")
    found = {path.removeprefix(f"{evaluated.output}/") for path in storage.list_files(evaluated.output)}
    assert found == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        assert storage.sha256(storage.read_bytes(f"{evaluated.output}/{name}")) == entry["sha256"]
    assert manifest["identity"]["dataset_digest"] == open_dataset(str(folder / "data")).digest
    assert manifest["identity"]["model_digest"] == load_model(str(folder / "run" / "model")).digest


def test_pictures_show_best_median_and_worst(evaluated: EvaluateResult) -> None:
    names = [path.rsplit("/", 1)[1] for path in storage.list_files(f"{evaluated.output}/overlays")]
    assert [name.split("-scene_")[0] for name in names] == [
        f"{kind}-{n}" for kind in ("best", "median", "worst") for n in (1, 2)
    ]
    for path in storage.list_files(f"{evaluated.output}/overlays"):
        assert Image.open(io.BytesIO(storage.read_bytes(path))).width > 4 * 64
    page = storage.read_bytes(evaluated.page).decode()
    assert all(words in page for words in ("Best images", "Median images", "Worst images", "tree (tall)"))


def test_images_table_opens_in_duckdb(evaluated: EvaluateResult) -> None:
    query = f"SELECT sum(valid_pixels), avg(mean_iou), count(*) FROM '{evaluated.output}/images.parquet'"
    answer = duckdb.sql(query)
    assert answer is not None
    valid_pixels, mean_iou, rows = answer.fetchall()[0]
    assert (valid_pixels, rows) == (confusion_of(evaluated.output).sum(), 7)
    assert 0 < mean_iou < 1


def test_run_in_mlflow_has_scores_origins_and_its_training_run(folder: Path, evaluated: EvaluateResult) -> None:
    runs = {run.run_id: run for run in tracking.find_runs(experiment="evaluations", job=None)}
    run = runs[evaluated.run_id]
    assert (run.name, run.status, run.tags[tracking.JOB_TAG]) == ("street on val", "FINISHED", "evaluate")
    assert run.metrics["eval/val/mean_iou"] == evaluated.scores["mean_iou"]
    assert run.metrics["eval/val/iou/tree _tall_"] == evaluated.scores["iou/tree (tall)"]
    assert run.metrics["eval/images_per_second"] > 0
    assert runs[run.tags["segpipe.train_run_id"]].name == "street"
    assert run.tags[tracking.DATASET_DIGEST_TAG] == open_dataset(str(folder / "data")).digest
    assert run.tags[tracking.MEMBERS_TAG] == f",{run.tags[tracking.MODEL_DIGEST_TAG]},"
    (dataset,) = MlflowClient().get_run(evaluated.run_id).inputs.dataset_inputs
    assert dataset.dataset.name == "data/val" and dataset.tags[0].value == "evaluation"


def test_finished_evaluation_is_returned_and_another_is_not_overwritten(
    folder: Path, evaluated: EvaluateResult
) -> None:
    MlflowClient().update_run(evaluated.run_id, status="RUNNING")  # as by a driver that died after its last file
    assert evaluate(config(folder)) == evaluated
    assert MlflowClient().get_run(evaluated.run_id).info.status == "FINISHED"
    other = write_model(folder / "other", seed=5)
    with pytest.raises(ValueError, match=r"holds the evaluation of another model_digest .*--overwrite"):
        evaluate(config(folder, model=other))
    assert evaluate(config(folder)) == evaluated, "the refused evaluation must leave the folder as it was"


def test_different_class_tables_are_refused(folder: Path) -> None:
    model = write_model(folder / "swapped", class_names=("sky", "tree (tall)", "road", "never"))
    with pytest.raises(ValueError, match=r"different class tables.*class 1 is 'tree \(tall\)' there and 'road' here"):
        evaluate(config(folder, model=model, output=str(folder / "none")))
    fewer = write_model(folder / "fewer", class_names=CLASS_NAMES[:3])
    with pytest.raises(ValueError, match="3 classes there and 4 here"):
        evaluate(config(folder, model=fewer, output=str(folder / "none")))
    assert len(PALETTE) == 4
    assert not (folder / "none").exists()


def test_an_ensemble_is_scored_by_mean_probabilities_each_model_as_its_recipe_says(
    folder: Path, evaluated: EvaluateResult
) -> None:
    proposals = InferenceConfig(mode="proposals", crop_px=64, whole_image=True)
    second = write_model(folder / "fcn", seed=3, inference=InferenceConfig(flip=True))
    first_names = ("background", *CLASS_NAMES)
    first = write_model(folder / "deconv" / "model", class_names=first_names, inference=proposals)
    both = config(folder, model=first, ensemble=(second,), output=str(folder / "both"), recipe_inference=True)
    with pytest.raises(ValueError, match="different class tables"):
        evaluate(both)
    both = dataclasses.replace(both, leave_out=("background",))
    result = evaluate(both)

    models = [tracking.resolve_model(model) for model in (first, second)]
    members, _ = find_members(models, InferenceConfig(), recipe_inference=True, leave_out=("background",))
    assert [each.inference for each in members] == [proposals, InferenceConfig(flip=True)]
    loaded = [load_member(each) for each in members]
    expected_CC = np.zeros((4, 4), dtype=np.int64)
    for pixels_HW3, labels_HW in PAIRS:
        image = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None]
        guess_HW = predict_ensemble(loaded, image).predictions_NHW[0]
        valid = labels_HW != IGNORE_INDEX
        np.add.at(expected_CC, (labels_HW[valid], guess_HW[valid]), 1)
    assert np.abs(confusion_of(result.output) - expected_CC).sum() <= 4
    assert np.abs(confusion_of(evaluated.output) - expected_CC).sum() > 100

    digests = [load_model(model).digest for model in (first, second)]
    manifest = read_manifest(result.output, kind="evaluation")
    assert manifest["identity"]["model_digest"] == ensemble_digest(members) not in digests
    assert manifest["model_uri"] == f"{first} + {second}" and manifest["identity"]["leave_out"] == ["background"]
    assert [each["model_digest"] for each in manifest["ensemble"]] == digests[1:]
    run = next(run for run in tracking.find_runs(experiment="evaluations", job=None) if run.run_id == result.run_id)
    assert run.name == "model + fcn on val"
    assert run.tags[tracking.MODEL_DIGEST_TAG] == ensemble_digest(members)
    names = ("model", "inference.mode", "ensemble.2.model_uri", "ensemble.2.model_digest", "ensemble.2.inference.flip")
    assert [run.parameters[name] for name in names] == [first, "proposals", second, digests[1], "True"]
    page = storage.read_bytes(result.page).decode()
    assert all(text in page for text in (first, second, *digests))
    assert evaluate(both) == result
    with pytest.raises(ValueError, match=r"holds the evaluation of another inference .*ensemble"):
        evaluate(dataclasses.replace(both, recipe_inference=False))


def test_models_of_different_class_tables_are_no_ensemble(folder: Path) -> None:
    other = write_model(folder / "other table", class_names=("sky", "tree (tall)", "road", "never"))
    message = (
        r"first of its ensemble.*different class tables.*class 1 is 'tree \(tall\)' there and 'road' here.*one class"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(config(folder, ensemble=(other,), output=str(folder / "none")))
    assert not (folder / "none").exists()


def test_missing_split_lists_those_that_there_are(folder: Path) -> None:
    with pytest.raises(ValueError, match="no split 'test'; it has 'val'"):
        evaluate(config(folder, split="test"))


def test_missing_model_names_the_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' holds no manifest.json"):
        evaluate(config(folder, model=str(folder / "nowhere")))


def test_too_few_logical_cpus_are_said_before_anything_runs(folder: Path, ray_session: None) -> None:
    with pytest.raises(ValueError, match=r"40 actor\(s\) of 2 thread\(s\) and 1 reader need 81"):
        evaluate(config(folder, workers=40, threads=2, output=str(folder / "huge")))
    assert not (folder / "huge" / "manifest.json").exists()


def test_corrupt_shard_is_named_and_the_run_fails(tmp_path: Path, folder: Path, ray_session: None) -> None:
    data = write_dataset(tmp_path / "data", PAIRS[:2], images_per_part=1)
    shard = tmp_path / "data" / "val" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"part-00001\.parquet is corrupt or was changed"):
        evaluate(config(folder, data=data, output=str(tmp_path / "out")))
    failed = tracking.find_runs(experiment="evaluations", job="evaluate")[0]
    assert failed.status == "FAILED"
    write_dataset(tmp_path / "data", PAIRS[:2], images_per_part=1)  # mended
    again = evaluate(config(folder, data=data, output=str(tmp_path / "out"), batch_size=2))
    (run, *_) = tracking.find_runs(experiment="evaluations", job="evaluate")
    assert run.run_id == again.run_id == failed.run_id, "the same evaluation, with another batch size"
    assert (run.status, run.tags[tracking.STARTS_TAG]) == ("FINISHED", "2")


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_slices_hold_every_row_once_and_begin_at_whole_batches(workers: int, batch: int) -> None:
    part_rows = [64, 64, 1, 30]
    slices = cut_slices(part_rows, workers=workers, batch_size=batch)
    rows = [(each["part"], row) for each in slices for row in range(each["start"], each["stop"])]
    assert rows == [(part, row) for part, count in enumerate(part_rows) for row in range(count)]
    assert all(each["start"] % batch == 0 for each in slices)
    assert len(slices) >= min(2 * workers, sum(part_rows) // batch)


def test_one_part_still_feeds_several_workers() -> None:
    assert len(cut_slices([64], workers=2, batch_size=1)) == 8


def test_examples_are_ranked_without_repeats_and_skip_images_without_truth() -> None:
    mean_iou = [0.5, None, 0.9, 0.1, 0.7, 0.3]
    assert choose_examples(mean_iou, count=1) == {"best-1": 2, "worst-1": 3, "median-1": 0}
    assert choose_examples([0.2, 0.4, 0.3], count=3) == {"best-1": 1, "worst-1": 0, "median-1": 2}
    assert choose_examples([0.2, 0.4], count=3) == {"best-1": 1, "worst-1": 0}
    assert choose_examples([None], count=3) == {}
    assert choose_examples(mean_iou, count=0) == {}


def member(folder: Path, inference: InferenceConfig | None = None) -> MemberModel:
    """A model folder, as `evaluate` hands it to its workers."""
    (found,), _ = find_members(
        [tracking.resolve_model(str(folder))], inference or InferenceConfig(), recipe_inference=False
    )
    return found


@pytest.fixture
def scored_here(folder: Path, tmp_path: Path) -> Iterator[Callable[[int], list[dict[str, Any]]]]:
    """Scores three images and one without valid pixels in this process, with the actor's own code."""
    pairs = [*PAIRS[:3], (PAIRS[0][0], np.full_like(PAIRS[0][1], IGNORE_INDEX))]
    dataset = open_dataset(write_dataset(tmp_path / "data", pairs, images_per_part=4))
    rows = read_rows(dataset, "val", part=0, start=0, stop=4).append_column("error", pa.nulls(4, pa.string()))
    threads = torch.get_num_threads()

    def score(batch: int) -> list[dict[str, Any]]:
        config = ScoringConfig(workers=1, threads=1, batch_size=batch, use_gpu=False)
        (chunk,) = Scorer({"given": [member(folder / "run" / "model")]}, 4, config)(rows).to_pylist()
        assert chunk["error"] is None
        records: list[dict[str, Any]] = pa.ipc.open_stream(chunk["images"]).read_all().to_pylist()
        counts = SegmentationCounts.from_flat(np.array(chunk["counts"]), 4, config.boundaries)
        assert sum(sum(record["intersection"]) for record in records) == np.trace(counts.confusion_CC)
        return records

    yield score
    torch.set_num_threads(threads)


def test_a_scorer_builds_the_network_at_the_output_stride_that_it_is_told(folder: Path) -> None:
    threads = torch.get_num_threads()
    strides = []
    for output_stride in (0, 8):
        model = member(folder / "run" / "model", InferenceConfig(output_stride=output_stride))
        config = ScoringConfig(workers=1, threads=1, batch_size=1, use_gpu=False)
        (loaded,) = Scorer({"given": [model]}, 4, config).protocols["given"]
        backbone = loaded.model.get_submodule("backbone")
        strides.append(backbone.output_stride)
    torch.set_num_threads(threads)
    assert strides == [load_model(str(folder / "run" / "model")).card.model_config.output_stride, 8]
    assert strides[0] != 8


def test_image_without_valid_pixels_has_no_score(scored_here: Callable[[int], list[dict[str, Any]]]) -> None:
    last = scored_here(1)[-1]
    assert (last["valid_pixels"], last["mean_iou"], last["pixel_accuracy"]) == (0, None, None)


def test_batches_of_neighbours_of_one_size_give_the_same_counts(
    scored_here: Callable[[int], list[dict[str, Any]]],
) -> None:
    single, batched = scored_here(1), scored_here(3)
    assert [record["row"] for record in batched] == [0, 1, 2, 3]
    for one, other in zip(single, batched, strict=True):
        assert one["valid_pixels"] == other["valid_pixels"]
        np.testing.assert_allclose(one["intersection"], other["intersection"], atol=2)  # sums may round differently


def test_undefined_score_is_said_in_words() -> None:
    result = EvaluateResult(output="x", split="val", num_images=1, scores={}, speeds={}, run_id="r")
    assert "mIoU undefined" in result.closing_line
