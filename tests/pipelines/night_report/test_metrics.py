"""The table `metrics`: its numbers against plain loops, and one row per run and camera however often it is tried."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.night_report import metrics as night_metrics
from pipelines.night_report import statistics as night_statistics
from pipelines.night_report.drift import class_shares, js_distance, psi
from pipelines.night_report.metrics import earlier_fractions, read_metrics, run_reference, stage_metrics
from pipelines.night_report.references import ModelReference
from pipelines.night_report.statistics import prefix_of
from pipelines.tables import commits
from pipelines.tables.runs import WHOLE_RUN, Snapshot
from tests.pipelines.written_nights import Failed, Nights, Shot, reference_of, write_model_reference

IMAGES = "s3://cams/night"


def _shots(count: int, *, seed: int, prefix: str = "", ground: float = 0.3, brightness: float = 0.5) -> list[Shot]:
    """Images of sky over road, with a tree in every fourth."""
    rng = np.random.default_rng(seed)
    shots = []
    for index in range(count):
        mask_HW = np.zeros((20, 30), dtype=np.uint8)
        mask_HW[20 - int(np.clip(rng.normal(20 * ground, 2), 1, 19)) :] = 1
        if index % 4 == 0:
            mask_HW[:, :5] = 2
        shots.append(
            Shot(
                uri=f"{IMAGES}/{prefix}{index:04d}.jpg",
                mask_HW=mask_HW,
                confidence=float(rng.beta(16, 4)),
                entropy=float(rng.gamma(4, 0.1)),
                brightness=float(np.clip(rng.normal(brightness, 0.1), 0, 1)),
            )
        )
    return shots


@pytest.fixture(scope="module")
def reference() -> ModelReference:
    return reference_of(_shots(150, seed=0))


@pytest.fixture
def nights(tmp_path: Path, reference: ModelReference) -> Nights:
    folder = write_model_reference(tmp_path / "model", reference)
    return Nights(tables=str(tmp_path / "tables"), images=IMAGES, model_folder=folder)


def _rows(nights: Nights, run_id: str = "000001") -> dict[str | None, dict[str, Any]]:
    rows = read_metrics(nights.tables, commits.newest_snapshot(nights.tables)).to_pylist()
    return {row["prefix"]: row for row in rows if row["run_id"] == run_id}


@pytest.mark.parametrize(
    ("uri", "depth", "expected"),
    [
        (f"{IMAGES}/cam-1/a.jpg", 1, "cam-1"),
        (f"{IMAGES}/cam-1/2026/a.jpg", 1, "cam-1"),
        (f"{IMAGES}/cam-1/2026/a.jpg", 2, "cam-1/2026"),
        (f"{IMAGES}/a.jpg", 1, ""),
        (f"{IMAGES}/cam-1/a.jpg", 0, ""),
        ("s3://other/cam-2/a.jpg", 1, "cam-2"),
        ("s3://cams/nightly/a.jpg", 1, "nightly"),
        ("/disk/cam-3/a.jpg", 2, "disk/cam-3"),
    ],
)
def test_a_prefix_is_the_first_folders_below_the_listed_one(uri: str, depth: int, expected: str) -> None:
    assert prefix_of(uri, IMAGES, depth=depth) == expected
    assert prefix_of(uri, IMAGES + "/", depth=depth) == expected


@pytest.mark.parametrize("shards_per_task", [1024, 3])
def test_rows_hold_what_plain_loops_find(
    nights: Nights, reference: ModelReference, monkeypatch: pytest.MonkeyPatch, shards_per_task: int
) -> None:
    monkeypatch.setattr(night_metrics, "SHARDS_PER_TASK", shards_per_task)
    good, turned = _shots(40, seed=1, prefix="good/"), _shots(25, seed=2, prefix="turned/", ground=0.7, brightness=0.2)
    turned[3] = replace(turned[3], brightness=None)  # as in a row of an older version
    nights.add(
        [*good, *turned], [Failed(uri=f"{IMAGES}/good/broken.jpg"), Failed(uri=f"{IMAGES}/top.jpg")], per_shard=7
    )
    rows = _rows(nights)
    assert set(rows) == {None, "good", "turned", ""}
    assert [rows[prefix]["num_images"] for prefix in (None, "good", "turned", "")] == [65, 40, 25, 0]
    assert [rows[prefix]["num_failures"] for prefix in (None, "good", "turned", "")] == [2, 1, 0, 1]
    assert rows["good"]["failure_rate"] == pytest.approx(1 / 41)
    assert rows[""]["class_fraction"] == [] and rows[""]["drift"] is None and rows[""]["class_psi"] is None
    for prefix, shots in (("good", good), ("turned", turned), (None, [*good, *turned])):
        _check_row(rows[prefix], shots, reference)
    assert rows["good"]["drift"] == "stable"
    assert rows["turned"]["drift"] == "significant" and rows["turned"]["brightness_shift"] < -2
    assert np.argmax(rows["turned"]["class_fraction_psi"]) in (0, 1), "sky and road changed places"


def _check_row(row: dict[str, Any], shots: list[Shot], reference: ModelReference) -> None:
    fractions = [[float((shot.mask_HW == index).mean()) for index in range(4)] for shot in shots]
    mean_C = np.array([sum(each[index] for each in fractions) / len(shots) for index in range(4)])
    assert row["class_fraction"] == pytest.approx(mean_C, rel=1e-6)
    before_C = np.array([each.mean for each in reference.class_fractions])
    assert row["class_psi"] == pytest.approx(psi(class_shares(before_C), class_shares(mean_C)), rel=1e-5)
    assert row["class_js_distance"] == pytest.approx(
        js_distance(class_shares(before_C), class_shares(mean_C)), rel=1e-5
    )
    assert row["reference_digest"] == reference.digest
    bright = [shot.brightness for shot in shots if shot.brightness is not None]
    assert row["mean_brightness"] == pytest.approx(sum(bright) / len(bright), rel=1e-6)
    assert row["mean_pixels"] == 600
    distribution = reference.quantities["brightness"]
    counts = Counter(sum(cut < float(np.float32(value)) for cut in distribution.cuts) for value in bright)
    found_B = np.array([counts[index] for index in range(len(distribution.counts))])
    assert row["brightness_psi"] == pytest.approx(distribution.psi(found_B))
    assert row["pixels_psi"] == pytest.approx(0) and row["pixels_shift"] == 0
    tree = reference.class_fractions[2]
    counts = Counter(sum(cut < float(np.float32(each[2])) for cut in tree.cuts) for each in fractions)
    found_B = np.array([counts[index] for index in range(len(tree.counts))])
    assert row["class_fraction_psi"][2] == pytest.approx(tree.psi(found_B))


def test_a_model_without_a_usable_reference_has_rows_without_drift(
    nights: Nights, reference: ModelReference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nights.model_folder = str(tmp_path / "gone")
    nights.add(_shots(3, seed=1))
    row = _rows(nights)[None]
    assert row["num_images"] == 3 and row["drift"] is None and row["reference_digest"] is None
    assert len(row["class_fraction"]) == 4
    assert "run 000001 has nothing to be compared with" in caplog.text
    nights.model_folder = write_model_reference(tmp_path / "another", reference, digest="n" * 64)
    assert run_reference(nights.add(_shots(3, seed=2)).settings) is None
    assert "holds another model by now" in caplog.text


def test_a_night_of_failures_alone_has_a_row(nights: Nights) -> None:
    nights.add([], [Failed(uri=f"{IMAGES}/cam/{index}.jpg") for index in range(4)])
    row = _rows(nights)[None]
    assert (row["num_images"], row["num_failures"], row["failure_rate"], row["drift"]) == (0, 4, 1.0, None)


@pytest.mark.parametrize("shards_per_task", [1024, 1])
def test_many_prefixes_share_one_row(nights: Nights, monkeypatch: pytest.MonkeyPatch, shards_per_task: int) -> None:
    monkeypatch.setattr(night_metrics, "SHARDS_PER_TASK", shards_per_task)
    monkeypatch.setattr(night_statistics, "MAX_PREFIXES", 2)
    nights.add([shot for index in range(4) for shot in _shots(2, seed=index, prefix=f"cam-{index}/")])
    assert {prefix: row["num_images"] for prefix, row in _rows(nights).items()} == {
        None: 8, "cam-0": 2, "cam-1": 2, "(others)": 4
    }  # fmt: skip


def test_however_often_and_wherever_it_died_a_run_has_its_rows_once(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = nights.tables
    run = nights.add(_shots(5, seed=1, prefix="cam/"), publish=False)

    def publish(*, prefix_depth: int) -> Snapshot:
        stage = partial(stage_metrics, tables, run.settings, prefix_depth=prefix_depth)
        return commits.publish(tables, run, stage_of_run=stage)

    for step in ("commit", "promote", "create_snapshot"):  # dies after it has staged, committed, promoted
        with monkeypatch.context() as patched:
            patched.setattr(commits, step, _die)
            with pytest.raises(KeyboardInterrupt):
                publish(prefix_depth=1)
        assert commits.newest_snapshot(tables).number == 0
        assert WHOLE_RUN not in commits.read_commits(tables, "000001")
        commits.sweep(tables, older_than_days=0)  # what is committed and not promoted yet stays
    for depth in (0, 2):  # as other jobs that come to publish the run
        snapshot = publish(prefix_depth=depth)
    assert snapshot.number == 1
    (path,) = [file["path"] for file in snapshot.files if file["table"] == "metrics"]
    assert storage.list_files(storage.join(tables, "metrics")) == [storage.join(tables, path)]
    assert set(_rows(nights)) == {None, "cam"}


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_published_rows_are_live_files_with_a_footer(nights: Nights) -> None:
    nights.add(_shots(2, seed=1))
    snapshot = commits.newest_snapshot(nights.tables)
    (file,) = [file for file in snapshot.files if file["table"] == "metrics"]
    assert file["path"] == "metrics/run_date=2026-11-20/part-000001-run.parquet" and file["num_rows"] == 2
    metadata = pq.read_schema(storage.join(nights.tables, file["path"])).metadata
    assert metadata[b"segpipe.table"] == b"metrics" and metadata[b"segpipe.run_id"] == b"000001"


def test_earlier_nights_are_weighted_by_their_images(nights: Nights) -> None:
    for number, count in enumerate((2, 6, 3)):
        nights.add(_shots(count, seed=number, prefix="cam/"), run_date=f"2026-11-2{number}")
    metrics = read_metrics(nights.tables, commits.newest_snapshot(nights.tables))
    shots = [*_shots(2, seed=0), *_shots(6, seed=1)]
    expected_C = np.mean([np.bincount(shot.mask_HW.ravel(), minlength=4) / 600 for shot in shots], axis=0)
    assert set(earlier_fractions(metrics, "000003")) == {"cam"}
    np.testing.assert_allclose(earlier_fractions(metrics, "000003")["cam"], expected_C, rtol=1e-6)
    assert earlier_fractions(metrics, "000001") == {}
