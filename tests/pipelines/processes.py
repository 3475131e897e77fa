"""Processes below one of our own, from /proc, so that a test kills nobody else's."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds the processes of a job in /proc, which this system has not"
)


def descendants(pid: int) -> list[int]:
    """Ids of the processes below `pid`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def started_with(name: str, value: str) -> list[int]:
    """Ids of the processes that were started with a variable of this value, but helpers of Python's own in this one."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        with contextlib.suppress(OSError):  # it has ended since, or is somebody else's
            if f"{name}={value}".encode() in environment.read_bytes().split(b"\0"):
                is_helper = "from multiprocessing." in command_of(pid) and pid in descendants(os.getpid())
                found += [] if is_helper else [pid]
    return found


def command_of(pid: int) -> str:
    """Command line of a process; Ray's workers write there what they run. Empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, *, seconds: float = 240
) -> None:
    """Until it holds; fails with the end of the log where the process ends or the time is over before."""
    deadline = time.monotonic() + seconds
    while not condition():
        late = time.monotonic() > deadline
        assert process.poll() is None and not late, f"the job ended or hung:\n{log.read_text()[-6000:]}"
        time.sleep(0.02)


def stopped_at(token: Path, process: "subprocess.Popen[bytes]", log: Path, *, seconds: float = 240) -> int:
    """The id of the process, of a job, that waits at the fault point of `token`, once there is one."""
    wait_for(lambda: token.exists() and bool(token.read_text()), process, log, seconds=seconds)
    return int(token.read_text())


def kill(pids: list[int]) -> None:
    """SIGKILL, where they still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
