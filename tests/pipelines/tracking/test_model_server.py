"""A registered model behind `mlflow models serve`: a PNG goes in over HTTP, its class map comes out."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.local_services import free_ports
from pipelines import tracking
from pipelines.checkpoints import load_model
from pipelines.pictures import png_bytes
from pipelines.serving import ServedModel
from tests.pipelines.processes import command_of, descendants, kill
from tests.pipelines.tiny_inputs import write_model

START_SECONDS = 240.0


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_model(tmp_path / "model")


@pytest.fixture
def version_uri(model: str, tmp_path: Path) -> str:
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.tracked_run(experiment="serve", name="serve", job="train", parameters={}, tags={}) as run:
        version = tracking.register_model(model, name="street", alias="champion", run_id=run.run_id)
    return f"models:/street/{version}"


@contextlib.contextmanager
def _served(uri: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve` in this environment, on a port of its own; all its processes end with the context."""
    port, log = free_ports(["model"])["model"], folder / "serve.log"
    words = ["models", "serve", "--model-uri", uri, "--port", str(port), "--host", "127.0.0.1", "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it calls uvicorn by name
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--env-manager", "local"],
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            late = time.monotonic() > deadline
            assert process.poll() is None and not late, f"the server does not answer:\n{log.read_text()[-4000:]}"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        family = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill(family)
        process.wait()
        deadline = time.monotonic() + 20
        while any(command_of(pid) for pid in family):
            assert time.monotonic() < deadline, "processes of the server are left"
            time.sleep(0.1)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_png_is_answered_by_its_class_map(model: str, version_uri: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 56), (33, 21))]
    expected = [np.asarray(ServedModel(load_model(model)).predict(image)) for image in images]
    cells = [[base64.b64encode(png_bytes(image)).decode()] for image in images]
    with _served(version_uri, tmp_path) as address:
        answer = _post(address, {"dataframe_split": {"columns": ["image"], "data": cells}})
        for found, wanted in zip(answer["predictions"], expected, strict=True):
            np.testing.assert_array_equal(np.array(found), wanted)
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(address, {"dataframe_split": {"columns": ["picture"], "data": cells}})
        assert refused.value.code == 400 and b"image" in refused.value.read()
