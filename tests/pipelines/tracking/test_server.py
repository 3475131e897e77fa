"""The life of runs and models on a real MLflow server, as with a SQLite file; artifacts travel through its proxy."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.checkpoints import read_card
from pipelines.tracking import presence, runs
from tests.pipelines.mlflow_servers import MlflowServer, mlflow_server
from tests.pipelines.processes import command_of, needs_proc
from tests.pipelines.tiny_inputs import write_model
from tests.pipelines.tracked_drivers import tracked_driver, two_at_once

pytestmark = [pytest.mark.slow, needs_proc]

EXPERIMENT = "street"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """As it comes, with its job runner and queues."""
    with mlflow_server(tmp_path_factory.mktemp("server"), with_jobs=True) as started:
        tracking.connect(started.uri)
        yield started


def open_work(key: str, **parameters: Any) -> AbstractContextManager[tracking.TrackedRun]:
    return tracking.tracked_run(
        experiment=EXPERIMENT, name=key, job="train", parameters=parameters, tags={}, work={"key": key}
    )


def test_a_run_is_continued_after_its_driver_was_killed_and_its_model_is_registered(
    server: MlflowServer, tmp_path: Path
) -> None:
    with tracked_driver(server.uri, experiment=EXPERIMENT, key="dup") as driver:
        run_id = driver.run_id
        driver.kill()
    client = MlflowClient()
    assert client.get_run(run_id).info.status == "RUNNING"
    with open_work("another"):
        pass
    marked = client.get_run(run_id)
    assert marked.info.status == "KILLED"
    assert f"process {driver.process.pid} on" in marked.data.tags[tracking.LOST_TAG]

    many = {f"field_{number}": number for number in range(250)}  # the server takes 100 a call
    model = write_model(tmp_path / "model")
    digest = read_card(model)[1]
    with open_work("dup", workers=4, **many) as run:
        assert (run.run_id, run.starts, run.last_step("loss")) == (run_id, 2, 0)
        assert client.get_run(run_id).info.status == "RUNNING"
        tracking.attach(server.uri, run_id).log_metrics({"loss": 2.0}, step=1)
        run.log_bytes("pictures/0.png", b"picture")
        run.log_dataset("s3://lake/camvid", digest="d" * 64, split="train", context="training")
        run.set_tags({tracking.MODEL_DIGEST_TAG: digest})
        version = tracking.register_model(model, name="street", alias="challenger", run_id=run_id)
        assert tracking.register_model(model, name="street", alias="champion", run_id=run_id) == version
    ended = client.get_run(run_id)
    assert ended.info.status == "FINISHED"
    assert run.history("loss") == [(0, 3.0), (1, 2.0)]
    assert ended.data.params["workers"] == "2" and len(ended.data.params) == 251
    assert json.loads(ended.data.tags[runs.CHANGED_TAG]) == {"workers": "4"}
    assert not [tag for tag in ended.data.tags if tag.startswith(presence.DRIVER_PREFIX)]

    assert ended.info.artifact_uri.startswith("mlflow-artifacts:/"), "the client has no place of its own"
    assert [path.read_bytes() for path in server.artifacts.rglob("0.png")] == [b"picture"]
    packed = Path(client.download_artifacts(run_id, "model", str(tmp_path)))
    assert next(packed.rglob("model.safetensors")).read_bytes() == Path(model, "model.safetensors").read_bytes()
    resolved = tracking.resolve_model("models:/street@champion")
    assert (resolved.folder_uri, resolved.model_uri) == (model, f"models:/street/{version}")
    assert [each.run_id for each in tracking.versions_of_model(digest)] == [run_id]
    assert [each.run_id for each in tracking.find_runs_by_tag(tracking.MODEL_DIGEST_TAG, digest, job="train")] == [
        run_id
    ]


def test_two_drivers_that_begin_at_once_share_one_run(server: MlflowServer) -> None:
    with open_work("before"):  # the experiment is there
        pass
    first, second = two_at_once(lambda workers: open_work("race", workers=workers))
    assert first == second
    named = [run for run in tracking.find_runs(experiment=EXPERIMENT, job="train") if run.name == "race"]
    assert [(run.run_id, run.status) for run in named] == [(first, "FINISHED")]


def test_a_server_that_goes_does_not_hide_why_a_job_failed_and_comes_back_to_a_run_that_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), mlflow_server(tmp_path / "server") as first:
        tracking.connect(first.uri)
        family = first.family()
        with open_work("cut off") as run:
            first.stop()
            1 / 0  # noqa: B018
    assert not [command for command in map(command_of, family) if command]
    monkeypatch.setattr(presence, "LOST_SECONDS", 0.0)
    monkeypatch.setattr("pipelines.drivers.Driver.is_alive_here", lambda driver: False)  # as seen from another machine
    with mlflow_server(tmp_path / "server") as again:
        tracking.connect(again.uri)
        assert MlflowClient().get_run(run.run_id).info.status == "RUNNING"
        with open_work("the next"):
            pass
        assert MlflowClient().get_run(run.run_id).info.status == "KILLED"
