"""A real `mlflow server` on a free loopback port: SQLite behind it, artifacts through its proxy.

As it comes it is a web server, a job runner and seven task queues; runs and models need the first alone. The whole
family is stopped by the ids of its processes, and that none is left is checked.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local_services import free_ports
from tests.pipelines.processes import command_of, descendants, kill

START_SECONDS = 180.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowServer:
    """A server that answers.

    Attributes:
        uri: for `--tracking-uri`.
        process: its first one, the leader of its process group and its session.
        artifacts: folder behind the proxy, which clients need not see.
        log: what the server says.
    """

    uri: str
    process: "subprocess.Popen[bytes]"
    artifacts: Path
    log: Path

    def family(self) -> list[int]:
        """Ids of all its processes that still run: its descendants, and orphans of its session."""
        pid = self.process.pid
        return _alive([pid, *sorted({*descendants(pid), *session_members(pid)} - {pid})])

    def _killed(self, family: list[int]) -> list[int]:
        """Kill what is left, and what the job runner has started since; returns what was."""
        left = [*_alive(family), *self.family()]
        kill(left)
        return left

    def stop(self) -> None:
        """End all its processes, and check that none is left; nothing happens the second time.

        Raises:
            AssertionError: one is left.
        """
        family = self.family()  # before any of them ends: an orphan has another parent
        if family:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
        _wait(lambda: self.process.poll() is not None and not _alive(family))
        _wait(lambda: not self._killed(family))
        self.process.wait()
        left = {pid: command_of(pid) for pid in {*_alive(family), *session_members(self.process.pid)}}
        assert not left, f"processes of the server are left: {left}"


@contextlib.contextmanager
def mlflow_server(folder: Path, *, with_jobs: bool = False) -> Iterator[MlflowServer]:
    """Start a server whose database and artifacts lie in `folder`; on leaving, stop all its processes.

    Args:
        folder: new or empty, or of a server that was stopped.
        with_jobs: as it comes, in twice the time and with 2 GB more.

    Raises:
        AssertionError: it does not answer, or a process of it is left in the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log, artifacts = free_ports(["mlflow"])["mlflow"], folder / "server.log", folder / "artifacts"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
        *("--artifacts-destination", artifacts.as_uri(), "--serve-artifacts"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": str(with_jobs).lower()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    server = MlflowServer(uri=f"http://127.0.0.1:{port}", process=process, artifacts=artifacts, log=log)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        server.stop()


def session_members(leader: int) -> list[int]:
    """Ids of the processes in a session, orphans included: field 6 of /proc/<pid>/stat."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _wait_until_it_answers(server: MlflowServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.uri}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        dead, late = server.process.poll() is not None, time.monotonic() > deadline
        assert not dead and not late, f"the server does not answer:\n{server.log.read_text()[-3000:]}"
        time.sleep(0.2)


def _wait(condition: Callable[[], bool]) -> None:
    """Until it holds, or for `STOP_SECONDS`."""
    deadline = time.monotonic() + STOP_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _alive(pids: list[int]) -> list[int]:
    """Those that have not ended; a zombie has, and its command is empty."""
    return [pid for pid in pids if command_of(pid)]
