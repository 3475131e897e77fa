"""`infra/local.sh`: it ends what it started, all of it, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import local_services
from infra.local_services import ServiceError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "local.sh"

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which this system has not")

# Answers to HTTP, and leaves a process in a process group of its own, one in a session of its own, and one that has
# overwritten its environment, as Ray's workers do.
SERVER = """
import http.server, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep, process_group=0)
subprocess.Popen(sleep, start_new_session=True)
subprocess.Popen(sleep, env={})
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _service(name: str, port: int, code: str = SERVER) -> local_services.Service:
    return local_services.Service(
        name=name,
        command=(sys.executable, "-c", code, str(port)),
        environment={},
        answers=f"http://127.0.0.1:{port}/",
    )


@pytest.fixture
def small_services(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small HTTP servers in place of the three."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(local_services, "seaweed", lambda folder, ports: _service("s3", ports["s3.port"]))
    monkeypatch.setattr(local_services, "mlflow", lambda folder, ports, postgres: _service("mlflow", ports["mlflow"]))
    monkeypatch.setattr(local_services, "ray_head", lambda folder, ports, cpus: _service("ray", ports["dashboard"]))
    yield
    for process in local_services.STARTED:
        process.wait(timeout=20)
    local_services.STARTED.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:  # after `small_services`, and so stopped before it
    place = tmp_path / "local"
    yield place
    if (place / "state.json").exists():
        local_services.stop(place)


def _start(folder: Path) -> dict[str, Any]:
    local_services.start(folder, postgres="", num_cpus=1)
    return local_services.read_state(folder)


def _alive(pids: list[int]) -> set[int]:
    return set(pids) & set(local_services.process_times())


def test_everything_that_was_started_ends_and_nothing_else(small_services: None, folder: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        ours = local_services.our_processes(_start(folder))
        assert len(ours) == 3 * 4  # each server and its three
        local_services.stop(folder)
        assert not _alive(ours)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert {path.name for path in folder.iterdir()} == {
        *("lock", "mlflow.log", "ray.log", "s3.log", "s3_access_key", "s3_secret_key")
    }


def test_a_second_start_changes_nothing(small_services: None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _start(folder)
    assert _start(folder) == first
    assert "already running" in capsys.readouterr().out
    assert local_services.status(folder) == 0


def test_where_one_service_died_start_makes_all_anew(small_services: None, folder: Path) -> None:
    first = _start(folder)
    old = local_services.our_processes(first)
    os.kill(first["services"]["mlflow"]["pid"], signal.SIGKILL)
    while local_services.is_running(first, "mlflow"):
        time.sleep(0.05)
    assert local_services.status(folder) == local_services.NOT_RUNNING
    second = _start(folder)
    assert not _alive(old)  # the children of the dead one included
    assert local_services.status(folder) == 0 and second["mark"] != first["mark"]


@pytest.mark.parametrize("stale", ["another boot", "another process has the number"])
def test_a_stale_folder_harms_nobody(small_services: None, folder: Path, stale: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as stranger:
        try:
            while stranger.pid not in local_services.process_times():
                time.sleep(0.01)
            ticks = local_services.process_times()[stranger.pid][1]
            boot = local_services.BOOT_ID.read_text().strip()
            entry = {"pid": stranger.pid, "start_ticks": ticks, "answers": ""}
            state = {"mark": "0" * 16, "boot_id": boot, "services": {"s3": entry}}
            assert local_services.our_processes(state) == [stranger.pid]  # it would be ours, but for this:
            if stale == "another boot":
                state["boot_id"] = "another"
            else:
                entry["start_ticks"] = ticks - 100
            folder.mkdir()
            (folder / "state.json").write_text(json.dumps(state))
            assert local_services.status(folder) == local_services.NOT_RUNNING
            local_services.stop(folder)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_ctrl_c_during_the_start_leaves_nothing(small_services: None, folder: Path, monkeypatch: Any) -> None:
    started: list[int] = []
    launch: Callable[..., None] = local_services.launch

    def launch_and_interrupt(folder: Path, state: dict[str, Any], service: local_services.Service) -> None:
        launch(folder, state, service)
        started.append(state["services"][service.name]["pid"])
        if service.name == "mlflow":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(local_services, "launch", launch_and_interrupt)
    with pytest.raises(ServiceError, match="interrupted"):
        _start(folder)
    assert len(started) == 2 and not _alive(started)
    assert not (folder / "state.json").exists()


def test_a_service_that_dies_is_reported_with_its_log(
    small_services: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = _service("ray", 1, code="raise SystemExit('no such device')")
    monkeypatch.setattr(local_services, "ray_head", lambda folder, ports, cpus: dying)
    with pytest.raises(ServiceError, match=r"ray ended; the end of .*ray.log:\nno such device"):
        _start(folder)
    assert local_services.status(folder) == local_services.NOT_RUNNING


def test_two_starts_at_once_are_refused(folder: Path) -> None:
    with (
        local_services.locked(folder),
        pytest.raises(ServiceError, match="another start or stop works in"),
        local_services.locked(folder),
    ):
        pass


def test_every_port_of_seaweedfs_is_chosen(folder: Path) -> None:
    """With one default left, the second instance on a machine dies."""
    folder.mkdir()
    ports = local_services.free_ports(local_services.WEED_PORTS)
    assert len(set(ports.values())) == len(ports)
    try:
        command = local_services.seaweed(folder, ports).command
    finally:
        local_services.tidy(folder)
    assert {f"-{name}={port}" for name, port in ports.items()} <= set(command)
    secrets = [(folder / name).read_text() for name in ("s3_access_key", "s3_secret_key")]
    assert not any(
        secret in word for secret in secrets for word in command
    )  # they would stand in the list of processes
    assert (folder / "s3.json").stat().st_mode & 0o077 == 0


# --- the real ones ----------------------------------------------------------------------------------------------------

JOB = """
import os, ray
ray.init()
print("sum", sum(ray.get([ray.remote(lambda x: x * x).remote(number) for number in range(4)])))
"""
USE_S3 = """
import os, s3fs
s3fs.S3FileSystem().pipe_file("lake/night/a.bin", b"abc")
assert s3fs.S3FileSystem().cat_file("lake/night/a.bin") == b"abc"
try:
    s3fs.S3FileSystem(key=os.environ["AWS_ACCESS_KEY_ID"], secret="wrong").ls("lake")
except PermissionError:
    print("a wrong secret is refused")
"""
USE_MLFLOW = """
import mlflow
mlflow.set_experiment("street")
with mlflow.start_run():
    mlflow.log_metric("loss", 1.0)
    mlflow.log_text("hello", "note.txt")
    print(mlflow.get_artifact_uri())
"""


def _run(*words: str, environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_three_services_are_used_and_end(folder: Path, tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    plain["PYTHON"] = sys.executable
    words = (str(SCRIPT), "--folder", str(folder))
    _run(*words, "start", "--num-cpus", "4", environment=plain, cwd=tmp_path)
    state, sockets = local_services.read_state(folder), local_services.socket_folder(folder)
    try:
        assert "already running" in _run(*words, "start", environment=plain, cwd=tmp_path)
        exported = _run(
            "bash", "-c", f'eval "$("{SCRIPT}" --folder "{folder}" env)"; env', environment=plain, cwd=tmp_path
        )
        environment = dict(line.split("=", 1) for line in exported.splitlines() if "=" in line)

        assert "a wrong secret is refused" in _run(sys.executable, "-c", USE_S3, environment=environment, cwd=tmp_path)
        with urllib.request.urlopen(f"{environment['MLFLOW_TRACKING_URI']}/health", timeout=10) as reply:
            assert reply.status == 200
        artifacts = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
        stored = _run(sys.executable, "-c", USE_MLFLOW, environment=artifacts, cwd=tmp_path)
        assert stored.startswith("mlflow-artifacts:")  # through the server: the client has no key of the bucket

        work = tmp_path / "work"
        work.mkdir()
        (work / "job.py").write_text(JOB)
        submit = (sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(work))
        assert "sum 14" in _run(*submit, "--", "python", "job.py", environment=environment, cwd=tmp_path)
        stranger = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
        refused = subprocess.run(
            [*submit, "--", "python", "job.py"],
            env={**stranger, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert refused.returncode != 0 and "Missing authentication token" in refused.stderr + refused.stdout
        ours = local_services.our_processes(state)
        assert len(ours) > 10
    finally:
        _run(*words, "stop", environment=plain, cwd=tmp_path)
    assert not _alive(ours) and not local_services.our_processes(state)
    mentioned = [
        pid
        for pid in local_services.process_times()
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid()
    ]
    assert not mentioned
    assert not sockets.exists()
    ports = {str(port) for port in state["ports"].values()}
    assert not [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.rpartition("-")[2] in ports]
