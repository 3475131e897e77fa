"""A Ray cluster of several nodes on this machine, each with its own raylet, object store and workers, to be killed."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.pipelines.processes import command_of, descendants, kill

OBJECT_STORE_BYTES = 150 * 2**20
DEAD_AFTER_MS = 3000


class RayNodes:
    """A head that computes nothing, and nodes that do.

    Attributes:
        address: for RAY_ADDRESS.
    """

    def __init__(self, num_nodes: int, *, num_cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self.num_cpus = num_cpus
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_system_config": {
                    "health_check_initial_delay_ms": 0,
                    "health_check_period_ms": 500,
                    "health_check_timeout_ms": DEAD_AFTER_MS,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        self.address: str = self._cluster.address
        self._nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add_node()

    @property
    def logs(self) -> Path:
        """Where all nodes write theirs."""
        head: Any = self._cluster.head_node
        return Path(head.get_logs_dir_path())

    def add_node(self) -> None:
        """One more."""
        self._nodes.append(self._cluster.add_node(num_cpus=self.num_cpus, object_store_memory=OBJECT_STORE_BYTES))

    def kill_node_of(self, pid: int) -> None:
        """SIGKILL of the raylet that started a worker, and of all below it."""
        (node,) = [each for each in self._nodes if pid in descendants(self._raylet(each))]
        family = descendants(self._raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        kill(family)
        self._nodes.remove(node)

    def pids(self) -> list[int]:
        """Every process of the cluster."""
        nodes = [self._cluster.head_node, *self._nodes]
        started = [each.process.pid for node in nodes for kind in node.all_processes.values() for each in kind]
        return [*started, *(below for pid in started for below in descendants(pid))]

    def end(self) -> dict[int, str]:
        """End all nodes; returns ids and commands of processes that would not go, after they were killed."""
        family = self.pids()
        self._cluster.shutdown()
        deadline = time.monotonic() + 15
        while (left := [pid for pid in family if _runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        outlived = {pid: command_of(pid) for pid in left}
        kill(left)
        return outlived

    @staticmethod
    def _raylet(node: Any) -> int:
        (raylet,) = node.all_processes["raylet"]
        return int(raylet.process.pid)


@contextlib.contextmanager
def ray_nodes(num_nodes: int, *, num_cpus: int) -> Iterator[RayNodes]:
    """Start them, and end them. Their workers see the environment of this moment.

    Raises:
        AssertionError: a process outlived its node.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes = RayNodes(num_nodes, num_cpus=num_cpus)
    try:
        yield nodes
    finally:
        left = nodes.end()
    assert not left, f"these processes outlived their nodes, and were killed: {left}"


def _runs(pid: int) -> bool:
    """Whether it does, and is no zombie that its parent has not asked after."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
