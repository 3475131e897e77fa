"""`segment` end to end: what ends where, what is done again, what is refused, and what a kill costs."""

import json
import shutil
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage, tracking
from pipelines.checkpoints import load_model
from pipelines.intake.images import decode_image
from pipelines.night_report.summary import read_summary
from pipelines.nightly.challenge import night_evidence
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import segment
from pipelines.tables import commits
from pipelines.tables.schemas import TABLES
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig, class_probabilities
from segcore.run_lengths import decode
from tests.pipelines.processes import kill, needs_proc
from tests.pipelines.segment_jobs import (
    StartedJob,
    check_every_image_once,
    encoded,
    file_names,
    table_rows,
    write_images,
)
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, random_pairs, write_model

REPOSITORY = Path(__file__).resolve().parents[2]

# Ray 2.60 reads its own deprecated settings when a DataContext is copied; goes when Ray drops them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "street")


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, model: str, tracking_uri: str) -> SegmentConfig:
    images, tables = tmp_path / "images", tmp_path / "tables"
    images.mkdir()
    return SegmentConfig(
        images=str(images), model=model, tables=str(tables), workers=1, tracking_uri=tracking_uri, page=False
    )


def _masks(tables: str) -> dict[str, NDArray[np.uint8]]:
    masks = {}
    for row in table_rows(tables, "masks"):
        values, lengths = np.array(row["values"], np.uint8), np.array(row["lengths"], np.int32)
        masks[row["work_id"]] = decode(values, lengths, height=row["height"], width=row["width"])
    return masks


def _argmax(model: str, path: str) -> NDArray[np.uint8]:
    """The class map computed without anything that `segment` uses beside decoding and the network."""
    bundle = load_model(model)
    pixels_HW3 = decode_image(Path(path).read_bytes()).pixels_HW3
    images = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (bundle.card.mean, bundle.card.std))
    with torch.inference_mode():
        predictions_HW: NDArray[np.uint8] = bundle.model((images - mean) / std).logits_NCHW[0].argmax(0).byte().numpy()
    return predictions_HW


def _write_odd_files(folder: Path) -> dict[str, str | None]:
    """Files of many kinds; their names and the stage at which each must fail, or None."""
    (pixels_HW3, _), *_ = random_pairs(1, seed=7, sizes=((48, 64),))
    jpeg = encoded(pixels_HW3, "JPEG")
    gray_HW = np.asarray(Image.fromarray(pixels_HW3).convert("L"))
    files: dict[str, tuple[bytes, str | None]] = {
        "rotated.jpg": (encoded(pixels_HW3, "JPEG", orientation=6), None),
        "gray.png": (encoded(gray_HW, "PNG"), None),
        "deep.png": (encoded(gray_HW.astype(np.uint16) * 257, "PNG"), None),
        "transparent.png": (encoded(pixels_HW3, "PNG", mode="RGBA"), None),
        "image without suffix": (jpeg, None),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "decode"),
        "empty.jpg": (b"", "sniff"),
        "page.jpg": (b"<!doctype html>", "sniff"),
        "notes.txt": (b"the camera was cleaned", "sniff"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / ".hidden.jpg").write_bytes(b"hidden")
    (folder / "uploading.jpg.part").write_bytes(b"half")
    return {name: stage for name, (_, stage) in files.items()}


def _check_footers(config: SegmentConfig) -> None:
    for part in (path for name in TABLES for path in Path(config.tables, name).rglob("*.parquet")):
        metadata = pq.read_schema(part).metadata
        assert tuple(json.loads(metadata[b"segpipe.class_names"])) == CLASS_NAMES
        assert [tuple(colour) for colour in json.loads(metadata[b"segpipe.palette"])] == list(PALETTE)
        assert metadata[b"segpipe.model_digest"].decode() == load_model(config.model).digest


def test_odd_files_end_in_failures_and_every_other_image_gets_its_argmax(
    config: SegmentConfig, model: str, ray_session: None
) -> None:
    stages = _write_odd_files(Path(config.images))
    names = write_images(config.images, 6)
    names = [name for name in names if name not in (".hidden.jpg", "uploading.jpg.part")]
    started = time.monotonic()
    result = segment(replace(config, workers=2, batch_size=2, page=True))
    _check_summary(config, seconds=time.monotonic() - started)

    check_every_image_once(config, names)
    _check_footers(config)
    failures = table_rows(config.tables, "failures")
    assert {Path(row["uri"]).name: row["stage"] for row in failures} == {
        name: stage for name, stage in stages.items() if stage
    }
    assert {row["first_bytes_hex"] for row in failures if row["stage"] == "sniff"} == {
        "", b"<!doctype html>".hex(), b"the camera was c".hex()
    }  # fmt: skip
    masks = _masks(config.tables)
    for row in table_rows(config.tables, "predictions"):
        mask_HW = masks[row["work_id"]]
        expected_HW = _argmax(model, row["uri"])
        assert mask_HW.shape == (row["height"], row["width"]) == expected_HW.shape
        assert (mask_HW == expected_HW).mean() > 0.998, row["uri"]  # a batch of two rounds differently from one
        assert row["class_pixels"] == np.bincount(mask_HW.ravel(), minlength=len(CLASS_NAMES)).tolist()
        assert 1 / len(CLASS_NAMES) - 1e-3 <= row["p05_confidence"] <= row["mean_confidence"] + 1e-3
    rotated = next(row for row in table_rows(config.tables, "predictions") if row["uri"].endswith("rotated.jpg"))
    assert [rotated[name] for name in ("source_height", "source_width", "height", "width")] == [48, 64, 64, 48]
    assert rotated["orientation"] == 6 and rotated["notes"] == ["EXIF orientation 6 was applied"]

    assert (result.num_images, result.num_failures, result.snapshot) == (11, 4, 1)
    assert "segmented 11 images" in result.closing_line and config.tables in result.closing_line
    assert b"rotated.jpg" in Path(result.page).read_bytes()
    run = next(run for run in tracking.find_runs(experiment="segpipe", job="segment") if run.run_id == result.run_id)
    assert run.status == "FINISHED"
    assert run.metrics["num_images"] == 11 and run.metrics["num_failures"] == 4
    assert run.metrics["images_per_second"] == pytest.approx(result.images_per_second)
    assert run.tags["segpipe.tables"] == config.tables


def _check_summary(config: SegmentConfig, *, seconds: float) -> None:
    """The run's times add up to what the job took, its end in MLflow apart."""
    summary = read_summary(config.tables, "000001")
    assert summary is not None
    assert (summary.images, summary.failures, summary.computed, summary.workers) == (11, 4, 15, 2)
    assert sum(summary.stages.values()) == pytest.approx(summary.seconds, rel=0.01)
    assert 0.5 * seconds < summary.seconds < seconds
    assert min(summary.stages.values()) >= 0
    assert all(summary.stages[stage] > 0 for stage in ("list", "check", "load", "infer", "commit", "publish", "page"))


def _check_nights_in_mlflow(config: SegmentConfig, *, num_images: list[int]) -> None:
    """One MLflow run for all nights of these tables, a point per night."""
    runs = [
        run
        for run in tracking.find_runs(experiment="segpipe", job="drift")
        if run.tags["segpipe.tables"] == config.tables
    ]
    assert len(runs) == 1
    assert config.tracking_uri is not None
    history = tracking.attach(config.tracking_uri, runs[0].run_id).history("num_images")
    assert history == [(step, float(count)) for step, count in enumerate(num_images, start=1)]


def test_the_same_command_again_segments_only_what_is_new_or_changed(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    names = write_images(config.images, 3)
    segment(config)
    before = {path: path.read_bytes() for path in Path(config.tables).rglob("part-*.parquet")}
    again = segment(replace(config, page=True))
    assert again.run_ids == () and again.snapshot == 1 and again.num_present == 3
    assert again.closing_line.startswith("nothing new: all 3 images are in")
    assert "Nothing new" in Path(again.page).read_text()

    write_images(config.images, 1, seed=1)
    (pixels_HW3, _), *_ = random_pairs(1, seed=2)
    Path(config.images, names[0]).write_bytes(encoded(pixels_HW3, "JPEG"))
    grown = segment(config)
    assert grown.run_ids == ("000002",)
    assert (grown.num_images, grown.num_present, grown.snapshot) == (2, 2, 2)
    rows = table_rows(config.tables, "predictions")
    assert file_names(rows) == sorted([*names, names[0], "plain-1-000.jpg"])
    assert {path: path.read_bytes() for path in before} == before  # nothing is overwritten in place
    _check_nights_in_mlflow(config, num_images=[3, 2])
    _check_other_class_tables_are_refused(config, tmp_path)


@pytest.mark.slow
def test_the_second_night_computes_what_is_new_or_changed_and_marks_what_has_gone(
    config: SegmentConfig, ray_session: None
) -> None:
    names = write_images(config.images, 973)
    assert segment(config).num_images == 973
    for name in names[10:13]:
        Path(config.images, name).unlink()
    for name, (pixels_HW3, _) in zip(names[20:25], random_pairs(5, seed=3), strict=True):
        Path(config.images, name).write_bytes(encoded(pixels_HW3, "JPEG"))
    assert len(write_images(config.images, 30, seed=1)) == 1000
    result = segment(replace(config, cost_per_hour=3.0))
    assert (result.num_images, result.num_failures, result.num_marks, result.num_present) == (35, 0, 3, 965)
    assert "3 marked as deleted or restored" in result.closing_line
    plan = commits.read_run(config.tables, "000002").plan
    assert Counter(plan["reason"].to_pylist()) == {"new": 30, "changed": 5, "deleted": 3}
    planned = [*commits.read_run(config.tables, "000001").plan["work_id"].to_pylist(), *plan["work_id"].to_pylist()]
    found = [row["work_id"] for name in ("predictions", "deletions") for row in table_rows(config.tables, name)]
    assert Counter(found) == Counter(planned)
    assert file_names(table_rows(config.tables, "deletions")) == names[10:13]
    summary = storage.read_json(storage.join(config.tables, "runs", "000002", "summary.json"))
    assert (summary["images"], summary["failures"], summary["deletions"], summary["workers"]) == (35, 0, 3, 1)
    assert summary["seconds"] > 0 and summary["images_per_second"] > 0 and summary["predicted_seconds"] > 0
    assert segment(config).run_ids == ()


@pytest.mark.slow
def test_a_manifest_is_segmented_and_what_it_names_in_vain_ends_in_failures(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    names = write_images(config.images, 4)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(["uri", *(f"images/{name}" for name in names[:3]), "images/gone.jpg"]))
    listed = replace(config, images="", manifest=str(manifest))
    first = segment(listed)
    assert (first.num_images, first.num_failures, first.num_present) == (3, 1, 0)
    (failure,) = table_rows(config.tables, "failures")
    assert (failure["stage"], failure["retryable"], Path(failure["uri"]).name) == ("fetch", True, "gone.jpg")
    assert (segment(config).num_images, segment(listed).num_failures) == (1, 1)

    forced = segment(replace(config, force=True, page=True))
    assert (forced.num_images, forced.num_present) == (4, 0)
    rows = table_rows(config.tables, "predictions")
    assert len(rows) == 8 and len({row["work_id"] for row in rows}) == 8
    newest = {row["uri"]: row["run_id"] for row in sorted(rows, key=lambda row: str(row["run_id"]))}
    assert len(newest) == 4 and set(newest.values()) == set(forced.run_ids)
    Path(config.images, names[0]).unlink()
    only_marks = segment(replace(config, page=True))
    assert (only_marks.num_images, only_marks.num_marks, only_marks.page) == (0, 1, "")


@pytest.mark.slow
def test_a_crf_makes_other_masks_of_the_same_images(config: SegmentConfig, ray_session: None) -> None:
    write_images(config.images, 2)
    segment(config)
    plain = _masks(config.tables)
    crf = DenseCRFConfig(iterations=5, theta_alpha=10.0, theta_beta=20.0)
    sharpened = segment(replace(config, inference=InferenceConfig(crf=crf)))
    assert (sharpened.num_images, sharpened.num_failures) == (2, 0), "the CRF is part of the masks' identity"
    both = _masks(config.tables)
    assert len(both) == 4 and all((both[key] == mask).all() for key, mask in plain.items())
    others = [mask for key, mask in both.items() if key not in plain]
    assert not any((mask.shape == each.shape and (mask == each).all()) for mask in others for each in plain.values())
    assert commits.read_run(config.tables, "000002").settings.inference["crf"]["iterations"] == 5


@pytest.mark.slow
def test_an_ensemble_is_other_work_than_its_models_and_gives_the_mean_of_their_probabilities(
    config: SegmentConfig, model: str, tmp_path: Path, ray_session: None
) -> None:
    write_images(config.images, 2)
    second = write_model(tmp_path / "second", seed=3)
    assert segment(config).num_images == 2
    both = replace(config, ensemble=(second,))
    _plan_only(both)
    run = commits.read_run(config.tables, "000002").settings
    assert [each["model_folder"] for each in run.ensemble] == [model, second]
    assert segment(config).run_ids == ("000002",), "an unfinished run is finished with its own models"
    assert segment(both).run_ids == ()
    third = segment(replace(both, ensemble=(model,)))
    assert (third.num_images, third.num_present) == (2, 0), "other members are other work"

    bundles = [load_model(each) for each in (model, second)]
    rows = [row for row in table_rows(config.tables, "predictions") if row["run_id"] == "000002"]
    assert {row["model_uri"] for row in rows} == {f"{model} + {second}"}
    assert {row["model_digest"] for row in rows}.isdisjoint(bundle.digest for bundle in bundles)
    assert {row["num_tiles"] for row in rows} == {2}
    masks = _masks(config.tables)
    for row in rows:
        image = torch.from_numpy(decode_image(Path(row["uri"]).read_bytes()).pixels_HW3.copy()).permute(2, 0, 1)[None]
        maps = [
            class_probabilities(
                bundle.model, image, mean=bundle.card.mean, std=bundle.card.std, config=InferenceConfig()
            )
            for bundle in bundles
        ]
        expected_HW = (maps[0] + maps[1])[0].argmax(0).numpy()
        assert (masks[row["work_id"]] == expected_HW).mean() > 0.998
        assert (masks[row["work_id"]] == maps[0][0].argmax(0).numpy()).mean() < 0.99


@pytest.mark.slow
def test_a_challenger_is_compared_and_changes_nothing_else(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    write_images(config.images, 6)
    Path(config.images, "broken.jpg").write_bytes(b"no image")
    other = write_model(tmp_path / "other", seed=7)
    result = segment(replace(config, challenger=other, challenger_fraction=1.0, page=True))
    masks, rows = _masks(config.tables), table_rows(config.tables, "comparisons")
    predictions = {row["work_id"]: row for row in table_rows(config.tables, "predictions")}
    assert sorted(row["work_id"] for row in rows) == sorted(predictions)
    assert 0 < sum(row["agreement"] for row in rows) / len(rows) < 1, "two models that always agree show nothing"
    for row in rows:
        ours, theirs = masks[row["work_id"]], _argmax(other, row["uri"])
        assert row["agreement"] == pytest.approx((ours == theirs).mean(), abs=1e-3)
        assert sum(row["confusion"]) == ours.size and row["error"] == ""
        sums = np.array(row["confusion"]).reshape(len(CLASS_NAMES), -1).sum(axis=1)
        assert sums.tolist() == predictions[row["work_id"]]["class_pixels"]
        assert row["champion_confidence"] == pytest.approx(predictions[row["work_id"]]["mean_confidence"])
    found = night_evidence(config.tables, "000001")
    assert found is not None and (found.num_images, found.num_errors) == (6, 0)
    assert tracking.find_runs(experiment=config.experiment, job="segment")[0].metrics[
        "challenger/agreement"
    ] == pytest.approx(found.agreement)
    assert "<h2>Challenger</h2>" in Path(result.page).read_text()
    three = write_model(tmp_path / "three", class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="the challenger .* has another class table than the model"):
        segment(replace(config, challenger=three))


def test_images_that_could_not_be_fetched_are_tried_again_by_the_next_run(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    """As after an outage: the listing was there, the bytes were not."""
    names = write_images(config.images, 3)
    away = tmp_path / "away"
    with pytest.MonkeyPatch.context() as patched:

        def unplug(*arguments: Any) -> bool:
            shutil.move(config.images, away)
            return create_run(*arguments)

        create_run = commits.create_run
        patched.setattr(commits, "create_run", unplug)
        outage = segment(config)
    assert (outage.num_images, outage.num_failures) == (0, 3)
    shutil.move(away, config.images)
    mended = segment(config)
    assert (mended.num_images, mended.num_failures, mended.num_present) == (3, 0, 0)
    plan = commits.read_run(config.tables, mended.run_ids[-1]).plan
    assert plan["reason"].to_pylist() == ["retry"] * 3
    assert file_names(table_rows(config.tables, "predictions")) == names
    assert segment(config).run_ids == ()


def test_an_unfinished_run_whose_images_are_gone_is_not_turned_into_failures(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    write_images(config.images, 2)
    _plan_only(config)
    other = str(tmp_path / "other images")
    Path(other).mkdir()
    write_images(other, 1, seed=7)
    shutil.rmtree(config.images)
    with pytest.raises(ValueError, match="run 000001 .* its images .* are not there; bring them back, or give up"):
        segment(replace(config, images=other))
    assert segment(replace(config, images=other, abandon_unfinished=True)).num_images == 1


def _check_other_class_tables_are_refused(config: SegmentConfig, tmp_path: Path) -> None:
    fewer = write_model(tmp_path / "fewer", class_names=CLASS_NAMES[:3])
    with pytest.raises(ValueError, match="have different classes .4 there, 3 in the model.; give --tables another"):
        segment(replace(config, model=fewer))
    renamed = write_model(tmp_path / "renamed", class_names=("sky", "street", *CLASS_NAMES[2:]))
    with pytest.raises(ValueError, match="different classes .1: 'road' there, 'street' in the model"):
        segment(replace(config, model=renamed))


def _plan_only(config: SegmentConfig) -> None:
    """A job that dies right after it has planned."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.segment.execute", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            segment(config)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_unfinished_run_of_another_model_is_finished_first_with_that_model(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    write_images(config.images, 3)
    old = write_model(tmp_path / "old", seed=5)
    _plan_only(replace(config, model=old))
    assert commits.run_ids(config.tables) == ["000001"] and commits.newest_snapshot(config.tables).number == 0
    both = segment(config)
    assert both.run_ids == ("000001", "000002") and both.num_images == 6
    digests = Counter(row["model_digest"] for row in table_rows(config.tables, "predictions"))
    assert digests == {load_model(old).digest: 3, load_model(config.model).digest: 3}


def test_an_unfinished_run_whose_model_is_gone_can_be_given_up(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    write_images(config.images, 3)
    old = write_model(tmp_path / "old", seed=5)
    _plan_only(replace(config, model=old))
    shutil.rmtree(old)
    with pytest.raises(ValueError, match="run 000001 .* needs its model .*old'; put that back, or give up"):
        segment(config)
    _plan_only(replace(config, abandon_unfinished=True))
    assert commits.newest_snapshot(config.tables).run_ids == ("000001",)
    plans = [commits.read_run(config.tables, run_id) for run_id in commits.run_ids(config.tables)]
    assert [plan.plan["uri"].to_pylist() for plan in plans] == [plans[0].plan["uri"].to_pylist()] * 2


def test_networks_run_in_bfloat16_on_gpus_unless_told_otherwise(
    config: SegmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(job: Any, *_: object) -> None:
        seen.append(job.members[0].inference.precision)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.segment._next_run", look)
    monkeypatch.setattr("pipelines.segment.actor_cluster", lambda **_: nullcontext())  # there is no GPU here
    write_images(config.images, 1)
    on_gpus = replace(config, use_gpu=True)
    for case in (config, on_gpus, replace(on_gpus, gpu_precision="float32")):
        with pytest.raises(KeyboardInterrupt):
            segment(case)
    assert seen == ["float32", "bfloat16", "float32"]


def test_bad_inputs_are_refused_with_what_to_do(config: SegmentConfig, tmp_path: Path, ray_session: None) -> None:
    cases: list[tuple[SegmentConfig, str]] = []
    with pytest.raises(ValueError, match="holds no files"):
        segment(config)
    with pytest.raises(ValueError, match="there is no folder, bucket or image"):
        segment(replace(config, images=str(tmp_path / "missing")))
    write_images(config.images, 2)
    (tmp_path / "a file").write_bytes(b"")
    broken = shutil.copytree(config.model, tmp_path / "broken model")
    (broken / "model.safetensors").unlink()
    cases = [
        (replace(config, tables=str(Path(config.images, "tables"))), "lie inside the images .* another place"),
        (replace(config, tables=str(tmp_path / "a file" / "tables")), "cannot write below .* may write to"),
        (replace(config, model=str(tmp_path / "no model")), "holds no manifest.json"),
        (replace(config, model=str(broken)), "misses model.safetensors"),
        (replace(config, model="models:/nobody@champion"), "MLflow cannot resolve 'models:/nobody@champion'"),
        (
            replace(config, workers=50),
            "50 actor.s. of 2 thread.s. and 1 reader need 101; ask for fewer --workers or --threads, or start",
        ),
    ]
    for case, message in cases:
        with pytest.raises(ValueError, match=message):
            segment(case)
    assert not Path(config.images, "tables").exists()
    for field in ("workers", "threads", "decode_threads", "images_per_shard"):
        with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} is 0; give 1 or more"):
            replace(config, **{field: 0})  # type: ignore[arg-type]  # the fields are integers


@needs_proc
@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_lose_and_double_nothing(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    names = write_images(config.images, 90)
    Path(config.images, "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    names.append("broken.jpg")

    def num_commits() -> int:
        return len(list(Path(config.tables, "runs", "000001", "commits").glob("[0-9]*.json")))

    with StartedJob(config, tmp_path / "job.log") as job:
        job.wait_for(lambda: num_commits() >= 3 and bool(job.workers()))
        kill(job.workers())
        at_worker_death = num_commits()
        job.wait_for(lambda: num_commits() >= at_worker_death + 3)
        job.kill_driver()
        assert num_commits() < len(names), "the kills came too late to show anything"

        result = segment(config)  # while workers of the killed driver may still commit
    assert result.run_ids == ("000001",) and result.snapshot == 1
    assert result.num_images + result.num_failures <= len(names) - 6  # what was committed is not computed again
    check_every_image_once(config, names)
    assert segment(config).run_ids == ()
