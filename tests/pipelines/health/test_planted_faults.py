"""Each fault, planted alone into a clean dataset, gives its finding and no other; the clean one gives none."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.datasets import DatasetListing, list_dataset
from pipelines.datasets.camvid import CamVidConfig
from pipelines.datasets.scenes import ScenesConfig
from pipelines.doctor import find
from pipelines.health.facts import examine_samples
from pipelines.health.file_checks import FAULTS
from pipelines.health.findings import Finding
from pipelines.health.limits import Limits
from pipelines.health.survey import Survey, survey_of
from tests.pipelines.health.planted import PLANTS, clean


def survey(listing: object) -> Survey:
    assert isinstance(listing, DatasetListing)
    return survey_of(listing, [examine_samples(listing.samples, listing.read, listing.class_table)])


def findings_of(listing: object) -> list[Finding]:
    return find(survey(listing), Limits())[0]


def test_the_clean_dataset_gives_no_finding_of_any_severity(tmp_path: Path) -> None:
    assert findings_of(list_dataset(clean().write(tmp_path))) == []


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_gives_its_finding_alone(name: str, tmp_path: Path) -> None:
    code, severity, plant = PLANTS[name]
    files = clean()
    plant(files)
    findings = findings_of(list_dataset(files.write(tmp_path)))
    assert {(finding.code, finding.severity) for finding in findings} == {(code, severity)}
    for finding in findings:
        assert finding.count >= 1
        assert finding.splits
        assert all((finding.found, finding.expected, finding.remedy))


def test_every_fault_of_a_pair_is_planted() -> None:
    planted = {code for code, _, _ in PLANTS.values()}
    assert set(FAULTS) <= planted
    assert len(planted) >= 25


def test_findings_name_the_image_that_is_at_fault(tmp_path: Path) -> None:
    for code, _, plant in PLANTS.values():
        if code not in ("size_differs", "label_in_colours", "size_outlier", "brightness_outlier", "duplicates"):
            continue
        files = clean()
        plant(files)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (finding,) = findings_of(list_dataset(files.write(folder)))
        assert "train/03" in finding.examples[0].image_ids


def test_two_faults_are_both_found(tmp_path: Path) -> None:
    files = clean()
    for name in ("an image in two splits", "a label lacks a row"):
        PLANTS[name][2](files)
    del files.labels["val/25"], files.labels["train/07"]
    findings = findings_of(list_dataset(files.write(tmp_path)))
    assert [(finding.code, finding.count) for finding in findings] == [
        ("duplicates_across_splits", 1),
        ("size_differs", 1),
        ("unpaired_files", 2),
    ]


def test_generated_scenes_raise_no_alarm() -> None:
    listing = list_dataset(ScenesConfig(num_train=20, num_val=6, height=120, width=160))
    assert findings_of(listing) == []


@pytest.mark.slow
def test_the_generated_scenes_as_prepared_by_default_raise_no_alarm() -> None:
    assert findings_of(list_dataset(ScenesConfig())) == []


def test_a_part_of_camvid_raises_no_alarm(camvid_source: Path) -> None:
    listing = list_dataset(CamVidConfig(root=str(camvid_source)))
    assert isinstance(listing, DatasetListing)
    some = dataclasses.replace(listing, samples=listing.samples[::8])
    assert [finding for finding in findings_of(some) if finding.severity != "note"] == []


@pytest.mark.slow
def test_camvid_raises_no_alarm_and_its_frames_look_alike_within_a_split_alone(camvid_source: Path) -> None:
    findings = findings_of(list_dataset(CamVidConfig(root=str(camvid_source))))
    assert [(finding.code, finding.severity) for finding in findings] == [("near_duplicates_within_split", "note")]
