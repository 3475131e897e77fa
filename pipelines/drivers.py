"""Who drives a job: a process unlike every other, whose end can be seen from the same machine."""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """A process on a machine, such that no other has the same description, ever.

    Attributes:
        host: name of the machine.
        boot_id: of its running kernel; "" where it cannot be read.
        pid: of the process.
        started_ticks: when the process was started, since the machine's boot; pids are used again. "" if unknown.
        claimed_at: UTC, ISO 8601, for people.
    """

    host: str
    boot_id: str
    pid: int
    started_ticks: str
    claimed_at: str

    @staticmethod
    def this_process() -> "Driver":
        return Driver(
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            started_ticks=_started_ticks(os.getpid()),
            claimed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def is_dead_here(self) -> bool:
        """Whether it ran on this machine and has ended; False where that cannot be known."""
        return self._is_of_this_machine() and not self._runs()

    def is_alive_here(self) -> bool:
        """Whether it runs on this machine; False where that cannot be known."""
        return self._is_of_this_machine() and self._runs()

    def _is_of_this_machine(self) -> bool:
        return bool(self.boot_id and self.started_ticks) and self.host == socket.gethostname()

    def _runs(self) -> bool:
        return self.boot_id == _boot_id() and _started_ticks(self.pid) == self.started_ticks


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started_ticks(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat (proc(5)), behind the command's name, which may hold anything; "" where it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended; nobody has asked for its exit code yet
