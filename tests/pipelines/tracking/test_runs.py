"""One run for one piece of work, over restarts and deaths; each has the status that its job has."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import tracking
from pipelines.drivers import Driver
from pipelines.manifests import digest
from pipelines.tracking import claims, presence, runs
from tests.pipelines.processes import needs_proc
from tests.pipelines.tracked_drivers import tracked_driver, two_at_once

EXPERIMENT = "work"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One SQLite store for all tests here: its migrations take seconds."""
    yield tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db")


def open_work(
    key: str, parameters: dict[str, Any] | None = None, *, tags: dict[str, str] | None = None
) -> AbstractContextManager[tracking.TrackedRun]:
    return tracking.tracked_run(
        experiment=EXPERIMENT,
        name=key,
        job="train",
        parameters=parameters or {"workers": 1},
        tags=tags or {},
        work={"key": key},
    )


def read(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


def drivers_of(run: Run) -> list[str]:
    return [tag for tag in run.data.tags if tag.startswith(presence.DRIVER_PREFIX)]


def foreign_driver(*, silent_seconds: float, host: str = "elsewhere") -> dict[str, str]:
    """The tag of a driver on another machine, of which nothing can be known but what it says."""
    driver = dataclasses.asdict(dataclasses.replace(Driver.this_process(), host=host))
    return {f"{presence.DRIVER_PREFIX}0": json.dumps(driver | {"beat": time.time() - silent_seconds})}


def work_tag(key: str) -> dict[str, str]:
    """The tag by which `open_work(key)` finds its run."""
    return {claims.WORK_TAG: digest({"job": "train", "work": {"key": key}})}


def lost_run(name: str, tags: dict[str, str]) -> str:
    """A run as a driver leaves it that has no time to say anything."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None, "a test before this one has opened a run"
    return str(client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id)


def test_interrupted_work_is_one_run_and_finished_work_begins_anew(store: str) -> None:
    with pytest.raises(KeyboardInterrupt), open_work("night") as first:
        first.log_metrics({"loss": 2.0}, step=0)
        raise KeyboardInterrupt
    assert read(first.run_id).info.status == "KILLED"
    with pytest.raises(RuntimeError), open_work("night") as second:
        raise RuntimeError
    assert (second.run_id, second.starts) == (first.run_id, 2)
    assert read(first.run_id).info.status == "FAILED"
    with open_work("night") as third:
        assert read(first.run_id).info.status == "RUNNING"
    assert (third.run_id, third.starts) == (first.run_id, 3)
    run = read(first.run_id)
    assert run.info.status == "FINISHED" and not drivers_of(run)
    assert (run.data.tags[tracking.STARTS_TAG], run.data.metrics) == ("3", {"loss": 2.0})
    with open_work("night") as next_night, open_work("another") as other:
        pass
    assert len({first.run_id, next_night.run_id, other.run_id}) == 3
    assert (next_night.starts, other.starts) == (1, 1)


def test_work_that_its_folder_names_is_found_by_the_folder_alone(store: str) -> None:
    """The folder was removed: the same work begins anew, in a run of its own."""
    with pytest.raises(RuntimeError), open_work("recorded") as first:
        first.set_tags({tracking.RECORDED_TAG: "runs/recorded"})
        raise RuntimeError
    with open_work("recorded") as second:
        assert second.run_id != first.run_id


def test_parameters_are_of_the_first_start_and_a_later_one_says_what_it_was_given_otherwise(store: str) -> None:
    with pytest.raises(RuntimeError), open_work("parameters", {"workers": 2, "data": {"uri": "a"}}) as run:
        raise RuntimeError
    with open_work("parameters", {"workers": 4, "data": {"uri": "a"}, "new": "x"}):
        pass
    data = read(run.run_id).data
    given = {"workers": "2", "data.uri": "a", "new": "x"}  # what is missing is added
    assert data.params == given | {claims.CLAIM_PARAMETER: claims.HELD}
    assert json.loads(data.tags[runs.CHANGED_TAG]) == {"workers": "4"}


def test_passwords_are_in_no_parameter_and_no_tag(store: str) -> None:
    secret = "https://mlflow:hunter2@host:5000/x"
    with open_work("secret", {"tracking_uri": secret, "list": ("a", secret)}, tags={"where": secret}) as run:
        run.log_dataset("s3://key:hunter2@lake/camvid", digest="d" * 64, split="val", context="evaluation")
    found = read(run.run_id)
    assert found.data.params["tracking_uri"] == found.data.tags["where"] == "https://***@host:5000/x"
    assert "hunter2" not in json.dumps(found.to_dictionary())


def test_a_metric_that_a_run_has_once_is_logged_once(store: str) -> None:
    with pytest.raises(RuntimeError), open_work("once") as first:
        first.log_once({"parameters": 5.0})
        raise RuntimeError
    with open_work("once") as second:
        second.log_once({"parameters": 5.0, "multiply_adds": 7.0})
    assert second.history("parameters") == [(0, 5.0)] and second.history("multiply_adds") == [(0, 7.0)]


def test_datasets_are_inputs_of_a_run_once(store: str) -> None:
    for attempt in range(2):
        with pytest.raises(RuntimeError), open_work("inputs") as run:
            for split, context in (("train", "training"), ("val", "validation")):
                run.log_dataset("s3://lake/camvid", digest="d" * 64, split=split, context=context)
            raise RuntimeError(attempt)
    inputs = read(run.run_id).inputs.dataset_inputs
    found = [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in inputs]
    assert sorted(found) == [("camvid/train", "d" * 36, "training"), ("camvid/val", "d" * 36, "validation")]


@pytest.mark.parametrize("late", [False, True])
def test_of_two_drivers_that_begin_at_once_one_joins_the_other(store: str, late: bool) -> None:
    """Both look for the work's run before either has created one; in the end the older start time arrives later."""
    with open_work("before"):  # the experiment is there
        pass
    name = f"race, late {late}"
    first, second = two_at_once(lambda workers: open_work(name, {"workers": workers}), late=late)
    assert first == second
    assert [run.run_id for run in tracking.find_runs(experiment=EXPERIMENT, job=None) if run.name == name] == [first]
    assert read(first).info.status == "FINISHED"


def test_a_run_that_no_driver_came_to_hold_gives_way(store: str) -> None:
    """Its driver died between two requests."""
    with open_work("any"):
        pass
    dead = lost_run("died", work_tag("died"))
    with open_work("died") as run:
        assert run.run_id != dead and run.starts == 1
    assert read(dead).info.lifecycle_stage == "deleted"


def test_an_unfinished_run_of_an_earlier_version_is_continued(store: str) -> None:
    """It has parameters, but no claim."""
    with open_work("any"):
        pass
    earlier = lost_run("earlier", work_tag("earlier"))
    MlflowClient().log_param(earlier, "workers", 1)
    with open_work("earlier") as run:
        assert run.run_id == earlier


def test_a_second_driver_that_is_refused_does_not_end_the_run_of_the_first(store: str) -> None:
    with open_work("shared") as first:
        with pytest.raises(ValueError, match="busy"), open_work("shared") as second:
            assert second.run_id == first.run_id
            raise ValueError("busy")
        run = read(first.run_id)
        assert run.info.status == "RUNNING" and len(drivers_of(run)) == 1
    assert read(first.run_id).info.status == "FINISHED"


def test_a_driver_says_that_it_is_alive_until_it_ends(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.02)
    with open_work("beats") as run:
        (tag,) = drivers_of(read(run.run_id))
        first = json.loads(read(run.run_id).data.tags[tag])
        deadline = time.monotonic() + 30
        while json.loads(run.tag(tag))["beat"] == first["beat"]:
            assert time.monotonic() < deadline, "no beat"
            time.sleep(0.02)
    assert drivers_of(read(run.run_id)) == []


@needs_proc
def test_only_runs_whose_drivers_are_dead_are_marked(store: str) -> None:
    with open_work("any"):
        pass
    own = {f"{presence.DRIVER_PREFIX}1": json.dumps(dataclasses.asdict(Driver.this_process()) | {"beat": 0.0})}
    dead = dataclasses.replace(Driver.this_process(), started_ticks="1")
    here = {f"{presence.DRIVER_PREFIX}2": json.dumps(dataclasses.asdict(dead) | {"beat": time.time()})}
    expected = {
        lost_run("dead here", here): "KILLED",
        lost_run("silent elsewhere", foreign_driver(silent_seconds=2 * presence.LOST_SECONDS)): "KILLED",
        lost_run("heard of elsewhere", foreign_driver(silent_seconds=5)): "RUNNING",
        lost_run("lives here, silent", own): "RUNNING",
        lost_run("one of two lives", here | foreign_driver(silent_seconds=5)): "RUNNING",
        lost_run("of an older version", {}): "RUNNING",
    }
    with open_work("the next job"):
        pass
    assert {run_id: read(run_id).info.status for run_id in expected} == expected
    for run_id in [run_id for run_id, status in expected.items() if status == "KILLED"]:
        run = read(run_id)
        assert "ended without a word" in run.data.tags[tracking.LOST_TAG]
        assert "by train 'the next job'" in run.data.tags[tracking.LOST_TAG]
        assert drivers_of(run) == []


def test_a_run_whose_work_is_done_is_settled_unless_somebody_works_on_it(store: str) -> None:
    with open_work("any"):
        pass
    lost = lost_run("done", foreign_driver(silent_seconds=2 * presence.LOST_SECONDS))
    tracking.settle(lost)
    assert read(lost).info.status == "FINISHED"
    alive = lost_run("works", foreign_driver(silent_seconds=5))
    tracking.settle(alive)
    assert read(alive).info.status == "RUNNING"
    tracking.settle("of another store")


def test_runs_are_found_by_tags_in_every_experiment(store: str) -> None:
    path = "s3://lake/o'hara"
    for experiment in ("one", "two"):
        with tracking.tracked_run(
            experiment=experiment, name=experiment, job="segment", parameters={}, tags={tracking.TABLES_TAG: path}
        ):
            pass
    found = tracking.find_runs_by_tag(tracking.TABLES_TAG, path, job="segment")
    assert [run.name for run in found] == ["two", "one"]
    assert tracking.find_runs_by_tag(tracking.TABLES_TAG, "s3://%hara", job="segment") == found
    assert tracking.find_runs_by_tag(tracking.TABLES_TAG, path, job="train") == []


@needs_proc
def test_the_run_of_a_killed_driver_is_marked_by_the_next_job_and_continued_by_the_next_start(store: str) -> None:
    with tracked_driver(store, experiment=EXPERIMENT, key="killed") as driver:
        run_id = driver.run_id
        with open_work("while it lives"):
            assert read(run_id).info.status == "RUNNING"
        driver.kill()
    assert read(run_id).info.status == "RUNNING"
    with open_work("another job"):
        pass
    marked = read(run_id)
    assert marked.info.status == "KILLED"
    assert f"process {driver.process.pid} on" in marked.data.tags[tracking.LOST_TAG]
    assert marked.info.end_time < marked.info.start_time + 60_000, "ends when it was last heard of"
    with open_work("killed") as again:
        assert again.run_id == run_id and again.last_step("loss") == 0
        assert read(run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 2.0}, step=1)
    assert again.history("loss") == [(0, 3.0), (1, 2.0)]
    assert read(run_id).info.status == "FINISHED"
