"""Trainings that die within an epoch: the same batches, the same loss, the same scores, and nothing logged twice."""

import os
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import storage, tracking
from pipelines.train import TrainResult
from pipelines.training.position import checkpoint_name, latest_checkpoint, place_of
from tests.pipelines.learnable_dataset import NUM_TRAIN, write_learnable_dataset
from tests.pipelines.processes import needs_proc
from tests.pipelines.trained_jobs import TrainJob, logged_batches, run_id

pytestmark = [pytest.mark.slow, needs_proc]

EPOCHS, BATCH_SIZE = 6, 8
STEPS = NUM_TRAIN // BATCH_SIZE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db")


def history(run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run, metric)]


def result_of(run_folder: Path) -> TrainResult:
    return TrainResult(**storage.read_json(str(run_folder / "result.json")))


def test_six_epochs_straight_equal_six_epochs_with_two_kills(data: str, tracking_uri: str, tmp_path: Path) -> None:
    """SIGKILL to a worker in the middle of the second epoch and to the driver in the middle of the fourth."""
    settings = {
        "data": data,
        "output": str(tmp_path),
        "workers": 2,
        "tracking_uri": tracking_uri,
        "checkpoint_steps": 2,
        "epochs": EPOCHS,
    }
    with TrainJob({**settings, "name": "straight"}, tmp_path / "straight.log", batch_log=tmp_path / "seen") as job:
        job.finish()
    killed = {**settings, "name": "killed"}
    tokens = [tmp_path / "first", tmp_path / "second"]
    faults = f"train.step={STEPS + 3}@{tokens[0]},train.step={3 * STEPS + 3}@{tokens[1]}"
    log, seen = tmp_path / "killed.log", tmp_path / "seen again"
    with TrainJob(killed, log, faults=faults, batch_log=seen) as job:
        worker = job.stopped_at(tokens[0])
        job.registered(tmp_path / "killed", checkpoint_name(1, 2))
        os.kill(worker, signal.SIGKILL)
        job.stopped_at(tokens[1])
        job.registered(tmp_path / "killed", checkpoint_name(3, 2))
        job.kill_all()
    assert not (tmp_path / "killed" / "result.json").exists()
    with TrainJob(killed, log, batch_log=seen) as job:
        job.finish()

    said = log.read_text()
    assert f"continuing in epoch 2, after 2 of {STEPS} steps" in said, said
    assert f"continuing in epoch 4, after 2 of {STEPS} steps" in said, said
    straight, disturbed = logged_batches(tmp_path / "seen"), logged_batches(seen)
    assert len(straight) == EPOCHS * STEPS * 2 and straight.keys() == disturbed.keys()
    for key, (rows,) in straight.items():
        assert all(visit == rows for visit in disturbed[key]), key
    repeated = {key[:2] for key, visits in disturbed.items() if len(visits) > 1}
    assert repeated and repeated <= {(1, 2), (1, 3), (3, 2), (3, 3)}  # no more than what lies after the checkpoints

    one, two = result_of(tmp_path / "straight"), result_of(tmp_path / "killed")
    losses = history(one.run_id, "train/loss")
    again = history(run_id(tmp_path / "killed"), "train/loss")
    assert [step for step, _ in losses] == [step for step, _ in again] == list(range(EPOCHS))
    assert again[-1][1] == pytest.approx(losses[-1][1], rel=1e-3)
    assert again == losses  # on CPUs to the last bit
    assert history(one.run_id, "train/learning_rate") == history(two.run_id, "train/learning_rate")
    assert history(one.run_id, "val/mean_iou") == history(two.run_id, "val/mean_iou")
    assert (one.best_epoch, one.scores, one.model_digest) == (two.best_epoch, two.scores, two.model_digest)
    assert MlflowClient().get_run(two.run_id).info.status == "FINISHED"
    kept = {path.name for path in (tmp_path / "killed").glob("checkpoint-*") if path.is_dir()}
    assert kept == {f"checkpoint-{one.best_epoch:05d}", f"checkpoint-{EPOCHS - 1:05d}"}


@pytest.mark.parametrize("point", ["train.write", "train.written"])
def test_a_driver_that_dies_while_a_checkpoint_is_written_resumes_from_the_one_before(
    data: str, tracking_uri: str, tmp_path: Path, point: str
) -> None:
    settings = {
        "data": data,
        "output": str(tmp_path),
        "name": "cut",
        "workers": 1,
        "tracking_uri": tracking_uri,
        "checkpoint_steps": 1,
        "epochs": 2,
    }
    token = tmp_path / "token"
    with TrainJob(settings, tmp_path / "log", faults=f"{point}={STEPS + 2}@{token}") as job:
        job.stopped_at(token)
        job.registered(tmp_path / "cut", checkpoint_name(1, 1))
        job.kill_all()
    with TrainJob(settings, tmp_path / "log") as job:
        job.finish()
    assert f"continuing in epoch 2, after 1 of {STEPS} steps" in (tmp_path / "log").read_text()
    assert [step for step, _ in history(run_id(tmp_path / "cut"), "train/loss")] == [0, 1]


def test_sigterm_leaves_a_checkpoint_within_the_epoch(data: str, tracking_uri: str, tmp_path: Path) -> None:
    settings = {
        "data": data,
        "output": str(tmp_path),
        "name": "told",
        "workers": 2,
        "tracking_uri": tracking_uri,
        "checkpoint_minutes": 0.0,
        "epochs": 200,
    }
    log = tmp_path / "log"
    with TrainJob(settings, log) as job:
        job.wait_for(lambda: "epoch 1/" in log.read_text())
        job.driver.send_signal(signal.SIGTERM)
        assert job.driver.wait(timeout=60) == 130, job.said()
    said = log.read_text()
    assert "stopping after a checkpoint" in said and "Traceback" not in said, said
    written = re.search(r"checkpoint in epoch (\d+) after (\d+) of \d+ steps: the job is told to stop", said)
    assert written is not None, said
    latest = latest_checkpoint(str(tmp_path / "told"))
    assert latest is not None  # that one, or that of the epoch's end, where the steps were quicker than the signal
    assert place_of(Path(latest).name) >= (int(written[1]) - 1, int(written[2]))
    assert MlflowClient().get_run(run_id(tmp_path / "told")).info.status == "KILLED"
