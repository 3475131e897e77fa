"""All that a recipe can do for rare classes and for its weights, at once, in trainings that die and that stop early."""

import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
from mlflow import MlflowClient

from pipelines import storage, tracking
from pipelines.checkpoints import WEIGHTS_FILE
from pipelines.train import TrainResult
from pipelines.training.position import checkpoint_name
from pipelines.training.state import AVERAGED_FILE
from tests.pipelines.learnable_dataset import NUM_TRAIN, write_learnable_dataset
from tests.pipelines.processes import needs_proc
from tests.pipelines.trained_jobs import TrainJob, logged_batches, run_id

pytestmark = [pytest.mark.slow, needs_proc]

EPOCHS = 3
STEPS = NUM_TRAIN // 8

PROGRAM = """
import dataclasses
import json
import os
import signal
import sys

from pipelines import cli
from pipelines.train import TrainConfig, train
from segcore.class_balance import SamplingConfig
from segcore.copy_paste import CopyPasteConfig
from segcore.models.main_loss import LossConfig
from tests.pipelines.learnable_dataset import tiny_recipe

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
settings = json.loads(sys.argv[1])
recipe = tiny_recipe(epochs=settings.pop("epochs"))
patience = settings.pop("patience", 0)
rate = 1e-12 if patience else 0.01
recipe = dataclasses.replace(
    recipe,
    loss=LossConfig(main="focal", second="lovasz", class_weights="median_frequency"),
    sampling=SamplingConfig(method="rare_class", temperature=0.2, min_pixels=800),
    copy_paste=CopyPasteConfig(classes=("tree (tall)",), donors=8),
    optim=dataclasses.replace(recipe.optim, learning_rate=rate, layer_decay=0.9, clip_gradient_norm=5.0),
    ema_decay=0.8,
    accumulation=2,
    patience=patience,
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
cli.main(lambda: TrainConfig(recipe=recipe, experiment="tests", **settings), train)
"""


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


def test_a_training_that_dies_within_an_epoch_ends_with_the_same_bits(
    data: str, tracking_uri: str, tmp_path: Path
) -> None:
    """SIGKILL to a worker between two checkpoints. Several terms of the loss come back in one order on all workers."""
    settings: dict[str, object] = {"data": data, "output": str(tmp_path), "workers": 2, "tracking_uri": tracking_uri}
    settings |= {"checkpoint_steps": 2, "epochs": EPOCHS}
    seen, seen_again, log = tmp_path / "seen", tmp_path / "seen again", tmp_path / "killed.log"
    with TrainJob({**settings, "name": "straight"}, tmp_path / "straight.log", program=PROGRAM, batch_log=seen) as job:
        job.finish()
    killed = {**settings, "name": "killed"}
    token = tmp_path / "token"
    faults = f"train.step={STEPS + 3}@{token}"
    with TrainJob(killed, log, program=PROGRAM, faults=faults, batch_log=seen_again) as job:
        worker = job.stopped_at(token)
        job.registered(tmp_path / "killed", checkpoint_name(1, 2))
        os.kill(worker, signal.SIGKILL)
        job.finish()

    assert f"continuing in epoch 2, after 2 of {STEPS} steps" in log.read_text()
    straight, disturbed = logged_batches(seen), logged_batches(seen_again)
    assert straight.keys() == disturbed.keys() and len(straight) == EPOCHS * STEPS * 2
    for key, (visits,) in straight.items():
        assert all(again == visits for again in disturbed[key]), key
    one, two = result_of(tmp_path / "straight"), result_of(tmp_path / "killed")
    for metric in ("train/loss", "train/loss_focal", "train/loss_lovasz", "train/gradient_norm", "val/mean_iou"):
        found = history(one.run_id, metric)
        assert [step for step, _ in found] == list(range(EPOCHS)), metric
        assert history(run_id(tmp_path / "killed"), metric) == found, metric
    assert (one.best_epoch, one.model_digest) == (two.best_epoch, two.model_digest)

    model = safetensors.torch.load_file(Path(one.model_folder, WEIGHTS_FILE))
    best = Path(one.run_folder, checkpoint_name(one.best_epoch))
    raw, averaged = (safetensors.torch.load_file(best / name) for name in (WEIGHTS_FILE, AVERAGED_FILE))
    assert all(tensor.equal(averaged[name]) for name, tensor in model.items()), "the average becomes the model"
    assert any(not tensor.equal(raw[name]) for name, tensor in model.items())
    weights = storage.read_json(f"{one.run_folder}/run.json")["identity"]["class_weights"]
    assert len(weights) == 4 and weights[3] == 0, "the class that never occurs has none"


def test_a_training_without_progress_stops_early_and_stays_stopped(
    data: str, tracking_uri: str, tmp_path: Path
) -> None:
    """With a learning rate of nothing the score stays what it is."""
    settings: dict[str, object] = {"data": data, "output": str(tmp_path), "name": "idle", "tracking_uri": tracking_uri}
    settings |= {"workers": 1, "epochs": 40, "patience": 2}
    log, result = tmp_path / "log", tmp_path / "idle" / "result.json"
    for _ in range(2):  # the second time as after a death just before the result was written
        with TrainJob(settings, log, program=PROGRAM) as job:
            job.finish()
        found = result_of(tmp_path / "idle")
        epochs = [step for step, _ in history(found.run_id, "train/loss")]
        assert epochs == list(range(found.epochs)) and 3 <= found.epochs < 40
        said = log.read_text()
        assert f"stopped after epoch {found.epochs}: the last 2 validation(s) brought no better score" in said, said
        assert f"trained {found.epochs} epochs" in said
        result.unlink()
