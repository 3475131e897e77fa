"""A cluster that starts machines on demand is not refused for having none yet; an interrupted job says so."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray._private.state import state

from pipelines import cluster
from pipelines.cluster import cluster_size, ray_cluster, task_results
from tests.pipelines.processes import command_of, descendants, needs_proc

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("ray_session")
def test_machines_that_the_cluster_may_start_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"node:__internal_head__": 1.0})  # as `ray up` leaves it
    monkeypatch.setattr(cluster, "CLUSTER_FILE", tmp_path / "absent.yaml")
    assert cluster_size() == 0
    with (
        pytest.raises(ValueError, match="0 logical CPUs and 4 train workers need 5; ask for fewer --workers"),
        ray_cluster(num_cpus_needed=5, why="4 train workers"),
    ):
        raise AssertionError("not reached")
    monkeypatch.setattr(cluster, "CLUSTER_FILE", ROOT / "ray_cluster.yaml")  # which `ray up` copies to the head
    assert cluster_size() >= 64 and cluster_size("GPU") >= 4
    with ray_cluster(num_cpus_needed=5, num_gpus_needed=4, why="4 train workers"):
        assert "0 of 5 logical CPUs are running; the cluster starts machines for the rest" in caplog.text
    with (
        pytest.raises(ValueError, match="logical GPUs and 99 train workers need 99"),
        ray_cluster(num_cpus_needed=5, num_gpus_needed=99, why="99 train workers"),
    ):
        raise AssertionError("not reached")


@pytest.mark.usefixtures("ray_session")
def test_machines_that_kuberays_autoscaler_may_start_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "CLUSTER_FILE", tmp_path / "absent.yaml")
    running = int(ray.cluster_resources()["CPU"])
    assert cluster_size() == running  # no autoscaler here, and Ray is asked
    limits = {"CPU": 64, "GPU": 8}
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: limits)
    assert cluster_size() == 64 and cluster_size("GPU") == 8


def test_a_submitted_job_says_what_should_have_stayed_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "LARGE_UPLOAD_BYTES", 5000)
    (tmp_path / "photos" / "2026").mkdir(parents=True)
    (tmp_path / "photos" / "2026" / "a.jpg").write_bytes(bytes(4500))
    (tmp_path / "code.py").write_bytes(bytes(400))
    cluster.warn_of_large_upload(tmp_path)
    assert not caplog.records
    (tmp_path / "code.py").write_bytes(bytes(600))
    cluster.warn_of_large_upload(tmp_path)
    assert "add the line '- /photos' to `excludes` in runtime_env.yaml" in caplog.text


WAITING_JOB = """
import signal, time
from pipelines import cli
from pipelines.cluster import ray_cluster

def stage(config):
    with ray_cluster(num_cpus_needed=1, why="a test"):
        print("ready", flush=True)
        time.sleep(120)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
cli.main(lambda: None, stage)
"""

WAITING_NOTEBOOK = """
import time
from pipelines.cluster import ray_cluster

try:
    with ray_cluster(num_cpus_needed=1, why="a test"):
        print("ready", flush=True)
        time.sleep(120)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@contextmanager
def started(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@needs_proc
@pytest.mark.parametrize(
    "number, when",
    [
        (signal.SIGINT, "ready"),
        (signal.SIGTERM, "starting"),
        pytest.param(signal.SIGTERM, "ready", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_job_exits_with_130(number: signal.Signals, when: str) -> None:
    """For SIGTERM `ray.init` brings a handler of its own, at its very start, which exits with 15."""
    with started(WAITING_JOB) as job:
        assert job.stdout is not None
        if when == "starting":
            while not any("gcs_server" in command_of(pid) for pid in descendants(job.pid)):
                assert job.poll() is None
                time.sleep(0.05)
        else:
            assert job.stdout.readline() == "ready\n"
        job.send_signal(number)
        _, messages = job.communicate(timeout=60)
    assert job.returncode == 130
    assert messages.splitlines()[-1] == "interrupted; the same command continues where it stopped"


def test_sigterm_interrupts_who_has_no_handler() -> None:
    with started(WAITING_NOTEBOOK) as notebook:
        assert notebook.stdout is not None and notebook.stdout.readline() == "ready\n"
        notebook.terminate()
        output, _ = notebook.communicate(timeout=60)
    assert (notebook.returncode, output) == (0, "interrupted\n")


def times(number: int, factor: int) -> int:
    return number * factor


@pytest.mark.parametrize("message, tries", [("The current node timed out during startup. This", 2), ("no space", 1)])
def test_an_embedded_ray_that_a_busy_machine_starts_too_slowly_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, message: str, tries: int
) -> None:
    given: list[dict[str, object]] = []

    def init(**arguments: object) -> None:
        given.append(arguments)
        raise Exception(message)  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(Exception, match=message), ray_cluster(num_cpus_needed=1, why="test"):
        pass
    assert len(given) == tries and all(each["address"] == "local" for each in given)
    assert ("trying once more" in caplog.text) == (tries == 2)


@pytest.mark.usefixtures("ray_session")
def test_pieces_are_drawn_as_tasks_end_so_that_their_giver_can_stop() -> None:
    drawn: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(100):
            if len(seen) >= 4:
                return
            drawn.append(number)
            yield number

    seen: dict[int, int] = {}
    for number, result in task_results(times, pieces(), 10, workers=2):
        seen[number] = result
        assert len(drawn) <= len(seen) + 2
    assert seen == {number: 10 * number for number in drawn}
    assert 4 <= len(seen) <= 6
