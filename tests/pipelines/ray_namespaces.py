"""Ray nodes in network namespaces: each has an address of its own, and its cable can be pulled. Needs root and `ip`."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.pipelines.processes import descendants, kill

START_SECONDS = 180.0
_QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "4",
}


def _namespaces_work() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"sp{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "link", "del", name], check=True)
    return made.returncode == 0


needs_namespaces = pytest.mark.skipif(not _namespaces_work(), reason="makes network namespaces: as root, with iproute2")


@dataclass
class Namespaces:
    """A head in one namespace and nodes in others, joined by a bridge.

    Attributes:
        prefix: of all names.
        network: first three bytes of all addresses.
        num_nodes: without the head.
        processes: `ray start --block` of each.
    """

    prefix: str
    network: str
    num_nodes: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For RAY_ADDRESS, within a namespace."""
        return f"{self.network}.2:6379"

    def inside(self, number: int, command: list[str]) -> list[str]:
        """The command, run beside a node that runs; 0 is the head, where drivers belong."""
        return ["nsenter", f"--target={self.processes[number].pid}", "--net", "--mount", *command]

    def node_of(self, pid: int) -> int:
        """In which namespace a process runs."""
        found = _ip("netns", "identify", str(pid)).strip()
        assert found.startswith(f"{self.prefix}n"), found
        return int(found.removeprefix(f"{self.prefix}n"))

    def cut_off(self, number: int) -> None:
        """Pull the cable of a node: nothing answers, nothing is refused."""
        _ip("link", "set", f"{self.prefix}v{number}", "down")

    def join_again(self, number: int) -> None:
        """Put it back."""
        _ip("link", "set", f"{self.prefix}v{number}", "up")

    def _make(self) -> None:
        _ip("link", "add", f"{self.prefix}b", "type", "bridge")
        _ip("link", "set", f"{self.prefix}b", "up")
        for number in range(self.num_nodes + 1):
            space, outer, inner = (f"{self.prefix}{kind}{number}" for kind in "nvi")
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", space)
            _ip("link", "set", outer, "master", f"{self.prefix}b", "up")
            _ip("-n", space, "addr", "add", f"{self.network}.{number + 2}/24", "dev", inner)
            _ip("-n", space, "link", "set", inner, "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for number in range(self.num_nodes + 1):
            subprocess.run(["ip", "netns", "del", f"{self.prefix}n{number}"], capture_output=True)
            subprocess.run(["ip", "link", "del", f"{self.prefix}v{number}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.prefix}b"], capture_output=True)

    def _start(self, *, num_cpus: int, environment: dict[str, str]) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)
        ray = str(Path(sys.executable).with_name("ray"))
        sizes = ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        for number in range(self.num_nodes + 1):
            own = f"--node-ip-address={self.network}.{number + 2}"
            if number == 0:
                command = [ray, "start", "--head", own, "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
            else:
                command = [ray, "start", f"--address={self.address}", own, f"--num-cpus={num_cpus}"]
            # `ip netns exec` gives it mounts of its own: a folder for sockets and logs that no other node sees.
            with_own_folder = ["sh", "-c", 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"', "sh", *command, *sizes]
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.prefix}n{number}", *with_own_folder],
                env=os.environ | _QUICK_TO_NOTICE | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.processes.append(process)
            if number == 0:
                self._wait("socket.create_connection((host, 6379), 2)")
        nodes = f"len([n for n in ray.nodes() if n['Alive']]) == {self.num_nodes + 1}"
        self._wait(f"ray.init(f'{{host}}:6379', log_to_driver=False); assert {nodes}")

    def _wait(self, statement: str) -> None:
        """Until a statement passes beside the head."""
        program = f"import ray, socket; host = '{self.network}.2'; {statement}"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            tried = subprocess.run(self.inside(0, [sys.executable, "-c", program]), capture_output=True)
            if tried.returncode == 0:
                return
            time.sleep(0.3)
        raise RuntimeError(f"Ray did not start in {self.prefix}: {statement}")

    def _end(self) -> None:
        family = [pid for process in self.processes for pid in (process.pid, *descendants(process.pid))]
        kill(family)
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def ray_namespaces(num_nodes: int, *, num_cpus: int, environment: dict[str, str]) -> Iterator[Namespaces]:
    """A head and `num_nodes` nodes with `num_cpus` logical CPUs each; all gone at the end, namespaces too."""
    spaces = Namespaces(
        f"sp{secrets.token_hex(3)}", f"10.{200 + secrets.randbelow(55)}.{secrets.randbelow(256)}", num_nodes
    )
    try:
        spaces._make()
        spaces._start(num_cpus=num_cpus, environment=environment)
        yield spaces
    finally:
        spaces._end()
        spaces._remove()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
