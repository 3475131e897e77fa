"""The doctor as a job: the same report from any number of workers, its exit codes, and prepared datasets."""

import dataclasses
import json
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from pipelines.datasets.class_folders import ClassFoldersConfig
from pipelines.datasets.scenes import ScenesConfig
from pipelines.doctor import DoctorConfig, DoctorResult, doctor, examine_dataset, sound
from pipelines.exit_codes import UNHEALTHY, JobStoppedError
from pipelines.health.findings import Finding, Severity
from pipelines.health.limits import Limits
from pipelines.health.prepared import PreparedConfig
from pipelines.prepare import PrepareConfig, prepare
from tests.pipelines.health.planted import PLANTS, Files, clean

FILES = {"index.html", "findings.parquet", "images.parquet", "recovery.parquet", "manifest.json"}


def planted(*names: str) -> Files:
    files = clean()
    for name in names:
        PLANTS[name][2](files)
    return files


@pytest.mark.usefixtures("ray_session")
def test_report_is_byte_identical_for_1_and_3_workers_and_says_what_is_wrong(tmp_path: Path) -> None:
    files = planted("a label in colours", "a dark image")
    files.copy("val/25", "val/99")
    output = tmp_path / "out"
    config = DoctorConfig(dataset=files.write(tmp_path / "raw"), output=str(output), workers=1, recovery_images=0)
    with pytest.raises(JobStoppedError, match="33 pairs examined: 1 error, 2 warnings, .*label_in_colours") as stopped:
        doctor(config)
    assert stopped.value.exit_code == UNHEALTHY
    report = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(report) == FILES
    (output / "findings.parquet").write_bytes(b"old")
    examine_dataset(dataclasses.replace(config, workers=3))  # an earlier report is replaced
    assert {path.name: path.read_bytes() for path in output.iterdir()} == report
    page = report["index.html"].decode()
    assert "Label in colours" in page
    assert page.count("data:image/jpeg") >= 6
    found = pq.read_table(output / "findings.parquet").to_pylist()
    assert [(row["code"], row["severity"]) for row in found] == [
        ("label_in_colours", "error"), ("brightness_outlier", "warning"), ("duplicates", "warning")
    ]  # fmt: skip
    assert json.loads(report["manifest.json"])["num_findings"] == {"error": 1, "warning": 2, "note": 0}
    dark = duckdb.sql(f"select image_id from '{output}/images.parquet' order by brightness limit 1").fetchall()
    assert dark == [("train/03",)]
    (output / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files \(.*mine.txt and 0 more\)"):
        doctor(config)


def finding(severity: Severity) -> Finding:
    return Finding(code="x", severity=severity, count=1, splits=("train",), found="a", expected="b", remedy="c")


@pytest.mark.parametrize(
    ("severities", "strict", "ends_well"),
    [
        ((), True, True),
        (("note",), True, True),
        (("warning", "note"), False, True),
        (("warning", "note"), True, False),
        (("error",), False, False),
    ],
)
def test_errors_and_with_strict_warnings_end_the_job_with_its_own_code(
    severities: tuple[Severity, ...], strict: bool, ends_well: bool
) -> None:
    result = DoctorResult(uri="out", num_pairs=7, findings=tuple(finding(severity) for severity in severities))
    if ends_well:
        assert sound(result, strict=strict) is result
        return
    with pytest.raises(JobStoppedError, match="7 pairs examined: .*see out/index.html") as stopped:
        sound(result, strict=strict)
    assert stopped.value.exit_code == UNHEALTHY == 5


@pytest.mark.usefixtures("ray_session")
def test_prepared_dataset_is_examined_with_its_bounds_and_what_was_left_out(tmp_path: Path) -> None:
    prepare(
        PrepareConfig(
            dataset=planted("a label ends early").write(tmp_path / "raw"),
            output=str(tmp_path / "data"),
            images_per_part=9,
            max_failures=0.1,
            workers=2,
        )
    )
    data, output = str(tmp_path / "data"), str(tmp_path / "out")
    result = examine_dataset(
        DoctorConfig(dataset=PreparedConfig(data=data), output=output, recovery_images=4, workers=2)
    )
    assert [(finding.code, finding.severity) for finding in result.findings] == [("left_out_by_prepare", "note")]
    assert result.num_pairs == 31
    bounds = {
        (row["block_side"], row["method"]): row["mean_iou"]
        for row in pq.read_table(tmp_path / "out/recovery.parquet").to_pylist()
    }
    assert len(bounds) == 6
    assert 1 > bounds[8, "bilinear"] > bounds[16, "bilinear"] > bounds[32, "bilinear"] > 0
    assert bounds[8, "basis"] > bounds[8, "bilinear"]
    assert "What enlargement leaves of the labels" in (tmp_path / "out/index.html").read_text()


def test_classification_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"raw/{split}/cat").mkdir(parents=True)
        (tmp_path / f"raw/{split}/cat/1.jpg").write_bytes(clean().images["val/25"])
    config = DoctorConfig(dataset=ClassFoldersConfig(root=str(tmp_path / "raw")), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="'class_folders' is no dataset of images with label maps"):
        doctor(config)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="--recovery-images is -1"):
        DoctorConfig(dataset=ScenesConfig(), output="x", recovery_images=-1)
    with pytest.raises(ValueError, match="--hash-distance is 8, expected 0 to 7"):
        Limits(hash_distance=8)
    with pytest.raises(ValueError, match="--max-void-share is 2, expected 0 to 1"):
        Limits(max_void_share=2)
    with pytest.raises(ValueError, match="--area-ratio is 1, expected above 1"):
        Limits(area_ratio=1)
