"""`segment --plan`: counts, time and cost of what would be done, and not a byte written."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.nightly.config import SegmentConfig, checked_places
from pipelines.nightly.forecast import summary_uri
from pipelines.nightly.listing import take_listing
from pipelines.nightly.plan import compare, plan_work, work_ids
from pipelines.nightly.preview import Amount, preview
from pipelines.segment import find_models, identity_digests
from pipelines.tables import commits
from tests.pipelines.committed_nights import CLASS_NAMES, PALETTE, commit_night, create_night
from tests.pipelines.tiny_inputs import write_model


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "street", class_names=CLASS_NAMES)


@pytest.fixture
def config(tmp_path: Path, model: str) -> SegmentConfig:
    (tmp_path / "images").mkdir()
    return SegmentConfig(
        images=str(tmp_path / "images"), model=model, tables=str(tmp_path / "tables"), plan=True, images_per_shard=2
    )


def _write(config: SegmentConfig, names: str, *, size_bytes: int = 1000) -> None:
    for name in names:
        Path(config.images, f"{name}.jpg").write_bytes(bytes(size_bytes))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _plan_a_night(config: SegmentConfig, *, publish: bool) -> str:
    """What `segment` would have left, had it run; returns the run's id."""
    config, members, card = find_models(checked_places(config))
    assert (card.class_names, card.palette) == (CLASS_NAMES, PALETTE)
    model_digest, config_digest = identity_digests(members, config.tiling)
    listing = take_listing(config.images)
    ids = work_ids(listing.objects, model_digest=model_digest, config_digest=config_digest)
    snapshot = commits.newest_snapshot(config.tables)
    run_id = commits.next_run_id(snapshot)
    comparison = compare(listing, ids, config.tables, snapshot)
    plan = plan_work(listing, ids, comparison, run_id=run_id, images_per_shard=2, workers=1)
    do = commit_night if publish else create_night
    do(config.tables, plan, model=model_digest, config=config_digest)
    return run_id


def test_a_plan_says_what_there_is_to_do_and_writes_nothing(
    config: SegmentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a plan needs neither Ray nor MLflow")

    monkeypatch.setattr("pipelines.segment.actor_cluster", refuse)
    monkeypatch.setattr("pipelines.tracking.connect", refuse)
    _write(config, "abcde")
    before = _files(tmp_path)
    first = preview(replace(config, cost_per_hour=3.0))
    assert first.reasons == {"new": Amount(count=5, num_bytes=5000)}
    assert (first.num_shards, first.num_present, first.marks) == (3, 0, {})
    assert first.forecast is None and first.cost is None
    assert "predicted time and cost: unknown, since no run with this model" in first.closing_line
    assert _files(tmp_path) == before and not Path(config.tables).exists()

    run_id = _plan_a_night(config, publish=True)
    summary = {"images_per_second": 0.5, "workers": 1, "threads": 2, "use_gpu": False}
    storage.write_atomic(summary_uri(config.tables, run_id), json.dumps(summary).encode())
    Path(config.images, "e.jpg").unlink()
    _write(config, "a", size_bytes=1500)
    _write(config, "xyz")
    before = _files(tmp_path)
    second = preview(replace(config, cost_per_hour=3.0))
    assert second.reasons == {"new": Amount(count=3, num_bytes=3000), "changed": Amount(count=1, num_bytes=1500)}
    assert list(second.reasons) == ["new", "changed"]
    assert (second.num_shards, second.num_present, second.marks) == (4, 3, {"deleted": 1})
    assert second.forecast is not None and second.forecast.seconds == pytest.approx(8)
    assert second.cost == pytest.approx(8 / 3600 * 3)
    lines = second.closing_line.splitlines()
    assert lines[0].endswith("nothing was run")
    assert [line.split()[:3] for line in lines[1:6]] == [
        ["new", "3", "images"],
        ["changed", "1", "images"],
        ["to", "segment", "4"],
        ["present", "3", "images"],
        ["deleted", "1", "objects,"],
    ]
    assert "predicted time: 0:00:08 and the start-up, at 0.5 images/s with 1 worker(s), by 1 earlier run" in lines[6]
    assert lines[7] == "  predicted cost: 0.01 at 3.00 per hour"
    assert _files(tmp_path) == before


def test_what_an_unfinished_run_has_planned_is_not_planned_twice(config: SegmentConfig) -> None:
    _write(config, "abcde")
    _plan_a_night(config, publish=False)
    _write(config, "f")
    found = preview(config)
    assert found.unfinished == {"000001": Amount(count=5, num_bytes=5000)}
    assert found.reasons == {"new": Amount(count=1, num_bytes=1000)}
    assert "unfinished; done first" in found.closing_line
    given_up = preview(replace(config, abandon_unfinished=True))
    assert given_up.unfinished == {} and given_up.reasons["new"].count == 6


def test_a_plan_is_refused_as_the_run_would_be(config: SegmentConfig, tmp_path: Path) -> None:
    _write(config, "abcd")
    _plan_a_night(config, publish=True)
    other = write_model(tmp_path / "other", class_names=("sky", "road", "tree"))
    with pytest.raises(ValueError, match="have different classes"):
        preview(replace(config, model=other))
    for name in "abc":
        Path(config.images, f"{name}.jpg").unlink()
    with pytest.raises(ValueError, match="3 objects .* --accept-deletions"):
        preview(config)
    assert preview(replace(config, accept_deletions=True)).marks == {"deleted": 3}


def test_settings_that_make_no_sense_are_refused(config: SegmentConfig) -> None:
    with pytest.raises(ValueError, match="neither --images nor --manifest is given"):
        replace(config, images="")
    with pytest.raises(ValueError, match="--retry 'fetching' is no stage; expected some of list, fetch, sniff"):
        replace(config, retry=("decode", "fetching"))
    with pytest.raises(ValueError, match="--cost-per-hour -1.0; give 0 or more"):
        replace(config, cost_per_hour=-1.0)
