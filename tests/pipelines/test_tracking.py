"""MLflow runs end as the job ended, a resumed run logs no step twice, and a registered model serves."""

import ast
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from numpy.typing import NDArray

from pipelines import tracking
from pipelines.checkpoints import InputPolicy, ModelCard, save_model
from pipelines.cluster import SUBMITTED_JOB
from pipelines.intake.labels import encode_labels_png
from pipelines.manifests import read_manifest
from pipelines.serving import ServedModel
from segcore.models import DeepLabV3PlusConfig, build_model

CONFIG = DeepLabV3PlusConfig(
    backbone="mobilenet_v3_small", output_stride=32, aspp_channels=16, low_level_features=(), decoder_channels=16
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One SQLite store for all tests here: its migrations take seconds."""
    yield tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("model") / "model")
    card = ModelCard(
        model_config=CONFIG,
        class_names=("sky", "road", "tree"),
        palette=((0, 0, 1), (2, 3, 4), (5, 6, 255)),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        dataset_digest="d" * 64,
        label_pca_digest="e" * 64,
        recipe={},
        scores={"val/mean_iou": 0.5},
        input_policy=InputPolicy(image_height=240, image_width=320, crop_height=192, crop_width=256),
    )
    save_model(folder, build_model(CONFIG, 3), card)
    return folder


def open_run(name: str, run_id: str | None = None) -> AbstractContextManager[tracking.TrackedRun]:
    parameters = {"recipe": {"epochs": 3, "optim": {"learning_rate": 0.1}}, "data": "here"}
    return tracking.tracked_run(
        experiment="tests", name=name, job="train", parameters=parameters, tags={"x": "y"}, run_id=run_id
    )


def test_parameters_are_flat_text() -> None:
    values = {"a": {"b": (1, 2), "c": {"d": None}}, "e": 0.5}
    assert tracking.flat_parameters(values) == {"a.b": "(1, 2)", "a.c.d": "None", "e": "0.5"}


def test_a_run_records_parameters_metrics_tags_and_files(store: str) -> None:
    with open_run("complete") as run:
        run.log_metrics({"train/loss": 2.0, "val/iou/tree (tall)": 0.25, "val/iou/absent": float("nan")}, step=0)
        run.log_metrics({"train/loss": 1.0}, step=1)
        run.log_bytes("pictures/0.png", b"png")
    record = next(each for each in tracking.find_runs(experiment="tests", job="train") if each.name == "complete")
    assert record.status == "FINISHED" and record.duration_seconds is not None
    assert record.parameters == {"recipe.epochs": "3", "recipe.optim.learning_rate": "0.1", "data": "here"}
    assert record.metrics == {"train/loss": 1.0, "val/iou/tree _tall_": 0.25}
    assert record.tags[tracking.JOB_TAG] == "train" and record.tags["x"] == "y"
    assert [file.path for file in MlflowClient().list_artifacts(record.run_id, "pictures")] == ["pictures/0.png"]
    assert tracking.find_runs(experiment="tests", job="segment") == []


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED")]
)
def test_a_run_ends_as_its_job_ended(store: str, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_run("broken") as run:
        raise error
    assert MlflowClient().get_run(run.run_id).info.status == status


def test_a_resumed_run_goes_on_and_can_tell_what_it_has_logged(store: str) -> None:
    with pytest.raises(RuntimeError), open_run("resumed") as run:
        assert run.last_step("train/loss") is None
        run.log_metrics({"train/loss": 3.0}, step=0)
        run.log_metrics({"train/loss": 2.0}, step=1)
        raise RuntimeError("killed")
    with open_run("ignored", run_id=run.run_id) as again:
        assert MlflowClient().get_run(run.run_id).info.status == "RUNNING"
        assert again.last_step("train/loss") == 1
        worker = tracking.attach(store, run.run_id)
        worker.log_metrics({"train/loss": 1.0}, step=2)
    history = MlflowClient().get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"


def test_a_run_that_is_not_there_is_refused(store: str) -> None:
    with (
        pytest.raises(ValueError, match=r"no run 0123 .*--tracking-uri of the first start"),
        open_run("x", run_id="0123"),
    ):
        raise AssertionError("not reached")


def test_an_unknown_experiment_lists_the_known_ones(store: str) -> None:
    with open_run("any"):
        pass
    with pytest.raises(ValueError, match="no experiment 'nope'; it has: Default, tests"):
        tracking.find_runs(experiment="nope", job=None)


def test_runs_are_found_by_a_filter_of_mlflow_s(store: str) -> None:
    for name in ("filtered-1", "filtered-2"):
        with open_run(name) as run:
            run.log_metrics({"val/mean_iou": float(name[-1])})
    condition = "attributes.run_name LIKE 'filtered%' AND metrics.`val/mean_iou` > 1.5"
    found = tracking.find_runs(experiment="tests", job="train", condition=condition)
    assert [record.name for record in found] == ["filtered-2"]
    condition = "params.`recipe.epochs` = '3' AND attributes.run_name LIKE 'filtered%'"
    assert len(tracking.find_runs(experiment="tests", job="train", condition=condition)) == 2
    assert tracking.find_runs(experiment="tests", job="segment", condition=condition) == []
    with pytest.raises(ValueError, match=r"MLflow refuses the filter \"a = 'b' OR c = 'd'\": .*joined by AND"):
        tracking.find_runs(experiment="tests", job=None, condition="a = 'b' OR c = 'd'")


def test_what_a_run_logged_can_be_read_again(store: str) -> None:
    with open_run("read again") as run:
        run.log_bytes("tables/a.txt", b"abc")
    assert tracking.read_artifact(run.run_id, "tables/a.txt") == b"abc"
    with pytest.raises(ValueError, match=r"gives no artifact 'b\.txt'"):
        tracking.read_artifact(run.run_id, "b.txt")


def test_artifacts_lie_beside_the_database_and_not_in_the_current_folder(store: str) -> None:
    with open_run("place") as run:
        run.log_bytes("a.txt", b"a")
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlruns"
    assert list(folder.rglob("a.txt"))
    assert not Path("mlruns").exists()


def test_a_submitted_job_may_not_track_into_its_own_passing_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"a copy of this folder that Ray removes.*--tracking-uri"):
        tracking.connect(None)


def test_a_worker_that_does_not_see_the_tracking_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"machine does not see the tracking file .*other\.db"):
        tracking.attach(f"sqlite:///{tmp_path}/other.db", "0123")
    assert not (tmp_path / "other.db").exists()


def test_a_gateway_without_a_server_behind_it_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.store.SERVER_WAIT_SECONDS", 0.5)

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=r"did not answer for .*HTTP 503"):
            tracking.connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_packed_model_names_every_package_that_serving_it_imports() -> None:
    """A virtual environment made from its requirements has nothing else."""
    program = (
        "import sys, pipelines.serving\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith(('pipelines', 'segcore'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set()
    for file in done.stdout.split():
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"pipelines", "segcore", "mlflow"}
    assert "numba" in foreign
    distributions = {"PIL": "pillow", "cv2": "opencv-contrib-python-headless"}
    assert {distributions.get(name, name) for name in foreign} <= set(tracking.SERVING_PACKAGES)


def test_a_server_that_does_not_answer_is_an_error_after_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.store.SERVER_WAIT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"127.0.0.1:9 did not answer.*--tracking-uri"):
        tracking.connect("http://127.0.0.1:9")
    assert time.monotonic() - began < 8


def test_a_plain_folder_is_no_store() -> None:
    with pytest.raises(ValueError, match=r"neither an MLflow server .* nor a SQLite file"):
        tracking.connect("file:///tmp/runs")


def test_a_registered_model_resolves_by_alias_and_version(store: str, model_folder: str) -> None:
    with open_run("register") as run:
        version = tracking.register_model(model_folder, name="street", alias="challenger", run_id=run.run_id)
        same = tracking.register_model(model_folder, name="street", alias="champion", run_id=run.run_id)
    assert version == same
    expected = tracking.ResolvedModel(folder_uri=model_folder, version=version, model_uri=f"models:/street/{version}")
    for uri in ("models:/street@challenger", "models:/street@champion", f"models:/street/{version}"):
        assert tracking.resolve_model(uri) == expected
    plain = tracking.ResolvedModel(folder_uri=model_folder, version="", model_uri=model_folder)
    assert tracking.resolve_model(model_folder) == plain


@pytest.mark.parametrize("uri", ["models:/street@nobody", "models:/street/99", "models:/avenue/1"])
def test_an_unknown_model_lists_the_registered_ones(store: str, model_folder: str, uri: str) -> None:
    with open_run("register") as run:
        tracking.register_model(model_folder, name="street", alias="challenger", run_id=run.run_id)
    with pytest.raises(ValueError, match=r"cannot resolve .*registered models: .*street"):
        tracking.resolve_model(uri)


def test_a_malformed_model_uri_shows_the_forms() -> None:
    with pytest.raises(ValueError, match=r"none of models:/name@alias, models:/name/3"):
        tracking.resolve_model("models:/street")


def test_a_fresh_process_serves_the_registered_model(store: str, model_folder: str, tmp_path: Path) -> None:
    """What a user of MLflow alone types; file and array of one image give one class map. Nothing is unpickled."""
    with open_run("serve") as run:
        tracking.register_model(model_folder, name="served", alias="challenger", run_id=run.run_id)
    program = f"""
import fractions, io, pickle, sys, mlflow, numpy, pandas, PIL.Image
unpickled = []
sys.addaudithook(lambda event, arguments: unpickled.append(arguments) if event == "pickle.find_class" else None)
pickle.loads(pickle.dumps(fractions.Fraction(1, 2)))
assert unpickled == [("fractions", "Fraction")], unpickled
unpickled.clear()
mlflow.set_tracking_uri({store!r})
model = mlflow.pyfunc.load_model("models:/served@challenger")
image = numpy.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=numpy.uint8)
file = io.BytesIO()
PIL.Image.fromarray(image).save(file, "PNG")
(single,) = model.predict(pandas.DataFrame({{"image": [file.getvalue()]}}))
assert single.shape == (40, 56) and single.dtype == numpy.uint8, single
twice = model.predict(pandas.DataFrame({{"image": [image, file.getvalue()]}}))
assert len(twice) == 2 and all((each == single).all() for each in twice)
(example,) = model.predict(model.input_example)
assert example.shape == (60, 80), example.shape
assert not unpickled, unpickled
numpy.save(sys.argv[1], single)
"""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", program, str(tmp_path / "mask.npy")]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    assert np.array_equal(np.load(tmp_path / "mask.npy"), served(model_folder).predict(image))


def test_no_file_of_a_registered_model_is_a_pickle(store: str, model_folder: str, tmp_path: Path) -> None:
    with open_run("files") as run:
        tracking.register_model(model_folder, name="files", alias="challenger", run_id=run.run_id)
    packed = Path(MlflowClient().download_artifacts(run.run_id, "model", str(tmp_path)))
    files = [path for path in packed.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"MLmodel", "model.safetensors", "config.json", "serving.py"}
    suffixes = {"", ".jinja", ".json", ".py", ".safetensors", ".txt", ".yaml"}  # "": MLmodel
    assert {path.suffix for path in files} <= suffixes, "a new kind of file: can it hold a pickle?"
    for path in files:
        if path.suffix != ".safetensors":  # whose reader is told apart below; the others are text, which no pickle is
            path.read_text(encoding="utf-8")
    (weights,) = (path for path in files if path.suffix == ".safetensors")
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(weights.read_bytes())
    assert "python_model" not in yaml.safe_load((packed / "MLmodel").read_text())["flavors"]["python_function"]


def test_a_version_names_what_it_was_made_of(store: str, model_folder: str) -> None:
    with open_run("origins") as run:
        number = tracking.register_model(model_folder, name="origins", alias="challenger", run_id=run.run_id)
    version = MlflowClient().get_model_version("origins", number)
    manifest = read_manifest(model_folder, kind="model")
    assert version.tags == {
        tracking.MODEL_FOLDER_TAG: model_folder,
        tracking.MODEL_DIGEST_TAG: manifest["digest"],
        tracking.DATASET_DIGEST_TAG: "d" * 64,
        tracking.LABEL_PCA_DIGEST_TAG: "e" * 64,
        tracking.CODE_TAG: manifest["code_commit"],
    }
    info = mlflow.models.get_model_info(f"models:/origins/{number}")
    (column,) = info.signature.inputs.to_dict()
    assert (column["name"], column["type"], column["required"]) == ("image", "binary", True)
    whole = mlflow.artifacts.load_text(f"runs:/{run.run_id}/model_card.md")
    assert whole.startswith("# origins\n") and "## Classes" in whole
    summary, _, card = (version.description or "").partition("\n\n")
    assert summary == "deeplab_v3plus on mobilenet_v3_small, 3 classes; val/mean_iou 0.5000; dataset `dddddddddddd`."
    assert f"| model digest | `{manifest['digest']}` |" in card and "## Classes" not in card
    assert "champion" in (MlflowClient().get_registered_model("origins").description or "")
    versions = tracking.versions_of_model(manifest["digest"])
    assert ("origins", number, run.run_id) in {(each.name, each.version, each.run_id) for each in versions}


def served(model_folder: str) -> ServedModel:
    from pipelines.serving import _load_pyfunc

    return _load_pyfunc(model_folder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 4), dtype=np.uint8), r"shape \(4, 4\); give \(H,W,3\)"),
        (np.zeros((4, 4, 3)), "an image is float64"),
        (pd.DataFrame({"picture": [encode_labels_png(np.zeros((2, 2), dtype=np.uint8))]}), "none of them 'image'"),
    ],
)
def test_serving_refuses_what_is_no_image(model_folder: str, images: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served(model_folder).predict(images)


def test_mlflow_stays_quiet(store: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_run("quiet"):
        pass
    assert [record for record in caplog.records if record.name.startswith(("mlflow", "alembic"))] == []


@pytest.mark.slow
def test_two_processes_may_open_a_new_sqlite_file_at_once(tmp_path: Path) -> None:
    code = f"from pipelines import tracking; tracking.connect('sqlite:///{tmp_path / 'new.db'}')"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()[-2000:]
