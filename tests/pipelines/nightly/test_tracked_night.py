"""An interrupted night and its continuation are one run in MLflow, the next night is another."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.ensembles import MemberModel
from pipelines.nightly.config import SegmentConfig
from pipelines.nightly.tracked_night import log_night, note_table_runs, tracked_night
from segcore.inference import InferenceConfig
from tests.pipelines.night_tables import blocky_masks, publish_night

SECRET = "hunter2"
MEMBERS = (
    MemberModel(
        model_uri="models:/street/3",
        model_version="3",
        model_folder="s3://models/street",
        model_digest="m" * 64,
        inference=InferenceConfig(),
    ),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db")


@pytest.fixture
def config(tmp_path: Path) -> SegmentConfig:
    return SegmentConfig(model="models:/street@champion", images="s3://cams", tables=str(tmp_path / "tables"))


def publish(config: SegmentConfig, run_id: str, names: tuple[str, ...], *, failed: tuple[str, ...] = ()) -> None:
    publish_night(config.tables, run_id, dict(zip(names, blocky_masks(len(names), seed=1), strict=True)), failed=failed)


def test_a_night_over_two_starts_is_one_run_with_the_figures_of_both(store: str, config: SegmentConfig) -> None:
    with pytest.raises(KeyboardInterrupt), tracked_night(config, config, MEMBERS) as first:
        note_table_runs(first, ["000001"])
        publish(config, "000001", ("a", "b", "c"), failed=("d",))
        raise KeyboardInterrupt
    restarted = dataclasses.replace(config, workers=4, use_gpu=True, page=False, webhook="https://hooks/else")
    with tracked_night(restarted, restarted, MEMBERS) as second:
        publish(config, "000002", ("e", "f"))
        log_night(second, config.tables, ["000002"], images_per_second=5.0)
    assert second.run_id == first.run_id
    (night,) = tracking.find_runs_by_tag(tracking.TABLES_TAG, config.tables, job="segment")
    assert night.metrics == {"num_images": 5, "num_failures": 1, "images_per_second": 5.0}
    assert night.parameters["workers"] == "1" and night.parameters["model"] == "models:/street/3"
    expected = {
        tracking.TABLE_RUNS_TAG: ",000001,000002,",
        tracking.SNAPSHOT_TAG: "2",
        tracking.STARTS_TAG: "2",
        tracking.MODEL_VERSION_TAG: "models:/street/3",
        tracking.MODEL_DIGEST_TAG: "m" * 64,
        tracking.MEMBERS_TAG: f",{'m' * 64},",
    }
    assert {name: night.tags[name] for name in expected} == expected


def test_a_driver_that_dies_at_its_last_step_leaves_no_step_twice(store: str, config: SegmentConfig) -> None:
    publish(config, "000001", ("a",))
    for _ in range(2):
        with pytest.raises(RuntimeError), tracked_night(config, config, MEMBERS) as tracked:
            log_night(tracked, config.tables, ["000001"], images_per_second=math.nan)
            raise RuntimeError
    assert tracked.history("num_images") == [(0, 1.0), (1, 1.0)]


def test_the_next_night_and_other_images_have_runs_of_their_own(store: str, config: SegmentConfig) -> None:
    other = dataclasses.replace(config, images="s3://others")
    run_ids = []
    for asked in (config, config, other):
        with tracked_night(asked, asked, MEMBERS) as tracked:
            log_night(tracked, config.tables, [], images_per_second=math.nan)
        run_ids.append(tracked.run_id)
    assert len(set(run_ids)) == 3
    assert tracked.tag(tracking.TABLE_RUNS_TAG) == "" and tracked.history("num_images") == [(0, 0.0)]


def test_the_webhooks_path_and_the_servers_password_are_not_told(store: str, config: SegmentConfig) -> None:
    secret = dataclasses.replace(
        config, webhook=f"https://user:{SECRET}@hooks.example/{SECRET}", tracking_uri=f"http://me:{SECRET}@mlflow:5000"
    )
    with tracked_night(secret, secret, MEMBERS) as tracked:
        pass
    run = tracked.client.get_run(tracked.run_id)
    assert (run.data.params["webhook"], run.data.params["tracking_uri"]) == ("hooks.example", "http://***@mlflow:5000")
    assert SECRET not in str(run.to_dictionary())
