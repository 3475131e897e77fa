"""Training end to end on Ray: what a finished run leaves, how a dead one goes on, and what is refused at the start."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.torch
from mlflow import MlflowClient

from pipelines import storage, tracking
from pipelines import train as train_module
from pipelines.checkpoints import WEIGHTS_FILE, load_model
from pipelines.night_report.references import read_reference
from pipelines.train import TrainConfig, TrainResult, train
from segcore.models import DUpsamplingConfig
from tests.pipelines.learnable_dataset import tiny_recipe, write_learnable_dataset
from tests.pipelines.processes import command_of, descendants
from tests.pipelines.tiny_inputs import write_model

EPOCHS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db")


@pytest.fixture(scope="module")
def base(data: str, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two workers; every test that trains gives its own name or compares with this run."""
    return TrainConfig(
        recipe=tiny_recipe(epochs=EPOCHS),
        data=data,
        output=str(tmp_path_factory.mktemp("runs")),
        name="whole",
        workers=2,
        experiment="tests",
        tracking_uri=tracking_uri,
        register="tiny",
    )


@pytest.fixture(scope="module")
def finished(base: TrainConfig, ray_session: None) -> TrainResult:
    return train(base)


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, metric)]


def test_a_run_ends_with_a_model_folder_and_a_registered_version(base: TrainConfig, finished: TrainResult) -> None:
    assert finished.run_folder == str(Path(base.output, "whole"))
    bundle = load_model(finished.model_folder)
    assert bundle.digest == finished.model_digest
    assert bundle.card.class_names[1] == "road" and bundle.card.scores == finished.scores
    assert bundle.card.recipe["optim"]["learning_rate"] == 0.02
    assert bundle.card.input_policy.crop_height == 64 and bundle.card.input_policy.image_height in (48, 56, 64)
    assert finished.model_uri == "models:/tiny/1"
    assert tracking.resolve_model("models:/tiny@challenger").folder_uri == finished.model_folder
    assert "val mIoU" in finished.closing_line and finished.model_folder in finished.closing_line
    reference = read_reference(finished.model_folder)
    assert reference is not None and reference.split == "val" and reference.num_images > 0
    assert reference.class_names == bundle.card.class_names
    assert reference.dataset_digest == bundle.card.dataset_digest


def test_every_epoch_is_logged_once_and_the_loss_falls(finished: TrainResult) -> None:
    losses = history(finished.run_id, "train/loss")
    assert [step for step, _ in losses] == list(range(EPOCHS))
    assert losses[-1][1] < 0.8 * losses[0][1]
    assert losses[0][1] < 3 * math.log(4)  # about ln C at the start
    ious = history(finished.run_id, "val/mean_iou")
    assert max(value for _, value in ious) == finished.scores["val/mean_iou"]
    assert dict(ious)[finished.best_epoch] == finished.scores["val/mean_iou"]


def test_mlflow_holds_what_a_run_was_and_cost(base: TrainConfig, finished: TrainResult) -> None:
    run = MlflowClient().get_run(finished.run_id)
    assert run.info.status == "FINISHED"
    for metric in ("train/learning_rate", "train/images_per_second", "val/pixel_accuracy", "val/mean_accuracy"):
        assert metric in run.data.metrics
    assert "val/iou/tree _tall_" in run.data.metrics and "val/iou/road" in run.data.metrics
    assert "val/iou/never" not in run.data.metrics  # occurs neither in truth nor in prediction, or has IoU 0
    network = load_model(finished.model_folder).model
    assert run.data.metrics["model/parameters"] == sum(each.numel() for each in network.parameters())
    assert run.data.metrics["model/multiply_adds"] > 0 and run.data.metrics["train/seconds"] > 0
    assert run.data.params["recipe.optim.learning_rate"] == "0.02"
    assert run.data.tags["segpipe.job"] == "train"
    assert run.data.tags["segpipe.model_folder"] == finished.model_folder
    assert run.data.tags["segpipe.dataset_digest"] == load_model(finished.model_folder).card.dataset_digest
    assert run.data.tags["segpipe.model_digest"] == finished.model_digest
    assert run.data.tags["segpipe.model_version"] == finished.model_uri
    inputs = {each.dataset.name.rpartition("/")[2]: each.tags[0].value for each in run.inputs.dataset_inputs}
    assert inputs == {"train": "training", "val": "validation"}
    names = {file.path for file in MlflowClient().list_artifacts(finished.run_id)}
    assert {"recipe.json", "pictures", "model", "learning.png"} <= names
    pictures = MlflowClient().list_artifacts(finished.run_id, "pictures")
    assert len(pictures) == train_module.NUM_PICTURES


def test_the_best_and_the_latest_checkpoint_are_kept(finished: TrainResult) -> None:
    kept = {Path(path).name for path in Path(finished.run_folder).glob("checkpoint-*")}
    assert kept == {f"checkpoint-{finished.best_epoch:05d}", f"checkpoint-{EPOCHS - 1:05d}"}


def test_a_finished_run_comes_back_without_a_cluster(
    base: TrainConfig, finished: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: object) -> None:
        raise AssertionError("no cluster is needed")

    monkeypatch.setattr(train_module, "ray_cluster", refuse)
    assert train(base) == finished
    fewer = dataclasses.replace(base, workers=1)  # machines may change
    assert train(fewer) == finished


def test_another_recipe_under_the_same_name_is_refused(base: TrainConfig, finished: TrainResult) -> None:
    optim = dataclasses.replace(base.recipe.optim, learning_rate=0.5)
    changed = dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, optim=optim))
    with pytest.raises(ValueError, match=r"recipe.optim.learning_rate was 0.02 and is 0.5.*new --name"):
        train(changed)


def test_another_dataset_under_the_same_name_is_refused(
    base: TrainConfig, finished: TrainResult, tmp_path: Path
) -> None:
    other = write_learnable_dataset(tmp_path)
    manifest = storage.read_json(f"{other}/manifest.json")
    storage.write_atomic(f"{other}/manifest.json", storage.json_bytes(manifest | {"channel_mean": [0.4, 0.5, 0.6]}))
    with pytest.raises(ValueError, match="dataset_digest was"):
        train(dataclasses.replace(base, data=other))


def test_a_killed_worker_costs_no_epoch_and_changes_nothing(
    base: TrainConfig, finished: TrainResult, ray_session: None
) -> None:
    """After SIGKILL of a worker Ray starts the group again; the result equals that of the run that nobody disturbed."""
    config = dataclasses.replace(base, name="disturbed", register=None)
    with killed_worker(Path(config.output, config.name)) as killed:
        result = train(config)
    assert killed == ["killed"]
    assert [step for step, _ in history(result.run_id, "train/loss")] == list(range(EPOCHS))
    assert history(result.run_id, "val/mean_iou") == history(finished.run_id, "val/mean_iou")
    assert result.model_digest == finished.model_digest
    assert read_reference(result.model_folder) == read_reference(finished.model_folder)
    assert result.best_epoch == finished.best_epoch


class killed_worker:  # noqa: N801  # reads as a context manager
    """Kill one Ray Train worker process of this session as soon as the first checkpoint lies in the run's folder."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.events: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> list[str]:
        self.thread.start()
        return self.events

    def __exit__(self, *error: object) -> None:
        self.thread.join(timeout=5)

    def _run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if list(self.run_folder.glob("checkpoint-*/training_state.pt")):
                workers = [pid for pid in descendants(os.getpid()) if "RayTrainWorker" in command_of(pid)]
                if workers:
                    os.kill(workers[0], signal.SIGKILL)
                    self.events.append("killed")
                    return
            time.sleep(0.02)


TRAIN_PROGRAM = """
import signal
import sys
from pathlib import Path
from pipelines import cli
from pipelines.train import TrainConfig, train
from tests.pipelines.learnable_dataset import tiny_recipe

data, output, tracking_uri = sys.argv[1:]
config = TrainConfig(recipe=tiny_recipe(), data=data, output=output, name="killed", workers=2, experiment="tests",
    tracking_uri=tracking_uri)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
cli.main(lambda: config, train)
"""


@contextmanager
def started_driver(command: list[str], folder: Path, *, checkpoint: int) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own that has written a checkpoint."""
    with (folder / "first.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        try:
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline and driver.poll() is None:
                if list(folder.glob(f"killed/checkpoint-{checkpoint:05d}/training_state.pt")):
                    break
                time.sleep(0.05)
            yield driver
        finally:
            driver.kill()
            driver.wait()


@pytest.mark.slow
def test_a_killed_driver_starts_again_where_it_was(
    base: TrainConfig, finished: TrainResult, data: str, tracking_uri: str, tmp_path: Path
) -> None:
    """SIGKILL after the second checkpoint; the same command ends with the undisturbed run's weights and best score."""
    command = [sys.executable, "-c", TRAIN_PROGRAM, data, str(tmp_path), tracking_uri]
    with started_driver(command, tmp_path, checkpoint=1) as first:
        first.kill()
    assert not (tmp_path / "killed" / "result.json").exists(), (tmp_path / "first.log").read_text()
    run_id = storage.read_json(str(tmp_path / "killed" / "run.json"))["mlflow_run_id"]
    assert MlflowClient().get_run(run_id).info.status == "RUNNING"
    again = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=240)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch" in again.stderr
    result = TrainResult(**storage.read_json(str(tmp_path / "killed" / "result.json")))
    run = MlflowClient().get_run(run_id)
    assert result.run_id == run_id and run.info.status == "FINISHED"
    assert "ended without a word" in run.data.tags[tracking.LOST_TAG] and run.data.tags[tracking.STARTS_TAG] == "2"
    folder = str(tmp_path / "killed")
    assert [each.run_id for each in tracking.find_runs_by_tag(tracking.RECORDED_TAG, folder, job="train")] == [run_id]
    assert [step for step, _ in history(run_id, "train/loss")] == list(range(EPOCHS))
    assert history(run_id, "val/mean_iou") == history(finished.run_id, "val/mean_iou")
    assert (result.model_digest, result.best_epoch) == (finished.model_digest, finished.best_epoch)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_its_workers_and_says_so(
    data: str, tracking_uri: str, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", TRAIN_PROGRAM, data, str(tmp_path), tracking_uri]
    with started_driver(command, tmp_path, checkpoint=0) as driver:
        family = descendants(driver.pid)
        assert any("RayTrainWorker" in command_of(pid) for pid in family)
        driver.send_signal(number)
        assert driver.wait(timeout=60) == 130
    log = (tmp_path / "first.log").read_text()
    assert "interrupted; the same command continues where it stopped" in log.splitlines()[-1], log
    assert "Traceback" not in log, log
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(command_of, family)):
        time.sleep(0.1)
    assert not [command for command in map(command_of, family) if command]
    run_id = storage.read_json(str(tmp_path / "killed" / "run.json"))["mlflow_run_id"]
    assert MlflowClient().get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_a_shard_that_changed_is_named(base: TrainConfig, tmp_path: Path, ray_session: None) -> None:
    data = write_learnable_dataset(tmp_path)
    part = tmp_path / "train" / "part-00002.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    config = dataclasses.replace(base, data=data, name="corrupt", workers=1, register=None)
    with pytest.raises(ValueError, match=r"part-00002.parquet is corrupt or was changed"):
        train(config)
    run_id = storage.read_json(f"{config.output}/corrupt/run.json")["mlflow_run_id"]
    assert MlflowClient().get_run(run_id).info.status == "FAILED"


@pytest.mark.slow
def test_statistics_of_batch_normalisation_are_computed_anew_after_the_last_epoch(
    base: TrainConfig, ray_session: None
) -> None:
    recipe = dataclasses.replace(tiny_recipe(epochs=2), batch_norm_batches=3)
    result = train(dataclasses.replace(base, name="recomputed", recipe=recipe, register=None))
    for epoch, batches in ((0, recipe.steps_per_epoch(num_images=38, num_workers=2)), (1, 3)):
        checkpoint = Path(result.run_folder, f"checkpoint-{epoch:05d}", WEIGHTS_FILE)
        if checkpoint.exists() or epoch == 1:  # of two, the best and the latest are kept
            state = safetensors.torch.load_file(checkpoint)
            counts = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
            assert counts == {batches}


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests refuse is refused before Ray is asked for anything."""

    def refuse(**settings: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(train_module, "ray_cluster", refuse)


def changed_recipe(config: TrainConfig, **fields: Any) -> TrainConfig:
    return dataclasses.replace(config, name="new", recipe=dataclasses.replace(config.recipe, **fields))


@pytest.mark.usefixtures("no_cluster")
class TestRefusedAtTheStart:
    def test_a_missing_dataset(self, base: TrainConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no manifest.json.*jobs/prepare.py"):
            train(dataclasses.replace(base, name="new", data=str(tmp_path / "absent")))

    def test_a_missing_split(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match=r"no split 'test'; it has 'train', 'val'"):
            train(dataclasses.replace(base, name="new", validation_split="test"))

    def test_a_batch_that_does_not_divide_among_the_workers(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match=r"batch_size 9 does not divide among 2 workers"):
            train(changed_recipe(base, batch_size=9))

    def test_a_dataset_smaller_than_a_batch(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match=r"38 training images do not fill one batch of 40 over 2 workers"):
            train(changed_recipe(base, batch_size=40))

    def test_one_image_per_worker(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match=r"gives each of 2 worker\(s\) one image.*--batch-size 4"):
            train(changed_recipe(base, batch_size=2))

    def test_a_missing_shard(self, base: TrainConfig, tmp_path: Path) -> None:
        data = write_learnable_dataset(tmp_path)
        Path(data, "val", "part-00001.parquet").unlink()
        with pytest.raises(ValueError, match=r"shard .*val/part-00001.parquet is missing"):
            train(dataclasses.replace(base, name="new", data=data))

    def test_a_cut_shard(self, base: TrainConfig, tmp_path: Path) -> None:
        data = write_learnable_dataset(tmp_path)
        part = Path(data, "train", "part-00003.parquet")
        part.write_bytes(part.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"part-00003.parquet has \d+ bytes and its manifest says"):
            train(dataclasses.replace(base, name="new", data=data))

    def test_a_decoder_without_its_label_pca(self, base: TrainConfig) -> None:
        with pytest.raises(
            ValueError, match=r"needs --label-pca; make one with jobs/fit_label_pca.py .*--block-side 32"
        ):
            train(changed_recipe(base, model=DUpsamplingConfig(backbone="mobilenet_v3_small")))

    def test_a_label_pca_that_is_of_no_use(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match="has no use for --label-pca"):
            train(dataclasses.replace(base, name="new", label_pca="somewhere"))

    def test_missing_weights(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match="no weights file at 'absent.pth'"):
            train(dataclasses.replace(base, name="new", weights="absent.pth"))
        assert not Path(base.output, "new", "run.json").exists()

    def test_a_start_from_a_whole_network_and_from_a_backbone_at_once(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match="--start-from model has a backbone already, and --weights timm would"):
            dataclasses.replace(base, name="new", start_from="model", weights="timm")

    def test_another_network_to_start_from(self, base: TrainConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="to start from has .* of another shape: aspp"):
            model = write_model(tmp_path / "model", width=8, backbone="mobilenet_v3_small")
            train(dataclasses.replace(base, name="new", start_from=model))
        assert not Path(base.output, "new", "run.json").exists()

    def test_an_output_that_cannot_be_written(self, base: TrainConfig, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(ValueError, match="cannot write below"):
            train(dataclasses.replace(base, name="new", output=str(tmp_path / "file")))

    def test_a_tracking_server_that_does_not_answer(self, base: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.tracking.store.SERVER_WAIT_SECONDS", 0.5)
        with pytest.raises(ValueError, match="did not answer"):
            train(dataclasses.replace(base, name="new", tracking_uri="http://127.0.0.1:9"))
        tracking.connect(base.tracking_uri)

    def test_a_name_that_is_no_folder(self, base: TrainConfig) -> None:
        with pytest.raises(ValueError, match="give one without slashes"):
            dataclasses.replace(base, name="a/b")


def test_too_many_workers_for_the_cluster_fail_at_once_and_leave_the_name_usable(
    base: TrainConfig, ray_session: None
) -> None:
    config = dataclasses.replace(changed_recipe(base, batch_size=12), workers=6, register=None)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.train.claim", interrupt)
        train(dataclasses.replace(config, workers=4))  # it has a run in MLflow, and no record of it yet
    (killed,) = (run for run in tracking.find_runs(experiment="tests", job="train") if run.name == "new")
    assert killed.status == "KILLED" and not storage.exists(f"{config.output}/new/run.json")
    with pytest.raises(ValueError, match=r"6 logical CPUs and 6 train worker\(s\) and 1 reader need 7"):
        train(config)
    run_id = storage.read_json(f"{config.output}/new/run.json")["mlflow_run_id"]
    assert MlflowClient().get_run(run_id).info.status == "FAILED"
    assert run_id == killed.run_id, "one run for one training, though nothing but its key led to it"


def interrupt(*ignored: object, run_id: str) -> None:
    raise KeyboardInterrupt


def test_gpus_that_are_not_there_fail_at_once(base: TrainConfig, ray_session: None) -> None:
    if ray.cluster_resources().get("GPU", 0):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="0 logical GPUs"):
        train(dataclasses.replace(base, name="gpu", use_gpu=True, workers=1, register=None))
